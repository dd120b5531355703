"""The syntax of a head: line ends, sizes, field names and what they mean, lengths and codings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.protocols.http import syntax
from l7lb.protocols.http.syntax import SyntaxFault, check_chunked, content_length, field_name, find_end, read_field


def status_of(call, *arguments) -> int:
    with pytest.raises(SyntaxFault) as caught:
        call(*arguments)
    return caught.value.status


def test_the_end_of_a_head_is_its_empty_line() -> None:
    assert find_end(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody", 100) == 23
    assert find_end(b"GET / HTTP/1.1\r\nHost: a\r\n\r", 100) == -1
    assert find_end(b"", 100) == -1


@pytest.mark.parametrize("bad", [b"GET / HTTP/1.1\nHost: a\n\n", b"\nGET", b"a\rb", b"a: b\r\nc\n", b"\r\r\n"])
def test_lines_end_in_cr_lf_only(bad: bytes) -> None:
    assert status_of(find_end, bad, 100) == 400


def test_a_large_head_is_refused_by_what_is_large() -> None:
    assert status_of(find_end, b"G" * 100, 100) == 414
    assert status_of(find_end, b"GET / HTTP/1.1\r\n" + b"a" * 100, 100) == 431
    assert find_end(b"x" * 96 + b"\r\n\r\n", 100) == 96
    assert status_of(find_end, b"x" * 97 + b"\r\n\r\n", 100) == 431
    assert status_of(find_end, b"x" * 99 + b"\r\n\r\n", 100) == 414


@given(st.binary(max_size=60), st.integers(0, 60))
def test_a_search_goes_on_where_it_stopped(data: bytes, cut: int) -> None:
    def outcome(pieces: list[int]) -> object:
        searched = 0
        for end in pieces:
            try:
                found = find_end(data[:end], 50, searched)
            except SyntaxFault as fault:
                return fault.status
            if found >= 0:
                return found
            searched = end
        return -1

    once, twice = outcome([len(data)]), outcome([min(cut, len(data)), len(data)])
    # A complete head is judged as a whole; in pieces its broken line is seen before.
    assert once == twice or (isinstance(once, int) and twice in (400, 414, 431))


@pytest.mark.parametrize("name", [b"a b", b"a ", b" a", b"", b"a:b", b"a\tb", b"\xc3\xa4", b"x" * 129, b"(a)", b'"'])
def test_a_name_is_a_token(name: bytes) -> None:
    assert status_of(field_name, name) == 400


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"HOST", syntax.HOST),
        (b"Content-Length", syntax.CONTENT_LENGTH),
        (b"Proxy-Connection", syntax.HOP_BY_HOP),
        (b"TE", syntax.HOP_BY_HOP),
        (b"X-Forwarded-Anything", syntax.FORWARDED),
        (b"Forwarded", syntax.FORWARDED),
        (b"X-Other", 0),
        (b"content_length", syntax.UNSAFE),
        (b"Transfer_Encoding", syntax.UNSAFE),
        (b"x_request_id", syntax.UNSAFE),
        (b"X_Forwarded-For", syntax.UNSAFE),
        (b"x-forwarded_for", syntax.UNSAFE),
        (b"x.forwarded.for", syntax.UNSAFE),
        (b"X-Forwarded~For", syntax.UNSAFE),
        (b"Forwarded_", 0),
        (b"Proxy", syntax.HOP_BY_HOP),
        (b"a_b", 0),
    ],
)
def test_what_a_name_means(name: bytes, code: int) -> None:
    assert field_name(name) == (name.lower(), code)
    assert field_name(name) == (name.lower(), code)  # remembered


@pytest.mark.parametrize(
    "line", [b"no colon", b"a: b\x00", b"a: b\x01c", b"a: b\x7f", b"a : b", b" a: b", b": b", b"a\x00: b", b"a: \x0bb"]
)
def test_a_broken_line_is_refused(line: bytes) -> None:
    assert status_of(read_field, line) == 400


def test_only_space_and_tab_are_taken_off_a_value() -> None:
    field = read_field(b"X-A: \t \xa0v\x85 \t")
    assert (field.name, field.value, field.line) == (b"x-a", b"\xa0v\x85", b"X-A: \xa0v\x85")
    assert read_field(b"X-A:v").line == b"X-A: v"


def test_what_is_remembered_has_a_bound() -> None:
    for number in range(syntax.MAX_RECENT + 10):
        read_field(b"X-A: %d" % number)
        field_name(b"x-%d" % number)
    read_field(b"X-Long: " + b"v" * 1000)
    assert syntax.FIELDS.get(b"X-Long: " + b"v" * 1000) is None
    assert len(syntax.FIELDS) <= syntax.MAX_RECENT
    assert len(syntax._known) <= syntax.MAX_KNOWN


@pytest.mark.parametrize("value", [b"", b"+5", b"-5", b"5 5", b"5,5", b"0x5", b"1_0", b"5.0", b"\xb2", b"1" * 19])
def test_a_length_is_digits(value: bytes) -> None:
    assert status_of(content_length, value) == 400


def test_a_length() -> None:
    assert content_length(b"0") == 0
    assert content_length(b"9" * 18) == 10**18 - 1


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"chunked, chunked", 400),
        (b"chunked, gzip", 400),
        (b"chunked,", 400),
        (b",chunked", 400),
        (b"", 400),
        (b"gzip, chunked", 501),
        (b"gzip", 501),
        (b"identity", 501),
        (b"xchunked", 501),
        (b"chunked;q=1", 501),
        (b'"chunked"', 400),
    ],
)
def test_other_codings_are_refused(value: bytes, status: int) -> None:
    assert status_of(check_chunked, value) == status


def test_chunked_in_any_case() -> None:
    check_chunked(b"Chunked")


def test_lists_are_split_at_commas() -> None:
    assert syntax.tokens(b"Close, \tX-A,, b ") == [b"close", b"x-a", b"b"]
    assert syntax.tokens(b"") == []
    assert syntax.tokens(b"Close") == [b"close"]
