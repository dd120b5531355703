"""Where a message ends: CRLF.CRLF across any buffers, and nothing else."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from l7lb.protocols.mail.esmtp_data import END, LONE, MORE, DataScanner

PIECES = st.lists(st.sampled_from([b"\r\n", b"\r\n", b".", b"\r", b"\n", b"a", b"\r\n.\r\n", b"\r\n."]), max_size=12)


def scan(data: bytes, cuts: list[int]) -> tuple[bytes, int, int]:
    """What was passed on, the state, and how many bytes were used."""
    scanner = DataScanner()
    passed, used = b"", 0
    bounds = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
    for begin, end in pairwise(bounds):
        out, count = scanner.feed(data[begin:end])
        passed += out
        used += count
        if scanner.state != MORE:
            break
    return passed, scanner.state, used


def plainly(data: bytes) -> tuple[bytes, int]:
    """The same, byte by byte."""
    out = b""
    for at, byte in enumerate(data):
        if byte == 10 and data[at - 1 : at] != b"\r":
            return out, LONE
        if byte == 13 and at + 1 < len(data) and data[at + 1] != 10:
            return out, LONE
        out += data[at : at + 1]
        if (b"\r\n" + out).endswith(b"\r\n.\r\n"):
            return out, END
    return out.removesuffix(b"\r"), MORE


@given(PIECES, st.lists(st.integers(1, 40), max_size=6))
def test_any_split_finds_the_same_end(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    passed, state, used = scan(data, cuts)
    assert (passed, state) == plainly(data)
    if state == END:
        assert used == len(passed)


@given(PIECES)
def test_a_byte_at_a_time_finds_the_same_end(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    assert scan(data, list(range(len(data))))[:2] == plainly(data)


def test_what_stands_behind_the_end_is_not_used() -> None:
    assert scan(b"a\r\n.\r\nQUIT\r\n", []) == (b"a\r\n.\r\n", END, 6)
    assert scan(b".\r\nQUIT\r\n", []) == (b".\r\n", END, 3)
