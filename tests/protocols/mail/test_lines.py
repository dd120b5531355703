"""Lines out of a buffer, and what is another protocol's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.protocols.mail.lines import Lines, LineTooLong, foreign


@given(st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"").rstrip(b"\r"))), st.data())
def test_every_split_gives_the_same_lines(lines: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(line + data.draw(st.sampled_from((b"\n", b"\r\n"))) for line in lines)
    reader, buffer, taken = Lines(20), bytearray(), []
    while wire or buffer:
        size = data.draw(st.integers(0, len(wire)))
        buffer += wire[:size] or wire
        wire = wire[size:] if size else b""
        while (line := reader.take(buffer)) is not None:
            taken.append(line)
    assert taken == lines


def take_all(wire: bytes, step: int) -> None:
    reader, buffer = Lines(20), bytearray()
    for at in range(0, len(wire), step):
        buffer += wire[at : at + step]
        reader.take(buffer)


@pytest.mark.parametrize("wire", [b"x" * 21 + b"\n", b"x" * 21 + b"\r\n", b"x" * 22])
def test_a_line_has_a_limit(wire: bytes) -> None:
    for step in (1, len(wire)):
        with pytest.raises(LineTooLong):
            take_all(wire, step)


def test_the_longest_line_is_taken() -> None:
    reader = Lines(20)
    assert reader.take(bytearray(b"x" * 20 + b"\r")) is None
    assert reader.take(bytearray(b"x" * 20 + b"\r\n")) == b"x" * 20


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\n",
        b"post /login HTTP/1.0",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT x.org:443 HTTP/1.1",
        b"PRI * HTTP/2.0\r\n",
        b"GET http://x.org/",
        b"\x16\x03\x01\x02",
        b"SSH-2.0-OpenSSH",
    ],
)
def test_what_is_another_protocol(start: bytes) -> None:
    assert foreign(start)


@pytest.mark.parametrize("start", [b"", b"G", b"GET NOOP", b"a1 LOGIN", b"USER anna", b"EHLO x.org", b"get LOGIN a b"])
def test_what_is_not(start: bytes) -> None:
    assert not foreign(start)
