"""An operator's words on mailboxes: `l7lb move`, `l7lb kick`, and the moves of `l7lb drain SERVER --rate`.

The state process blocks a mailbox and ends its sessions; the operator's hook runs when all have ended, and then the
mailbox is on its new server, for those who waited too. Where anything fails it stays where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from l7lb.config import MoveHook
from l7lb.control.directories import NodeDirectories
from l7lb.control.node import NodeState
from l7lb.control.operator import Operator, Refused
from l7lb.control.state_client import ask_mailboxes
from l7lb.core.errors import L7lbError
from l7lb.core.mailbox import MAIL_PROTOCOLS, canonical
from l7lb.core.snapshot import Listener, MailboxKey, Pool, Server, ToPool
from l7lb.persistence.mailbox_messages import AskMailboxes, MailboxRow
from l7lb.persistence.mailboxes import WAIT
from l7lb.persistence.messages import PROTOCOL

MARGIN = 10.0  # seconds beyond what the parts of a move may take
OUTPUT = 2000  # characters of a hook's output that are told
PARALLEL = 50  # moves of a drain at a time
PLACEHOLDER = re.compile(r"\{(?:mailbox|pool|from|to)\}")
LOOK = 1.0  # seconds between two looks at what is left on a server that drains

log = structlog.get_logger("l7lb.mailboxes")


class MailboxVerbs:
    """The verbs. ``path`` is the state process's socket; ``hook`` is asked for each move."""

    def __init__(
        self,
        node: NodeState,
        operator: Operator,
        directories: NodeDirectories,
        path: Path,
        hook: Callable[[], MoveHook | None],
    ) -> None:
        self._node = node
        self._operator = operator
        self._directories = directories
        self._path = path
        self._hook = hook

    async def move(self, typed: str, target: str) -> str:
        """Bring a mailbox to a server: block it, end its sessions, run the hook, switch.

        Raises Refused, UnknownName.
        """
        pool, server, expire = self._target(target)
        directory = await self._directory(typed, pool)
        names = [*self._names(typed), *([directory[0]] if directory[0] else [])]
        if directory[1] and directory[1] != server.name:
            raise Refused(f"the directory says that {typed} is on {directory[1]}: change it there")
        rows = await self._find(pool.name, names)
        if rows and rows[0].server == server.name and not rows[0].moving:
            return f"{_text(rows[0].mailbox)} is on {pool.name}/{server.name} already"
        row, count = await self._move(pool.name, names, server.name, expire)
        ended = "1 session was ended" if count == 1 else f"{count} sessions were ended"
        return f"{_text(row.mailbox)} moved from {row.server or 'no server'} to {pool.name}/{server.name}; {ended}"

    async def kick(self, typed: str) -> str:
        """End a mailbox's sessions; it stays on its server."""
        names = self._names(typed)
        with contextlib.suppress(Refused):
            mailbox = (await self._directory(typed, None))[0]
            names += [mailbox] if mailbox else []
        told = await ask_mailboxes(self._path, AskMailboxes(PROTOCOL, "kick", mailboxes=names))
        if not told.count:
            return f"{typed} has no session"
        sessions = "1 session is" if told.count == 1 else f"{told.count} sessions are"
        return f"{sessions} ended of {_text(told.rows[0].mailbox)}"

    async def pinned(self, pool: Pool, mailbox: bytes) -> MailboxRow | None:
        """Where a mailbox is, if it is on a server that the pool has. Raises Refused."""
        if not mailbox or pin_time(pool) is None:
            return None
        rows = await self._find(pool.name, [mailbox])
        return rows[0] if rows and rows[0].server in {server.name for server in pool.servers} else None

    def names(self, typed: str) -> list[str]:
        """What a mailbox may be called in the list of sessions."""
        return [_text(name) for name in self._names(typed)]

    async def send_away(self, pool: str, mailbox: bytes) -> None:
        """Take a mailbox from its server, to where its next login goes. Raises L7lbError."""
        expire = pin_time(self._operator.pool(pool))
        await self._move(pool, [mailbox], "", 0.0 if expire is None else expire)

    # --- one move -------------------------------------------------------------------------------------------------

    async def _move(self, pool: str, names: list[bytes], target: str, expire: float) -> tuple[MailboxRow, int]:
        """Returns what was moved, as it was, and how many sessions were ended."""
        hook = self._hook()
        wait = MARGIN + (hook.timeout if hook is not None else 0.0)
        ask = AskMailboxes(PROTOCOL, "move", pool, names, target, wait=wait, expire=expire)
        told = await ask_mailboxes(self._path, ask, WAIT + MARGIN)
        row = told.rows[0]
        try:
            if hook is not None:
                await run_hook(hook, pool, _text(row.mailbox), row.server, target)
            await ask_mailboxes(self._path, AskMailboxes(PROTOCOL, "switch", pool, [row.mailbox], target))
        except BaseException:
            with contextlib.suppress(Refused):
                await ask_mailboxes(self._path, AskMailboxes(PROTOCOL, "abort", pool, [row.mailbox]))
            raise
        return row, told.count

    async def _find(self, pool: str, names: list[bytes]) -> list[MailboxRow]:
        return (await ask_mailboxes(self._path, AskMailboxes(PROTOCOL, "find", pool, names))).rows

    def _target(self, target: str) -> tuple[Pool, Server, float]:
        pool_name, name, servers = self._operator.find(target)
        pool = self._operator.pool(pool_name)
        expire = pin_time(pool)
        if expire is None:
            raise Refused(
                f"pool {pool_name} does not keep mailboxes on one server: it has no persistence {{mailbox: {{}}}}"
            )
        if len(servers) != 1:
            raise Refused(f"{pool_name}/{name} has {len(servers)} addresses: say which one")
        server = servers[0]
        if server.state == "disabled" or not self._node.healthy(pool_name, server.name):
            raise Refused(f"{pool_name}/{server.name} is {'disabled' if server.state == 'disabled' else 'down'}")
        return pool, server, expire

    # --- names ----------------------------------------------------------------------------------------------------

    def _names(self, typed: str) -> list[bytes]:
        """The mailbox as it was typed, and as listeners would understand that."""
        name = typed.encode("utf-8", "surrogateescape")
        found = [name] + [canonical(name, one.addresses) for one in self._node.effective().listeners if _mail(one)]
        return list(dict.fromkeys(found))

    async def _directory(self, typed: str, pool: Pool | None) -> tuple[bytes, str]:
        """What the directories of that pool's mail say: mailbox and server. Raises Refused where they can't."""
        names = self._asked(pool)
        if not names:
            return b"", ""
        for said in (await self._directories.ask(typed, names)).answers:
            if said.status == "failed":
                raise Refused(f"directory {said.directory} does not answer: {said.why}")
            if said.status == "found":
                where = f"{pool.name}/" if pool is not None else ""
                server = next((one.removeprefix(where) for one in said.known if one.startswith(where)), said.server)
                return said.mailbox.encode(), server
        return b"", ""

    def _asked(self, pool: Pool | None) -> Sequence[str]:
        for listener in self._node.effective().listeners:
            for route in listener.routes:
                if route.directory and (pool is None or route.action == ToPool(pool.name)):
                    return route.directory
        return ()


class Drains:
    """Moves mailboxes away from servers that drain, so many in a second. A supervisor that begins goes on with them."""

    def __init__(self, node: NodeState, verbs: MailboxVerbs, path: Path) -> None:
        self._node = node
        self._verbs = verbs
        self._path = path
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def begin(self) -> None:
        """Start those that the overrides ask for and that don't run yet."""
        for pool, servers in self._node.overrides.servers.items():
            for server, override in servers.items():
                key = pool, server
                if override.drain_rate and (key not in self._tasks or self._tasks[key].done()):
                    self._tasks[key] = asyncio.get_running_loop().create_task(self._drain(pool, server))

    async def stop(self) -> None:
        """End; what is under way stays where it was."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _rate(self, pool: str, server: str) -> float:
        override = self._node.overrides.of(pool, server)
        return override.drain_rate if override is not None and override.state == "draining" else 0.0

    async def _drain(self, pool: str, server: str) -> None:
        moves: dict[bytes, asyncio.Task[None]] = {}
        stuck: set[bytes] = set()
        try:
            while self._rate(pool, server):
                rows = await self._left(pool, server)
                rows = [row for row in rows if row.mailbox not in moves and row.mailbox not in stuck]
                if not rows and not moves:
                    break
                for row in rows:
                    rate = self._rate(pool, server)
                    if not rate or len(moves) >= PARALLEL:
                        break
                    moves[row.mailbox] = asyncio.ensure_future(self._one(pool, server, row, stuck))
                    await asyncio.sleep(1.0 / rate)
                    moves = {mailbox: task for mailbox, task in moves.items() if not task.done()}
                if not rows:
                    await asyncio.sleep(LOOK)
                moves = {mailbox: task for mailbox, task in moves.items() if not task.done()}
        finally:
            for task in moves.values():
                task.cancel()
            await asyncio.gather(*moves.values(), return_exceptions=True)
        if stuck:
            log.warning("mailboxes stay on a server that drains", pool=pool, server=server, mailboxes=len(stuck))
        elif self._rate(pool, server):
            log.info("no mailbox is left on a server that drains", pool=pool, server=server)

    async def _left(self, pool: str, server: str) -> list[MailboxRow]:
        try:
            await ask_mailboxes(self._path, AskMailboxes(PROTOCOL, "forget", pool, server=server))
            return (await ask_mailboxes(self._path, AskMailboxes(PROTOCOL, "find", pool, server=server))).rows
        except Refused as error:
            log.warning("a drain waits", pool=pool, server=server, why=str(error))
            await asyncio.sleep(LOOK)
            return []

    async def _one(self, pool: str, server: str, row: MailboxRow, stuck: set[bytes]) -> None:
        try:
            if row.fixed:
                raise Refused("a directory says that it is there")
            await self._verbs.send_away(pool, row.mailbox)
        except L7lbError as error:
            stuck.add(row.mailbox)
            log.warning("a mailbox stays", pool=pool, server=server, mailbox=_text(row.mailbox), why=str(error))


def pin_time(pool: Pool) -> float | None:
    """The seconds that a mailbox's pin outlives its sessions; None where the pool pins none."""
    return next((key.expire for key in pool.persistence if isinstance(key, MailboxKey)), None)


async def run_hook(hook: MoveHook, pool: str, mailbox: str, source: str, target: str) -> None:
    """Run the operator's command between the end of a mailbox's sessions and its switch. Raises Refused.

    ``{mailbox}``, ``{pool}``, ``{from}`` and ``{to}`` in its arguments are filled in; there is no shell.
    """
    values = {"{mailbox}": mailbox, "{pool}": pool, "{from}": source, "{to}": target}
    command = [PLACEHOLDER.sub(lambda found: values[found[0]], argument) for argument in hook.command]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise Refused(f"the move's hook can't be run: {command[0]}: {error.strerror or error}") from None
    try:
        async with asyncio.timeout(hook.timeout):
            assert process.stdout is not None
            output = await process.stdout.read(OUTPUT)
            while await process.stdout.read(OUTPUT):
                pass
            code = await process.wait()
    except TimeoutError:
        raise Refused(f"the move's hook took more than {hook.timeout:g} s: the mailbox stays") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if code:
        said = " ".join(output.decode("utf-8", "replace").split())
        raise Refused(f"the move's hook ended with {code}: the mailbox stays" + (f"; it said: {said}" if said else ""))


def _mail(listener: Listener) -> bool:
    return listener.protocol in MAIL_PROTOCOLS


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
