"""The interfaces at which the parts of l7lb meet.

The proxy knows protocols, balancers and persistence only through these; each side is tested alone against them.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mypy_extensions import mypyc_attr

from l7lb.core.actions import Action, Close, Side
from l7lb.core.errors import Failure
from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Balance, Listener, Redirect, Respond, Route


class Choice:
    """The router's answer: the rule that matched, the pool it leads to (None: it answers itself).

    ``captures`` holds what each ``*`` of the matched path glob stood for. The proxy expands the route's templates:
    ``location`` of a redirect, ``path`` and ``host`` of a rewrite; empty where there is none. ``rewrites``,
    ``edits_request`` and ``edits_response`` say what the rule changes on the way, so that the many that change nothing
    are told by one look.
    """

    __slots__ = ("captures", "edits_request", "edits_response", "host", "location", "path", "pool", "rewrites", "route")

    def __init__(self, route: Route, pool: str | None, captures: tuple[bytes, ...] = ()) -> None:
        self.route = route
        self.pool = pool
        self.captures = captures
        self.rewrites = route.rewrite is not None
        self.edits_request = bool(route.set_headers or route.remove_headers)
        self.edits_response = bool(route.set_response_headers or route.remove_response_headers)
        self.location = b""
        self.path = b""
        self.host = b""

    @property
    def answer(self) -> Respond | Redirect | None:
        """What to answer, where the rule answers itself."""
        action = self.route.action
        return action if isinstance(action, (Respond, Redirect)) else None


class Entry:
    """What a directory says of an address. Empty is what it does not say.

    ``mailbox`` is the canonical name of the store, ``server`` a server's name or host. With ``user`` or ``password``
    the server is logged in to with these in place of what the client gave; with ``master_user`` and its password as
    that user on behalf of the mailbox (SASL's authorization identity). These passwords are used only where the client
    has proved who it is: by a certificate, or because the directory has checked its password (``proven``). Else anybody
    would be let in.
    """

    __slots__ = ("mailbox", "master_password", "master_user", "password", "proven", "server", "user")

    def __init__(self, mailbox: bytes = b"", server: str = "") -> None:
        self.mailbox = mailbox
        self.server = server
        self.user = b""
        self.password = b""
        self.master_user = b""
        self.master_password = b""
        self.proven = False


class Assignment:
    """A server's connection that the session holds until it releases it."""

    __slots__ = (
        "attempt",
        "choice",
        "connect_time",
        "entry",
        "kept",
        "learns",
        "pool",
        "queue_time",
        "reused",
        "server",
        "server_tls",
        "set_cookie",
        "sticky",
    )

    def __init__(self, choice: Choice, pool: PoolState, server: ServerState) -> None:
        self.choice = choice
        self.pool = pool
        self.server = server
        self.reused = False  # an idle connection, which the server may just be closing
        self.attempt = 0  # 0 for the first
        self.sticky = ""  # the persistence key that chose the server
        self.set_cookie = b""  # a Set-Cookie value that the answer must carry
        self.learns = False  # whether the cookies or TLS sessions that the server issues are wanted
        self.kept: object | None = None  # what the protocol remembers of the server's connection
        self.queue_time = 0.0
        self.connect_time = 0.0
        self.entry: Entry | None = None  # what a directory said of the mailbox
        # TLS with the server: "" where none is wanted, "starttls" where the session must ask for it before it says
        # anything of worth, "done".
        self.server_tls = ""


class Location:
    """Where a mailbox is: the answer to Locate. ``failure`` says why there is none, and then there is no server."""

    __slots__ = ("choice", "entry", "facts", "failure", "pool", "server")

    def __init__(
        self,
        facts: Facts,
        choice: Choice | None,
        pool: PoolState | None = None,
        server: ServerState | None = None,
        entry: Entry | None = None,
        failure: Failure | None = None,
    ) -> None:
        self.facts = facts  # those that were asked with
        self.choice = choice
        self.pool = pool
        self.server = server
        self.entry = entry
        self.failure = failure


@mypyc_attr(allow_interpreted_subclasses=True)
class Session:
    """One client's connection, sans-io: bytes, events and ``now`` in, actions out. Protocols' machines inherit it.

    The proxy reads ``deadline`` (monotonic seconds, 0.0: none) and ``wants_client``/``wants_server`` (whether
    it should go on reading from that side) after every call. Any split of the bytes gives the same actions.
    """

    __slots__ = ("deadline", "wants_client", "wants_server")

    def __init__(self) -> None:
        self.deadline = 0.0
        self.wants_client = True
        self.wants_server = True

    def start(self, now: float) -> list[Action]:
        """The client has connected."""
        raise NotImplementedError

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        """Bytes have come from that side."""
        raise NotImplementedError

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        """That side will send nothing more; ``error``: the connection is gone as well (a reset)."""
        raise NotImplementedError

    def half_ended(self, side: Side, now: float) -> None:
        """That side of a Tunnel will send nothing more, and the other goes on; ``ended`` comes when both have ended."""

    def connected(self, assignment: Assignment, now: float) -> list[Action]:
        """A server's connection answers NeedServer."""
        raise NotImplementedError

    def answered(self, choice: Choice, now: float) -> list[Action]:
        """The route that NeedServer asked for answers itself."""
        raise NotImplementedError

    def failed(self, failure: Failure, choice: Choice | None, now: float) -> list[Action]:
        """NeedServer has no good answer."""
        raise NotImplementedError

    def located(self, location: Location, now: float) -> list[Action]:
        """Where the mailbox is that Locate asked for."""
        raise NotImplementedError

    def secured(self, now: float) -> list[Action]:
        """The client's handshake that StartTls asked for is done; its peer's ``handshake`` and ``tls`` tell of it."""
        raise NotImplementedError

    def server_secured(self, now: float) -> list[Action]:
        """The handshake with the server that StartServerTls asked for is done."""
        raise NotImplementedError

    def dismissed(self, why: str, now: float) -> list[Action]:
        """The node ends this session: its mailbox moves, its server is gone, an operator wants it so. ``why`` is text
        for the client. Say goodbye in the protocol's words and close; by default it is cut.
        """
        return [Close(abort=True)]

    def moved(self, side: Side, count: int, now: float) -> list[Action]:
        """The proxy moved so many bytes from ``side`` for a Splice or a Tunnel."""
        raise NotImplementedError

    def expired(self, now: float, blocked: Side | None, progress: float) -> list[Action]:
        """``deadline`` has come. ``blocked`` names a side that does not take what was sent to it, and ``progress``
        when it last took something.
        """
        raise NotImplementedError

    def draining(self, now: float, patient: bool) -> list[Action]:
        """This process is ending: finish what is in progress and begin nothing new. ``patient``: another one has taken
        over, so that a client without a request may be waited for, and none meets a connection that is just closed.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, str]:
        """What `l7lb sessions` shows of it beyond its addresses."""
        raise NotImplementedError


class ClientCertificate:
    """A client's certificate as the TLS handshake showed it; ``subject`` and ``issuer`` as text (RFC 4514).

    ``verified``: it comes from a CA that the listener trusts. ``issuer``, ``serial`` (hexadecimal) and ``der`` are
    empty where a proxy in front told of it.
    """

    __slots__ = ("common_name", "der", "issuer", "serial", "subject", "verified")

    def __init__(self, common_name: str, subject: str, verified: bool, der: bytes = b"") -> None:
        self.common_name = common_name
        self.subject = subject
        self.verified = verified
        self.der = der
        self.issuer = ""
        self.serial = ""


class Handshake:
    """What a client's TLS handshake showed, to this node or to the proxy in front that told of it.

    ``sni`` and ``alpn`` are empty where there was none; ``version`` is such as ``TLSv1.3``. ``asked``: a certificate
    was asked for, so that its absence says something. ``resumed``: a session of an earlier connection went on.
    """

    __slots__ = ("alpn", "asked", "certificate", "cipher", "resumed", "sni", "version")

    def __init__(self, sni: bytes = b"", alpn: bytes = b"", version: str = "", cipher: str = "") -> None:
        self.sni = sni
        self.alpn = alpn
        self.version = version
        self.cipher = cipher
        self.resumed = False
        self.asked = False
        self.certificate: ClientCertificate | None = None


class Front:
    """The proxy in front that sent a PROXY header: its own address, and its name for the connection, if any."""

    __slots__ = ("address", "unique_id")

    def __init__(self, address: str, unique_id: bytes = b"") -> None:
        self.address = address
        self.unique_id = unique_id


class Flow(Protocol):
    """What the session of one stream has beyond :class:`Session`. It has no bytes of its own on the wire: what it sends
    waits in its multiplexer, whose ``output`` asks for it.

    ``waiting`` is how many bytes of its answer the client has not allowed yet, ``progress`` when it last took some.
    """

    @property
    def waiting(self) -> int: ...

    @property
    def progress(self) -> float: ...

    def taking(self, wanted: bool) -> None:
        """Whether the proxy takes more of what the client sends: while not, the stream's window stays closed."""
        ...


@mypyc_attr(allow_interpreted_subclasses=True)
class Multiplexer(Session):
    """A client's connection that carries streams. It asks by OpenStream and OnStream, and by ToClient in ``output``."""

    __slots__ = ()

    def output(self, room: int, now: float) -> list[Action]:
        """What is to be sent: control at once, answers up to ``room`` bytes, the streams in turn."""
        raise NotImplementedError

    def failed_stream(self, number: int) -> None:
        """The proxy gave this stream up, by a fault of its own."""
        raise NotImplementedError


class Peer:
    """Where a client's connection comes from and arrived; for a unix socket the addresses are ``unix:``.

    Behind a listed proxy (``proxy_protocol``) these are the addresses that it told, and ``front`` is that proxy.
    ``tls``: the client came over TLS, ended here or by that proxy. ``handshake`` is there whenever something is known
    of it: with TLS, and where a proxy told a name or a protocol of a connection without.
    """

    __slots__ = ("client", "client_port", "front", "handshake", "local", "local_port", "tls")

    def __init__(self, client: str, client_port: int, local: str, local_port: int, tls: bool = False) -> None:
        self.client = client
        self.client_port = client_port
        self.local = local
        self.local_port = local_port
        self.tls = tls
        self.handshake: Handshake | None = None
        self.front: Front | None = None


# Makes the session of one client's connection. Made once for each listener and snapshot, called per connection.
SessionFactory = Callable[[Peer, float], Session]


@dataclass(frozen=True)
class ProtocolSpec:
    """What a protocol's folder offers: named in ``l7lb.protocols.PROTOCOLS``, or by an entry point.

    ``sessions`` makes a listener's session factory from its compiled form. ``probe`` names the module and
    function of the health check as ``module:function``; it is loaded by the supervisor only, since a worker
    must not import what checks need.
    """

    name: str
    sessions: Callable[[Listener], SessionFactory]
    probe: str


@dataclass(frozen=True)
class ProbeTls:
    """How a check speaks TLS; it stands in a probe's settings as ``tls`` where the server is spoken to that way.

    A ``mode`` other than ``implicit`` concerns the probes of protocols that have STARTTLS; for others it is the same.
    """

    context: ssl.SSLContext
    name: str | None
    mode: str = "implicit"  # as :class:`l7lb.core.snapshot.ServerTls` has it


class Probe(Protocol):
    """A health check: returns what an operator may read, or raises ProbeFailed. The caller limits its time.

    ``settings`` are those of the pool's ``health``; where the server has ``send_proxy``, its version is there too, and
    what the check sends begins with the header that ``proxy_protocol.writing.write_own`` makes.
    """

    async def __call__(self, address: Address, settings: dict[str, Any], timeout: float) -> str: ...


@mypyc_attr(allow_interpreted_subclasses=True)
class Balancer(ABC):
    """One way to choose among a pool's servers; made anew when the list of servers changes.

    It sees the states and must cope with health, weights and counts changing under it; ``changed`` tells it
    that health, weights or operator states did.
    """

    def __init__(self, pool: PoolState, settings: Balance, seed: int = 0) -> None:
        self.pool = pool
        self.settings = settings
        self.seed = seed

    @abstractmethod
    def choose(self, facts: Facts, now: float, without: Collection[ServerState] = ()) -> ServerState | None:
        """The server for these facts, not one of ``without``; None where none is open.

        Servers at their connection limit are passed over unless all open ones are; the caller queues then.
        """

    def changed(self, now: float) -> None:
        """Health, weight or an operator's state of some server has changed."""

    def taken(self, server: ServerState) -> None:
        """``server.active`` has grown by one."""

    def released(self, server: ServerState, latency: float) -> None:
        """``server.active`` has shrunk by one; ``latency`` in seconds to its answer, negative if it gave none."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Stickiness(ABC):
    """A pool's persistence keys in their order, in one worker."""

    @abstractmethod
    def find(self, facts: Facts, now: float, without: Collection[str] = ()) -> tuple[str, str] | None:
        """The server's name and the kind of key that says so; None for a new user.

        Servers ``without`` can't be used: a key that names one of them is passed over, and the next key is asked.
        """

    @abstractmethod
    def chosen(self, facts: Facts, server: str, now: float) -> bytes:
        """This server got the request: remember it. Returns a Set-Cookie value, or nothing to set."""

    @abstractmethod
    def answered(self, set_cookies: Sequence[bytes], server: str, now: float) -> None:
        """The server's answer set these cookies (learned cookies are taken from them)."""

    def issued(self, sessions: Sequence[bytes], server: str, now: float) -> None:
        """The server issued these TLS sessions."""

    @property
    def remembers(self) -> bool:
        """Whether ``chosen`` wants to be called for the server that ``find`` named, too: to keep an entry fresh."""
        return True

    @property
    @abstractmethod
    def learns(self) -> bool:
        """Whether ``answered`` and ``issued`` want to be called."""


@dataclass
class Explanation:
    """One line of `l7lb explain`: a rule, whether it matched, and why."""

    where: str
    number: int
    matched: bool
    why: str
    details: list[str] = field(default_factory=list)
