"""What the protocols that pass a connection through have in common: a server is found, then the bytes go past.

Theory of operation. One client connection is one session; it has one server, whose connection is always a new one.

=========  ==============================================  ====================================================
state      waits for                                       leaves on
=========  ==============================================  ====================================================
OPENING    what is to be known before a server is chosen   known -> ROUTING; refused, end, time -> CLOSED
ROUTING    a server (queue and connect are the proxy's)    connected -> LEARNING or TUNNEL; failed, reset -> CLOSED
LEARNING   what the server says first, passing all on      known, one side's end -> TUNNEL; reset, time -> CLOSED
TUNNEL     the end of both sides                           both ends, reset, time without a byte -> CLOSED
CLOSED     nothing                                         what still comes is discarded
=========  ==============================================  ====================================================

What a client sends while its server is looked for waits in ``buffer``, and is what the server gets first; one that
has ended its half by then is served all the same. Once a byte may have gone to a server, no other is tried: nobody
knows what these bytes mean. A reset is passed on as a reset, so that nobody takes half of something for the whole.

A protocol derives its machine from :class:`TunnelMachine` and adds the states that it has.
"""

from __future__ import annotations

from typing import Final

from l7lb.core.actions import (
    CLIENT,
    SERVER,
    Action,
    Close,
    Finished,
    NeedServer,
    Recorded,
    Release,
    Side,
    ToServer,
    Tunnel,
)
from l7lb.core.contracts import Assignment, Choice, Peer, Session
from l7lb.core.errors import Failure, Owner
from l7lb.core.facts import Facts
from l7lb.core.record import AccessRecord

OPENING: Final = 0
ROUTING: Final = 1
LEARNING: Final = 2
TUNNEL: Final = 3
CLOSED: Final = 4

READ_AHEAD = 16 * 1024  # bytes taken from a client beyond its first words, while its server is looked for


class Shared:
    """What all connections of one listener have in common, for one snapshot.

    ``idle`` and ``half_closed`` are seconds without a byte, the latter once one side has ended its half.
    """

    def __init__(self, listener: str, protocol: str, idle: float, half_closed: float) -> None:
        self.listener = listener
        self.protocol = protocol
        self.idle = idle
        self.half_closed = half_closed


class Flow(Recorded):
    """One session, and what its access record tells. Times are monotonic seconds, 0.0 where not reached yet."""

    __slots__ = (
        "answered_at",
        "assignment",
        "began",
        "choice",
        "closed_by",
        "connected_at",
        "facts",
        "received",
        "sent",
    )

    def __init__(self, facts: Facts, began: float) -> None:
        self.facts = facts
        self.began = began
        self.connected_at = 0.0
        self.answered_at = 0.0  # the server's first byte
        self.received = 0
        self.sent = 0
        self.closed_by = ""
        self.choice: Choice | None = None
        self.assignment: Assignment | None = None

    def latency(self) -> float:
        """Seconds from the connection to the server's first byte, negative where there is none."""
        return self.answered_at - self.connected_at if self.answered_at else -1.0

    def record(self, ended: str, elapsed: float) -> AccessRecord:
        facts, assignment = self.facts, self.assignment
        record = AccessRecord(
            time="",
            listener=facts.listener,
            protocol=facts.protocol,
            client=facts.source,
            sni=facts.host.decode("latin-1"),
            alpn=b",".join(facts.alpn()).decode("latin-1"),
            ended=ended,
            closed_by=self.closed_by,
            received=self.received,
            sent=self.sent,
            total_ms=round(elapsed * 1000, 3),
        )
        record.went(self.choice, assignment)
        if assignment is not None and self.answered_at:
            record.response_ms = round(self.latency() * 1000, 3)
        return record


class TunnelMachine(Session):
    """A client connection; see the module's head and :class:`l7lb.core.contracts.Session`."""

    __slots__ = ("buffer", "flow", "idle", "peer", "shared", "state")

    def __init__(self, shared: Shared, facts: Facts, peer: Peer, now: float) -> None:
        super().__init__()
        self.shared = shared
        self.peer = peer
        self.flow = Flow(facts, now)
        self.buffer = bytearray()
        self.idle = shared.idle
        self.state = OPENING

    # --- what a protocol says in its own words ----------------------------------------------------------------

    def farewell(self, failure: Failure) -> list[Action]:
        """What the client is told where there is no server for it, and how its connection ends."""
        return [Close(abort=True)]

    def opening(self) -> str:
        """The name of the state OPENING in records."""
        return "opening"

    def first(self, assignment: Assignment, now: float) -> list[Action]:
        """The server is there and gets what the client has sent: begin to learn, or go on with :meth:`tunnel`."""
        return self.tunnel(now)

    # --- what the proxy tells ---------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        return self.route()

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        if self.state == ROUTING and side is CLIENT:
            self.buffer += data
            self.flow.received += len(data)
            if len(self.buffer) >= READ_AHEAD:
                self.wants_client = False
        return []

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        state = self.state
        flow = self.flow
        if state == CLOSED:
            return []
        if not flow.closed_by:
            flow.closed_by = "client" if side is CLIENT else "server"
        if error:
            if side is CLIENT:
                return self.cut(Failure.CLIENT_CLOSED, now)
            return self.cut(Failure.SERVER_CLOSED_INSIDE if flow.answered_at else Failure.SERVER_CLOSED, now)
        if state == ROUTING:
            self.wants_client = False  # it has said everything, and may well wait for an answer
            return []
        if state == LEARNING:
            return self.tunnel(now)
        if state != TUNNEL:
            return []
        self.state = CLOSED
        self.deadline = 0.0
        return [self.finished(None, "ok", now), Release(False, None, flow.latency()), Close()]

    def half_ended(self, side: Side, now: float) -> None:
        if not self.flow.closed_by:
            self.flow.closed_by = "client" if side is CLIENT else "server"
        self.idle = min(self.idle, self.shared.half_closed)
        self.deadline = now + self.idle

    def connected(self, assignment: Assignment, now: float) -> list[Action]:
        flow = self.flow
        flow.assignment = assignment
        flow.choice = assignment.choice
        flow.connected_at = now
        self.wants_client = True
        self.deadline = now + self.shared.idle
        actions = self.first(assignment, now)
        if self.buffer:
            actions.insert(0, ToServer(bytes(self.buffer)))
            self.buffer = bytearray()
        return actions

    def answered(self, choice: Choice, now: float) -> list[Action]:
        # The configuration's check lets no such rule pass.
        return self.failed(Failure.NO_ROUTE, choice, now)

    def failed(self, failure: Failure, choice: Choice | None, now: float) -> list[Action]:
        self.flow.choice = choice
        phase = "connect" if failure in (Failure.CONNECT_REFUSED, Failure.CONNECT_TIMEOUT) else "queue"
        self.state = CLOSED
        self.deadline = 0.0
        self.wants_client = True
        return [self.finished(failure, f"{failure.label}@{phase}", now), *self.farewell(failure)]

    def moved(self, side: Side, count: int, now: float) -> list[Action]:
        flow = self.flow
        self.deadline = now + self.idle
        if side is CLIENT:
            flow.received += count
        else:
            flow.sent += count
            if not flow.answered_at:
                flow.answered_at = now
        return []

    def expired(self, now: float, blocked: Side | None, progress: float) -> list[Action]:
        if self.state not in (LEARNING, TUNNEL):
            self.deadline = 0.0
            return []
        return self.cut(Failure.SERVER_STALLED if blocked is SERVER else Failure.CLIENT_TIMEOUT, now)

    def draining(self, now: float, patient: bool) -> list[Action]:
        return []  # a session goes on as long as the process may

    def describe(self) -> dict[str, str]:
        name = self.flow.facts.host[:200].decode("latin-1")
        return {"detail": f"{name} ({self.phase()})" if name else self.phase()}

    # --- steps ------------------------------------------------------------------------------------------------

    def route(self) -> list[Action]:
        """Everything is known that a server is chosen by."""
        self.state = ROUTING
        self.deadline = 0.0
        if len(self.buffer) >= READ_AHEAD:
            self.wants_client = False
        return [NeedServer(self.flow.facts, fresh=True)]

    def tunnel(self, now: float) -> list[Action]:
        """From here on the bytes go past."""
        self.state = TUNNEL
        self.deadline = now + self.shared.idle
        return [Tunnel(self.shared.idle)]

    def cut(self, failure: Failure, now: float) -> list[Action]:
        """End both sides at once, with resets."""
        flow = self.flow
        ended = f"{failure.label}@{self.phase()}"
        blame = failure if failure.owner is Owner.SERVER else None
        self.state = CLOSED
        self.deadline = 0.0
        return [
            self.finished(failure, ended, now),
            Release(False, blame, flow.latency(), abort=True),
            Close(abort=True),
        ]

    def phase(self) -> str:
        """Where the session is, in the record's words."""
        if self.state == OPENING:
            return self.opening()
        if self.state == ROUTING:
            return "queue"
        return "closed" if self.state == CLOSED else "tunnel"

    def finished(self, failure: Failure | None, ended: str, now: float) -> Finished:
        """The session's end for counts and record."""
        flow = self.flow
        return Finished(flow, 0, failure, ended, flow.received, flow.sent, now - flow.began)
