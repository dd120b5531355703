"""Conversations over HTTP/2: requests and answers, streams beside one another, flow control, faults and ends."""

from __future__ import annotations

import itertools

import pytest
from h2.connection import H2Connection
from http2_bench import CLIENT, GET, OK, POST, Bench
from hyperframe.frame import GoAwayFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from l7lb.core.snapshot import Retries

SAFE = Retries(attempts=2, when=frozenset({"connect-failure", "reset-before-response", "response-timeout"}))


def bench(**options: object) -> Bench:
    """A client that has said hello."""
    return Bench(**options).connect()


# --- one exchange


def test_a_request_reaches_its_server_as_http1_and_the_answer_the_client_as_http2() -> None:
    talk = bench().request([*GET[:3], (b":path", b"/a/../b?q"), (b"accept", b"x"), (b"x-b", b"2")])
    talk.assign()
    assert talk.server() == b"GET /b?q HTTP/1.1\r\nHost: a\r\naccept: x\r\nx-b: 2\r\n\r\n"
    assert b"Via: 2.0 l7lb\r\n" in talk.lanes[1].to_server
    assert b"X-Forwarded-For: 192.0.2.1\r\n" in talk.lanes[1].to_server
    talk.answer(OK)
    assert talk.seen() == ["1 head :status=200 content-length=2", "1 data ok", "1 end"]
    assert talk.records == ["1: 200 ok"]
    assert talk.lanes == {}
    assert not talk.closed


def test_cookie_crumbs_are_joined() -> None:
    talk = bench().request([*GET, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")]).assign()
    assert b"Cookie: a=1; b=2\r\n" in talk.lanes[1].to_server


def test_a_body_of_known_length() -> None:
    talk = bench().request([*POST, (b"content-length", b"6")], end=False).assign()
    talk.client.send_data(1, b"abc")
    talk.flush()
    talk.client.send_data(1, b"def", end_stream=True)
    talk.flush()
    assert talk.server().endswith(b"Content-Length: 6\r\n\r\nabcdef")
    talk.answer(OK)
    assert talk.records == ["1: 200 ok"]


def test_a_body_of_unknown_length_goes_in_chunks_with_its_trailers() -> None:
    talk = bench().request(POST, end=False).assign()
    talk.client.send_data(1, b"abc")
    talk.flush()
    talk.client.send_headers(1, [(b"x-sum", b"1")], end_stream=True)
    talk.flush()
    assert talk.server().endswith(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n")


def test_a_body_that_came_before_its_server() -> None:
    talk = bench().request(POST, end=False)
    talk.client.send_data(1, b"abc", end_stream=True)
    talk.flush().assign()
    assert talk.server().endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")


def test_chunks_and_trailers_of_an_answer() -> None:
    talk = bench().request(GET).assign()
    talk.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n3\r\nabc\r\n")
    assert talk.seen() == ["1 head :status=200 x-a=b", "1 data abc"]
    talk.answer(b"0\r\nX-Sum: 9\r\n\r\n")
    assert talk.seen() == ["1 head x-sum=9", "1 end"]
    assert talk.records == ["1: 200 ok"]


def test_an_answer_until_the_server_closes() -> None:
    talk = bench().request(GET).assign().answer(b"HTTP/1.1 200 OK\r\n\r\nabc").end()
    assert talk.seen() == ["1 head :status=200", "1 data abc", "1 end"]
    assert not talk.closed


@pytest.mark.parametrize(
    ("method", "answer", "head"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "1 head :status=200 content-length=9"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", "1 head :status=204"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", "1 head :status=304"),
    ],
)
def test_answers_without_a_body(method: bytes, answer: bytes, head: str) -> None:
    talk = bench().request([(b":method", method), *GET[1:]]).assign().answer(answer)
    assert talk.seen() == [head, "1 end"]


def test_interim_answers_and_expectations() -> None:
    talk = bench().request([*POST, (b"expect", b"100-continue"), (b"content-length", b"1")], end=False).assign()
    assert b"Expect: 100-continue\r\n" in talk.lanes[1].to_server
    talk.answer(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
    assert talk.seen() == ["1 head :status=100", "1 head :status=103 link=x"]
    talk.client.send_data(1, b"x", end_stream=True)
    talk.flush().answer(OK)
    assert talk.records == ["1: 200 ok"]


def test_an_answer_before_the_requests_end_stops_the_request() -> None:
    talk = bench().request(POST, end=False).assign().answer(OK)
    assert talk.seen() == ["1 head :status=200 content-length=2", "1 data ok", "1 end"]
    assert talk.records == ["1: 200 ok"]
    talk.wait(3)
    assert talk.seen() == ["1 reset 0"]


def test_a_client_that_ends_its_request_after_the_answer() -> None:
    talk = bench().request(POST, end=False).assign().answer(OK)
    for _ in range(10):
        talk.client.send_data(1, b"x" * 16384)
        talk.flush()
    talk.client.end_stream(1)
    talk.flush()
    talk.wait(5)
    assert "reset" not in " ".join(talk.seen())
    assert not talk.machine._streams


def test_a_client_that_never_ends_its_request_after_the_answer() -> None:
    talk = bench().request(POST, end=False).assign().answer(OK)
    sent = 0
    while 1 in talk.machine._streams:
        talk.client.send_data(1, b"x" * 16384)
        talk.flush()
        sent += 16384
    assert 4_000_000 < sent < 5_000_000
    assert "1 reset 0" in talk.seen()


def test_fields_of_the_servers_connection_stay_behind() -> None:
    talk = bench().request(GET).assign()
    talk.answer(
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nContent-Length: 0\r\n\r\n"
    )
    assert talk.seen() == ["1 head :status=200 content-length=0", "1 end"]


def test_a_server_that_switches_protocols_breaks_the_protocol() -> None:
    talk = bench().request(GET).assign()
    talk.answer(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert talk.records == ["1: 502 server-protocol@response-header"]


def test_a_failed_server_is_answered_for_and_a_retry_is_made() -> None:
    talk = bench(retries=SAFE).request(GET).assign().end(error=True)
    assert talk.lanes[1].need is not None  # again
    talk.assign().end(error=True)
    talk.assign().end(error=True)
    assert talk.seen()[0].startswith("1 head :status=502")
    assert talk.records == ["1: 502 server-closed@response-header"]


def test_a_broken_answer_is_reset() -> None:
    talk = bench().request(GET).assign().answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")
    talk.seen()
    talk.end(error=True)
    assert talk.seen() == ["1 reset 2"]
    assert talk.records == ["1: 200 server-closed-inside@response-body"]


# --- streams beside one another


def test_streams_are_answered_in_any_order() -> None:
    talk = bench()
    for number in (1, 3, 5):
        talk.request(GET, number).assign(number)
    for number in (5, 1, 3):
        talk.answer(OK, number)
    assert [word for word in talk.seen() if "end" in word] == ["5 end", "1 end", "3 end"]


def test_large_answers_take_turns() -> None:
    talk = bench(room=16384)
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n" + b"x" * 40000
    for number in (1, 3):
        talk.request(GET, number).assign(number)
    talk.client.increment_flow_control_window(1 << 20)
    talk.flush()
    for number in (1, 3):
        talk.answer(big, number)
    while talk.machine._streams:
        talk.run([])
    order = [word.split()[0] for word in talk.seen() if " data " in word]
    assert "1 1 1" not in " ".join(order)
    assert set(order) == {"1", "3"}


def test_more_streams_than_allowed_are_refused_one_by_one() -> None:
    talk = bench(http2={"max_concurrent_streams": 2})
    talk.client.remote_settings[3] = 10
    talk.client.remote_settings.acknowledge()
    for number in (1, 3, 5):
        talk.request(GET, number)
    assert talk.seen() == ["5 reset 7"]
    talk.assign(1).answer(OK, 1)
    talk.request(GET, 7)
    assert sorted(talk.lanes) == [3, 7]


# --- flow control


def test_a_client_without_window_makes_its_answer_wait_and_no_other() -> None:
    talk = bench()
    talk.client.update_settings({4: 10})
    talk.flush()
    for number in (1, 3):
        talk.request(GET, number).assign(number)
    talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n" + b"x" * 30, 1)
    assert talk.machine._streams[1].waiting == 20
    talk.answer(OK, 3)
    assert "3 end" in talk.seen()
    talk.client.increment_flow_control_window(100, 1)
    talk.flush()
    assert talk.seen()[-1] == "1 end"


def test_a_server_that_takes_nothing_keeps_its_streams_window_closed() -> None:
    talk = bench()
    talk.takes = False
    talk.request(POST, 1, end=False).assign(1)
    talk.request(POST, 3, end=False).assign(3)
    while talk.client.local_flow_control_window(1) > 0:
        talk.client.send_data(1, b"x" * min(16384, talk.client.local_flow_control_window(1)))
        talk.flush()
    assert talk.client.local_flow_control_window(1) == 0
    assert talk.client.local_flow_control_window(3) == 65536
    talk.takes = True
    talk.on(1, [])
    assert talk.client.local_flow_control_window(1) == 65536


def test_a_large_body_flows_through_small_windows() -> None:
    talk = bench().request(POST, end=False).assign()
    left = 5_000_000
    while left:
        size = min(16384, left, talk.client.local_flow_control_window(1))
        assert size > 0
        left -= size
        talk.client.send_data(1, b"x" * size, end_stream=not left)
        talk.flush()
    assert talk.lanes[1].to_server.count(b"x" * 100) * 100 > 4_900_000
    talk.answer(OK)
    assert talk.records == ["1: 200 ok"]


def test_a_client_that_takes_nothing_of_its_answer_is_given_up() -> None:
    talk = bench()
    talk.client.update_settings({4: 0})
    talk.flush().request(GET).assign().answer(OK)
    assert talk.records == ["1: 200 ok"]  # as far as its server is concerned
    talk.seen()
    talk.wait(61)
    assert "1 reset 8" in talk.seen()
    talk.wait(16)
    assert talk.closed


def test_a_client_that_takes_nothing_of_a_longer_answer_is_given_up() -> None:
    talk = bench()
    talk.client.update_settings({4: 0})
    talk.flush().request(GET).assign().answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab")
    talk.wait(101)
    assert talk.records == ["1: 200 client-timeout@response-body"]
    assert "1 reset 8" in talk.seen()


# --- the client goes


def test_a_reset_reaches_the_server_and_the_record() -> None:
    talk = bench().request(GET).assign()
    lane = talk.lanes[1]
    talk.client.reset_stream(1, 8)
    talk.flush()
    assert lane.released == "closed"
    assert talk.records == ["1: 499 client-closed@response-header"]


def test_a_connection_that_is_lost_ends_its_streams() -> None:
    talk = bench().request(GET, 1).request(GET, 3).assign(1)
    talk.run(talk.machine.ended(CLIENT, talk.now, True))
    assert talk.records == ["1: 499 client-closed@response-header", "3: 499 client-closed@queue"]
    assert talk.closed


def test_a_half_closed_client_gets_its_answers() -> None:
    talk = bench().request(GET).assign()
    talk.run(talk.machine.ended(CLIENT, talk.now, False))
    assert not talk.closed
    talk.answer(OK)
    assert talk.records == ["1: 200 ok"]
    assert talk.closed


# --- time


def test_a_preface_that_does_not_come() -> None:
    talk = Bench().wait(11)
    assert talk.closed
    assert talk.records == ["0 client-timeout@connection"]


def test_a_preface_then_silence() -> None:
    talk = bench().wait(14)
    assert not talk.closed
    talk.wait(2)
    assert talk.seen() == ["goaway 0 0"]
    assert talk.closed


def test_pings_keep_no_idle_connection() -> None:
    talk = bench()
    for _ in range(8):
        talk.wait(2)
        if not talk.closed:
            talk.client.ping(b"12345678")
            talk.flush()
    assert talk.closed


def test_an_incomplete_header_block() -> None:
    talk = bench()
    talk.client.send_headers(1, GET)
    data = bytearray(talk.client.data_to_send())
    data[4] &= ~4  # no END_HEADERS
    talk.feed(bytes(data)).wait(11)
    assert talk.records == ["0 client-timeout@connection"]


def test_an_incomplete_frame() -> None:
    talk = bench()
    talk.client.send_headers(1, GET)
    talk.feed(talk.client.data_to_send()[:-1]).wait(11)
    assert talk.records == ["0 client-timeout@connection"]


def test_a_body_that_does_not_come() -> None:
    talk = bench().request(POST, end=False).assign().wait(61)
    assert talk.records == ["1: 408 client-timeout@request-body"]
    assert talk.seen()[0].startswith("1 head :status=408")


# --- draining


def test_a_patient_drain_takes_what_is_on_its_way() -> None:
    talk = bench().request(GET).assign().drain(patient=True)
    assert talk.seen() == ["goaway 0 2147483647"]
    talk.request(GET, 3).assign(3)
    talk.answer(OK, 1).answer(OK, 3)
    assert talk.records == ["1: 200 ok", "3: 200 ok"]
    assert not talk.closed
    talk.wait(6)
    assert talk.closed


def test_a_drain_lets_streams_finish_and_takes_no_more() -> None:
    talk = bench().request(GET).assign().drain(patient=False)
    assert talk.seen() == ["goaway 0 1"]
    assert not talk.closed
    talk.answer(OK)
    assert talk.records == ["1: 200 ok"]
    assert talk.closed


def test_a_client_that_leaves_gets_what_it_asked_for() -> None:
    """Its windows still open and its body still comes behind its GOAWAY."""
    talk = bench().request([*POST, (b"content-length", b"3")], end=False).assign()
    size = 100_000
    talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    talk.feed(GoAwayFrame(0).serialize())
    talk.client.increment_flow_control_window(size)
    talk.client.increment_flow_control_window(size, 1)
    talk.client.send_data(1, b"abc", end_stream=True)
    talk.flush()
    seen = talk.seen()
    assert seen[0].startswith("1 head :status=200")
    assert seen[-1] == "1 end"
    assert talk.records == ["1: 200 ok"]
    assert talk.closed


def test_a_client_that_leaves_without_having_asked_is_let_go() -> None:
    assert bench().feed(GoAwayFrame(0).serialize()).closed


def test_a_drain_of_an_idle_connection() -> None:
    assert bench().drain(patient=False).closed


# --- any split gives the same


def script(client: H2Connection) -> bytes:
    """All that a client might send: requests, bodies, trailers, a reset, a malformed one."""
    client.send_headers(1, GET, end_stream=True)
    client.send_headers(3, POST, end_stream=False)
    client.send_data(3, b"abc")
    client.send_headers(5, [*POST, (b"content-length", b"4")])
    client.ping(b"12345678")
    client.send_headers(3, [(b"x-sum", b"1")], end_stream=True)
    client.send_data(5, b"abcd", end_stream=True)
    client.send_headers(7, [*GET, (b"Upper", b"x")], end_stream=True)
    client.send_headers(9, GET, end_stream=True)
    client.reset_stream(9)
    client.send_headers(11, [*GET, (b"x-large", b"y" * 1500)], end_stream=True)
    return client.data_to_send()


SCRIPT = script(Bench(header_bytes=512).client)


def replay(pieces: list[bytes]) -> tuple[object, ...]:
    talk = Bench(header_bytes=512)
    talk.events = []
    script(talk.client)  # so that it knows what it is answered to
    for piece in pieces:
        talk.feed(piece)
    for number in list(talk.lanes):
        talk.assign(number)
    got = {number: talk.server(number) for number in talk.lanes}
    return got, talk.records, sorted(talk.seen()), talk.closed


WHOLE = replay([SCRIPT])


def test_the_script_does_what_it_says() -> None:
    got, records, seen, closed = WHOLE
    assert sorted(got) == [1, 3, 5]
    assert got[3].endswith(b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n")
    assert records == [
        "400 client-protocol@request-header",
        "9: 499 client-closed@queue",
        "11: 431 client-limit@request-header",
    ]
    assert not closed
    assert "7 reset 1" in seen


def test_bytes_one_by_one() -> None:
    assert replay([SCRIPT[index : index + 1] for index in range(len(SCRIPT))]) == WHOLE


def test_every_split() -> None:
    for at in range(1, len(SCRIPT), 1 if len(SCRIPT) < 800 else 3):
        assert replay([SCRIPT[:at], SCRIPT[at:]]) == WHOLE, at


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, len(SCRIPT)), max_size=12))
def test_any_split(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(SCRIPT)]
    assert replay([SCRIPT[a:b] for a, b in itertools.pairwise(edges)]) == WHOLE
