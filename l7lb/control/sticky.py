"""An operator's words on the sticky tables: `l7lb table`.

The state process answers (see :mod:`l7lb.persistence.asking`). Here are the names: tables as `POOL/KIND` and, for
headers and cookies, `/NAME`; keys as users show them, turned into what the table keeps (a digest of what may be secret,
the prefix of an address). `digest:HEX` is a key as `find` prints it.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from l7lb.control.effective import limits_of_listener
from l7lb.control.names import suggestion
from l7lb.control.node import NodeState
from l7lb.control.operator import Refused
from l7lb.control.state_client import ask_tables
from l7lb.core.contracts import Stickiness
from l7lb.core.errors import UnknownName
from l7lb.core.facts import Facts
from l7lb.core.keys import address_key, digest, session_digest, show_address
from l7lb.core.snapshot import HeaderKey, InsertedCookie, LearnedCookie, MailboxKey, PersistenceKey, Pool, SourceKey
from l7lb.persistence import Tables, make_stickiness
from l7lb.persistence.mailbox_pins import table_key, table_name
from l7lb.persistence.messages import PROTOCOL, Ask, Told
from l7lb.persistence.pins import write_pin
from l7lb.persistence.setcookie import unquoted

ENTRY = 190  # bytes of an entry in a process that users come to and leave (benchmarks/sticky.py)
DIGEST = "digest:"
KEYS = 8  # values of one client that are looked up
LONGEST = 3650 * 86_400.0  # seconds of a pin


class Entry(msgspec.Struct):
    """One entry as `l7lb table find` shows it; times in seconds, ``expires`` -1: never."""

    table: str
    key: str
    server: str
    idle: float
    expires: float
    pinned: bool


class TableOf(msgspec.Struct):
    """One table as `l7lb table list` shows it; ``memory`` is what its entries take in each process, in bytes."""

    table: str
    entries: int
    size: int
    memory: int
    expire: float
    pins: int
    hits: int
    evicted: int
    expired: int


class Limited(msgspec.Struct):
    """A key of a rate limit as `l7lb limits` shows it; ``wait`` is the seconds until one is admitted."""

    limit: str
    key: str
    used: float
    burst: float
    rate: float
    wait: float


class Found(msgspec.Struct):
    """Entries, and whether there are more."""

    entries: list[Entry]
    more: bool


class StickyTables:
    """See the module. ``path`` is the state process's socket."""

    def __init__(self, node: NodeState, path: Path) -> None:
        self._node = node
        self._path = path

    async def tables(self) -> list[TableOf]:
        """All tables, also those that the configuration no longer has, until their entries have expired."""
        told = await self._ask(Ask(PROTOCOL, "list"))
        return [
            TableOf(
                table=row.name,
                entries=row.entries,
                size=row.size,
                memory=row.entries * ENTRY,
                expire=row.expire,
                pins=row.pins,
                hits=row.hits,
                evicted=row.evicted,
                expired=row.expired,
            )
            for row in sorted(told.tables, key=lambda row: row.name)
        ]

    async def limited(self, limit: int) -> list[Limited]:
        """Who is the nearest to a rate limit, over all workers, or over it."""
        sources = {
            one.name
            for listener in self._node.effective().listeners
            for one in limits_of_listener(listener)
            if one.key.kind == "source"
        }
        told = await self._ask(Ask(PROTOCOL, "limits", limit=limit))
        return [
            Limited(
                limit=row.limit,
                key=show_limited(row.key, row.limit in sources),
                used=round(row.debt, 1),
                burst=row.burst,
                rate=row.rate,
                wait=round(max(0.0, row.debt + 1.0 - row.burst) / row.rate, 3),
            )
            for row in told.debts
        ]

    async def find(self, table: str, key: str, server: str, limit: int) -> Found:
        """Entries of that key, or of that server, or any."""
        name, config = self._table(table)
        told = await self._ask(Ask(PROTOCOL, "find", name, self._key(config, key) if key else b"", server, limit=limit))
        now = time.time()
        entries = [
            Entry(
                table=name,
                key=show_key(config, row.key),
                server=row.server,
                idle=round(row.idle, 3),
                expires=round(row.expires if not row.pinned else row.until - now if row.until else -1.0, 3),
                pinned=row.pinned,
            )
            for row in told.entries
        ]
        return Found(entries, told.more)

    async def delete(self, table: str, key: str, server: str) -> str:
        """Forget an entry, or all of a server, pins too. Raises Refused where both or none are given."""
        if bool(key) == bool(server):
            raise Refused("say either the key of an entry, or the server whose entries are all deleted")
        name, config = self._table(table)
        told = await self._ask(Ask(PROTOCOL, "delete", name, self._key(config, key) if key else b"", server))
        if not told.count:
            return f"{name} has no entry of {key or server}"
        what = "1 entry is" if told.count == 1 else f"{told.count} entries are"
        return f"{what} deleted from {name}{_late(told)}"

    async def pin(self, table: str, key: str, server: str, seconds: float) -> str:
        """Keep a key on a server, whatever is learned, for so long; 0.0: for ever."""
        name, config = self._table(table)
        pool = self._pool(name)
        if isinstance(config, MailboxKey):
            raise Refused("a mailbox has one server at a time: `l7lb move MAILBOX SERVER` changes it")
        names = [one.name for one in pool.servers]
        if server not in names:
            raise UnknownName(f"pool {pool.name} has no server {server}: {suggestion(server, names)}")
        if not 0.0 <= seconds <= LONGEST:
            raise Refused(f"a pin holds for {LONGEST / 86_400:.0f} days at most, or for ever")
        until = time.time() + seconds if seconds else 0.0
        told = await self._ask(Ask(PROTOCOL, "pin", name, self._key(config, key), server, until))
        how_long = f"for {seconds:.0f} s" if seconds else "until it is deleted"
        return f"{key} is pinned to {pool.name}/{server} in {name} {how_long}{_late(told)}"

    async def stickiness(self, pool: Pool, facts: Facts) -> Stickiness | None:
        """The pool's stickiness, with all that the node's tables know of these facts. Raises Refused."""
        tables = Tables(self._node.effective().tables)
        found = make_stickiness(pool, tables)
        now = time.monotonic()
        for name, config in tables_of(pool):
            table = tables.get(name)
            if table is None or table.pins is None:
                continue
            for key in keys_of(config, facts):
                told = await self._exchange_within(Ask(PROTOCOL, "find", name, key, limit=KEYS))
                for row in told.entries:
                    if row.pinned:
                        table.pins.put(row.key, write_pin(row.server, row.until), now)
                    else:
                        table.put(row.key, row.server, now)
        return found

    # --- names ----------------------------------------------------------------------------------------------------

    def _pool(self, table: str) -> Pool:
        wanted = table.partition("/")[0]
        return next(pool for pool in self._node.effective().pools if pool.name == wanted)

    def _table(self, wanted: str) -> tuple[str, PersistenceKey]:
        """The table of that name, or the only one of that pool, and its key. Raises UnknownName."""
        known = {name: key for pool in self._node.effective().pools for name, key in tables_of(pool)}
        if wanted in known:
            return wanted, known[wanted]
        of_pool = [name for name in known if name.startswith(f"{wanted}/")]
        if len(of_pool) == 1:
            return of_pool[0], known[of_pool[0]]
        if of_pool:
            raise UnknownName(f"{wanted} has several tables: say {', '.join(of_pool[:-1])} or {of_pool[-1]}")
        raise UnknownName(f"no table {wanted}: {suggestion(wanted, known)}")

    @staticmethod
    def _key(config: PersistenceKey, text: str) -> bytes:
        """What stands for a user's key in the table. Raises Refused."""
        if text.startswith(DIGEST):
            return _hexadecimal(text.removeprefix(DIGEST), "a digest")
        match config:
            case SourceKey():
                key = address_key(text, config.prefix4, config.prefix6)
                if key is None:
                    raise Refused(f"{text} is not an address")
                return key
            case MailboxKey():
                return table_key(text.encode())
            case LearnedCookie():
                return digest(unquoted(text.encode()))
            case HeaderKey():
                return digest(text.encode())
        return session_digest(_hexadecimal(text, "a TLS session (its identifier or ticket)"))

    # --- the state process ----------------------------------------------------------------------------------------

    async def _ask(self, ask: Ask) -> Told:
        """Raises Refused where it doesn't answer, or with the problem that it has."""
        told = await self._exchange_within(ask)
        if told.problem:
            raise Refused(told.problem)
        return told

    async def _exchange_within(self, ask: Ask) -> Told:
        """The answer, which may be a problem. Raises Refused where there is none."""
        return await ask_tables(self._path, ask)


def tables_of(pool: Pool) -> list[tuple[str, PersistenceKey]]:
    """The tables of a pool's persistence keys, as :func:`l7lb.persistence.stickiness.make_stickiness` names them."""
    found: list[tuple[str, PersistenceKey]] = []
    for key in pool.persistence:
        match key:
            case InsertedCookie():
                pass  # it needs none
            case LearnedCookie():
                found.append((f"{pool.name}/application_cookie/{key.name}", key))
            case HeaderKey():
                found.append((f"{pool.name}/header/{key.name.lower()}", key))
            case SourceKey():
                found.append((f"{pool.name}/source", key))
            case MailboxKey():
                found.append((table_name(pool.name), key))
            case _:
                found.append((f"{pool.name}/tls_session", key))
    return found


def keys_of(config: PersistenceKey, facts: Facts) -> list[bytes]:
    """What a client with these facts may be known by in a table."""
    match config:
        case SourceKey():
            key = address_key(facts.source, config.prefix4, config.prefix6)
            return [key] if key is not None else []
        case MailboxKey():
            return [table_key(facts.mailbox)] if facts.mailbox else []
        case LearnedCookie():
            return [digest(unquoted(value)) for value in facts.cookie(config.name.encode())[:KEYS]]
        case HeaderKey():
            return [digest(value) for value in facts.header(config.name.lower().encode())[:1] if value]
    return [session_digest(value) for value in facts.tls_sessions()[:KEYS]]


def show_key(config: PersistenceKey, key: bytes) -> str:
    """A table's key in words: an address, or the digest."""
    if isinstance(config, MailboxKey):
        return key.decode("utf-8", "backslashreplace")
    address = show_address(key) if isinstance(config, SourceKey) else ""
    return address or DIGEST + key.hex()


def show_limited(key: bytes, source: bool) -> str:
    """A limit's key in words: an address, the value, or the digest of one that may be secret."""
    if source and (address := show_address(key)):
        return address
    text = key.decode("latin-1")
    return text if text.isascii() and text.isprintable() else DIGEST + key.hex()


def _hexadecimal(text: str, what: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if not found or len(found) > 4096:
        raise Refused(f"{what} is given in hexadecimal digits, not as {text[:40]}")
    return found


def _late(told: Told) -> str:
    return f"; {told.late} workers have not confirmed it" if told.late else ""
