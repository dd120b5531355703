"""The compiled configuration: immutable, complete, and free of the configuration library.

The supervisor compiles it, sends it to the workers as MessagePack, and a reload swaps one reference. All times
are seconds, all sizes bytes, all names resolved. ``number`` and ``where`` let `explain` and error pages name a
rule as the operator wrote it.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Address(msgspec.Struct, frozen=True):
    """Where to listen or connect: an IP address and port, a host name and port, or a unix socket's path."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class FactName(msgspec.Struct, frozen=True):
    """The name of a fact: its kind (``source``, ``path``, ``header`` ...) and, where the kind needs it, a name."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" if self.name else self.kind


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """How often those of the same ``key`` may come: ``rate`` a second on average, ``burst`` at once.

    ``name`` tells it from all others and stays the same when rate and burst change; ``of`` is what is counted:
    ``requests``, ``connections`` or ``logins``. ``size`` bounds the keys that are remembered.
    """

    name: str
    of: str
    key: FactName
    rate: float
    burst: float
    prefix4: int = 32
    prefix6: int = 64
    size: int = 100_000
    slot: int = 0


# --- routes ---------------------------------------------------------------------------------------------------


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """A rule's conditions. All that are set must hold; each is a tuple of which any one suffices.

    ``host``, ``sni``, ``path`` and the values are globs (``*`` matches any run of characters); ``source`` holds
    networks; ``not_`` must not match.
    """

    host: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    path_regex: tuple[str, ...] = ()
    method: tuple[str, ...] = ()
    header: tuple[tuple[str, tuple[str, ...]], ...] = ()
    cookie: tuple[tuple[str, tuple[str, ...]], ...] = ()
    query: tuple[tuple[str, tuple[str, ...]], ...] = ()
    sni: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    not_: Match | None = None


class ToPool(msgspec.Struct, frozen=True, tag="pool"):
    """Send it to a server of this pool."""

    pool: str


class ToSplit(msgspec.Struct, frozen=True, tag="split"):
    """Send it to one of several pools, by weight."""

    shares: tuple[tuple[str, int], ...]


class Respond(msgspec.Struct, frozen=True, tag="respond"):
    """Answer here."""

    status: int
    body: str = ""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


class Redirect(msgspec.Struct, frozen=True, tag="redirect"):
    """Answer with a redirection; ``location`` is a template (``{host}``, ``{path}``, ``{path.1}`` ...)."""

    location: str
    status: int = 302


class Rewrite(msgspec.Struct, frozen=True):
    """What the server gets in place of the client's path or host; templates."""

    path: str = ""
    host: str = ""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One rule: when it matches, what happens. Numbers count from 1 in a listener."""

    number: int
    where: str
    match: Match | None
    action: ToPool | ToSplit | Respond | Redirect
    rewrite: Rewrite | None = None
    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()
    set_response_headers: tuple[tuple[str, str], ...] = ()
    remove_response_headers: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()


# --- TLS ------------------------------------------------------------------------------------------------------


class KeyPair(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate chain and its key: the files' paths, and what stood in them when they were last read.

    The content travels, since only the supervisor can be sure to read the files. ``names`` are those that the
    certificate is for, in lower case; ``algorithm`` is the key's (``rsa``, ``ecdsa`` ...), ``expires`` in seconds since
    the epoch. ``ocsp`` is a response to be stapled (DER), if there is one.
    """

    certificate_file: str
    key_file: str
    ocsp_file: str = ""
    certificate: bytes = b""  # PEM, the server's own first
    key: bytes = b""  # PEM
    ocsp: bytes = b""
    names: tuple[str, ...] = ()
    algorithm: str = ""
    expires: float = 0.0

    def __repr__(self) -> str:
        return f"KeyPair({self.certificate_file!r})"  # the key must not come into a log


class ListenerTls(msgspec.Struct, frozen=True, kw_only=True):
    """How TLS is ended. ``ticket_keys`` are 80 bytes each: the first makes tickets, the others still open theirs.

    ``client_ca`` is PEM; ``client_certificate`` is ``required``, ``optional`` or empty.
    """

    certificates: tuple[KeyPair, ...]
    min_version: str = "1.2"
    max_version: str = "1.3"
    ciphers: str = ""  # of TLS 1.2, in OpenSSL's words; empty: the default
    alpn: tuple[str, ...] = ()
    client_ca_file: str = ""
    client_ca: bytes = b""
    client_certificate: str = ""
    session_tickets: bool = True
    ticket_keys: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"ListenerTls({self.certificates!r})"


class ServerTls(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is spoken to. ``ca`` is PEM; empty: the system's. ``server_name`` is what it must prove to be."""

    server_name: str = ""
    ca_file: str = ""
    ca: bytes = b""
    verify: bool = True
    certificate: KeyPair | None = None
    alpn: tuple[str, ...] = ()
    min_version: str = "1.2"


class TicketSecret(msgspec.Struct, frozen=True):
    """What session ticket keys are derived from; ``since`` (seconds since the epoch) tells newer from older."""

    since: int
    secret: bytes

    def __repr__(self) -> str:
        return f"TicketSecret({self.since})"


# --- listeners ------------------------------------------------------------------------------------------------


class ProxyProtocol(msgspec.Struct, frozen=True):
    """These peers (networks, ``unix:``) must send a PROXY header, of so many bytes at most; all others must not."""

    sources: tuple[str, ...]
    header_bytes: int = 4096


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """A place where clients come in.

    ``settings`` belongs to the protocol, which converts it to its own type; ``slot`` is the listener's row in
    the shared counts.
    """

    name: str
    protocol: str
    bind: tuple[Address, ...]
    routes: tuple[Route, ...]
    connections: int = 20_000
    backlog: int = 4096
    exact_case: bool = False  # whether path globs tell upper from lower case
    handshake: float = 10.0  # seconds for all that comes before the protocol's first byte
    proxy_protocol: ProxyProtocol | None = None
    client_first: bool = True  # whether the client speaks first
    tls: ListenerTls | None = None
    settings: dict[str, Any] = {}
    limits: tuple[Limit, ...] = ()
    slot: int = 0


# --- pools ----------------------------------------------------------------------------------------------------


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One server: its name is unique in the pool, ``slot`` is its row in the shared counts.

    ``weight`` and ``state`` are the configuration's or, after an operator changed them, the operator's:
    ``enabled``, ``draining`` (keeps the users it has) or ``disabled``.
    """

    name: str
    address: Address
    weight: int = 1
    max_connections: int = 0  # 0: no limit
    backup: bool = False
    send_proxy: str = ""  # the version of the PROXY header that its connections begin with: v1 or v2
    state: str = "enabled"
    slot: int = 0
    origin: str = ""  # the configuration's name, where DNS made several servers of one
    tls: ServerTls | None = None


class Balance(msgspec.Struct, frozen=True):
    """The algorithm's name in the configuration, and its settings. ``bounded_load`` 0: no bound."""

    algorithm: str = "round-robin"
    hash_on: FactName | None = None
    bounded_load: float = 0.0


class InsertedCookie(msgspec.Struct, frozen=True, tag="cookie"):
    """l7lb sets a cookie that names the server. ``max_age`` 0: for the browser's session."""

    name: str
    max_age: float = 0.0
    http_only: bool = True
    same_site: str = "lax"
    path: str = "/"
    domain: str = ""
    secure: str = "auto"  # auto: where the client came over TLS; always; never
    key: str = ""  # hex; keys the opaque value, so that it can't be guessed from a server's name


class LearnedCookie(msgspec.Struct, frozen=True, tag="application_cookie"):
    """The application sets the cookie; l7lb learns which server did. ``expire`` counts from the last use."""

    name: str
    expire: float = 1800.0


class HeaderKey(msgspec.Struct, frozen=True, tag="header"):
    """A request header's value keeps its server."""

    name: str
    expire: float = 1800.0


class SourceKey(msgspec.Struct, frozen=True, tag="source"):
    """The client's address keeps its server; prefixes group neighbours."""

    expire: float = 1800.0
    prefix4: int = 32
    prefix6: int = 64


class TlsSessionKey(msgspec.Struct, frozen=True, tag="tls_session"):
    """The TLS session that a client resumes keeps the server that issued it. ``expire`` counts from the last use."""

    expire: float = 1800.0


PersistenceKey = InsertedCookie | LearnedCookie | HeaderKey | SourceKey | TlsSessionKey


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Active checks of a pool's servers. ``kind``: ``http``, ``tcp``, ``ping`` or ``protocol``."""

    kind: str
    interval: float = 2.0
    timeout: float = 1.0
    rise: int = 2
    fall: int = 3
    settings: dict[str, Any] = {}
    protocol: str = ""  # for ``protocol``: whose probe
    port: int = 0  # 0: the server's own


class Outliers(msgspec.Struct, frozen=True):
    """Passive checks: a server with so many errors in a row is out for a while."""

    consecutive_errors: int = 5
    eject_for: float = 10.0
    max_ejected: float = 0.5


class Retries(msgspec.Struct, frozen=True):
    """``attempts`` beyond the first; ``when`` names what may be tried again, ``statuses`` the answers."""

    attempts: int = 1
    when: frozenset[str] = frozenset({"connect-failure"})
    statuses: frozenset[int] = frozenset()


class PoolTimeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. ``response_body`` is between two reads, ``idle`` for a kept connection without work."""

    connect: float = 5.0
    queue: float = 5.0
    response_header: float = 60.0
    response_body: float = 60.0
    idle: float = 60.0


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Servers that can stand in for one another."""

    name: str
    servers: tuple[Server, ...]
    balance: Balance = Balance()
    persistence: tuple[PersistenceKey, ...] = ()
    health: Health | None = None
    outliers: Outliers | None = None
    retries: Retries = Retries()
    timeouts: PoolTimeouts = PoolTimeouts()
    queue: int = 1000
    slow_start: float = 0.0
    http_version: str = "1.1"  # that HTTP servers are spoken to in
    idle_connections: int = 64  # kept open without work, for each server and worker
    slot: int = 0


# --- the whole ------------------------------------------------------------------------------------------------


class AccessLog(msgspec.Struct, frozen=True):
    """``path`` ``-`` is standard output; ``format`` is ``json`` or a format string."""

    path: str
    format: str = "json"


class Tables(msgspec.Struct, frozen=True):
    """Limits of the sticky tables: entries of one table."""

    size: int = 1_000_000


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration of a node. ``version`` grows with every change that workers get."""

    node: str
    version: int
    listeners: tuple[Listener, ...]
    pools: tuple[Pool, ...]
    workers: int = 1
    access_log: AccessLog | None = None
    tables: Tables = Tables()
    drain: float = 30.0  # seconds that established connections get at the end
    file: str = ""
    ticket_secrets: tuple[TicketSecret, ...] = ()  # the newest first


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot as MessagePack."""
    return msgspec.msgpack.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """The reverse of :func:`encode`; raises msgspec.ValidationError."""
    return msgspec.msgpack.decode(data, type=Snapshot)
