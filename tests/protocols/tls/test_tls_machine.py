"""The machine of TLS passed through: its table of states, what it learns, what it says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tls_samples import TLS12, TLS13, message, records, sni, vector, versions

from l7lb.core.actions import (
    CLIENT,
    SERVER,
    Action,
    Close,
    Finished,
    LearnSessions,
    NeedServer,
    Refused,
    Release,
    ToClient,
    ToServer,
    Tunnel,
)
from l7lb.core.contracts import Assignment, Choice, Peer
from l7lb.core.errors import Failure
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Pool, Route, Server, ToPool
from l7lb.protocols.tls.machine import TlsMachine, TlsShared
from l7lb.protocols.tls.settings import TlsSettings
from l7lb.protocols.tunnel import CLOSED, LEARNING, OPENING, READ_AHEAD, ROUTING, TUNNEL

HELLO = records(message([sni(b"bank.example.com"), versions(TLS13, TLS12)], b"c" * 32))
ONLY13 = records(message([sni(b"bank.example.com"), versions(TLS13)], b"c" * 32))
CCS = b"\x14\x03\x03\x00\x01\x01"


def server_hello(session_id: bytes, extensions: bytes = b"") -> bytes:
    """A ServerHello message."""
    body = b"\x03\x03" + bytes(32) + vector(1, session_id) + b"\xc0\x2f\0" + vector(2, extensions)
    return b"\x02" + vector(3, body)


def ticket(value: bytes) -> bytes:
    """A NewSessionTicket of TLS 1.2."""
    return b"\x04" + vector(3, b"\0\0\x1c\x20" + vector(2, value))


CERTIFICATE = b"\x0b" + vector(3, b"x" * 3000)
DONE = b"\x0e\0\0\0"


class Bench:
    """One connection, and what the machine asked for, in short."""

    def __init__(self, learns: bool = True, limit: int = 4096) -> None:
        settings = TlsSettings(tunnel=100.0, client_hello_bytes=limit)
        self.machine = TlsMachine(
            TlsShared("in", "tls-passthrough", settings, 10.0), Peer("192.0.2.1", 1, "192.0.2.9", 443), 0.0
        )
        self.learns = learns
        self.now = 1.0
        self.did: list[str] = []
        self.to_server = b""
        self.to_client = b""
        self.sessions: list[bytes] = []
        self.finished: list[Finished] = []
        self.need: NeedServer | None = None
        self.take(self.machine.start(0.0))

    def take(self, actions: list[Action]) -> Bench:
        for action in actions:
            if isinstance(action, ToServer):
                self.to_server += action.data
            elif isinstance(action, ToClient):
                self.to_client += action.data
                if self.machine.state == CLOSED and action.data[:1] == b"\x15":
                    self.did.append(f"alert {action.data[6]}")
            elif isinstance(action, LearnSessions):
                self.sessions += action.sessions
            elif isinstance(action, Finished):
                self.finished.append(action)
                self.did.append(f"finished {action.ended}")
            elif isinstance(action, NeedServer):
                self.need = action
                self.did.append("need")
            elif isinstance(action, Release):
                words = ["release", *(["reset"] if action.abort else [])]
                self.did.append(" ".join([*words, *([action.failure.label] if action.failure else [])]))
            elif isinstance(action, Refused):
                self.did.append(f"refused {action.reason}")
            elif isinstance(action, Close):
                self.did.append("abort" if action.abort else "linger" if action.linger else "close")
            elif isinstance(action, Tunnel):
                self.did.append("tunnel")
        return self

    def client(self, data: bytes) -> Bench:
        return self.take(self.machine.received(CLIENT, data, self.now))

    def server(self, data: bytes) -> Bench:
        return self.take(self.machine.received(SERVER, data, self.now))

    def connect(self) -> Bench:
        choice = Choice(Route(number=1, where="", match=None, action=ToPool("bank")), "bank")
        config = Server(name="bank1", address=Address("127.0.0.1", 1))
        state = ServerState("bank", config)
        assignment = Assignment(choice, PoolState(Pool(name="bank", servers=(config,)), [state]), state)
        assignment.learns = self.learns
        return self.take(self.machine.connected(assignment, self.now))

    def seen(self) -> list[str]:
        did, self.did = self.did, []
        return did


EVENTS: dict[str, Callable[[Bench], object]] = {
    "bytes": lambda b: b.client(HELLO[20:] if b.machine.state == OPENING else b"more"),
    "garbage": lambda b: b.client(bytes(4000)),
    "end": lambda b: b.take(b.machine.ended(CLIENT, 2.0, False)),
    "reset": lambda b: b.take(b.machine.ended(CLIENT, 2.0, True)),
    "server bytes": lambda b: b.server(b"\x17\x03\x03\x00\x01x"),
    "server end": lambda b: b.take(b.machine.ended(SERVER, 2.0, False)),
    "server reset": lambda b: b.take(b.machine.ended(SERVER, 2.0, True)),
    "time": lambda b: b.take(b.machine.expired(200.0, None, 0.0)),
    "drain": lambda b: b.take(b.machine.draining(2.0, False)),
}
CUT = ["release reset", "abort"]
TABLE: dict[int, dict[str, tuple[int, list[str]]]] = {
    OPENING: {
        "bytes": (ROUTING, ["need"]),
        "garbage": (CLOSED, ["alert 50", "refused malformed", "finished client-protocol@client-hello", "linger"]),
        "end": (CLOSED, ["refused closed", "finished client-closed@client-hello", "close"]),
        "reset": (CLOSED, ["refused closed", "finished client-closed@client-hello", "close"]),
        "time": (CLOSED, ["refused timeout", "finished client-timeout@client-hello", "close"]),
        "drain": (OPENING, []),
    },
    ROUTING: {
        "bytes": (ROUTING, []),
        "garbage": (ROUTING, []),
        "end": (ROUTING, []),
        "reset": (CLOSED, ["finished client-closed@queue", *CUT]),
        "time": (ROUTING, []),
        "drain": (ROUTING, []),
    },
    LEARNING: {
        "bytes": (LEARNING, []),
        "garbage": (LEARNING, []),
        "end": (TUNNEL, ["tunnel"]),
        "reset": (CLOSED, ["finished client-closed@tunnel", *CUT]),
        "server bytes": (TUNNEL, ["tunnel"]),
        "server end": (TUNNEL, ["tunnel"]),
        "server reset": (CLOSED, ["finished server-closed@tunnel", "release reset server-closed", "abort"]),
        "time": (CLOSED, ["finished client-timeout@tunnel", *CUT]),
        "drain": (LEARNING, []),
    },
    TUNNEL: {
        "end": (CLOSED, ["finished ok", "release", "close"]),
        "reset": (CLOSED, ["finished client-closed@tunnel", *CUT]),
        "server end": (CLOSED, ["finished ok", "release", "close"]),
        "server reset": (CLOSED, ["finished server-closed@tunnel", "release reset server-closed", "abort"]),
        "time": (CLOSED, ["finished client-timeout@tunnel", *CUT]),
        "drain": (TUNNEL, []),
    },
    CLOSED: dict.fromkeys(EVENTS, (CLOSED, [])),
}


def in_state(state: int) -> Bench:
    bench = Bench(learns=state == LEARNING)
    if state == CLOSED:
        bench.client(b"\0\0")
    elif state == OPENING:
        bench.client(HELLO[:20])
    else:
        bench.client(HELLO)
        if state > ROUTING:
            bench.connect()
    assert bench.machine.state == state
    bench.seen()
    return bench


@pytest.mark.parametrize(("state", "event"), [(state, event) for state in TABLE for event in TABLE[state]])
def test_the_table(state: int, event: str) -> None:
    bench = in_state(state)
    after, expected = TABLE[state][event]
    EVENTS[event](bench)
    assert (bench.machine.state, bench.seen()) == (after, expected)
    assert len(bench.finished) == (state == CLOSED or after == CLOSED)


def test_the_server_gets_what_came_and_nothing_else() -> None:
    bench = Bench(learns=False).client(HELLO[:7]).client(HELLO[7:] + b"early").client(b" data")
    assert bench.need is not None
    assert bench.need.fresh
    assert (bench.need.facts.host, bench.need.facts.tls_sessions()) == (b"bank.example.com", [b"c" * 32])
    bench.connect()
    assert bench.to_server == HELLO + b"early data"
    assert bench.seen() == ["need", "tunnel"]


def test_a_client_that_only_connects_leaves_no_trace() -> None:
    bench = Bench()
    bench.take(bench.machine.ended(CLIENT, 2.0, False))
    assert bench.seen() == ["close"]


def test_an_idle_client_of_a_node_that_ends() -> None:
    bench = Bench()
    bench.take(bench.machine.draining(2.0, True))
    assert (bench.seen(), bench.machine.deadline) == ([], 7.0)
    bench.take(bench.machine.draining(3.0, False))
    assert bench.seen() == ["close"]


def test_read_ahead_is_bounded() -> None:
    bench = Bench().client(HELLO)
    assert bench.machine.wants_client
    bench.client(b"x" * READ_AHEAD)
    assert not bench.machine.wants_client
    bench.connect()
    assert bench.machine.wants_client


@pytest.mark.parametrize(
    ("hello", "failure", "code"),
    [
        (HELLO, Failure.NO_ROUTE, 112),
        (records(message([versions(TLS13)])), Failure.NO_ROUTE, 109),
        (records(message(())), Failure.NO_ROUTE, 40),
        (HELLO, Failure.NO_SERVER, 80),
        (HELLO, Failure.QUEUE_FULL, 80),
        (HELLO, Failure.CONNECT_REFUSED, 80),
    ],
)
def test_no_server_in_the_clients_words(hello: bytes, failure: Failure, code: int) -> None:
    bench = Bench().client(hello)
    bench.seen()
    bench.take(bench.machine.failed(failure, None, 2.0))
    assert [word for word in bench.seen() if not word.startswith("finished")] == [f"alert {code}", "linger"]
    assert bench.to_client == b"\x15\x03\x03\x00\x02\x02" + bytes([code])


FULL = server_hello(b"s" * 32) + CERTIFICATE + DONE
FLIGHTS = {
    "an identifier": (records(FULL) + CCS, [b"s" * 32]),
    "a ticket": (records(server_hello(b"") + CERTIFICATE + DONE) + records(ticket(b"t" * 180)) + CCS, [b"t" * 180]),
    "both": (records(FULL, [40, 700]) + records(ticket(b"t")) + CCS, [b"s" * 32, b"t"]),
    "resumed by its identifier": (records(server_hello(b"c" * 32)) + CCS, []),
    "resumed, with a new ticket": (records(server_hello(b"c" * 32) + ticket(b"u")) + CCS, [b"u"]),
    "a ticket that is none": (records(server_hello(b"") + ticket(b"")) + CCS, []),
    "TLS 1.3": (records(server_hello(b"c" * 32, b"\0\x2b\0\x02\x03\x04")) + CCS, []),
    "TLS 1.3 that makes one up": (records(server_hello(b"m" * 32, b"\0\x2b\0\x02\x03\x04")) + CCS, []),
    "a handshake that fails": (records(FULL) + b"\x15\x03\x03\x00\x02\x02\x28", []),
    "no TLS": (b"HTTP/1.1 400 Bad Request\r\n\r\n", []),
    "a short hello": (records(b"\x02" + vector(3, b"\x03\x03")) + CCS, []),
    "a broken ticket": (records(server_hello(b"") + b"\x04" + vector(3, b"\0\0\0\0\0\x09t")) + CCS, []),
}


@pytest.mark.parametrize("case", FLIGHTS)
def test_what_is_learned(case: str) -> None:
    data, expected = FLIGHTS[case]
    for cuts in [[], *[[at] for at in range(1, len(data), 1 if len(data) < 400 else 7)], list(range(len(data)))]:
        bench = Bench().client(HELLO).connect()
        bench.seen()
        passed = b""
        for start, end in pairwise([0, *cuts, len(data)]):
            if bench.machine.state == LEARNING and start < end:
                bench.server(data[start:end])
                passed = data[:end]
        assert bench.sessions == expected
        assert bench.seen() == ["tunnel"]
        assert bench.to_client == passed


def test_nothing_is_learned_before_the_cipher_changes() -> None:
    bench = Bench().client(HELLO).connect().server(records(FULL) + records(ticket(b"t")))
    assert (bench.machine.state, bench.sessions) == (LEARNING, [])
    bench.client(b"the client's part")
    assert bench.to_server.endswith(b"the client's part")
    bench.server(CCS)
    assert bench.sessions == [b"s" * 32, b"t"]


def test_the_look_is_bounded() -> None:
    bench = Bench().client(HELLO).connect()
    bench.server(records(server_hello(b"s" * 32)))
    flood = records(b"\x0b\xff\xff\xff" + b"x" * 10_000)
    for _ in range(20):
        if bench.machine.state == LEARNING:
            bench.server(flood)
            flood = records(b"x" * 10_000)
    assert (bench.machine.state, bench.sessions) == (TUNNEL, [])


def test_where_nothing_can_be_learned_nothing_is_looked_at() -> None:
    assert Bench().client(ONLY13).connect().machine.state == TUNNEL
    assert Bench(learns=False).client(HELLO).connect().machine.state == TUNNEL


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20))
def test_any_server(parts: list[bytes]) -> None:
    bench = Bench().client(HELLO).connect()
    for part in parts:
        if bench.machine.state == LEARNING:
            bench.server(part)
    assert b"".join(parts).startswith(bench.to_client)
