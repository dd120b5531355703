"""IMAP's commands and responses, in any split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7lb.protocols.imap4.syntax import Arguments, Command, Malformed, Reader, Wanted, quotable, quoted, response
from l7lb.protocols.mail.lines import LineTooLong

STRINGS = st.binary(max_size=30)


def read(wire: bytes, cuts: list[int]) -> list[tuple[object, ...]]:
    """Everything that a reader makes of it; literals that wait are accepted."""
    reader, buffer, seen = Reader(2000, 500), bytearray(), list[tuple[object, ...]]()
    edges = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        buffer += wire[start:end]
        try:
            while (taken := reader.take(buffer)) is not None:
                if isinstance(taken, Wanted):
                    seen.append(("wanted", taken.command.tag, taken.command.name, taken.overlong))
                    reader.accept()
                else:
                    seen.append((taken.tag, taken.name, taken.arguments, taken.overlong))
        except LineTooLong:
            seen.append(("too long",))
            break
    return seen


PART = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"a LOGIN ", b"\r\n", b"\n", b"{3}\r\n", b"{3+}\r\n", b"{600+}\r\n", b'"x"', b" ", b"{99999999999}"]
    ),
)


@settings(max_examples=300)
@given(st.lists(PART, max_size=12), st.lists(st.integers(0, 500), max_size=8))
def test_any_split_gives_the_same(parts: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(parts)
    assert read(wire, cuts) == read(wire, [])


@given(STRINGS, STRINGS, st.sampled_from(("+", "")), st.lists(st.integers(0, 200), max_size=5))
def test_strings_come_out_as_they_went_in(user: bytes, password: bytes, plus: str, cuts: list[int]) -> None:
    wire = b"a.1 LOGIN {%d%b}\r\n%b {%d+}\r\n%b\r\n" % (len(user), plus.encode(), user, len(password), password)
    *_, (tag, name, arguments, overlong) = read(wire, cuts)
    assert (tag, name, overlong) == (b"a.1", b"LOGIN", False)
    assert isinstance(arguments, bytes)
    taken = Arguments(arguments)
    assert taken.space().astring() == user
    assert taken.space().astring() == password
    taken.end()


@given(STRINGS.filter(quotable))
def test_quoted_strings_come_out_as_they_went_in(text: bytes) -> None:
    arguments = Arguments(quoted(text))
    assert arguments.string() == text
    arguments.end()


@pytest.mark.parametrize("text", [b"", b'"a', b'"a\\b"', b'"a\nb"', b"(", b"{3}\r\nab", b"{a}\r\n", b"\x7f"])
def test_what_is_no_string(text: bytes) -> None:
    with pytest.raises(Malformed):
        Arguments(text).astring()


@given(st.binary())
def test_nothing_but_its_own_fault_escapes(text: bytes) -> None:
    response(text)
    Command(text)
    arguments = Arguments(text)
    try:
        while arguments.more:
            arguments.astring()
            arguments.space()
    except Malformed:
        pass


def test_responses() -> None:
    said = response(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready [x]")
    assert said is not None
    assert (said.tag, said.word, said.code, said.detail, said.text) == (
        b"*", b"OK", b"CAPABILITY", b"IMAP4rev1 AUTH=PLAIN", b"ready [x]",
    )  # fmt: skip
    said = response(b"+ eA==")
    assert said is not None
    assert (said.tag, said.text) == (b"+", b"eA==")
    said = response(b"a no [unavailable]")
    assert said is not None
    assert (said.tag, said.word, said.code, said.text) == (b"a", b"NO", b"UNAVAILABLE", b"")
    assert response(b"") is None
    assert response(b"hello") is None
