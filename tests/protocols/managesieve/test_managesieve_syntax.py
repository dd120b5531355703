"""ManageSieve's grammar: what is read, what is refused, and that any split reads the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.protocols.managesieve.syntax import Atom, Malformed, Reader, Result, result, string

Seen = list[list[bytes] | str]


def read(data: bytes, cuts: list[int] | None = None, marked: bool = True, line: int = 200, literal: int = 100) -> Seen:
    """All commands of the data, fed in pieces, and the faults between them."""
    reader, buffer, seen = Reader(line, literal, marked), bytearray(), []
    at = 0
    for cut in [*sorted(cuts or ()), len(data)]:
        buffer += data[at:cut]
        at = cut
        while True:
            try:
                tokens = reader.take(buffer)
            except Malformed as fault:
                seen.append(f"{'fatal: ' if fault.fatal else ''}{fault.detail}")
                if fault.fatal:
                    return seen
                continue
            if tokens is None:
                break
            seen.append(tokens)
    return seen


READ: list[tuple[bytes, Seen]] = [
    (b"logout\r\n", [[Atom(b"logout")]]),
    (b"NOOP\n\r\n", [[Atom(b"NOOP")], []]),
    (b'Authenticate "PLAIN" "AGE="\r\n', [[Atom(b"Authenticate"), b"PLAIN", b"AGE="]]),
    (b'A "a \\"q\\" \\\\"  ""\r\n', [[Atom(b"A"), b'a "q" \\', b""]]),
    (b"A {3+}\r\n\r\n) {0+}\r\n\r\n", [[Atom(b"A"), b"\r\n)", b""]]),
    (b'A {2+}\r\nab "c"\r\nB\r\n', [[Atom(b"A"), b"ab", b"c"], [Atom(b"B")]]),
    (b'A "b\r\nC\r\n', ["a quoted string that doesn't end", [Atom(b"C")]]),
    (b'A "b\\x"\r\nC\r\n', ["a quoted string that doesn't end", [Atom(b"C")]]),
    (b'A "b""c"\r\n', ["there is no space between two words"]),
    (b"A {2+}\r\nabB\r\nC\r\n", ["there is no space between two words", [Atom(b"C")]]),
    (b"A \x00\r\nB\r\n", ["an odd character", [Atom(b"B")]]),
    (b'A "b {2+}\r\nxx\r\n', ["fatal: a quoted string that doesn't end"]),
    (b"A {2}\r\n", ["fatal: a literal is written {n+} here"]),
    (b"A {101+}\r\n", ["fatal: literals of more than 100 bytes"]),
    (b"A {60+}\r\n" + b"x" * 60 + b" {60+}\r\n", ["fatal: literals of more than 100 bytes"]),
    (b"A {99999999999+}\r\n", ["an odd character"]),
    (b"A " * 33 + b"\r\n", ["fatal: more than 32 words"]),
    (b"A" * 201, ["fatal: a line of more than 200 bytes"]),
    (b"A {0+}\r\n" * 40, ["fatal: there is no space between two words"]),
    (b"A {0+}\r\n" + b" {0+}\r\n" * 40, ["fatal: more than 32 words"]),
]


@pytest.mark.parametrize(("data", "expected"), READ)
def test_what_is_read_at_every_split(data: bytes, expected: Seen) -> None:
    for cuts in [[], *[[at] for at in range(1, len(data))], list(range(1, len(data)))]:
        seen = read(data, cuts)
        assert seen == expected
        kinds = [[type(token) for token in each] for each in seen if isinstance(each, list)]
        assert kinds == [[type(token) for token in each] for each in expected if isinstance(each, list)]


def test_a_line_is_bounded_with_what_stands_between_its_literals() -> None:
    data = b"A" * 90 + b" {1+}\r\nx" + b" " + b"B" * 120 + b"\r\n"
    assert read(data) == ["fatal: a line of more than 200 bytes"]


def test_a_servers_literal_has_no_mark() -> None:
    assert read(b'"SIEVE" {5}\r\nhello\r\nOK\r\n', marked=False) == [[b"SIEVE", b"hello"], [Atom(b"OK")]]
    assert read(b'"SIEVE" {5+}\r\n', marked=False) == ["fatal: a literal is written {n} here"]


def seen(line: bytes) -> Result | None:
    [tokens] = read(line, marked=False)
    assert isinstance(tokens, list)
    return result(tokens)


@pytest.mark.parametrize(
    ("line", "word", "code", "about", "text"),
    [
        (b"OK\r\n", b"OK", b"", b"", b""),
        (b'ok "ready"\r\n', b"OK", b"", b"", b"ready"),
        (b'NO (trylater) "soon"\r\n', b"NO", b"TRYLATER", b"", b"soon"),
        (b'BYE (REFERRAL "sieve://b.example") {4}\r\nover\r\n', b"BYE", b"REFERRAL", b"sieve://b.example", b"over"),
        (b'OK (SASL "cnNw")\r\n', b"OK", b"SASL", b"cnNw", b""),
        (b'NO (X (a "b") "c")\r\n', b"NO", b"X", b"b", b""),
    ],
)
def test_results(line: bytes, word: bytes, code: bytes, about: bytes, text: bytes) -> None:
    found = seen(line)
    assert found is not None
    assert (found.word, found.code, found.about, found.text) == (word, code, about, text)


@pytest.mark.parametrize("line", [b'"OK"\r\n', b'"SIEVE" "a"\r\n', b"MAYBE\r\n", b"\r\n"])
def test_what_is_no_result(line: bytes) -> None:
    assert seen(line) is None


@pytest.mark.parametrize(
    "line", [b"OK (\r\n", b"OK ()\r\n", b'OK ("a")\r\n', b"OK a\r\n", b'OK "a" "b"\r\n', b"OK )\r\n"]
)
def test_results_that_cannot_be_read(line: bytes) -> None:
    with pytest.raises(Malformed):
        seen(line)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.booleans(), st.lists(st.integers(0, 400)))
def test_strings_come_back(values: list[bytes], marked: bool, cuts: list[int]) -> None:
    data = b"X " + b" ".join(string(value, marked) for value in values) + b"\r\n"
    assert read(data, [cut for cut in cuts if cut < len(data)], marked, 1000, 1000) == [[b"X", *values]]


def test_long_strings_are_literals() -> None:
    assert string(b"x" * 1024) == b'"' + b"x" * 1024 + b'"'
    assert string(b"x" * 1025, marked=True).startswith(b"{1025+}\r\nx")


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8), st.booleans())
def test_any_bytes_at_any_split(data: bytes, cuts: list[int], marked: bool) -> None:
    assert read(data, [cut for cut in cuts if cut < len(data)], marked) == read(data, [], marked)
