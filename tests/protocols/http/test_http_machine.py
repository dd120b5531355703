"""Conversations: each state of the machine's table with each event that can meet it."""

from __future__ import annotations

import re

import pytest
from http_bench import CLIENT, GET, OK, SERVER, Bench, plain

from l7lb.core.errors import Failure
from l7lb.core.snapshot import Redirect, Respond, Retries, Route
from l7lb.protocols.http.answering import MAX_INTERIM, SPLICE_BYTES
from l7lb.protocols.http.ending import ANSWERING, CLOSED, HEAD, IDLE, ROUTING, TUNNEL, WAITING

POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
HEAD_10 = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
LARGE = SPLICE_BYTES * 4
SAFE = Retries(attempts=2, when=frozenset({"connect-failure", "reset-before-response", "response-timeout"}))


def in_state(state: int, **options: object) -> Bench:
    """A conversation that has come so far, with nothing left to look at."""
    bench = Bench(**options)
    steps = [
        lambda: bench.client(GET[:10]),
        lambda: bench.client(GET[10:]),
        bench.connect,
        lambda: bench.answer(HEAD_10 + b"12"),
    ]
    if state == TUNNEL:
        bench.client(UPGRADE).connect().answer(SWITCH)
    elif state == CLOSED:
        bench.client(b"\x00")
    else:
        for step in steps[:state]:
            step()
    assert bench.machine.state == state
    bench.seen()
    return bench


def sent(bench: Bench) -> bytes:
    """What the client got, without the lines that l7lb adds."""
    return plain(bench.to_client)


def refusal(did: list[object], status: int) -> list[object]:
    """The actions behind a refusal of that status."""
    assert isinstance(did[0], bytes)
    assert did[0].startswith(b"HTTP/1.1 %d " % status), did
    assert f"finished {status} " in str(did[1])
    return did[1:]


# --- every state and event


EVENTS = {
    "bytes": lambda bench: bench.client(b"GET /next"),
    "end": lambda bench: bench.end(CLIENT),
    "reset": lambda bench: bench.end(CLIENT, error=True),
    "server bytes": lambda bench: bench.answer(b"345"),
    "server end": lambda bench: bench.end(SERVER),
    "server reset": lambda bench: bench.end(SERVER, error=True),
    "time": lambda bench: bench.wait(10_000.0),
    "drain": lambda bench: bench.drain(),
}
LOST_UPLOAD = ["finished 499 client-closed@request-body", "release close", "abort"]
LOST = ["finished 499 client-closed@{}", "release close", "abort"]
TABLE = {
    IDLE: {
        "bytes": (HEAD, []),
        "end": (CLOSED, ["close"]),
        "reset": (CLOSED, ["close"]),
        "server bytes": (IDLE, []),
        "server end": (IDLE, []),
        "server reset": (IDLE, []),
        "time": (CLOSED, ["close"]),
        "drain": (CLOSED, ["close"]),
    },
    HEAD: {
        "bytes": (HEAD, []),
        "end": (CLOSED, 400),
        "reset": (CLOSED, ["finished 0 client-closed@request-header", "close"]),
        "server bytes": (HEAD, []),
        "server end": (HEAD, []),
        "server reset": (HEAD, []),
        "time": (CLOSED, 408),
        "drain": (HEAD, []),
    },
    ROUTING: {
        "bytes": (ROUTING, []),
        "end": (ROUTING, []),
        "reset": (CLOSED, LOST),
        "server bytes": (ROUTING, []),
        "server end": (ROUTING, []),
        "server reset": (ROUTING, []),
        "time": (ROUTING, []),
        "drain": (ROUTING, []),
    },
    WAITING: {
        "bytes": (WAITING, []),
        "end": (WAITING, []),
        "reset": (CLOSED, LOST),
        "server bytes": (WAITING, []),
        "server end": (IDLE, ["release close server-closed", 502]),
        "server reset": (IDLE, ["release close server-closed", 502]),
        "time": (IDLE, ["release close server-timeout", 504]),
        "drain": (WAITING, []),
    },
    ANSWERING: {
        "bytes": (ANSWERING, []),
        "end": (ANSWERING, []),
        "reset": (CLOSED, ["finished 200 client-closed@response-body", "release close", "abort"]),
        "server bytes": (ANSWERING, [b"345"]),
        "server end": (CLOSED, ["finished 200 server-closed-inside@response-body",
                                "release close server-closed-inside", "abort"]),
        "server reset": (CLOSED, ["finished 200 server-closed-inside@response-body",
                                  "release close server-closed-inside", "abort"]),
        "time": (CLOSED, ["finished 200 server-stalled@response-body", "release close server-stalled", "abort"]),
        "drain": (ANSWERING, []),
    },
    TUNNEL: {
        "bytes": (TUNNEL, []),
        "end": (CLOSED, ["finished 101 ok", "release close", "close"]),  # both have ended, the client first
        "reset": (CLOSED, ["finished 101 client-closed@tunnel", "release close", "abort"]),
        "server bytes": (TUNNEL, []),
        "server end": (CLOSED, ["finished 101 ok", "release close", "close"]),
        "server reset": (CLOSED, ["finished 101 server-closed-inside@tunnel",
                                  "release close server-closed-inside", "abort"]),
        "time": (CLOSED, ["finished 101 client-timeout@tunnel", "release close", "abort"]),
        "drain": (TUNNEL, []),
    },
    CLOSED: dict.fromkeys(EVENTS, (CLOSED, [])),
}  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", TABLE)
def test_the_table(state: int, event: str) -> None:
    bench = in_state(state)
    after, expected = TABLE[state][event]
    EVENTS[event](bench)
    did = bench.seen()
    if isinstance(expected, int):
        assert refusal(did, expected)[1:] == ["linger"]
    elif expected and isinstance(expected[-1], int):
        assert did[: len(expected) - 1] == expected[:-1]
        assert len(refusal(did[len(expected) - 1 :], expected[-1])) == 1
    else:
        phase = {ROUTING: "queue", WAITING: "response-header"}.get(state, "")
        assert did == [word.format(phase) if isinstance(word, str) else word for word in expected]
    assert bench.machine.state == after
    assert len(bench.finished) == (1 if state in (HEAD, ROUTING, WAITING, ANSWERING, TUNNEL) and after in (IDLE, CLOSED)
                                   else 1 if state == CLOSED else 0)  # fmt: skip


@pytest.mark.parametrize("state", [HEAD, ROUTING, WAITING, ANSWERING])
def test_a_draining_node_finishes_and_closes(state: int) -> None:
    bench = in_state(state).drain()
    rest = [lambda: bench.client(GET[10:]), bench.connect, lambda: bench.answer(HEAD_10 + b"12"),
            lambda: bench.answer(b"34567890")][state - HEAD :]  # fmt: skip
    for step in rest:
        step()
    assert bench.closed == "close"
    assert (b"Connection: close" in bench.to_client) is (state < ANSWERING)
    assert bench.finished[-1].ended == "ok"


def test_where_others_serve_on_an_idle_client_may_still_send_a_request() -> None:
    bench = in_state(IDLE).drain(patient=True)
    assert not bench.closed
    bench.client(GET).connect().answer(HEAD_10 + b"1234567890")
    assert b"Connection: close" in bench.to_client
    assert bench.closed == "close"


def test_an_idle_client_is_not_waited_for_long() -> None:
    bench = in_state(IDLE).drain(patient=True)
    assert bench.wait(4.9).closed == ""
    assert bench.wait(0.2).closed == "close"
    assert in_state(IDLE).drain(patient=True).drain().closed == "close"


def test_a_patient_process_waits_a_moment_for_a_request_on_its_way() -> None:
    bench = Bench().drain(patient=True)
    assert bench.seen() == []
    assert bench.wait(4.9).seen() == []
    assert bench.client(GET).connect().answer(OK).closed == "close"
    assert b"Connection: close" in bench.to_client
    assert Bench().drain(patient=True).wait(5.1).closed == "close"
    assert Bench().drain(patient=True).drain().closed == "close"


# --- a request and its answer


def test_one_request_and_the_next_on_the_same_connection() -> None:
    bench = Bench().client(GET)
    assert bench.seen() == ["need"]
    bench.connect()
    assert bench.seen() == [("server", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")]
    bench.answer(OK)
    assert bench.seen() == [OK, "finished 200 ok", "release keep"]
    assert bench.client(GET).connect().answer(OK).to_client.count(b"200 OK") == 2
    assert len(bench.finished) == 2


def test_pipelined_requests_are_handled_one_after_the_other() -> None:
    bench = Bench().client(GET + GET.replace(b"/ ", b"/2 ") + GET[:20])
    assert bench.seen() == ["need"]
    assert not bench.machine.wants_client
    bench.connect().answer(OK)
    assert bench.seen()[-1] == "need"
    assert bench.need.facts.path == b"/2"
    bench.connect().answer(OK)
    assert bench.machine.state == HEAD
    assert bench.machine.wants_client
    assert bench.client(GET[20:]).seen()[-1] == "need"


def test_bytes_behind_a_body_are_the_next_request() -> None:
    bench = Bench().client(POST).connect()
    bench.client(b"hello" + GET)
    assert bench.seen()[-1] == ("server", b"hello")
    assert not bench.machine.wants_client
    assert bench.answer(OK).seen()[-1] == "need"


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n"])
def test_an_empty_line_before_a_request_is_nothing(blank: bytes) -> None:
    bench = Bench().client(blank)
    assert bench.machine.state == IDLE
    assert bench.wait(20).seen() == ["close"]
    assert not bench.finished
    assert Bench().client(blank + GET).seen() == ["need"]
    assert refusal(Bench().client(blank + b"\r\n\r\n").seen(), 400)


def test_a_body_that_came_before_its_server() -> None:
    bench = Bench().client(POST + b"he")
    assert not bench.machine.wants_client
    bench.connect()
    assert bench.seen()[-1] == ("server", POST.replace(b": a\r\n", b": a\r\n") + b"he")
    assert bench.machine.wants_client
    assert bench.client(b"llo").answer(OK).seen()[-2:] == ["finished 200 ok", "release keep"]


def test_a_chunked_body_is_framed_anew() -> None:
    bench = Bench().client(CHUNKED).connect()
    bench.client(b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-T: v\r\nHost: b\r\n\r\n")
    assert bench.seen()[-1] == ("server", b"5\r\nabcde\r\n0\r\nX-T: v\r\n\r\n")
    assert bench.answer(OK).seen()[-1] == "release keep"


def test_a_chunked_answer_with_trailers() -> None:
    bench = Bench().client(GET).connect()
    bench.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert bench.seen()[-1] == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    bench.answer(b"0\r\nX-T: v\r\nContent-Length: 5\r\n\r\n")
    assert bench.seen() == [b"0\r\nX-T: v\r\n\r\n", "finished 200 ok", "release keep"]


def test_a_chunked_answer_for_an_old_client_ends_with_the_connection() -> None:
    bench = Bench().client(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").connect()
    bench.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: v\r\n\r\n")
    assert bench.seen()[-4:] == [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", "finished 200 ok", "release keep", "close",
    ]  # fmt: skip


def test_an_old_client_that_wants_to_stay() -> None:
    bench = Bench().client(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").connect().answer(OK)
    assert b"Connection: keep-alive\r\n" in bench.to_client
    assert not bench.closed
    assert Bench().client(b"GET / HTTP/1.0\r\n\r\n").connect().answer(OK).closed == "close"


@pytest.mark.parametrize("action", [None, Respond(200, "x"), Redirect("/", 302)])
def test_an_old_client_that_wants_to_stay_is_told_by_our_own_answers_too(action: Respond | Redirect | None) -> None:
    """It would wait for the end of the connection otherwise."""
    old = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    bench = Bench(route=Route(number=1, where="here", match=None, action=action)) if action else Bench()
    for _ in range(2):
        bench.client(old)
        if action is None:
            bench.fail(Failure.NO_SERVER)
        else:
            bench.answer_here()
    assert bench.to_client.count(b"\r\nConnection: keep-alive\r\n") == 2
    bench.client(GET)
    assert b"keep-alive" not in (bench.fail(Failure.NO_SERVER) if action is None else bench.answer_here()).seen()[-2]


@pytest.mark.parametrize("body", [b"", b"\r\nContent-Length: 5"])
@pytest.mark.parametrize(("method", "status"), [(b"TRACE", 405), (b"OPTIONS", 200)])
def test_what_may_not_be_passed_on_is_answered(method: bytes, status: int, body: bytes) -> None:
    head = method + b" / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0" + body + b"\r\n\r\n"
    bench = Bench().client(head)
    did = bench.seen()
    assert did[0].startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nAllow: GET, HEAD" in did[0]
    assert b"\r\nContent-Length: 0\r\n" in did[0]
    assert did[1:] == [f"finished {status} ok", *(["linger"] if body else [])]
    assert bench.needs == 0


@pytest.mark.parametrize(
    ("method", "given", "passed"),
    [(b"TRACE", b"3", b"2"), (b"OPTIONS", b"1", b"0"), (b"GET", b"0", b"0"), (b"OPTIONS", b"x", b"x"),
     (b"TRACE", b"9" * 30, b"999999998")],
)  # fmt: skip
def test_forwards_are_counted_down(method: bytes, given: bytes, passed: bytes) -> None:
    bench = Bench().client(method + b" / HTTP/1.1\r\nHost: a\r\nMax-Forwards: " + given + b"\r\n\r\n").connect()
    assert b"\r\nMax-Forwards: " + passed + b"\r\n" in bench.to_server


def test_an_answer_until_the_end() -> None:
    bench = Bench().client(GET).connect().answer(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert bench.seen()[-2:] == [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", "splice server -1"]
    bench.move(SERVER, 7)
    assert bench.end(SERVER).seen() == ["finished 200 ok", "release close", "close"]
    assert bench.record.sent == len(bench.to_client) + 7


def test_an_answer_until_the_end_that_is_reset_is_not_whole() -> None:
    bench = Bench().client(GET).connect().answer(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert bench.end(SERVER, error=True).closed == "abort"


@pytest.mark.parametrize(
    ("method", "answer", "got"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n", b"HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n"),
    ],
)
def test_answers_without_a_body(method: bytes, answer: bytes, got: bytes) -> None:
    bench = Bench().client(GET.replace(b"GET", method)).connect().answer(answer)
    assert bench.seen()[-3:] == [got, f"finished {int(answer[9:12])} ok", "release keep"]


@pytest.mark.parametrize(
    "answer",
    [OK + b"x", b"HTTP/1.1 304 X\r\n\r\nbody", b"HTTP/1.1 204 X\r\nContent-Length: 4\r\n\r\nbody", OK + OK,
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nx"],
)  # fmt: skip
def test_bytes_behind_an_answer_end_the_servers_connection(answer: bytes) -> None:
    bench = Bench().client(GET + GET).connect().answer(answer)
    did = bench.seen()
    assert "release close" in did
    assert did[-1] == "need"
    assert bench.to_client.count(b"HTTP/1.1") == 1


def test_a_client_that_half_closed_gets_its_answer() -> None:
    bench = Bench().client(GET).end(CLIENT).connect()
    assert b"Connection: close" in bench.answer(OK).to_client
    assert bench.closed == "close"


@pytest.mark.parametrize(
    "head",
    [POST, CHUNKED, POST.replace(b"5", b"%d" % LARGE), POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")],
    ids=["length", "chunked", "spliced", "expected"],
)
@pytest.mark.parametrize("connected", [True, False])
def test_a_request_that_ends_inside_its_body_is_refused(head: bytes, connected: bool) -> None:
    bench = Bench().client(head)
    if connected:
        bench.connect()
    bench.seen()
    did = bench.end(CLIENT).seen()
    assert did[0] == "release close"
    phase = "request-body" if connected else "queue"
    assert refusal(did[1:], 400) == [f"finished 400 client-closed@{phase}", "linger"]
    assert b"ended before it was complete" in bench.to_client


def test_an_early_answer_is_finished_for_a_client_that_half_closed_inside_its_body() -> None:
    bench = Bench().client(POST + b"he").connect().answer(HEAD_10 + b"12")
    assert bench.seen()[-1] == HEAD_10[:-2] + b"Connection: close\r\n\r\n12"
    assert bench.end(CLIENT).seen() == []
    assert bench.answer(b"34567890").seen() == [b"34567890", "finished 200 ok", "release close", "linger"]


# --- what l7lb adds to answers, and the name of a request


def test_answers_carry_the_date() -> None:
    bench = Bench()
    bench.dates.tell(1_780_000_000.25 - bench.now)
    bench.client(GET).connect().answer(OK)
    assert bench.to_client.count(b"\r\nDate: Thu, 28 May 2026 20:26:40 GMT\r\n") == 1
    bench.now += 1
    bench.client(GET).fail(Failure.NO_SERVER)
    assert bench.to_client.count(b"\r\nDate: Thu, 28 May 2026 20:26:41 GMT\r\n") == 1
    bench.client(b"\x00")
    assert bench.to_client.count(b"\r\nDate: Thu, 28 May 2026 20:26:41 GMT\r\n") == 2
    for action in (Respond(200), Redirect("/", 302)):
        bench = Bench(route=Route(number=1, where="here", match=None, action=action))
        bench.dates.tell(0.0)
        assert b"\r\nDate: Thu, 01 Jan 1970 00:16:40 GMT\r\n" in bench.client(GET).answer_here().to_client


def request_id(bench: Bench) -> str:
    """The one that the client was told."""
    return bench.to_client.partition(b"X-Request-ID: ")[2].partition(b"\r\n")[0].decode()


@pytest.mark.parametrize("failure", [Failure.NO_ROUTE, Failure.NO_SERVER, Failure.QUEUE_FULL, Failure.CONNECT_REFUSED])
def test_a_request_that_no_server_took_has_a_name(failure: Failure) -> None:
    bench = Bench().client(GET).fail(failure)
    assert len(request_id(bench)) == 32
    assert bench.record.request_id == request_id(bench)


@pytest.mark.parametrize("action", [Respond(200), Redirect("/", 302)])
def test_a_request_that_a_rule_answers_has_a_name(action: Respond | Redirect) -> None:
    bench = Bench(route=Route(number=1, where="here", match=None, action=action))
    assert len(bench.client(GET).answer_here().record.request_id) == 32


@pytest.mark.parametrize("data", [b"\x00", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/3.0\r\nHost: a\r\n\r\n"])
def test_a_request_that_can_not_be_read_has_a_name(data: bytes) -> None:
    bench = Bench().client(data)
    assert len(request_id(bench)) == 32
    assert bench.record.request_id == request_id(bench)


def test_a_request_keeps_its_name_over_retries() -> None:
    bench = Bench(retries=SAFE).client(GET).connect().end(SERVER).connect().end(SERVER).connect().end(SERVER)
    names = re.findall(rb"X-Request-ID: (\w+)", bench.to_server)
    assert len(names) == 3
    assert {name.decode() for name in names} == {bench.record.request_id} == {request_id(bench)}


def test_a_trusted_peer_names_its_requests_and_others_can_not() -> None:
    get = GET.replace(b"\r\n\r\n", b"\r\nX-Request-ID: mine\r\n\r\n")
    assert Bench(trust=["192.0.2.0/24"]).client(get).fail(Failure.NO_SERVER).record.request_id == "mine"
    bench = Bench().client(get)
    assert bench.need.facts.header(b"x-request-id") == (b"mine",)  # what a rule sees is what came
    assert bench.fail(Failure.NO_SERVER).record.request_id != "mine"


# --- interim answers, Expect, upgrades


def test_interim_answers_are_passed_on() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert sent(Bench().client(GET).connect().answer(hints + hints).answer(OK)) == hints + hints + OK
    old = Bench().client(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").connect().answer(hints + OK)
    assert b"103" not in old.to_client


def test_interim_answers_have_a_limit() -> None:
    bench = Bench().client(GET).connect()
    did = bench.answer(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000).seen()
    assert len([word for word in did if isinstance(word, bytes) and b" 100 " in word]) == MAX_INTERIM
    assert did[-1] == "finished 502 server-protocol@response-header"


def test_a_client_that_waits_for_100() -> None:
    bench = Bench().client(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")).connect()
    assert b"Expect: 100-continue\r\n" in bench.to_server
    assert bench.answer(b"HTTP/1.1 100 Continue\r\n\r\n").seen()[-1] == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert bench.client(b"hello").answer(OK).seen()[-1] == "release keep"


def test_a_final_answer_without_100_ends_the_connection() -> None:
    bench = Bench().client(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")).connect()
    bench.answer(b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n")
    assert bench.seen()[-4:] == [
        b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", "finished 401 ok", "release close", "linger",
    ]  # fmt: skip


def test_a_server_that_expects_before_it_continues() -> None:
    bench = Bench().client(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")).connect()
    assert refusal(bench.wait(60).seen()[3:], 408)


def test_a_tunnel() -> None:
    bench = Bench().client(UPGRADE).connect()
    assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in bench.to_server
    bench.client(b"early")
    assert bench.answer(SWITCH + b"hello").seen()[-3:] == [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello",
        ("server", b"early"),
        "tunnel",
    ]
    bench.wait(3000).move(CLIENT, 7).wait(3000).move(SERVER, 9).wait(3000)
    assert bench.seen() == []
    received = len(UPGRADE) + 5 + 7
    assert bench.end(CLIENT).end(SERVER).closed == "close"
    assert (bench.record.received, bench.record.sent) == (received, len(bench.to_client) + 9)


def test_an_upgrade_that_the_server_refuses() -> None:
    bench = Bench().client(UPGRADE + GET).connect().answer(OK)
    assert bench.seen()[-1] == "need"


@pytest.mark.parametrize(
    ("request_head", "answer"),
    [
        (GET, SWITCH),
        (UPGRADE.replace(b"websocket", b"h2c"), SWITCH),
        (UPGRADE, b"HTTP/1.1 101 X\r\n\r\n"),
        (UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"), SWITCH),
    ],
)
def test_a_switch_that_nobody_asked_for(request_head: bytes, answer: bytes) -> None:
    bench = Bench().client(request_head).connect().answer(answer)
    assert "release close server-protocol" in bench.seen()
    assert b" 502 " in bench.to_client


# --- broken and oversized


@pytest.mark.parametrize(
    ("data", "status", "ended"),
    [
        (b"\x16\x03\x01", 400, "client-protocol"),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, "client-protocol"),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "client-protocol"),
        (GET.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: gzip\r\n\r\n"), 501, "client-protocol"),
        (GET.replace(b"\r\n\r\n", b"\r\nExpect: x\r\n\r\n"), 417, "client-protocol"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501, "client-protocol"),
        (b"GET /" + b"a" * 40_000, 414, "client-limit"),
        (GET[:-2] + b"X: " + b"a" * 40_000, 431, "client-limit"),
        (GET[:-2] + b"a: b\r\n" * 101 + b"\r\n", 431, "client-limit"),
        (POST.replace(b"5", b"9" * 15), 413, "client-limit"),
        (POST.replace(b"5", b"9" * 25), 400, "client-protocol"),
    ],
)
def test_requests_that_are_refused(data: bytes, status: int, ended: str) -> None:
    bench = Bench().client(data)
    did = bench.seen()
    assert refusal(did, status) == [f"finished {status} {ended}@request-header", "linger"]
    assert b"Connection: close" in bench.to_client
    assert bench.client(GET).seen() == []
    assert bench.record.status == status


def test_a_chunked_body_has_the_same_limit() -> None:
    bench = Bench(body_bytes=5).client(CHUNKED).connect()
    did = bench.client(b"6\r\nabcdef\r\n").seen()
    assert did[2] == "release close"
    assert refusal(did[3:], 413) == ["finished 413 client-limit@request-body", "linger"]


def test_a_broken_chunk() -> None:
    did = Bench().client(CHUNKED).connect().client(b"x\r\n").seen()
    assert refusal(did[3:], 400) == ["finished 400 client-protocol@request-body", "linger"]


def test_a_broken_chunk_after_the_answer_began() -> None:
    bench = Bench().client(CHUNKED).connect().answer(HEAD_10)
    assert bench.client(b"x\r\n").seen()[-3:] == [
        "finished 200 client-protocol@response-body", "release close", "abort",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/2 200 OK\r\n\r\n", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", b"\x00" * 10 + b"\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"H" * 40_000,
     b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 xxx\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"],
)  # fmt: skip
def test_a_malformed_answer_is_a_502(answer: bytes) -> None:
    bench = Bench(retries=SAFE).client(GET).connect().answer(answer)
    assert "release close server-protocol" in bench.seen()
    assert b"HTTP/1.1 502 " in bench.to_client
    assert not bench.closed


def test_a_malformed_chunk_in_an_answer_cuts_it_off() -> None:
    bench = Bench().client(GET).connect().answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert bench.answer(b"x\r\n").seen()[-3:] == [
        "finished 200 server-protocol@response-body", "release close server-protocol", "abort",
    ]  # fmt: skip


# --- answers that come early


def test_an_early_answer_while_the_body_goes_on() -> None:
    bench = Bench().client(POST).connect().answer(HEAD_10)
    assert b"Connection: close" in bench.to_client
    assert bench.client(b"hello").seen()[-1] == ("server", b"hello")
    assert bench.answer(b"1234567890").seen()[-3:] == ["finished 200 ok", "release keep", "close"]


def test_an_early_answer_that_is_complete_first() -> None:
    bench = Bench().client(POST).connect().answer(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
    assert bench.seen()[-3:] == ["finished 413 ok", "release close", "linger"]
    assert bench.client(b"hello").seen() == []


# --- large bodies


def test_a_large_upload_is_spliced() -> None:
    bench = Bench().client(POST.replace(b"5", b"%d" % LARGE)).connect()
    assert bench.seen()[-1] == f"splice client {LARGE}"
    bench.move(CLIENT, 100).wait(59).move(CLIENT, 100).wait(59)
    assert bench.seen() == []
    bench.move(CLIENT, LARGE - 200)
    assert bench.answer(OK).seen()[-1] == "release keep"
    assert bench.record.received == bench.finished[-1].received == len(POST) - 1 + len(str(LARGE)) + LARGE


def test_a_large_download_is_spliced() -> None:
    bench = Bench().client(GET).connect().answer(HEAD_10.replace(b"10", b"%d" % LARGE) + b"x" * 10)
    assert bench.seen()[-1] == f"splice server {LARGE - 10}"
    bench.move(SERVER, LARGE - 11)
    assert bench.move(SERVER, 1).seen() == ["finished 200 ok", "release keep"]


def test_a_client_that_goes_inside_a_spliced_body() -> None:
    bench = Bench().client(POST.replace(b"5", b"%d" % LARGE)).connect()
    assert bench.end(CLIENT, error=True).seen()[-3:] == LOST_UPLOAD


def test_a_body_that_is_waited_for_is_not_spliced() -> None:
    head = POST.replace(b"5", b"%d" % LARGE).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    assert "splice" not in str(Bench().client(head).connect().client(b"x").seen())


# --- time


def test_time_for_the_head() -> None:
    bench = Bench(timeouts={"request_header": 3.0}).wait(2.9).client(b"G").wait(2.9).client(b"E")
    assert refusal(bench.wait(0.2).seen(), 408)


def test_time_between_requests() -> None:
    bench = Bench(timeouts={"keep_alive": 3.0}).client(GET).connect().answer(OK)
    bench.seen()
    assert bench.wait(2.9).seen() == []
    assert bench.wait(0.2).seen() == ["close"]


def test_time_for_the_body_is_between_two_reads() -> None:
    bench = Bench(timeouts={"request_body": 3.0}).client(POST).connect()
    bench.wait(2.9).client(b"he").wait(2.9).client(b"l")
    bench.seen()
    did = bench.wait(3.1).seen()
    assert did[0] == "release close"
    assert refusal(did[1:], 408) == ["finished 408 client-timeout@request-body", "linger"]


def test_a_server_that_does_not_read_the_body_has_its_own_time() -> None:
    bench = Bench(timeouts={"request_body": 3.0}).client(POST).connect()
    bench.seen()
    assert bench.wait(5, SERVER, progress=bench.now).seen() == []
    did = bench.wait(26, SERVER, progress=bench.now - 5).seen()
    assert did[0] == "release close server-timeout"
    assert refusal(did[1:], 504)


def test_time_inside_the_answer() -> None:
    bench = in_state(ANSWERING)
    assert bench.wait(39).answer(b"3").wait(39).seen() == [b"3"]
    assert bench.wait(2).closed == "abort"
    assert bench.finished[-1].failure is Failure.SERVER_STALLED


def test_a_client_that_does_not_read_has_its_own_time() -> None:
    bench = in_state(ANSWERING)
    start = bench.now
    assert bench.wait(41, CLIENT, progress=start).seen() == []
    assert bench.wait(20, CLIENT, progress=start).seen() == [
        "finished 200 client-timeout@response-body", "release close", "abort",
    ]  # fmt: skip


def test_a_client_that_stops_inside_its_body_does_not_make_the_server_look_bad() -> None:
    bench = Bench().client(POST).connect().answer(HEAD_10 + b"1")
    assert bench.wait(41).seen()[-3:] == ["finished 200 client-timeout@response-body", "release close", "abort"]
    bench = Bench().client(POST).connect().answer(HEAD_10 + b"1")
    assert "release close server-stalled" in bench.wait(41, SERVER, progress=bench.now).seen()


# --- answers of l7lb's own


def rule(action: object, **changes: object) -> Route:
    return Route(number=1, where="here", match=None, action=action, **changes)


def test_a_fixed_answer() -> None:
    bench = Bench(route=rule(Respond(403, "no\n"), set_response_headers=(("X-A", "1"),))).client(GET + GET)
    bench.answer_here().answer_here()
    expected = (
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\nContent-Type: text/plain; charset=utf-8\r\nX-A: 1\r\n\r\nno\n"
    )
    assert sent(bench) == expected * 2
    assert [each.ended for each in bench.finished] == ["ok", "ok"]


def test_a_redirection_keeps_the_query() -> None:
    bench = Bench(route=rule(Redirect("/new"))).client(GET.replace(b"/ ", b"/?a=b "))
    assert b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /new?a=b\r\n" in bench.answer_here(b"/new").to_client
    bench = Bench(route=rule(Redirect("/new?"))).client(GET.replace(b"/ ", b"/?a=b "))
    assert b"Location: /new?\r\n" in bench.answer_here(b"/new?").to_client


def test_an_answer_to_a_request_whose_body_is_still_coming_says_close() -> None:
    bench = Bench(route=rule(Respond(200, "x"))).client(POST).answer_here()
    assert b"Connection: close" in bench.to_client
    assert bench.closed == "linger"


def test_a_fixed_answer_to_head() -> None:
    bench = Bench(route=rule(Respond(200, "body"))).client(GET.replace(b"GET", b"HEAD")).answer_here()
    assert bench.to_client.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("failure", "status", "phase"),
    [
        (Failure.NO_ROUTE, 404, "queue"),
        (Failure.NO_SERVER, 503, "queue"),
        (Failure.QUEUE_FULL, 503, "queue"),
        (Failure.QUEUE_TIMEOUT, 503, "queue"),
        (Failure.CONNECT_REFUSED, 503, "connect"),
        (Failure.CONNECT_TIMEOUT, 504, "connect"),
    ],
)
def test_no_server(failure: Failure, status: int, phase: str) -> None:
    bench = Bench().client(GET).fail(failure)
    assert refusal(bench.seen()[1:], status) == [f"finished {status} {failure.label}@{phase}"]
    assert bench.machine.state == IDLE


# --- another try


def tried(method: bytes = b"GET", *, retries: Retries = SAFE, reused: bool = False, body: bytes = b"") -> Bench:
    head = GET.replace(b"GET", method)
    if body:
        head = head.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(body))
    bench = Bench(retries=retries).client(head + body).connect(reused=reused)
    bench.seen()
    return bench


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"])
def test_what_may_be_repeated_is(method: bytes) -> None:
    bench = tried(method).end(SERVER, error=True)
    assert bench.seen() == ["again server-closed"]
    bench.connect().wait(31)
    assert bench.seen()[-1] == "again server-timeout"
    bench.connect().end(SERVER)
    assert "release close server-closed" in bench.seen()
    assert bench.finished[-1].status == 502


@pytest.mark.parametrize("method", [b"POST", b"PATCH", b"LOCK"])
@pytest.mark.parametrize("reused", [False, True])
def test_what_may_have_been_processed_is_not_repeated(method: bytes, reused: bool) -> None:
    assert "release close server-closed" in tried(method, reused=reused).end(SERVER, error=True).seen()


def test_a_stale_connection_costs_no_attempt() -> None:
    bench = tried(retries=Retries(attempts=0), reused=True).end(SERVER)
    assert bench.seen() == ["again server-closed fresh"]
    bench.connect()
    assert bench.seen() == [("server", GET)]
    assert "release close server-closed" in bench.end(SERVER).seen()


def test_a_small_body_is_sent_again() -> None:
    bench = tried(b"PUT", body=b"hello").end(SERVER, error=True).connect()
    assert bench.seen()[-1][1].endswith(b"Content-Length: 5\r\n\r\nhello")


def test_a_body_in_progress_is_sent_again_and_goes_on() -> None:
    bench = Bench(retries=SAFE).client(POST.replace(b"POST", b"PUT") + b"he").connect().end(SERVER)
    assert not bench.machine.wants_client
    bench.client(b"l")
    bench.connect()
    assert bench.seen()[-1][1].endswith(b"\r\n\r\nhel")
    assert bench.client(b"lo").answer(OK).seen()[-1] == "release keep"


@pytest.mark.parametrize("pieces", [1, 40_000])
def test_a_large_body_is_not_kept(pieces: int) -> None:
    bench = Bench(retries=SAFE).client(CHUNKED.replace(b"POST", b"PUT")).connect()
    part = b"x" * (100_000 // pieces)
    for _ in range(pieces):
        bench.client(b"%x\r\n%b\r\n" % (len(part), part))
    assert bench.machine.exchange.replay is None
    assert "release close server-closed" in bench.end(SERVER).seen()


def test_nothing_is_repeated_once_the_client_got_something() -> None:
    bench = tried().answer(b"HTTP/1.1 103 Early Hints\r\n\r\n").end(SERVER)
    assert "release close server-closed" in bench.seen()


def test_half_a_head_is_no_answer() -> None:
    bench = tried().answer(b"HTTP/1.1 200 OK\r\nX-Old: 1").end(SERVER, error=True)
    assert bench.seen() == ["again server-closed"]
    assert sent(bench.connect().answer(OK)) == OK


def test_an_answer_that_may_be_tried_elsewhere() -> None:
    retries = Retries(attempts=1, when=frozenset(), statuses=frozenset({503}))
    bench = tried(retries=retries).answer(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
    assert bench.seen() == ["again server-error"]
    assert sent(bench.connect().answer(OK)) == OK
    bench = tried(b"POST", retries=retries).answer(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
    assert bench.seen()[-1] == "release keep server-error"
    bench = tried(retries=retries).answer(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")
    assert bench.seen()[-1] == "release keep server-error"


def test_an_upgrade_is_not_repeated() -> None:
    assert "release close server-closed" in Bench(retries=SAFE).client(UPGRADE).connect(reused=True).end(SERVER).seen()


# --- what it tells


def test_the_access_record() -> None:
    bench = Bench(trust=["192.0.2.0/24"])
    bench.client(
        b"POST /p?q HTTP/1.1\r\nHost: A:80\r\nUser-Agent: me\r\nReferer: there\r\nX-Request-ID: id\r\n"
        b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nContent-Length: 2\r\n\r\nxx"
    )
    bench.now += 1
    bench.connect()
    bench.now += 0.5
    bench.answer(OK)
    record = bench.record
    assert (record.client, record.scheme, record.request_id) == ("203.0.113.9", "https", "id")
    assert (record.method, record.host, record.path, record.version) == ("POST", "A:80", "/p?q", "1.1")
    assert (record.status, record.route, record.pool, record.server, record.ended) == (200, 1, "web", "web1", "ok")
    assert (record.user_agent, record.referer) == ("me", "there")
    assert (record.response_ms, record.total_ms) == (500.0, 1500.0)
    assert record.sent == len(bench.to_client)


def test_cookies_are_learned_where_a_key_wants_them() -> None:
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n"
    assert ("learn", b"a", b"b") in Bench().client(GET).connect(learns=True).answer(answer).seen()
    assert "learn" not in str(Bench().client(GET).connect().answer(answer).seen())


def test_a_cookie_is_set() -> None:
    assert b"\r\nSet-Cookie: L7LB=x\r\n" in Bench().client(GET).connect(set_cookie=b"L7LB=x").answer(OK).to_client


@pytest.mark.parametrize("state", range(7))
def test_it_describes_itself(state: int) -> None:
    text = in_state(state).machine.describe()["detail"]
    assert ("GET a/" in text) is (ROUTING <= state < CLOSED)


def test_who_is_trusted_is_remembered_within_bounds() -> None:
    shared = Bench(trust=["10.0.0.0/8"]).machine.shared
    assert shared.trusts("10.0.0.1")
    for number in range(5000):
        assert not shared.trusts(f"192.0.{number // 256}.{number % 256}")
    assert len(shared._trusted) <= 4096
    assert not Bench().machine.shared.trusts("10.0.0.1")


@pytest.mark.parametrize("send", [["via"], ["x-forwarded-for"], []])
def test_a_listener_sends_what_it_is_told_to(send: list[str]) -> None:
    bench = Bench(send=send).client(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n").connect()
    bench.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert (b"X-Forwarded-For: 192.0.2.1\r\n" in bench.to_server) is ("x-forwarded-for" in send)
    assert (b"Via: 1.1 l7lb\r\n" in bench.to_server) is ("via" in send)
    assert (b"Via: 1.1 l7lb\r\n" in bench.to_client) is ("via" in send)
    assert b"6.6.6.6" not in bench.to_server
