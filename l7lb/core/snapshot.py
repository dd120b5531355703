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

    ``host``, ``sni``, ``path``, ``address`` (of mail: canonical) and the values are globs (``*`` matches any run of
    characters); ``source`` holds networks; ``not_`` must not match.
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
    address: tuple[str, ...] = ()
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
    """One rule: when it matches, what happens. Numbers count from 1 in a listener.

    ``directory`` names those that are asked, in this order, where a mailbox lives.
    """

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
    directory: tuple[str, ...] = ()


# --- mailboxes ------------------------------------------------------------------------------------------------


class Addresses(msgspec.Struct, frozen=True):
    """How an address is made canonical, the same for every protocol (see :mod:`l7lb.core.mailbox`)."""

    lower_case: bool = True
    recipient_delimiter: str = ""
    default_domain: str = ""


class LdapSource(msgspec.Struct, frozen=True, kw_only=True, tag="ldap"):
    """LDAP servers in the order in which they are tried. ``filter`` has the places ``{address}`` and ``{user}``.

    ``attributes`` says which attribute holds what: ``mailbox``, ``server``, and perhaps ``user``, ``password``,
    ``master_user``, ``master_password``. ``ca`` is PEM; empty: the system's. ``timeout`` is seconds for one answer.
    """

    urls: tuple[str, ...]
    base: str
    filter: str
    attributes: dict[str, str]
    start_tls: bool = False
    ca: bytes = b""
    verify: bool = True
    bind_dn: str = ""
    bind_password: bytes = b""
    timeout: float = 2.0
    connections: int = 8  # at the same time

    def __repr__(self) -> str:
        return f"LdapSource({self.urls!r})"  # the password must not come into a log


class FileSource(msgspec.Struct, frozen=True, kw_only=True, tag="file"):
    """A text file, a line a mailbox, read again when it changes. ``columns`` names what stands in a line, in order:
    ``address``, ``mailbox``, ``server``, ``user``, ``password``, ``master_user``, ``master_password``, or ``-`` for
    what is of no interest. ``separator`` empty: white space.
    """

    path: str
    columns: tuple[str, ...]
    separator: str = ""


class HttpSource(msgspec.Struct, frozen=True, kw_only=True, tag="http"):
    """A program that is asked over HTTP, in the words of nginx's ``auth_http``."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()
    ca: bytes = b""
    verify: bool = True
    timeout: float = 2.0
    connections: int = 32

    def __repr__(self) -> str:
        return f"HttpSource({self.url!r})"


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is written which mailbox an address means and which server holds it.

    ``ttl`` and ``negative_ttl`` are seconds that an answer is remembered, ``size`` is how many. ``missing``,
    ``unknown_server`` and ``server_down`` are ``pool`` or ``refuse``.
    """

    name: str
    source: LdapSource | FileSource | HttpSource
    ttl: float = 300.0
    negative_ttl: float = 30.0
    size: int = 1_000_000
    missing: str = "pool"
    unknown_server: str = "refuse"
    server_down: str = "refuse"


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

    ``client_ca`` is PEM; ``client_certificate`` is ``required``, ``optional`` or empty. ``mode`` is ``implicit`` (TLS
    from the first byte) or ``starttls`` (when the client asks for it in its protocol's words).
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
    mode: str = "implicit"

    def __repr__(self) -> str:
        return f"ListenerTls({self.certificates!r})"


class ServerTls(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is spoken to. ``ca`` is PEM; empty: the system's. ``server_name`` is what it must prove to be.

    ``mode`` is ``implicit``, ``starttls``, or ``auto`` for mail: a server that greets in the clear is asked for
    STARTTLS, one that stays silent gets a handshake; without TLS it is never spoken to.
    """

    server_name: str = ""
    ca_file: str = ""
    ca: bytes = b""
    verify: bool = True
    certificate: KeyPair | None = None
    alpn: tuple[str, ...] = ()
    min_version: str = "1.2"
    mode: str = "implicit"


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
    addresses: Addresses = Addresses()


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
    host: str = ""  # the name that was looked up by DNS for its address
    tls: ServerTls | None = None
    ports: dict[str, int] = {}  # by protocol, where it has several; ``address`` has the first of them

    def address_for(self, protocol: str) -> Address:
        """Where it is spoken to in that protocol."""
        port = self.ports.get(protocol)
        return self.address if port is None else Address(self.address.host, port)


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


class MailboxKey(msgspec.Struct, frozen=True, tag="mailbox"):
    """All sessions of a mailbox, in every protocol, are on one server; ``expire`` counts from the end of the last."""

    expire: float = 900.0


PersistenceKey = InsertedCookie | LearnedCookie | HeaderKey | SourceKey | TlsSessionKey | MailboxKey


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
    scope: str = "server"  # what a failed check of one protocol takes a server out for: ``protocol``, ``server``
    protocols: tuple[str, ...] = ()  # for ``protocol``: all that are checked, where servers have ``ports``

    def __repr__(self) -> str:
        return f"Health({self.kind!r}, {self.protocol!r})"  # settings may hold the password of a check that logs in


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
    login_as: str = "typed"  # what reaches a mail server: the name as it was ``typed``, or its ``mailbox``
    # How mail servers learn a client's address, by protocol: none, id, xclient, proxy-v1, proxy-v2.
    client_address: dict[str, str] = {}


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
    directories: tuple[Directory, ...] = ()


def encode(snapshot: Snapshot) -> bytes:
    """The snapshot as MessagePack."""
    return msgspec.msgpack.encode(snapshot)


def decode(data: bytes) -> Snapshot:
    """The reverse of :func:`encode`; raises msgspec.ValidationError."""
    return msgspec.msgpack.decode(data, type=Snapshot)
