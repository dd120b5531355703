"""The machine of TLS passed through: one client connection, sans-io. It reads the ClientHello and decrypts nothing.

The states are those of :mod:`l7lb.protocols.tunnel`; two of them mean here:

=========  ==============================================  ====================================================
state      waits for                                       leaves on
=========  ==============================================  ====================================================
OPENING    the ClientHello                                 complete -> ROUTING; not TLS, too large, too late: an
                                                           alert -> CLOSED; end, reset -> CLOSED
LEARNING   the server's first flight, where the pool       ChangeCipherSpec, TLS 1.3, anything else -> TUNNEL
           learns TLS sessions and the client takes
           TLS 1.2 or older
=========  ==============================================  ====================================================

The server gets the bytes as they came. What it answers goes to the client at once, whatever is learned from it.
"""

from __future__ import annotations

from l7lb.core.actions import CLIENT, Action, Close, LearnSessions, Refused, Side, ToClient, ToServer
from l7lb.core.contracts import Assignment, Handshake, Peer
from l7lb.core.errors import Failure
from l7lb.protocols.tls import alerts
from l7lb.protocols.tls.facts import TlsFacts
from l7lb.protocols.tls.flight import ServerFlight
from l7lb.protocols.tls.hello import HelloFault, HelloReader
from l7lb.protocols.tls.settings import TlsSettings
from l7lb.protocols.tunnel import CLOSED, LEARNING, OPENING, Shared, TunnelMachine

STAGE = "tls"  # the counts' word
PATIENCE = 5.0  # seconds that a client without a hello is waited for while another process has taken over


class TlsShared(Shared):
    """What all connections of one listener have in common. ``handshake`` is the seconds for a ClientHello."""

    def __init__(self, listener: str, protocol: str, settings: TlsSettings, handshake: float) -> None:
        super().__init__(listener, protocol, settings.tunnel, settings.half_closed)
        self.hello_bytes = settings.client_hello_bytes
        self.handshake = handshake


class TlsMachine(TunnelMachine):
    """A client connection; see the module's head and :class:`l7lb.core.contracts.Session`."""

    __slots__ = ("facts", "flight", "reader")

    def __init__(self, shared: TlsShared, peer: Peer, now: float) -> None:
        self.facts = TlsFacts(shared.protocol, shared.listener, peer.client)
        super().__init__(shared, self.facts, peer, now)
        self.reader: HelloReader | None = HelloReader(shared.hello_bytes)
        self.flight: ServerFlight | None = None
        self.deadline = now + shared.handshake

    def opening(self) -> str:
        return "client-hello"

    def farewell(self, failure: Failure) -> list[Action]:
        hello = self.facts.hello
        assert hello is not None
        code = alerts.no_server(failure, bool(hello.sni), hello.tls13)
        return [ToClient(alerts.alert(code, hello.version)), Close(linger=True)]

    # --- what the proxy tells ---------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        return []

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        if self.state == OPENING:
            return self._hello(data, now)
        if self.state == LEARNING:
            return self._learn(side, data, now)
        return super().received(side, data, now)

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        if self.state != OPENING:
            return super().ended(side, now, error)
        if not self.flow.received:
            # It connected and left, as many checks do: nothing was asked, and nothing is told of it.
            self.state = CLOSED
            self.deadline = 0.0
            return [Close()]
        self.flow.closed_by = "client"
        fault = HelloFault(0, "the client left before its ClientHello was complete", "closed", b"")
        return self._refuse(fault, Failure.CLIENT_CLOSED, now)

    def expired(self, now: float, blocked: Side | None, progress: float) -> list[Action]:
        if self.state != OPENING:
            return super().expired(now, blocked, progress)
        fault = HelloFault(0, "the ClientHello took too long", "timeout", b"")
        return self._refuse(fault, Failure.CLIENT_TIMEOUT, now)

    def draining(self, now: float, patient: bool) -> list[Action]:
        if self.state != OPENING:
            return []
        if patient or self.flow.received:
            self.deadline = min(self.deadline, now + PATIENCE)
            return []
        self.state = CLOSED
        self.deadline = 0.0
        return [Close()]

    # --- steps ------------------------------------------------------------------------------------------------

    def first(self, assignment: Assignment, now: float) -> list[Action]:
        hello = self.facts.hello
        assert hello is not None
        if not assignment.learns or not hello.tls12:
            return self.tunnel(now)
        self.state = LEARNING
        self.flight = ServerFlight(hello.session_id)
        return []

    def _hello(self, data: bytes, now: float) -> list[Action]:
        reader = self.reader
        assert reader is not None
        self.flow.received += len(data)
        try:
            hello = reader.feed(data)
        except HelloFault as fault:
            return self._refuse(fault, fault.failure, now)
        if hello is None:
            return []
        self.facts.show(hello)
        if self.peer.handshake is None:  # else a proxy in front has told of it
            self.peer.handshake = Handshake(hello.sni)
        self.buffer = reader.raw
        self.reader = None
        return self.route()

    def _learn(self, side: Side, data: bytes, now: float) -> list[Action]:
        flow, flight = self.flow, self.flight
        assert flight is not None
        self.deadline = now + self.shared.idle
        if side is CLIENT:
            flow.received += len(data)
            return [ToServer(data)]
        flow.sent += len(data)
        if not flow.answered_at:
            flow.answered_at = now
        actions: list[Action] = [ToClient(data)]
        if flight.feed(data):
            if flight.sessions:
                actions.append(LearnSessions(flight.sessions))
            self.flight = None
            actions += self.tunnel(now)
        return actions

    def _refuse(self, fault: HelloFault, failure: Failure, now: float) -> list[Action]:
        """The client's words can't be taken: tell it in its own, count and close."""
        ended = f"{failure.label}@{self.phase()}"
        self.state = CLOSED
        self.deadline = 0.0
        self.reader = None
        self.flow.sent += len(fault.answer)
        actions: list[Action] = [ToClient(fault.answer)] if fault.answer else []
        actions += [Refused(STAGE, fault.reason, fault.detail), self.finished(failure, ended, now)]
        actions.append(Close(linger=bool(fault.answer)))
        return actions
