"""Set-Cookie as servers send it, as they shouldn't, and as an attacker might."""

from __future__ import annotations

import calendar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.persistence.setcookie import LIMIT, SetCookie, parse_set_cookie, unquoted

THEN = calendar.timegm((2015, 10, 21, 7, 28, 0))


@pytest.mark.parametrize(
    ("text", "cookie"),
    [
        (b"SID=abc", SetCookie(b"SID", b"abc", None, None)),
        (b"SID=", SetCookie(b"SID", b"", None, None)),
        (b' SID="abc" ', SetCookie(b"SID", b"abc", None, None)),
        (b"SID=a=b=c; Path=/", SetCookie(b"SID", b"a=b=c", None, None)),
        (b"SID=abc; Max-Age=60", SetCookie(b"SID", b"abc", 60, None)),
        (b"SID=abc;max-age=0", SetCookie(b"SID", b"abc", 0, None)),
        (b"SID=abc; MAX-AGE = -1 ; HttpOnly", SetCookie(b"SID", b"abc", -1, None)),
        (b"SID=abc; Expires=Wed, 21 Oct 2015 07:28:00 GMT", SetCookie(b"SID", b"abc", None, THEN)),
        (b"SID=abc; expires=Wed, 21-Oct-2015 07:28:00 GMT; Secure", SetCookie(b"SID", b"abc", None, THEN)),
        (b"SID=abc; expires=Wednesday, 21-Oct-15 07:28:00 GMT", SetCookie(b"SID", b"abc", None, THEN)),
        (b"SID=abc; Max-Age=1_0", SetCookie(b"SID", b"abc", None, None)),
        (b"SID=abc; Max-Age=+1", SetCookie(b"SID", b"abc", None, None)),
        (b"SID=abc; Max-Age=" + b"9" * 30, SetCookie(b"SID", b"abc", None, None)),
        (b"SID=abc; Expires=yesterday", SetCookie(b"SID", b"abc", None, None)),
        (b"SID=abc; Expires=Wed, 21 Foo 2015 07:28:00 GMT", SetCookie(b"SID", b"abc", None, None)),
        (b"SID=abc; Expires=Wed, 21 Oct 2015 27:28:00 GMT", SetCookie(b"SID", b"abc", None, None)),
    ],
)
def test_what_servers_send(text: bytes, cookie: SetCookie) -> None:
    assert parse_set_cookie(text) == cookie


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"SID",
        b"=abc",
        b"S D=abc",
        b"SID =abc",
        b"SID=a b",
        b"SID=a,b",
        b'SID=a"b',
        b'SID="abc',
        b"SID=a\\b",
        b"SID=a\x00b",
        b"SID=a\r\nX: y",
        b"SID=abc\n",
        b"S\xc3\xa9=abc",
        b"SID=\xe9",
        b"S(ID)=abc",
        b"SID=" + b"a" * LIMIT,
    ],
)
def test_what_they_should_not_send_is_not_learned(text: bytes) -> None:
    assert parse_set_cookie(text) is None


@pytest.mark.parametrize(
    ("max_age", "expires", "deletes"),
    [
        (None, None, False),
        (0, None, True),
        (-5, None, True),
        (1, None, False),
        (None, 1000, True),
        (None, 1001, False),
        (60, 1, False),
        (0, 5000, True),
    ],
)
def test_deletion(max_age: int | None, expires: int | None, deletes: bool) -> None:
    assert SetCookie(b"SID", b"abc", max_age, expires).deletes(1000.0) is deletes


def test_a_date_of_the_epoch_deletes() -> None:
    cookie = parse_set_cookie(b"SID=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT; Max-Age=x")
    assert cookie is not None
    assert cookie.deletes(2.0)


@given(st.binary(max_size=200))
def test_anything_is_read_or_refused(text: bytes) -> None:
    cookie = parse_set_cookie(text)
    if cookie is not None:
        assert cookie.name in text
        assert cookie.value in text
        assert not set(cookie.value) & set(b' ",;\\\r\n\x00')


@given(
    st.from_regex(rb"\A[A-Za-z0-9_-]{1,20}\Z"), st.from_regex(rb"\A[A-Za-z0-9_%.-]{0,40}\Z"), st.integers(-100, 10**9)
)
def test_what_a_server_sets_is_read(name: bytes, value: bytes, max_age: int) -> None:
    text = name + b"=" + value + b"; Path=/; Max-Age=%d; HttpOnly" % max_age
    assert parse_set_cookie(text) == SetCookie(name, value, max_age, None)


def test_quotes_are_taken_off_in_pairs() -> None:
    assert unquoted(b'"a"') == b"a"
    assert unquoted(b'""') == b""
    assert unquoted(b'"') == b'"'
    assert unquoted(b'"a') == b'"a'
    assert unquoted(b"") == b""
