"""A pool's persistence keys, joined in their order: the same user on the same server, whatever he shows.

``find`` asks the keys in the order of the configuration, and the first that knows a server of the pool decides.
Whether that server can be used the caller knows; if not, it asks again without it. ``chosen`` then remembers the
server under every key that the request carries, with one restriction: the first key that it carries follows the user to
another server at once, later ones only while no key before them is there. Many users behind one address, each with a
cookie, would otherwise move the address from server to server with every request.

Tables hold no secrets: values of cookies and headers, and TLS sessions, are kept as a digest.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b

from l7lb.core.contracts import Stickiness
from l7lb.core.facts import Facts
from l7lb.core.keys import address_key, digest, session_digest
from l7lb.core.snapshot import (
    HeaderKey,
    InsertedCookie,
    LearnedCookie,
    MailboxKey,
    Pool,
    SourceKey,
    TlsSessionKey,
)
from l7lb.persistence.setcookie import parse_set_cookie, unquoted
from l7lb.persistence.table import Table
from l7lb.persistence.tables import Tables

SoftKey = InsertedCookie | LearnedCookie | HeaderKey | SourceKey | TlsSessionKey
Offer = tuple[str, str]  # a server's name, and the kind of key that names it

TOKEN = 10  # bytes of the inserted cookie's token; it has twice as many hexadecimal digits
VALUES = 8  # of one cookie that are looked at in a request
SET_COOKIES = 64  # that are looked at in an answer


class Key(ABC):
    """One persistence key of a pool."""

    @abstractmethod
    def find(self, facts: Facts, now: float, without: Collection[str]) -> Offer | None:
        """The server that the key's value in this request belongs to, if it is not one of ``without``."""

    @abstractmethod
    def remember(self, facts: Facts, server: str, now: float, first: bool) -> bool:
        """The server got the request; ``first``: no key before this one is in the request.

        Returns whether this one is.
        """

    def set_cookie(self, facts: Facts, server: str) -> bytes:
        """The Set-Cookie value that must tell the client, or nothing."""
        return b""

    def answered(self, set_cookies: Sequence[bytes], server: str, now: float) -> None:
        """The server's answer set these cookies."""

    def issued(self, sessions: Sequence[bytes], server: str, now: float) -> None:
        """The server issued these TLS sessions."""


class InsertedCookieKey(Key):
    """A cookie of our own that names the server by an opaque token. It needs no table.

    The token is a keyed digest of the pool's and the server's name, so all workers and nodes agree on it, also after
    a restart. It is looked up among the tokens of this pool's servers: whatever a client sends leads to one of them
    or nowhere.
    """

    def __init__(self, pool: Pool, config: InsertedCookie) -> None:
        self._name = config.name.encode()
        self._offers: dict[bytes, Offer] = {}
        self._plain: dict[str, bytes] = {}  # Set-Cookie values, by server
        self._secure: dict[str, bytes] = {}  # over TLS
        for server in pool.servers:
            value = token(config.key, pool.name, server.name)
            self._offers[value] = (server.name, "cookie")
            self._plain[server.name] = set_cookie(config, value, config.secure == "always")
            self._secure[server.name] = set_cookie(config, value, config.secure != "never")

    def find(self, facts: Facts, now: float, without: Collection[str]) -> Offer | None:
        for value in facts.cookie(self._name):
            offer = self._offers.get(value)
            if offer is not None and offer[0] not in without:
                return offer
        return None

    def remember(self, facts: Facts, server: str, now: float, first: bool) -> bool:
        return bool(facts.cookie(self._name))

    def set_cookie(self, facts: Facts, server: str) -> bytes:
        for value in facts.cookie(self._name):
            offer = self._offers.get(value)
            if offer is not None:
                if offer[0] == server:
                    return b""
                break
        return (self._secure if facts.scheme == b"https" else self._plain).get(server, b"")


class TableKey(Key):
    """A key whose values are remembered in a table."""

    def __init__(self, pool: Pool, kind: str, table: Table) -> None:
        self._table = table
        self._offers: dict[str | None, Offer] = {server.name: (server.name, kind) for server in pool.servers}

    @abstractmethod
    def key(self, facts: Facts, now: float) -> bytes | None:
        """The key in the table, or None where the request doesn't have it."""

    def find(self, facts: Facts, now: float, without: Collection[str]) -> Offer | None:
        key = self.key(facts, now)
        offer = None if key is None else self._offers.get(self._table.get(key, now))
        return None if offer is None or offer[0] in without else offer

    def remember(self, facts: Facts, server: str, now: float, first: bool) -> bool:
        key = self.key(facts, now)
        if key is None:
            return False
        known = None if first else self._offers.get(self._table.get(key, now))
        if known is None or known[0] == server:
            self._table.put(key, server, now)
        return True


class LearnedCookieKey(TableKey):
    """An application's cookie, learned from the answer that sets it.

    What a client makes up is not learned: it could fill the table.
    """

    def __init__(self, pool: Pool, config: LearnedCookie, table: Table, wall: Callable[[], float]) -> None:
        super().__init__(pool, "application_cookie", table)
        self._name = config.name.encode()
        self._wall = wall

    def find(self, facts: Facts, now: float, without: Collection[str]) -> Offer | None:
        for value in facts.cookie(self._name)[:VALUES]:
            offer = self._offers.get(self._table.get(digest(unquoted(value)), now))
            if offer is not None and offer[0] not in without:
                return offer
        return None

    def key(self, facts: Facts, now: float) -> bytes | None:
        for value in facts.cookie(self._name)[:VALUES]:
            key = digest(unquoted(value))
            if self._table.get(key, now) is not None:
                return key
        return None

    def answered(self, set_cookies: Sequence[bytes], server: str, now: float) -> None:
        for text in set_cookies[:SET_COOKIES]:
            if self._name not in text:
                continue
            cookie = parse_set_cookie(text)
            if cookie is None or cookie.name != self._name or not cookie.value:
                continue
            if cookie.deletes(self._wall()):
                self._table.delete(digest(cookie.value), now)
            else:
                self._table.put(digest(cookie.value), server, now)


class HeaderValueKey(TableKey):
    """A request header's value; the first, where there are several."""

    def __init__(self, pool: Pool, config: HeaderKey, table: Table) -> None:
        super().__init__(pool, "header", table)
        self._name = config.name.lower().encode()

    def key(self, facts: Facts, now: float) -> bytes | None:
        values = facts.header(self._name)
        return digest(values[0]) if values and values[0] else None


class SourceAddressKey(TableKey):
    """The client's address, cut to a prefix."""

    def __init__(self, pool: Pool, config: SourceKey, table: Table) -> None:
        super().__init__(pool, "source", table)
        self._prefix4 = config.prefix4
        self._prefix6 = config.prefix6

    def key(self, facts: Facts, now: float) -> bytes | None:
        return address_key(facts.source, self._prefix4, self._prefix6)


class IssuedSessionKey(TableKey):
    """A TLS session, learned from the server that issued it: its identifier (RFC 5246) or its ticket (RFC 5077).

    What a client makes up is not learned, as a TLS 1.3 client makes up an identifier for every connection.
    """

    def __init__(self, pool: Pool, config: TlsSessionKey, table: Table) -> None:
        super().__init__(pool, "tls_session", table)

    def find(self, facts: Facts, now: float, without: Collection[str]) -> Offer | None:
        for value in facts.tls_sessions():
            offer = self._offers.get(self._table.get(session_digest(value), now))
            if offer is not None and offer[0] not in without:
                return offer
        return None

    def key(self, facts: Facts, now: float) -> bytes | None:
        for value in facts.tls_sessions():
            key = session_digest(value)
            if self._table.get(key, now) is not None:
                return key
        return None

    def issued(self, sessions: Sequence[bytes], server: str, now: float) -> None:
        for value in sessions:
            self._table.put(session_digest(value), server, now)


class OneCookie(Stickiness):
    """Nothing but an inserted cookie, as most pools have it: no table, nothing to learn."""

    def __init__(self, key: InsertedCookieKey) -> None:
        self._key = key

    def find(self, facts: Facts, now: float, without: Collection[str] = ()) -> Offer | None:
        return self._key.find(facts, now, without)

    def chosen(self, facts: Facts, server: str, now: float) -> bytes:
        return self._key.set_cookie(facts, server)

    def answered(self, set_cookies: Sequence[bytes], server: str, now: float) -> None:
        """Servers don't set this cookie."""

    @property
    def remembers(self) -> bool:
        return False

    @property
    def learns(self) -> bool:
        return False


class Keys(Stickiness):
    """Several keys, in their order."""

    def __init__(self, keys: Sequence[Key], learns: bool) -> None:
        self._keys = tuple(keys)
        self._learns = learns

    def find(self, facts: Facts, now: float, without: Collection[str] = ()) -> Offer | None:
        for key in self._keys:
            offer = key.find(facts, now, without)
            if offer is not None:
                return offer
        return None

    def chosen(self, facts: Facts, server: str, now: float) -> bytes:
        cookie = b""
        first = True
        for key in self._keys:
            if key.remember(facts, server, now, first):
                first = False
            cookie = cookie or key.set_cookie(facts, server)
        return cookie

    def answered(self, set_cookies: Sequence[bytes], server: str, now: float) -> None:
        for key in self._keys:
            key.answered(set_cookies, server, now)

    def issued(self, sessions: Sequence[bytes], server: str, now: float) -> None:
        for key in self._keys:
            key.issued(sessions, server, now)

    @property
    def learns(self) -> bool:
        return self._learns


def make_stickiness(pool: Pool, tables: Tables, wall: Callable[[], float] = time.time) -> Stickiness | None:
    """The pool's stickiness, or None where it has none. Its tables are those of ``tables``.

    ``wall`` is the Unix time, for cookies that expire at a date. Raises ValueError for a setting that can't work.
    """
    configs = [config for config in pool.persistence if not isinstance(config, MailboxKey)]  # that is claimed, not kept
    keys = [_make_key(pool, config, tables, wall) for config in configs]
    if not keys:
        return None
    if len(keys) == 1 and isinstance(keys[0], InsertedCookieKey):
        return OneCookie(keys[0])
    return Keys(keys, any(isinstance(key, LearnedCookieKey | IssuedSessionKey) for key in keys))


def _make_key(pool: Pool, config: SoftKey, tables: Tables, wall: Callable[[], float]) -> Key:
    match config:
        case InsertedCookie():
            return InsertedCookieKey(pool, config)
        case LearnedCookie():
            table = tables.table(f"{pool.name}/application_cookie/{config.name}", config.expire)
            return LearnedCookieKey(pool, config, table, wall)
        case HeaderKey():
            table = tables.table(f"{pool.name}/header/{config.name.lower()}", config.expire)
            return HeaderValueKey(pool, config, table)
        case SourceKey():
            return SourceAddressKey(pool, config, tables.table(f"{pool.name}/source", config.expire))
        case TlsSessionKey():
            return IssuedSessionKey(pool, config, tables.table(f"{pool.name}/tls_session", config.expire))


def token(key: str, pool: str, server: str) -> bytes:
    """The opaque value that stands for a server in an inserted cookie: 20 hexadecimal digits.

    ``key`` is hexadecimal, and may be empty: then whoever knows the names can compute the value. BLAKE2b takes 64
    bytes of key; a longer one is reduced first. Raises ValueError where it isn't hexadecimal.
    """
    secret = bytes.fromhex(key)
    if len(secret) > 64:
        secret = blake2b(secret).digest()
    names = f"{pool}\0{server}".encode()  # no name holds a zero, so no two pairs are alike
    return blake2b(names, digest_size=TOKEN, key=secret, person=b"l7lb cookie").hexdigest().encode()


def set_cookie(config: InsertedCookie, value: bytes, secure: bool) -> bytes:
    """The Set-Cookie value (RFC 6265, section 4.1; SameSite: 6265bis) that gives the client this token."""
    parts = [f"{config.name}={value.decode()}", f"Path={config.path or '/'}"]
    if config.domain:
        parts.append(f"Domain={config.domain}")
    if config.max_age > 0.0:
        parts.append(f"Max-Age={max(1, round(config.max_age))}")
    if config.http_only:
        parts.append("HttpOnly")
    if config.same_site:
        parts.append(f"SameSite={config.same_site.capitalize()}")
    if secure:
        parts.append("Secure")
    return "; ".join(parts).encode()
