"""Heads in both directions: what is refused and with what, and what the internal form keeps."""

from __future__ import annotations

import pytest

from l7lb.protocols.http.message import (
    CHUNKED,
    UNTIL_CLOSE,
    Request,
    Response,
    read_request,
    read_response,
)
from l7lb.protocols.http.syntax import SyntaxFault


def request(*lines: str, start: str = "GET / HTTP/1.1", host: str = "Host: a") -> Request:
    head = "\r\n".join([start, *([host] if host else []), *lines])
    return read_request(head.encode("latin-1"), 100)


def refused(*lines: str, start: str = "GET / HTTP/1.1", host: str = "Host: a") -> int:
    with pytest.raises(SyntaxFault) as caught:
        request(*lines, start=start, host=host)
    return caught.value.status


def response(*lines: str, start: str = "HTTP/1.1 200 OK", method: str = "GET") -> Response:
    return read_response("\r\n".join([start, *lines]).encode("latin-1"), 100, method.encode())


def test_a_request_in_its_internal_form() -> None:
    read = request(
        "Accept: */*", "Cookie: a=1", "X-A:  v ", "cookie: b=2", "Keep-Alive: 5", start="GET /a/../b%2f?q HTTP/1.1"
    )
    assert (read.method, read.path, read.query, read.version) == (b"GET", b"/b%2F", b"?q", 11)
    assert read.lines == [b"Accept: */*", b"X-A: v"]
    assert read.names == [b"accept", b"x-a"]
    assert read.cookies == b"a=1; b=2"
    assert (read.host, read.length, read.close) == (b"a", 0, False)
    assert read.values(b"x-a") == [b"v"]
    assert read.values(b"x-b") == []


@pytest.mark.parametrize(
    ("start", "status"),
    [
        ("GET / HTTP/2.0", 505), ("GET / HTTP/1.2", 505), ("GET / HTTP/0.9", 505), ("PRI * HTTP/2.0", 505),
        ("GET /", 400), ("GET  / HTTP/1.1", 400), (" GET / HTTP/1.1", 400), ("GET / HTTP/1.1 ", 400), ("GET", 400),
        ("GET / http/1.1", 400), ("GET / HTTP/1", 400), ("GET / HTTP/11.1", 400), ("GET\t/\tHTTP/1.1", 400),
        ("GET / XTTP/1.1", 400), ("G(T / HTTP/1.1", 400), ("G\x00T / HTTP/1.1", 400), ("", 400),
        ("X" * 33 + " / HTTP/1.1", 400), ("CONNECT a:80 HTTP/1.1", 501), ("GET /\xe4 HTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 400), ("GET / HTTP/1.1\x00", 400),
    ],
)  # fmt: skip
def test_request_lines(start: str, status: int) -> None:
    assert refused(start=start) == status


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Length: 5", "Content-Length: 5"], 400),
        (["Content-Length: 5, 5"], 400),
        (["Content-Length: +5"], 400),
        (["Content-Length: 1_0"], 400),
        (["Content-Length:"], 400),
        (["Content-Length: 5", "Transfer-Encoding: chunked"], 400),
        (["Transfer-Encoding: chunked", "Content-Length: 5"], 400),
        (["Transfer-Encoding: chunked", "Content-Length: 0"], 400),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], 400),
        (["Transfer-Encoding: identity"], 501),
        (["Transfer-Encoding: gzip", "Transfer-Encoding: chunked"], 501),
        (["Transfer-Encoding:"], 400),
        (["Transfer-Encoding: chunked", "Transfer-Encoding:"], 400),
        (["Transfer-Encoding : chunked"], 400),
        ([" folded: x"], 400),
        (["X-A: b", "\tfolded"], 400),
        (["no colon"], 400),
        (["X-A: b\x00"], 400),
        (["X-A: b\rX-B: c"], 400),
        (["Host: a"], 400),
        (["Expect: 200-maybe"], 417),
        (["Expect: 100-continue, x"], 417),
        (["Via: " + ", ".join(["1.1 l7lb"] * 11)], 508),
    ],
)
def test_ambiguous_requests(lines: list[str], status: int) -> None:
    assert refused(*lines, start="POST / HTTP/1.1") == status


def test_too_many_fields() -> None:
    assert refused(*["a: b"] * 100) == 431
    assert len(request(*["a: b"] * 99).lines) == 99


@pytest.mark.parametrize("host", ["", "Host: a b", "Host: a/b", "Host: a@b", "Host: ."])
def test_hosts_that_are_refused(host: str) -> None:
    assert refused(host=host) == 400


def test_http_10_needs_no_host_and_has_no_chunks() -> None:
    read = request(start="GET / HTTP/1.0", host="")
    assert (read.version, read.host_field, read.close) == (10, b"", True)
    assert refused("Transfer-Encoding: chunked", start="POST / HTTP/1.0") == 400
    assert not request("Expect: 100-continue", start="POST / HTTP/1.0").expects


@pytest.mark.parametrize(
    ("target", "host", "fits"),
    [
        ("http://a/", "Host: a", True),
        ("http://A:80/", "Host: a", True),
        ("http://a/", "Host: a:80", True),
        ("https://a/", "Host: a:443", True),
        ("http://a./", "Host: a", True),
        ("http://a/", "Host: b", False),
        ("http://a:81/", "Host: a", False),
        ("https://a/", "Host: a:80", False),
        ("http://a/", "Host:", False),
        ("http://u@a/", "Host: a", False),
        ("http://:80/", "Host:", False),
        ("http://./", "Host:", False),
    ],
)
def test_an_absolute_target_and_host_must_agree(target: str, host: str, fits: bool) -> None:
    if fits:
        assert request(start=f"GET {target} HTTP/1.1", host=host).host == b"a"
    else:
        assert refused(start=f"GET {target} HTTP/1.1", host=host) == 400


def test_an_absolute_target_in_http_10_brings_the_host() -> None:
    read = request(start="GET http://a.example:81/x HTTP/1.0", host="")
    assert (read.host_field, read.host, read.port, read.path) == (b"a.example:81", b"a.example", 81, b"/x")


def test_what_connection_names_ends_here() -> None:
    read = request("Connection: close, X-Drop,, TE", "X-Drop: 1", "TE: trailers", "X-Keep: 1")
    assert (read.names, read.close) == ([b"x-keep"], True)


def test_connection_can_not_take_away_what_the_message_is_built_on() -> None:
    read = request(
        "Connection: host, content-length, transfer-encoding, x-forwarded-for, x-request-id",
        "Content-Length: 3", "X-Forwarded-For: 1.2.3.4", "X-Request-ID: i",
        start="POST / HTTP/1.1",
    )  # fmt: skip
    assert (read.host_field, read.length, read.request_id) == (b"a", 3, b"i")
    assert read.forwarded == [(b"x-forwarded-for", b"1.2.3.4")]
    assert request("Connection: cookie", "Cookie: a=1").cookies == b""


@pytest.mark.parametrize(
    ("start", "lines", "close"),
    [
        ("GET / HTTP/1.1", [], False),
        ("GET / HTTP/1.1", ["Connection: Close"], True),
        ("GET / HTTP/1.1", ["Connection: keep-alive, close"], True),
        ("GET / HTTP/1.0", [], True),
        ("GET / HTTP/1.0", ["Connection: Keep-Alive"], False),
        ("GET / HTTP/1.0", ["Connection: keep-alive", "Connection: close"], True),
    ],
)
def test_whether_the_connection_stays(start: str, lines: list[str], close: bool) -> None:
    assert request(*lines, start=start).close is close


def test_an_upgrade_must_be_named_by_connection() -> None:
    assert request("Upgrade: websocket", "Connection: keep-alive, Upgrade").upgrade == b"websocket"
    assert request("Upgrade: websocket").upgrade == b""
    assert request("Upgrade: websocket", "Connection: close").upgrade == b""
    assert request("Upgrade: websocket", "Connection: upgrade", start="GET / HTTP/1.0").upgrade == b""
    assert request("HTTP2-Settings: x", "Connection: upgrade, http2-settings", "Upgrade: h2c").lines == []


@pytest.mark.parametrize("name", ["content_length", "Transfer_Encoding", "X_Forwarded_For", "x_request-id", "Host_"])
def test_twins_of_important_names_are_dropped(name: str) -> None:
    read = request(f"{name}: 5")
    assert (read.length, read.forwarded) == (0, None)
    assert read.names == ([b"host_"] if name == "Host_" else [])


def test_methods_of_other_protocols_pass() -> None:
    assert request(start="PROPFIND / HTTP/1.1").method == b"PROPFIND"
    assert request(start="get / HTTP/1.1").method == b"get"
    assert request(start="OPTIONS * HTTP/1.1").path == b"*"


# --- answers


def test_an_answer_in_its_internal_form() -> None:
    read = response("Content-Length: 5", "Set-Cookie: a", "X-A: 1", "set-cookie: b", "Keep-Alive: x", "Via: 1.1 x")
    assert (read.status, read.start, read.length, read.close) == (200, b" 200 OK", 5, False)
    assert read.names == [b"set-cookie", b"x-a", b"set-cookie", b"via"]
    assert read.set_cookies == [b"a", b"b"]


@pytest.mark.parametrize(
    "start",
    ["HTTP/1.1", "HTTP/1.1 ", "HTTP/1.1 20", "HTTP/1.1 2000 OK", "HTTP/1.1 099 X", "HTTP/1.1 600 X", "HTTP/1.1  200 X",
     "HTTP/2.0 200 OK", "http/1.1 200 OK", "HTTP/1.1 +20 OK", "HTTP/1.1 2\xb20 OK", "HTTP/1.1 200OK", "ICY 200 OK",
     "HTTP/1.1 200 a\x00", "HTTP/1.1 200 a\x1b[0m", "HTTP/1.1\t200 OK", "GET / HTTP/1.1", "", " HTTP/1.1 200 OK"],
)  # fmt: skip
def test_malformed_status_lines(start: str) -> None:
    with pytest.raises(SyntaxFault):
        response(start=start)


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Content-Length: 5"],
        ["Content-Length: -1"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding:"],
        [" folded: x"],
        ["X A: b"],
        ["X-A: b\x00"],
        ["X-A : b"],
        ["a: b"] * 101,
    ],
)
def test_ambiguous_answers(lines: list[str]) -> None:
    with pytest.raises(SyntaxFault):
        response(*lines)


def test_an_old_answer_has_no_chunks() -> None:
    with pytest.raises(SyntaxFault):
        response("Transfer-Encoding: chunked", start="HTTP/1.0 200 OK")


@pytest.mark.parametrize(
    ("start", "lines", "method", "length", "close"),
    [
        ("HTTP/1.1 200 OK", ["Content-Length: 5"], "GET", 5, False),
        ("HTTP/1.1 200 OK", ["Transfer-Encoding: Chunked"], "GET", CHUNKED, False),
        ("HTTP/1.1 200", [], "GET", UNTIL_CLOSE, True),
        ("HTTP/1.1 200 OK", ["Content-Length: 5"], "HEAD", 0, False),
        ("HTTP/1.1 200 OK", ["Transfer-Encoding: chunked"], "HEAD", 0, False),
        ("HTTP/1.1 200 OK", [], "HEAD", 0, False),
        ("HTTP/1.1 204 No Content", [], "GET", 0, False),
        ("HTTP/1.1 204 No Content", ["Content-Length: 0"], "GET", 0, False),
        ("HTTP/1.1 204 No Content", ["Content-Length: 5"], "GET", 0, True),
        ("HTTP/1.1 204 No Content", ["Transfer-Encoding: chunked"], "GET", 0, True),
        ("HTTP/1.1 304 Not Modified", ["Content-Length: 5"], "GET", 0, False),
        ("HTTP/1.1 304 Not Modified", ["Transfer-Encoding: chunked"], "GET", 0, False),
        ("HTTP/1.1 200 OK", ["Content-Length: 5", "Connection: close"], "GET", 5, True),
        ("HTTP/1.0 200 OK", ["Content-Length: 5"], "GET", 5, True),
        ("HTTP/1.0 200 OK", ["Content-Length: 5", "Connection: keep-alive"], "GET", 5, False),
        ("HTTP/1.0 200 OK", ["Connection: keep-alive"], "GET", UNTIL_CLOSE, True),
        ("HTTP/1.1 100 Continue", [], "POST", 0, False),
    ],
)
def test_an_answers_framing(start: str, lines: list[str], method: str, length: int, close: bool) -> None:
    read = response(*lines, start=start, method=method)
    assert (read.length, read.close) == (length, close)


def test_a_length_that_only_informs_is_passed_on() -> None:
    assert response("Content-Length: 5", method="HEAD").lines == [b"Content-Length: 5"]
    assert response("Content-Length: 5", start="HTTP/1.1 304 X").lines == [b"Content-Length: 5"]
    assert response("Content-Length: 0", start="HTTP/1.1 204 X").lines == []
    assert response("Content-Length: 0", start="HTTP/1.1 103 X", method="HEAD").lines == []


@pytest.mark.parametrize("line", ["Transfer-Encoding: chunked", "Content-Length: 5"])
def test_an_interim_answer_has_no_body(line: str) -> None:
    with pytest.raises(SyntaxFault):
        response(line, start="HTTP/1.1 103 Early Hints")


def test_an_answers_connection_names_what_ends_here() -> None:
    assert response("Connection: x-a, close", "X-A: 1", "X-B: 2", "Content-Length: 0").names == [b"x-b"]


def test_an_absolute_target_is_judged_with_each_head() -> None:
    line = b"GET http://a/remembered HTTP/1.1\r\n"
    assert read_request(line + b"Host: a", 10).path == b"/remembered"
    with pytest.raises(SyntaxFault):
        read_request(line + b"Host: b", 10)
    assert read_request(line + b"Host: a:80", 10).host_field == b"a:80"


def test_the_port_of_an_absolute_target_is_its_schemes() -> None:
    assert read_request(b"GET HTTPS://a/ HTTP/1.1\r\nHost: a:443", 10).host == b"a"
    with pytest.raises(SyntaxFault):
        read_request(b"GET https://a/ HTTP/1.1\r\nHost: a:80", 10)
    with pytest.raises(SyntaxFault):
        read_request(b"GET http://a/?https:// HTTP/1.1\r\nHost: a:443", 10)
