"""l7lb's own answers."""

from __future__ import annotations

import pytest

from l7lb.core.errors import Failure
from l7lb.protocols.http.answers import RETRY_AFTER, STATUS, answer, refusal, start_line


def test_every_failure_has_a_status() -> None:
    assert set(Failure) - set(STATUS) == {Failure.SERVER_ERROR}  # an answer of the server's own


@pytest.mark.parametrize("failure", STATUS)
def test_a_refusal_says_what_happened(failure: Failure) -> None:
    data = refusal(failure, b"Date: today\r\n", b"4711", close=True)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 %d " % STATUS[failure])
    assert b"Content-Length: %d" % len(body) in lines
    assert b"Connection: close" in lines
    assert b"Cache-Control: no-store" in lines
    assert b"Date: today" in lines
    assert b"X-Request-ID: 4711" in lines
    assert failure.meaning.encode() in body
    assert (b"Retry-After: 1" in lines) is (failure in RETRY_AFTER)


def test_a_refusal_with_its_own_words() -> None:
    data = refusal(Failure.CLIENT_LIMIT, b"", b"", status=431, reason="too much", close=False)
    assert data.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert data.endswith(b"\r\n\r\n431 Request Header Fields Too Large: too much\n")
    assert b"Connection" not in data


def test_head_gets_the_head() -> None:
    assert answer(200, b"body", head_only=True).endswith(b"\r\n\r\n")
    assert b"Content-Length: 4\r\n" in answer(200, b"body", head_only=True)


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body(status: int) -> None:
    assert b"ontent-" not in answer(status, b"")


def test_the_content_type() -> None:
    assert b"Content-Type: text/plain; charset=utf-8\r\n" in answer(200, b"x")
    assert b"Content-Type" not in answer(302, b"", headers=(("Location", "/"),))
    assert answer(200, b"x", headers=(("content-type", "a/b"),)).lower().count(b"content-type") == 1


def test_a_rule_may_say_the_date() -> None:
    assert answer(200, b"x", b"Date: today\r\n").count(b"Date: today\r\n") == 1
    assert b"Date" not in answer(200, b"x", b"Date: today\r\n", headers=(("date", "never"),))


def test_names_of_today() -> None:
    assert start_line(413) == b"HTTP/1.1 413 Content Too Large"
    assert start_line(418) == b"HTTP/1.1 418 I'm a teapot"
    assert start_line(299) == b"HTTP/1.1 299 "
