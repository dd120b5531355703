"""Bodies: by length, in chunks, until the end; broken chunks, limits, trailers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.protocols.http.body import (
    MAX_SIZE_LINE,
    MAX_TRAILER_BYTES,
    ChunkedReader,
    CloseReader,
    LengthReader,
    chunk,
    last_chunk,
)
from l7lb.protocols.http.syntax import SyntaxFault


def fed(reader: ChunkedReader | LengthReader, data: bytes, cuts: list[int]) -> bytes:
    body = b""
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
    for start, end in pairwise(places):
        if reader.done:
            reader.rest += data[start:end]
        else:
            body += reader.feed(data[start:end])
    return body


def test_a_body_of_a_length() -> None:
    reader = LengthReader(5)
    assert (reader.feed(b"abc"), reader.done) == (b"abc", False)
    assert (reader.feed(b"deGET"), reader.done, reader.rest) == (b"de", True, b"GET")
    assert LengthReader(0).done


def test_a_body_until_the_end() -> None:
    reader = CloseReader()
    assert reader.feed(b"abc") == b"abc"
    assert not reader.done


WIRE = b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n3 ;q\r\nabc\r\n0\r\nX-T: v\r\nHost: b\r\nY:w \r\n\r\nGET"


@pytest.mark.parametrize("cut", range(len(WIRE)))
def test_chunks_in_any_two_pieces(cut: int) -> None:
    reader = ChunkedReader(10)
    assert fed(reader, WIRE, [cut]) == b"hello0123456789abc"
    assert (reader.done, reader.rest, reader.trailers) == (True, b"GET", [b"X-T: v", b"Y: w"])


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 300), max_size=10))
def test_what_is_written_is_read(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(chunk(part) for part in parts) + last_chunk([b"a: b"]) + b"rest"
    reader = ChunkedReader(10)
    assert fed(reader, data, cuts) == b"".join(parts)
    assert (reader.done, reader.rest, reader.trailers) == (True, b"rest", [b"a: b"])


BROKEN = [
    b"\r\n", b"x\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r\n", b"1_0\r\n", b"\xb2\r\n", b";x\r\n",
    b"1\n", b"\n", b"\nAAAA", b"1\rx", b"1\r\nab\r\n", b"1\r\na\n", b"1\r\naX", b"1\r\na\rX", b"5\r\nhello0\r\n",
    b"1" * 16 + b"\r\n", b"1;\x00\r\n", b"1;a\x01\r\n", b"1;" + b"x" * MAX_SIZE_LINE, b"F" * 400,
    b"0\r\nno colon\r\n", b"0\r\na b: c\r\n", b"0\r\n a: c\r\n", b"0\r\na: b\x00\r\n", b"0\r\na: b\n\r\n", b"0\r\n\n",
    b"0\r\nx: " + b"a" * MAX_TRAILER_BYTES,
    b"0\r\n" + b"x: %b\r\n" % (b"a" * 4000) * 3 + b"\r\n",
]  # fmt: skip


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_broken_chunks_are_refused_in_any_pieces(data: bytes) -> None:
    for cuts in ([], list(range(len(data)))):
        with pytest.raises(SyntaxFault) as caught:
            fed(ChunkedReader(10), data, cuts)
        assert caught.value.status == 400


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_any_bytes_end_in_a_body_or_a_refusal(data: bytes, cuts: list[int]) -> None:
    def outcome(where: list[int]) -> object:
        reader = ChunkedReader(3)
        try:
            return fed(reader, data, where), reader.done, reader.rest if reader.done else b""
        except SyntaxFault as fault:
            return fault.status

    assert outcome(cuts) == outcome([])


def test_an_incomplete_line_is_kept_within_its_limit() -> None:
    reader = ChunkedReader(3)
    reader.feed(b"1;")
    for _ in range(MAX_SIZE_LINE - 3):
        reader.feed(b"x")
    with pytest.raises(SyntaxFault):
        reader.feed(b"x")
    assert len(reader._buffer) < MAX_SIZE_LINE


def test_too_many_trailers() -> None:
    with pytest.raises(SyntaxFault) as caught:
        ChunkedReader(2).feed(b"0\r\na: b\r\na: b\r\na: b\r\n\r\n")
    assert caught.value.status == 431


@pytest.mark.parametrize(
    "name", ["Content-Length", "transfer-encoding", "Host", "Cookie", "Set-Cookie", "X-Forwarded-For", "content_length",
             "Authorization", "Content-Type", "Trailer", "Connection", "Via", "X-Request-ID"],
)  # fmt: skip
def test_trailers_do_not_change_what_the_head_settled(name: str) -> None:
    reader = ChunkedReader(5)
    reader.feed(b"0\r\n%b: 5\r\n\r\n" % name.encode())
    assert (reader.done, reader.trailers) == (True, [])


def test_frames() -> None:
    assert chunk(b"") == b""  # an empty chunk would end the body
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert last_chunk([]) == b"0\r\n\r\n"
    assert last_chunk([b"a: b", b"c: d"]) == b"0\r\na: b\r\nc: d\r\n\r\n"
