"""What a protocol's session asks the proxy to do.

A session takes bytes and returns a list of these, carried out in order. They are small classes with slots,
told apart by type, because several are made for every request: compiled, one freed instance of each is used again, and
none is looked at by the garbage collector, since nothing that an action leads to leads back to it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from l7lb.core.errors import Failure
from l7lb.core.facts import Facts
from l7lb.core.record import AccessRecord

if TYPE_CHECKING:
    from l7lb.core.contracts import Flow, Multiplexer, Session


class Side(IntEnum):
    """Where bytes come from or go to."""

    CLIENT = 0
    SERVER = 1


# An enumeration's member is looked up by way of an exception in some Pythons: hot paths use these.
CLIENT: Final = Side.CLIENT
SERVER: Final = Side.SERVER


@mypyc_attr(acyclic=True)
class Action:
    """The root of all actions."""

    __slots__ = ()


@mypyc_attr(acyclic=True, free_list_len=1)
class ToClient(Action):
    """Send these bytes to the client."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


@mypyc_attr(acyclic=True, free_list_len=1)
class ToServer(Action):
    """Send these bytes to the server that the session holds."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


@mypyc_attr(acyclic=True, free_list_len=1)
class NeedServer(Action):
    """Route these facts and get a server; the answer is ``connected``, ``answered`` or ``failed``.

    It is the last action of its list. ``again`` names why the server before was given up, when this is a retry (its
    connection is closed, and another server is preferred); ``fresh`` refuses an idle connection, since the one before
    was closed under the request; ``careful`` takes one only after a look that the server has not just closed it, for
    requests that can't be sent twice.
    """

    __slots__ = ("again", "careful", "facts", "fresh")

    def __init__(self, facts: Facts, again: Failure | None = None, fresh: bool = False, careful: bool = False) -> None:
        self.facts = facts
        self.again = again
        self.fresh = fresh
        self.careful = careful


@mypyc_attr(acyclic=True, free_list_len=1)
class Release(Action):
    """The session needs its server no longer; the connection is kept for others, or closed.

    ``failure`` is what the server did wrong, for passive health; ``latency`` the seconds to its answer, negative
    where it gave none. ``abort`` resets the connection, so that the server does not take this for a regular end.
    """

    __slots__ = ("abort", "failure", "latency", "reusable")

    def __init__(
        self, reusable: bool, failure: Failure | None = None, latency: float = -1.0, abort: bool = False
    ) -> None:
        self.reusable = reusable
        self.abort = abort
        self.failure = failure
        self.latency = latency


@mypyc_attr(acyclic=True)
class Splice(Action):
    """Move the next ``count`` bytes from one side to the other without showing them to the session.

    The proxy calls ``moved`` as it goes on. -1: until the end of the stream.
    """

    __slots__ = ("count", "source")

    def __init__(self, source: Side, count: int) -> None:
        self.source = source
        self.count = count


@mypyc_attr(acyclic=True)
class Tunnel(Action):
    """From here on both directions are copied until both end; ``idle`` seconds without a byte end it.

    When both have ended, ``ended`` is told of the side that ended first.
    """

    __slots__ = ("idle",)

    def __init__(self, idle: float) -> None:
        self.idle = idle


class Locate(Action):
    """Find the server of these facts' mailbox and claim it, without a connection; the answer is ``located``, later or
    at once. It is the last action of its list; several may be under way.

    The claim keeps the mailbox on that server until Forget with the same facts, or until the
    connection ends. For a session that has a server by NeedServer and delivers to more mailboxes there.
    """

    __slots__ = ("facts",)

    def __init__(self, facts: Facts) -> None:
        self.facts = facts


class Forget(Action):
    """A mailbox that Locate asked for is wanted no longer: its claim, or the question, is given up."""

    __slots__ = ("facts",)

    def __init__(self, facts: Facts) -> None:
        self.facts = facts


class StartTls(Action):
    """The client asked for TLS: what was sent before leaves in the clear, then the handshake begins, and ``secured`` is
    called when it is done (its failure closes the connection). It is the last action of its list.

    The session must hold no byte that came behind the client's request for TLS: it closes the connection instead.
    """

    __slots__ = ()


class StartServerTls(Action):
    """The server agreed to TLS: the handshake with it begins, and ``server_secured`` or ``failed`` is called when it is
    over. It is the last action of its list.

    The session must hold no byte that came behind the server's consent: it gives the server up instead.
    """

    __slots__ = ()


class LoginFailed(Action):
    """The credentials of a login from this client were refused: that counts against its address, which is not the
    peer's where a trusted proxy told of another.
    """

    __slots__ = ("client",)

    def __init__(self, client: str) -> None:
        self.client = client


class Multiplex(Action):
    """From here on ``session`` has the client's connection, and carries streams in it. It is the last action of its
    list, and the proxy calls ``received`` with ``data``, what was received already.
    """

    __slots__ = ("data", "session")

    def __init__(self, session: Multiplexer, data: bytes = b"") -> None:
        self.session = session
        self.data = data


class Continue(Action):
    """Call ``received(CLIENT, b"")`` again: more of what has come is ready, but what stands before in this list is to
    be done first. It is the last action of its list.
    """

    __slots__ = ()


class OpenStream(Action):
    """A multiplexing session has a new stream: ``session`` is its own session, ``flow`` the same object as what tells
    of its windows, ``actions`` what it asks for first.
    """

    __slots__ = ("actions", "flow", "number", "session")

    def __init__(self, number: int, session: Session, flow: Flow, actions: list[Action]) -> None:
        self.number = number
        self.session = session
        self.flow = flow
        self.actions = actions


class OnStream(Action):
    """Carry these out for that stream; none: what it wants may have changed."""

    __slots__ = ("actions", "number")

    def __init__(self, number: int, actions: list[Action]) -> None:
        self.number = number
        self.actions = actions


@mypyc_attr(allow_interpreted_subclasses=True)
class Recorded:
    """What can tell of itself in an access record: a protocol's request or session."""

    __slots__ = ()

    def record(self, ended: str, elapsed: float) -> AccessRecord:
        """The record; ``time`` is left for whoever writes it."""
        raise NotImplementedError


@mypyc_attr(acyclic=True, free_list_len=1)
class Finished(Action):
    """A request or session is over: what the counts need of it, and how to make its access record if one is wanted.

    ``status`` is a number where the protocol has them, else 0; ``failure`` is None where all went well; ``ended`` is
    the record's word for who ended it and where; ``elapsed`` is seconds.
    """

    __slots__ = ("elapsed", "ended", "failure", "received", "sent", "status", "subject")

    def __init__(
        self,
        subject: Recorded,
        status: int,
        failure: Failure | None,
        ended: str,
        received: int,
        sent: int,
        elapsed: float,
    ) -> None:
        self.subject = subject
        self.status = status
        self.failure = failure
        self.ended = ended
        self.received = received
        self.sent = sent
        self.elapsed = elapsed


@mypyc_attr(acyclic=True)
class Learn(Action):
    """The server's answer set these cookies, and a persistence key learns from them."""

    __slots__ = ("set_cookies",)

    def __init__(self, set_cookies: list[bytes]) -> None:
        self.set_cookies = set_cookies


@mypyc_attr(acyclic=True)
class LearnSessions(Action):
    """The server issued these TLS sessions (identifiers, tickets), and a persistence key learns from them."""

    __slots__ = ("sessions",)

    def __init__(self, sessions: list[bytes]) -> None:
        self.sessions = sessions


@mypyc_attr(acyclic=True)
class Refused(Action):
    """What a client said first can't be taken: counted by stage and reason, and told of once a second at most.

    ``stage`` and ``reason`` are names of :mod:`l7lb.proxy.counts`; ``detail`` is what an operator should read.
    """

    __slots__ = ("detail", "reason", "stage")

    def __init__(self, stage: str, reason: str, detail: str) -> None:
        self.stage = stage
        self.reason = reason
        self.detail = detail


@mypyc_attr(acyclic=True)
class Close(Action):
    """Close the client's connection once what was sent before has left.

    ``linger`` reads and discards for a moment, so that a client that still sends gets the answer and not a
    reset; ``abort`` resets at once, so that a truncated answer can't pass for a whole one.
    """

    __slots__ = ("abort", "linger")

    def __init__(self, linger: bool = False, abort: bool = False) -> None:
        self.linger = linger
        self.abort = abort
