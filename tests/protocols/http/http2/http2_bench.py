"""The HTTP/2 machine on a bench: a client of the h2 library on one side, the events of servers on the other.

It does what the proxy does with the actions, and writes down what happened in words.
"""

from __future__ import annotations

import re

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from l7lb.core.actions import (
    Action,
    Close,
    Continue,
    Finished,
    Learn,
    Multiplex,
    NeedServer,
    OnStream,
    OpenStream,
    Release,
    Side,
    ToClient,
    ToServer,
)
from l7lb.core.contracts import Assignment, Choice, Flow, Peer, Session
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Listener, Pool, PoolTimeouts, Respond, Retries, Route, Server, ToPool
from l7lb.protocols.http.ending import Shared
from l7lb.protocols.http.http2.connection import Http2Machine
from l7lb.protocols.http.settings import HttpSettings

CLIENT, SERVER = Side.CLIENT, Side.SERVER
GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
POST = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
OWN_FIELDS = (b"date", b"via", b"x-request-id")
OWN_LINES = re.compile(rb"(?mi)^(?:X-Forwarded-\w+|Forwarded|X-Request-ID|Via|Date): [^\r]*\r\n")


class Lane:
    """One stream as the proxy sees it."""

    def __init__(self, session: Session, flow: Flow) -> None:
        self.session = session
        self.flow = flow
        self.need: NeedServer | None = None
        self.to_server = b""
        self.released = ""
        self.closed = False


class Bench:
    """``client`` speaks to the machine, ``lanes`` are its streams, ``records`` says how requests ended."""

    def __init__(self, *, retries: Retries = Retries(attempts=0), room: int = 1 << 20, **settings: object) -> None:  # noqa: B008 - immutable
        self.route = Route(number=1, where="here", match=None, action=ToPool("web"))
        listener = Listener(
            name="web", protocol="http", bind=(Address("127.0.0.1", 80),), routes=(self.route,), settings=dict(settings)
        )
        server = Server(name="web1", address=Address("127.0.0.1", 1))
        timeouts = PoolTimeouts(response_header=30.0, response_body=40.0)
        pool = Pool(name="web", servers=(server,), retries=retries, timeouts=timeouts)
        self.state = ServerState("web", server)
        self.pool = PoolState(pool, [self.state])
        self.now = 1000.0
        self.room = room
        self.machine = Http2Machine(
            Shared("web", HttpSettings.of(listener)), Peer("192.0.2.1", 4711, "127.0.0.1", 8080), self.now
        )
        self.client = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.client.initiate_connection()
        self.lanes: dict[int, Lane] = {}
        self.records: list[str] = []
        self.events: list[Event] = []
        self.closed = ""
        self.deaf = False  # the client does not look at what it gets
        self.takes = True  # servers take what is sent to them
        self.run(self.machine.start(self.now))

    # --- events

    def connect(self) -> Bench:
        """The client says its preface, and both learn the other's settings."""
        return self.flush().flush()

    def flush(self) -> Bench:
        """What the client has to send arrives."""
        return self.feed(self.client.data_to_send())

    def feed(self, data: bytes) -> Bench:
        """These bytes arrive."""
        return self.run(self.machine.received(CLIENT, data, self.now))

    def request(self, fields: list[tuple[bytes, bytes]], number: int = 1, end: bool = True) -> Bench:
        """The client asks for something."""
        self.client.send_headers(number, fields, end_stream=end)
        return self.flush()

    def assign(self, number: int = 1) -> Bench:
        """A stream gets its server."""
        lane = self.lanes[number]
        assert lane.need is not None
        lane.need = None
        return self.on(number, lane.session.connected(self.assignment(), self.now))

    def assignment(self) -> Assignment:
        """A server, as the dispatcher would hand it out."""
        return Assignment(Choice(self.route, "web"), self.pool, self.state)

    def answer(self, data: bytes, number: int = 1) -> Bench:
        """A stream's server sends."""
        return self.on(number, self.lanes[number].session.received(SERVER, data, self.now))

    def end(self, number: int = 1, error: bool = False) -> Bench:
        """A stream's server ends."""
        return self.on(number, self.lanes[number].session.ended(SERVER, self.now, error))

    def wait(self, seconds: float) -> Bench:
        """Time passes; deadlines come in their order."""
        end = self.now + seconds
        while True:
            due = [(lane.session.deadline, n) for n, lane in self.lanes.items() if lane.session.deadline]
            if self.machine.deadline:
                due.append((self.machine.deadline, 0))
            if not due or min(due)[0] > end:
                break
            self.now, number = max(self.now, min(due)[0]), min(due)[1]
            if number:
                lane = self.lanes[number]
                blocked = (CLIENT, lane.flow.progress) if lane.flow.waiting else (None, 0.0)
                self.on(number, lane.session.expired(self.now, *blocked))
            else:
                self.run(self.machine.expired(self.now, None, 0.0))
        self.now = end
        return self

    def drain(self, patient: bool) -> Bench:
        """The process is to end."""
        return self.run(self.machine.draining(self.now, patient))

    # --- what the proxy does

    def on(self, number: int, actions: list[Action]) -> Bench:
        """Carry out a stream's actions."""
        self._stream(number, actions)
        return self.run([])

    def run(self, actions: list[Action]) -> Bench:
        """Carry out the machine's actions, then send what there is to send."""
        self._carry_out(actions)
        if not self.closed:
            self._carry_out(self.machine.output(self.room, self.now))
        return self

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            assert not self.closed, f"{action} behind Close"
            if isinstance(action, ToClient):
                if self.deaf:
                    continue
                self.events += self.client.receive_data(action.data)
                if isinstance(self.events and self.events[-1], ConnectionTerminated):
                    # The library would neither send nor take anything more, which other clients do.
                    self.client.state_machine.state = ConnectionState.CLIENT_OPEN
            elif isinstance(action, OpenStream):
                self.lanes[action.number] = Lane(action.session, action.flow)
                self._stream(action.number, action.actions)
            elif isinstance(action, OnStream):
                self._stream(action.number, action.actions)
            elif isinstance(action, Finished):
                self.records.append(f"{action.status} {action.ended}")
            elif isinstance(action, Close):
                self.closed = "close"
            elif isinstance(action, Continue):
                assert action is actions[-1]
                self._carry_out(self.machine.received(CLIENT, b"", self.now))
            else:
                assert isinstance(action, Multiplex), action

    def _stream(self, number: int, actions: list[Action]) -> None:
        lane = self.lanes.get(number)
        if lane is None:
            assert not actions, actions
            return
        for action in actions:
            assert not lane.closed
            if isinstance(action, ToServer):
                lane.to_server += action.data
            elif isinstance(action, NeedServer):
                assert action is actions[-1]
                lane.need = action
            elif isinstance(action, Release):
                lane.released = "kept" if action.reusable else "closed"
            elif isinstance(action, Finished):
                self.records.append(f"{number}: {action.status} {action.ended}")
                assert action.subject.record(action.ended, 0.0).protocol == "http"
            elif isinstance(action, Close):
                lane.closed = True
            else:
                assert isinstance(action, Learn), action
        lane.flow.taking(lane.session.wants_client and self.takes and lane.need is None)
        if lane.closed:
            del self.lanes[number]

    # --- what the client saw

    def seen(self) -> list[str]:
        """What the client saw since it was last asked, in words."""
        events, self.events = self.events, []
        words = []
        for event in events:
            if isinstance(event, ResponseReceived | InformationalResponseReceived | TrailersReceived):
                known = [(name, value) for name, value in event.headers if name not in OWN_FIELDS]
                text = " ".join(f"{name.decode()}={value.decode()}" for name, value in known)
                words.append(f"{event.stream_id} head {text}")
            elif isinstance(event, DataReceived) and event.data:
                words.append(
                    f"{event.stream_id} data {event.data.decode() if len(event.data) < 40 else len(event.data)}"
                )
            elif isinstance(event, StreamEnded):
                words.append(f"{event.stream_id} end")
            elif isinstance(event, StreamReset):
                words.append(f"{event.stream_id} reset {int(event.error_code)}")
            elif isinstance(event, ConnectionTerminated):
                words.append(f"goaway {int(event.error_code)} {event.last_stream_id}")
        return words

    def server(self, number: int = 1) -> bytes:
        """What a stream's server got, without the lines that l7lb adds."""
        return OWN_LINES.sub(b"", self.lanes[number].to_server)


__all__ = ["GET", "OK", "POST", "Bench", "Respond"]
