"""The machine among peers that do anything at any time: what holds in every conversation.

It never raises; nothing follows Close; nothing goes to a server that it does not hold; a request is answered before the
next is routed; each request that was begun leaves exactly one Finished; whatever happens, time ends it.
"""

from __future__ import annotations

from http_bench import CLIENT, GET, OK, SERVER, Bench
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from l7lb.core.errors import Failure
from l7lb.core.snapshot import Respond, Retries, Route
from l7lb.protocols.http.ending import CLOSED, HEAD, IDLE, ROUTING, TUNNEL

REQUESTS = st.sampled_from(
    [
        GET,
        GET * 3,
        b"\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"hello",
        b"x" * 70_000,
    ]
)
ANSWERS = st.sampled_from(
    [
        OK,
        OK + OK,
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 X\r\n\r\n",
        b"HTTP/1.1 413 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"hello",
        b"\n",
    ]
)
CUT = st.integers(1, 40)


class RandomPeers(RuleBasedStateMachine):
    """A client, a server and a proxy without manners."""

    def __init__(self) -> None:
        super().__init__()
        retries = Retries(
            attempts=2, when=frozenset({"reset-before-response", "response-timeout"}), statuses=frozenset({503})
        )
        self.bench = Bench(retries=retries, route=Route(number=1, where="", match=None, action=Respond(200, "x")))
        self.client_ended = False
        self.server_ended = False
        self.begun = 0

    def after(self) -> None:
        for word in self.bench.seen():
            if word == "need":
                assert self.begun == len(self.bench.finished) - self.unread, "a request before the last was answered"
                self.begun += 1
            if word == "need" or str(word).startswith("again"):
                self.server_ended = False

    @property
    def unread(self) -> int:
        return sum(each.ended.endswith("@request-header") for each in self.bench.finished)

    def alive(self) -> bool:
        return not self.bench.closed

    def client_may(self) -> bool:
        return self.alive() and not self.client_ended and self.bench.machine.wants_client

    def server_may(self) -> bool:
        return self.alive() and self.bench.held and not self.server_ended

    @precondition(client_may)
    @rule(data=REQUESTS, cut=CUT)
    def client_sends(self, data: bytes, cut: int) -> None:
        for piece in (data[:cut], data[cut:]):
            if piece and self.client_may() and not self.splicing():
                self.bench.client(piece)
                self.after()

    @precondition(server_may)
    @rule(data=ANSWERS, cut=CUT)
    def server_sends(self, data: bytes, cut: int) -> None:
        for piece in (data[:cut], data[cut:]):
            if piece and self.server_may() and self.bench.machine.state != TUNNEL:
                self.bench.answer(piece)
                self.after()

    @precondition(lambda self: self.client_may())
    @rule(error=st.booleans())
    def client_ends(self, error: bool) -> None:
        self.client_ended = True
        self.bench.end(CLIENT, error)
        self.after()

    @precondition(server_may)
    @rule(error=st.booleans())
    def server_ends(self, error: bool) -> None:
        self.server_ended = True
        self.bench.end(SERVER, error)
        self.after()

    @precondition(lambda self: self.alive() and self.bench.need is not None)
    @rule(how=st.sampled_from(["connect", "reused", "here", "fail"]))
    def dispatched(self, how: str) -> None:
        if how == "here" and self.bench.need.again is None:
            self.bench.answer_here()
        elif how in ("fail", "here"):
            self.bench.fail(Failure.CONNECT_REFUSED)
        else:
            self.server_ended = False
            self.bench.connect(reused=how == "reused")
        self.after()

    def splicing(self) -> int:
        """How much of a body the machine has asked the proxy to move."""
        exchange = self.bench.machine.exchange
        remaining = getattr(exchange.body, "remaining", 0) if exchange is not None and self.bench.held else 0
        return remaining if remaining > 65_536 and not exchange.request.expects else 0

    @precondition(lambda self: self.server_may() and self.splicing())
    @rule(share=st.sampled_from([1, 2]))
    def client_is_spliced(self, share: int) -> None:
        self.bench.move(CLIENT, self.splicing() // share)
        self.after()

    @rule(seconds=st.sampled_from([0.1, 20.0, 100.0]), blocked=st.sampled_from([None, CLIENT, SERVER]))
    def time_passes(self, seconds: float, blocked: object) -> None:
        self.bench.wait(seconds, blocked, self.bench.now)
        self.after()

    @precondition(alive)
    @rule()
    def drains(self) -> None:
        self.bench.drain()
        self.after()

    @invariant()
    def accounts(self) -> None:
        machine = self.bench.machine
        open_now = machine.exchange is not None
        assert self.begun == len(self.bench.finished) - self.unread + open_now
        assert open_now is (ROUTING <= machine.state < CLOSED)
        assert bool(self.bench.closed) is (machine.state == CLOSED)
        assert len(machine.buffer) < 100_000
        if machine.state in (IDLE, HEAD):
            assert machine.deadline > 0
            assert machine.wants_client
        if open_now and machine.state != ROUTING:
            assert self.bench.held
            assert machine.deadline > 0
        if not open_now:
            assert not self.bench.held

    def teardown(self) -> None:
        """However it stands, time alone brings it to an end, if the proxy finds no server for what still asks."""
        for _ in range(8):
            if self.bench.closed:
                break
            if self.bench.need is not None:
                self.bench.fail(Failure.NO_SERVER)
            self.bench.wait(10_000.0)
            self.after()
        assert self.bench.closed


RandomPeers.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestRandomPeers = RandomPeers.TestCase
