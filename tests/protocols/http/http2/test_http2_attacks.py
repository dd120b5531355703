"""Clients that mean no good: everything is bounded, counted, and ends in the protocol's own words."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from http2_bench import GET, POST, Bench

from l7lb.protocols.http.http2.guard import Cutter, Frame, Guard

CALM = 11  # ENHANCE_YOUR_CALM
ENDED = ["0 client-limit@connection"]


def frame(kind: int, flags: int = 0, stream: int = 0, data: bytes = b"") -> bytes:
    """A frame's bytes."""
    return struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data


def calmed(talk: Bench) -> bool:
    """Whether the connection has ended with ENHANCE_YOUR_CALM, and its record says so."""
    words = [word for word in talk.seen() if word.startswith("goaway")]
    return bool(talk.closed) and words == [f"goaway {CALM} {words[0].split()[-1]}"] and talk.records[-1:] == ENDED


def flood(talk: Bench, make: Callable[[int], bytes], most: int) -> int:
    """Feed until the connection closes; how many it took."""
    for count in range(most):
        if talk.closed:
            return count
        talk.feed(make(count))
    raise AssertionError(f"{most} were not too many")


def test_rapid_reset() -> None:
    talk = Bench(http2={"resets": 50}).connect()
    number = 1
    while not talk.closed:
        talk.client.send_headers(number, GET, end_stream=True)
        talk.client.reset_stream(number, 8)
        talk.flush()
        number += 2
        assert number < 200
    assert number // 2 == 51
    assert calmed(talk)
    assert len(talk.lanes) == 0


def test_resets_that_take_their_time_are_fine() -> None:
    talk = Bench(http2={"resets": 50}).connect()
    for number in range(1, 401, 2):
        talk.request(GET, number)
        talk.client.reset_stream(number, 8)
        talk.flush()
        talk.now += 0.5
    assert not talk.closed


def test_malformed_requests_without_end() -> None:
    talk = Bench(http2={"resets": 50}).connect()
    number = 1
    while not talk.closed:
        talk.request([*GET, (b"Upper", b"1")], number)
        number += 2
        assert number < 200
    assert calmed(talk)


def test_streams_beyond_the_limit_without_end() -> None:
    talk = Bench(http2={"resets": 50, "max_concurrent_streams": 1}).connect()
    talk.client.remote_settings[3] = 1000
    talk.client.remote_settings.acknowledge()
    number = 1
    while not talk.closed:
        talk.request(GET, number)
        number += 2
        assert number < 200
    assert calmed(talk)


@pytest.mark.parametrize(
    ("make", "paid"),
    [
        (lambda count: frame(6, 0, 0, b"12345678"), 0),  # PING
        (lambda count: frame(4), 0),  # SETTINGS
        (lambda count: frame(4, 0, 0, struct.pack(">HI", 1, count % 4096)), 0),
        (lambda count: frame(2, 0, 1, struct.pack(">IB", 3, 7)), 0),  # PRIORITY
        (lambda count: frame(8, 0, 0, struct.pack(">I", 1)), 0),  # WINDOW_UPDATE
        (lambda count: frame(0xBB, 0, 0, b"?"), 0),  # a type that nobody knows
        (lambda count: frame(0, 0, 1, b""), 1),  # empty DATA
        (lambda count: frame(0, 8, 1, b"\x03\x00\x00\x00"), 1),  # DATA of padding alone
    ],
    ids=["ping", "settings", "changing-settings", "priority", "window-update", "unknown", "empty-data", "padding"],
)
def test_floods_of_frames_that_carry_nothing(make: Callable[[int], bytes], paid: int) -> None:
    talk = Bench(http2={"control_frames": 100}).connect()
    talk.request(POST, end=False).assign()
    taken = flood(talk, make, 200)
    assert 95 <= taken <= 105
    assert talk.records[-1:] == ENDED
    assert talk.lanes == {}


def test_a_continuation_flood() -> None:
    talk = Bench(http2={"control_frames": 30}).connect()
    talk.feed(frame(1, 0, 1, b"\x82"))
    assert flood(talk, lambda count: frame(9, 0, 1, b"\x86"), 200) < 40
    assert talk.records == ENDED


def test_continuations_that_the_library_bounds() -> None:
    talk = Bench(http2={"control_frames": 100000}).connect()
    talk.feed(frame(1, 0, 1, b"\x82"))
    assert flood(talk, lambda count: frame(9, 0, 1, b"x" * 16000), 200) < 70
    assert talk.closed


def test_a_header_bomb() -> None:
    """One entry of 4000 bytes in the table, then a byte for each of its repetitions (HPACK amplification)."""
    talk = Bench().connect()
    value = b"y" * 3900
    literal = b"\x40\x01x\x7f" + bytes([(len(value) - 127) & 0x7F | 0x80, (len(value) - 127) >> 7]) + value
    head = b"\x82\x86\x84\x41\x01a" + literal
    talk.feed(frame(1, 5, 1, head + b"\xbe" * 9000))
    assert talk.closed
    assert talk.records[-1].endswith("client-limit@connection")
    assert "goaway 11 " in " ".join(talk.seen())


def test_a_header_somewhat_too_large_has_an_answer() -> None:
    talk = Bench().connect().request([*GET, (b"x", b"y" * 40_000)])
    assert talk.seen()[0].startswith("1 head :status=431")
    assert not talk.closed


def test_our_compression_takes_no_more_than_its_own_table() -> None:
    talk = Bench().connect()
    talk.client.update_settings({1: 2**31})
    talk.flush()
    assert talk.machine._h2.encoder.header_table_size == 4096


def test_window_updates_are_paid_by_what_is_downloaded() -> None:
    talk = Bench(http2={"control_frames": 100}).connect().request(GET).assign()
    size = 5_000_000
    talk.answer(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    for _ in range(size // 10_000):
        talk.answer(b"x" * 10_000)
        if talk.records:
            break
        talk.client.increment_flow_control_window(5_000, 1)
        talk.client.increment_flow_control_window(5_000, 1)
        talk.client.increment_flow_control_window(10_000)
        talk.flush()
    assert talk.records == ["1: 200 ok"]


def test_a_broken_preface() -> None:
    talk = Bench().feed(b"PRI * HTTP/2.0\r\n\r\nXX")
    assert talk.closed
    assert talk.records == ["0 client-protocol@connection"]


def test_a_frame_larger_than_allowed_is_refused_by_its_header() -> None:
    talk = Bench().connect().feed(b"\x00\x40\x01\x00\x00\x00\x00\x00\x01")
    assert talk.closed
    assert "goaway 6 0" in talk.seen()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([*GET, (b"Upper", b"x")], "capital letters"),
        ([*GET, (b"connection", b"close")], "of the connection"),
        ([*GET, (b"transfer-encoding", b"chunked")], "of the connection"),
        ([*GET, (b"upgrade", b"h2c")], "of the connection"),
        ([*GET, (b"keep-alive", b"5")], "of the connection"),
        ([*GET, (b"proxy-connection", b"x")], "of the connection"),
        ([*GET, (b"te", b"gzip")], "te other than trailers"),
        ([*GET, (b"x", b"a\r\nb: c")], "line ends"),
        ([*GET, (b"x", b"a\nb")], "a line end"),
        ([*GET, (b"x", b"a\x00b")], "NUL"),
        ([*GET, (b"x", b" a")], "space"),
        ([*GET, (b"x", b"a\t")], "space"),
        ([*GET, (b"x y", b"a")], "no token"),
        ([*GET, (b"x:y", b"a")], "a colon"),
        ([*GET, (b"", b"a")], "no name"),
        ([*GET, (b"host", b"b")], "another host"),
        ([*GET, (b"host", b"a"), (b"host", b"a")], "two hosts"),
        ([*GET, (b":path", b"/x")], "a path twice"),
        ([*GET[:3], (b"x", b"y"), GET[3]], "a pseudo-header field behind others"),
        ([*GET, (b":protocol", b"websocket")], "an unknown pseudo-header field"),
        ([*GET, (b":status", b"200")], "a pseudo-header field of answers"),
        (GET[:3], "no path"),
        (GET[1:], "no method"),
        ([GET[0], *GET[2:]], "no scheme"),
        ([*GET[:2], GET[3]], "no authority"),
        ([*GET[:3], (b":path", b"")], "an empty path"),
        ([*GET[:3], (b":path", b"x")], "a path without slash"),
        ([*GET[:3], (b":path", b"http://b/")], "an absolute target"),
        ([*GET[:3], (b":path", b"/a b")], "a space in the path"),
        ([*GET[:3], (b":path", b"/%2e%2e%2f..;x")], "an ambiguous path"),
        ([*GET[:3], (b":path", b"/%")], "a broken encoding"),
        ([*GET[:3], (b":path", b"*")], "an asterisk for GET"),
        ([*GET[:2], (b":authority", b"u@a"), GET[3]], "user information"),
        ([*GET[:2], (b":authority", b"a b"), GET[3]], "a malformed host"),
        ([GET[0], (b":scheme", b"ftp"), *GET[2:]], "an unknown scheme"),
        ([(b":method", b"G T"), *GET[1:]], "a malformed method"),
        ([*GET, (b"content-length", b"1"), (b"content-length", b"1")], "two lengths"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_requests_are_reset_and_nothing_else(fields: list[tuple[bytes, bytes]], why: str) -> None:
    talk = Bench().connect().request(GET, 1)
    ends = b"content-length" not in dict(fields)
    talk.request(fields, 3, end=ends)
    assert talk.seen() == ["3 reset 1"], why
    assert talk.records == ["400 client-protocol@request-header"]
    assert list(talk.lanes) == [1]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(b":method", b"CONNECT"), (b":authority", b"a:1")], 405),
        ([*GET, *[(b"x", b"y")] * 101], 431),
        ([*GET, (b"expect", b"something")], 417),
        ([*POST, (b"content-length", b"99999999999999")], 413),
    ],
)
def test_what_is_not_allowed_has_its_answer(fields: list[tuple[bytes, bytes]], status: int) -> None:
    talk = Bench().connect().request(fields, end=False)
    assert talk.seen()[0].startswith(f"1 head :status={status}")
    assert not talk.closed


@pytest.mark.parametrize("pieces", [[b"abc"], [b"abc", b"abc"]])
def test_a_body_that_differs_from_its_length_resets_its_stream(pieces: list[bytes]) -> None:
    talk = Bench().connect().request(GET, 1).request([*POST, (b"content-length", b"4")], 3, end=False).assign(3)
    talk.client.streams[3]._expected_content_length = None
    for piece in pieces:
        talk.client.send_data(3, piece, end_stream=piece is pieces[-1] and len(pieces) == 1)
    talk.flush()
    assert "3 reset 1" in talk.seen()
    assert talk.records == ["3: 400 client-protocol@request-body"]
    assert list(talk.lanes) == [1]


@pytest.mark.parametrize(("length", "piece"), [(b"0", b"abc"), (b"2", b"abc")])
def test_a_body_where_none_or_less_was_announced_resets_its_stream(length: bytes, piece: bytes) -> None:
    talk = Bench().connect().request(GET, 1).request([*POST, (b"content-length", length)], 3, end=False).assign(3)
    talk.client.streams[3]._expected_content_length = None
    talk.client.send_data(3, piece, end_stream=True)
    talk.flush()
    assert "3 reset 1" in talk.seen()
    assert not talk.closed
    assert list(talk.lanes) == [1]


def test_trailers_behind_a_body_that_is_shorter_than_its_length_reset_its_stream() -> None:
    talk = Bench().connect().request(GET, 1).request([*POST, (b"content-length", b"4")], 3, end=False).assign(3)
    talk.client.send_data(3, b"abc")
    talk.client.send_headers(3, [(b"x-sum", b"1")], end_stream=True)
    talk.flush()
    assert "3 reset 1" in talk.seen()
    assert talk.records == ["3: 400 client-protocol@request-body"]
    assert list(talk.lanes) == [1]


def test_trailers_behind_an_announced_body_of_nothing_are_no_fault() -> None:
    talk = Bench().connect().request([*POST, (b"content-length", b"0")], end=False).assign()
    talk.client.send_headers(1, [(b"x-sum", b"1")], end_stream=True)
    talk.flush().answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert talk.records == ["1: 200 ok"]


def test_trailers_are_judged_too() -> None:
    talk = Bench().connect().request(POST, end=False).assign()
    talk.client.send_headers(1, [(b"Upper", b"x")], end_stream=True)
    talk.flush()
    assert talk.seen() == ["1 reset 1"]


# --- the parts


def test_frames_are_cut_at_any_place() -> None:
    data = frame(0, 1, 5, b"abc") + frame(6, 0, 0, b"12345678") + frame(8, 0, 3, b"\x00\x00\x00\x01")
    for step in range(1, 12):
        cutter = Cutter(16384)
        cut = []
        for at in range(0, len(data), step):
            cutter.add(data[at : at + step])
            while (one := cutter.frame()) is not None:
                cut.append((one.kind, one.flags, one.stream, one.data[9:]))
        assert cut == [(0, 1, 5, b"abc"), (6, 0, 0, b"12345678"), (8, 0, 3, b"\x00\x00\x00\x01")]
        assert cutter.kind == -1


def test_the_guards_scores_fall_with_time() -> None:
    guard = Guard(10, 10, 0.0)
    ping = Frame(6, 0, 0, frame(6, 0, 0, b"12345678"))
    assert all(guard.frame(ping, 0.0) for _ in range(10))
    assert not guard.frame(ping, 0.0)
    assert guard.frame(ping, 5.0)


# --- damage


@pytest.mark.parametrize("seed", range(60))
def test_damaged_frames_end_in_documented_ways(seed: int) -> None:
    """Bytes are changed, cut out and doubled: the machine answers, resets or says goodbye, and raises nothing."""
    chance = random.Random(seed)
    source = Bench().client
    for number in range(1, 12, 2):
        source.send_headers(number, [*POST, (b"x", b"y" * chance.randrange(50))])
        source.send_data(number, b"z" * chance.randrange(100))
        source.ping(b"12345678")
        if chance.random() < 0.5:
            source.send_headers(number, [(b"t", b"1")], end_stream=True)
        else:
            source.reset_stream(number)
    data = bytearray(source.data_to_send())
    start = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(start, len(data))
        action = chance.randrange(3)
        if action == 0:
            data[at] = chance.randrange(256)
        elif action == 1:
            del data[at : at + chance.randrange(1, 20)]
        else:
            data[at:at] = data[at : at + chance.randrange(1, 40)]
    talk = Bench()
    talk.deaf = True
    while data and not talk.closed:
        size = chance.randrange(1, 400)
        talk.feed(bytes(data[:size]))
        del data[:size]
        for number in list(talk.lanes):
            if talk.lanes[number].need is not None and chance.random() < 0.5:
                talk.assign(number)
    if not talk.closed:
        for number, lane in list(talk.lanes.items()):
            if lane.need is not None:
                talk.assign(number)
        talk.wait(200)
    assert talk.closed
    assert talk.lanes == {}
