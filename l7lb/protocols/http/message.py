"""A request and an answer in their one internal form, and the strict reading of a head into it.

Every HTTP version is read into these, so that rules, cookies, retries and logs exist once. Fields that only
concern one connection are taken out here; ``lines`` holds the others as they will be sent on, ``names`` their names
in lower case, in step.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from l7lb.protocols.http import syntax
from l7lb.protocols.http.syntax import FIELDS, OWS, Field, SyntaxFault, read_field
from l7lb.protocols.http.target import normal_host, split_target

CHUNKED: Final = -1  # a body's length where it is not known beforehand
UNTIL_CLOSE: Final = -2

VERSIONS: Final = {b"HTTP/1.1": 11, b"HTTP/1.0": 10}
METHODS: Final = frozenset([b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"])
IDEMPOTENT: Final = frozenset([b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"])
OPTIONS: Final = frozenset([b"keep-alive", b"close", b"upgrade"])  # of Connection, that are no field's name
MAX_LOOPS: Final = 10
MAX_HOP_DIGITS: Final = 9
MAX_STARTS: Final = 256


@mypyc_attr(acyclic=True, free_list_len=1)
class Request:
    """A request's head. ``query`` keeps its question mark; ``length`` is the body's, or CHUNKED; ``host_field`` is
    the Host as it came, ``host`` its normal form; ``request_id`` is what the client sent, ``identity`` what the request
    is called from here on.
    """

    __slots__ = (
        "close",
        "cookie_line",
        "cookies",
        "expects",
        "forwarded",
        "hops",
        "host",
        "host_field",
        "identity",
        "length",
        "lines",
        "loops",
        "method",
        "names",
        "path",
        "port",
        "query",
        "request_id",
        "te",
        "upgrade",
        "version",
    )

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.query = b""
        self.version = 11
        self.host = b""
        self.host_field = b""
        self.port = 0
        self.length = 0
        self.close = False
        self.expects = False
        self.te = False  # an HTTP/2 client that takes trailers
        self.upgrade = b""
        self.cookies = b""
        self.cookie_line: Field | None = None  # where all cookies stand in one line
        self.request_id = b""
        self.identity = b""
        self.forwarded: list[tuple[bytes, bytes]] | None = None
        self.loops = 0
        self.hops = -1  # of a TRACE or OPTIONS: how often it may be passed on, where it says so
        self.lines: list[bytes] = []
        self.names: list[bytes] = []

    def values(self, name: bytes) -> list[bytes]:
        """The values of a passed field, by its name in lower case."""
        names = self.names
        if name not in names:
            return []
        return [
            line.partition(b":")[2].strip(OWS) for known, line in zip(names, self.lines, strict=True) if known == name
        ]


def read_request(head: bytes, fields: int) -> Request:
    """A complete request head (without its last CRLF CRLF) in internal form; raises SyntaxFault."""
    lines = head.split(b"\r\n")
    if len(lines) > fields + 1:
        raise SyntaxFault(431, "too many header fields")
    request = Request()
    authority = _start(request, lines[0])
    kept = request.lines
    names = request.names
    length = b""
    coding = b""
    listed: list[bytes] | None = None
    hosts = 0
    for index in range(1, len(lines)):
        line = lines[index]
        field = FIELDS.get(line)
        if field is None:
            field = read_field(line)
        code = field.code
        if not code or code == syntax.SET_COOKIE or code == syntax.DATE:
            kept.append(field.line)
            names.append(field.name)
        elif code == syntax.HOST:
            hosts += 1
            request.host_field = field.value
        elif code == syntax.COOKIE:
            request.cookie_line = None if request.cookies else field
            request.cookies = request.cookies + b"; " + field.value if request.cookies else field.value
        elif code == syntax.CONTENT_LENGTH:
            if length:
                raise SyntaxFault(400, "more than one Content-Length")
            length = field.value
            request.length = field.number
        elif code == syntax.TRANSFER_ENCODING:
            coding = coding + b"," + field.value if coding else field.value
            if not field.value:
                raise SyntaxFault(400, "Transfer-Encoding is empty")
        elif code == syntax.CONNECTION:
            listed = field.tokens if listed is None else listed + field.tokens
        else:
            other_field(request, field.name, code, field.value)
    if hosts != 1 and (hosts or request.version == 11):
        raise SyntaxFault(400, "there must be one Host field")
    if hosts:
        request.host, request.port = normal_host(request.host_field)
        if not request.host:
            raise SyntaxFault(400, "the host is malformed")
    if authority is not None:
        _settle_authority(request, authority, 443 if lines[0].lower().find(b" https://") >= 0 else 80, hosts)
    if coding:
        if length:
            raise SyntaxFault(400, "Content-Length beside Transfer-Encoding")
        if request.version == 10:
            raise SyntaxFault(400, "Transfer-Encoding in HTTP/1.0")
        syntax.check_chunked(coding)
        request.length = CHUNKED
    _settle_connection(request, listed)
    return request


def _start(request: Request, line: bytes) -> bytes | None:
    """Read a request line into the request; returns the authority of an absolute target. Raises SyntaxFault."""
    parts = line.split(b" ")
    if len(parts) != 3:
        raise SyntaxFault(400, "the request line is malformed")
    method, target, version = parts
    if method not in METHODS and (len(method) > 32 or not syntax.TOKEN.fullmatch(method)):
        raise SyntaxFault(400, "the method is malformed")
    known = VERSIONS.get(version)
    if known is None:
        if len(version) == 8 and version.startswith(b"HTTP/") and version[5:6].isdigit() and version[7:8].isdigit():
            raise SyntaxFault(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        raise SyntaxFault(400, "the request line is malformed")
    if method == b"CONNECT":
        raise SyntaxFault(501, "CONNECT is not known here")
    request.method = method
    request.version = known
    request.path, request.query, authority = split_target(method, target)
    return authority


def _settle_authority(request: Request, authority: bytes, default: int, hosts: int) -> None:
    """The host of an absolute target, whose scheme has this port; it must be the one that Host names, if any."""
    named = normal_host(authority)
    if hosts and (named[0] != request.host or (named[1] or default) != (request.port or default)):
        raise SyntaxFault(400, "Host differs from the request target")
    if not named[0]:
        raise SyntaxFault(400, "the request target names no host")
    request.host_field = request.host_field or authority
    request.host, request.port = named


def other_field(request: Request, lower: bytes, code: int, value: bytes) -> None:
    """Read one of the rarer fields that the exchange must look at; raises SyntaxFault."""
    if code == syntax.FORWARDED:
        if request.forwarded is None:
            request.forwarded = []
        request.forwarded.append((lower, value))
    elif code == syntax.EXPECT:
        if value.lower() != b"100-continue":
            raise SyntaxFault(417, "an unknown expectation")
        request.expects = request.version >= 11
    elif code == syntax.UPGRADE:
        request.upgrade = request.upgrade + b"," + value if request.upgrade else value
    elif code == syntax.REQUEST_ID:
        request.request_id = value
    elif code == syntax.MAX_FORWARDS:
        # RFC 9110 section 7.6.2: every proxy counts down.
        if request.method in (b"TRACE", b"OPTIONS") and value.isdigit():
            request.hops = int(value[:MAX_HOP_DIGITS])
            value = b"%d" % max(0, request.hops - 1)
        request.lines.append(b"Max-Forwards: " + value)
        request.names.append(lower)
    elif code == syntax.VIA:
        request.loops += value.count(b" l7lb")
        if request.loops > MAX_LOOPS:
            raise SyntaxFault(508, "the request goes round in a loop")
        request.lines.append(b"Via: " + value)
        request.names.append(lower)


def _settle_connection(request: Request, listed: list[bytes] | None) -> None:
    """Persistence (RFC 9112 section 9.3), and the fields that Connection names, which end here."""
    if listed is None:
        request.close = request.version == 10
        request.upgrade = b""
        return
    request.close = b"close" in listed or (request.version == 10 and b"keep-alive" not in listed)
    if b"upgrade" not in listed or request.version == 10:
        request.upgrade = b""
    drop = [name for name in listed if name not in OPTIONS and name in request.names]
    if drop:
        kept = [pair for pair in zip(request.names, request.lines, strict=True) if pair[0] not in drop]
        request.names = [name for name, _ in kept]
        request.lines = [line for _, line in kept]
    if b"cookie" in listed:
        request.cookies = b""
        request.cookie_line = None


@mypyc_attr(acyclic=True, free_list_len=1)
class Response:
    """An answer's head. ``start`` is its status line without version; ``length`` the body's, CHUNKED or UNTIL_CLOSE,
    and ``length_line`` the header line that said so, if one did; ``dated``: it has a Date.
    """

    __slots__ = (
        "close",
        "dated",
        "length",
        "length_line",
        "lines",
        "names",
        "set_cookies",
        "start",
        "status",
        "upgrade",
        "version",
    )

    def __init__(self) -> None:
        self.status = 0
        self.start = b""
        self.version = 11
        self.length = UNTIL_CLOSE
        self.length_line = b""
        self.close = False
        self.dated = False
        self.upgrade = b""
        self.set_cookies: list[bytes] | None = None
        self.lines: list[bytes] = []
        self.names: list[bytes] = []


def read_response(head: bytes, fields: int, method: bytes) -> Response:
    """A complete answer's head to a request of that method; raises SyntaxFault (its status is meant for 502)."""
    lines = head.split(b"\r\n")
    if len(lines) > fields + 1:
        raise SyntaxFault(502, "too many header fields")
    response = Response()
    start = lines[0]
    known = _starts.get(start) or _status_line(start)
    response.version = known[0]
    response.status = known[1]
    response.start = known[2]
    kept = response.lines
    names = response.names
    length = -1
    coding = b""
    listed: list[bytes] | None = None
    for index in range(1, len(lines)):
        line = lines[index]
        field = FIELDS.get(line)
        if field is None:
            field = read_field(line)
        code = field.code
        if not code:
            kept.append(field.line)
            names.append(field.name)
        elif code == syntax.CONTENT_LENGTH:
            if length >= 0:
                raise SyntaxFault(502, "more than one Content-Length")
            length = field.number
            response.length_line = field.line
        elif code == syntax.TRANSFER_ENCODING:
            coding = coding + b"," + field.value
        elif code == syntax.CONNECTION:
            if response.version == 10 or not field.persists:
                listed = field.tokens if listed is None else listed + field.tokens
        elif code == syntax.UPGRADE:
            response.upgrade = field.value
        elif code != syntax.HOP_BY_HOP:
            if code == syntax.DATE:
                response.dated = True
            elif code == syntax.SET_COOKIE:
                response.set_cookies = [*(response.set_cookies or ()), field.value]
            kept.append(field.line)
            names.append(field.name)
    _settle_response(response, method, length, coding, listed)
    return response


_starts: Final[dict[bytes, tuple[int, int, bytes]]] = {}


def _status_line(line: bytes) -> tuple[int, int, bytes]:
    """Version, status, and what follows the version; servers have few different ones, so they are remembered."""
    version = VERSIONS.get(line[:8])
    digits = line[9:12]
    if version is None or line[8:9] != b" " or not digits.isdigit() or line[12:13] not in (b" ", b""):
        raise SyntaxFault(502, "the status line is malformed")
    if line.translate(None, syntax.LINE_BYTES):
        raise SyntaxFault(502, "a control character in the status line")
    status = int(digits)
    if not 100 <= status <= 599:
        raise SyntaxFault(502, "the status is out of range")
    known = (version, status, line[8:])
    if len(_starts) < MAX_STARTS:
        _starts[line] = known
    return known


def _settle_response(response: Response, method: bytes, length: int, coding: bytes, listed: list[bytes] | None) -> None:
    """The answer's framing (RFC 9112 section 6.3) and whether its connection may be used again."""
    if coding:
        if length >= 0:
            raise SyntaxFault(502, "Content-Length beside Transfer-Encoding")
        if response.version == 10:
            raise SyntaxFault(502, "Transfer-Encoding in HTTP/1.0")
        syntax.check_chunked(coding[1:])
    status = response.status
    if status < 200 or status in (204, 304) or method == b"HEAD":
        response.length = 0
        if status < 200 and (coding or length > 0):
            raise SyntaxFault(502, "an interim answer has no body")
        if (method == b"HEAD" or status == 304) and status >= 200 and status != 204 and length >= 0:
            # Here the length speaks of what a GET would have got: it is sent on, and nothing follows.
            response.lines.append(b"Content-Length: %d" % length)
            response.names.append(b"content-length")
    elif coding:
        response.length = CHUNKED
    elif length >= 0:
        response.length = length
    response.close = response.version == 10 or response.length == UNTIL_CLOSE
    if status == 204 and (coding or length > 0):
        response.close = True  # no body is allowed here, but one may follow
    if listed is not None:
        if b"close" in listed:
            response.close = True
        elif response.version == 10 and b"keep-alive" in listed and response.length != UNTIL_CLOSE and status != 204:
            response.close = False
        drop = [name for name in listed if name not in OPTIONS and name in response.names]
        if drop:
            kept = [pair for pair in zip(response.names, response.lines, strict=True) if pair[0] not in drop]
            response.names = [name for name, _ in kept]
            response.lines = [line for _, line in kept]
