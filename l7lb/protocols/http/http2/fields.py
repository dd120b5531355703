"""HTTP/2's field lists and the internal form of requests and answers (RFC 9113 section 8).

A request's list is read as strictly as an HTTP/1 head, by the same reader of fields; what only HTTP/1 has is refused.
In the other direction the heads that l7lb builds for HTTP/1 are taken apart again: they are its own, so that they have
one reading, and all that belongs into a head (cookies, rules, dates, Via) is put there in one place.
"""

from __future__ import annotations

from collections.abc import Sequence

from l7lb.protocols.http import syntax
from l7lb.protocols.http.message import CHUNKED, METHODS, Request, other_field
from l7lb.protocols.http.syntax import FIELDS, OWS, SyntaxFault, read_field
from l7lb.protocols.http.target import normal_host, split_target

PSEUDO = frozenset([b":method", b":scheme", b":authority", b":path"])
ENTRY = 32  # what each field counts beyond its bytes (RFC 9113 section 6.5.2)
# Of HTTP/1's framing, which frames replace; Host is :authority here.
LEFT_OUT = frozenset([b"connection", b"transfer-encoding", b"keep-alive", b"upgrade", b"proxy-connection", b"host"])

FieldList = Sequence[tuple[bytes, bytes]]


class Malformed(SyntaxFault):
    """A request that is malformed in HTTP/2's own terms: its stream is reset, and it gets no answer."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, reason)


def size_of(fields: FieldList) -> int:
    """The size of a field list without compression, each field 32 bytes beyond its own."""
    return sum(len(name) + len(value) + ENTRY for name, value in fields)


def read_fields(fields: FieldList, most: int, ended: bool) -> Request:
    """A request's field list in internal form. ``ended``: it has no body.

    Raises Malformed, or SyntaxFault for what has an answer with a status.
    """
    request = Request()
    request.version = 20
    pseudo: dict[bytes, bytes] = {}
    length = b""
    regular = 0
    for name, value in fields:
        if name[:1] == b":":
            _pseudo_field(pseudo, name, value, regular)
            continue
        regular += 1
        field = _field(name, value)
        code = field.code
        if not code or code == syntax.SET_COOKIE:
            request.lines.append(field.line)
            request.names.append(field.name)
        elif code == syntax.HOST:
            if request.host_field:
                raise Malformed("more than one Host field")
            request.host_field = value
        elif code == syntax.COOKIE:
            request.cookies = request.cookies + b"; " + value if request.cookies else value
        elif code == syntax.CONTENT_LENGTH:
            if length:
                raise Malformed("more than one Content-Length")
            length = value
            request.length = field.number
        elif code == syntax.HOP_BY_HOP and name == b"te":
            request.te = True
        else:
            other_field(request, field.name, code, value)
    if regular > most:
        raise SyntaxFault(431, "too many header fields")
    _settle(request, pseudo)
    if ended and request.length:
        raise Malformed("Content-Length is not the body's")
    if not ended and not length:
        request.length = CHUNKED
    return request


def _pseudo_field(pseudo: dict[bytes, bytes], name: bytes, value: bytes, regular: int) -> None:
    if regular or name in pseudo or name not in PSEUDO:
        raise Malformed("a pseudo-header field that is unknown, twice there or behind the others")
    if value.translate(None, syntax.LINE_BYTES):
        raise Malformed("a control character in the header")
    pseudo[name] = value


def _field(name: bytes, value: bytes) -> syntax.Field:
    """One field, by the same reader as in HTTP/1; raises Malformed for what HTTP/2 forbids."""
    if name != name.lower():
        raise Malformed("a field name with capital letters")
    if value.strip(OWS) != value:
        raise Malformed("white space around a field's value")
    line = name + b": " + value
    field = FIELDS.get(line)
    if field is None:
        if name.find(b":") >= 0:
            raise Malformed("a field name is not a token")
        try:
            field = read_field(line)
        except SyntaxFault as fault:
            raise Malformed(fault.reason) from fault
    code = field.code
    if code in (syntax.CONNECTION, syntax.TRANSFER_ENCODING, syntax.UPGRADE):
        raise Malformed("a field that speaks of the connection")
    if code == syntax.HOP_BY_HOP and (name != b"te" or value.lower() != b"trailers"):
        raise Malformed("a field that speaks of the connection")
    return field


def _settle(request: Request, pseudo: dict[bytes, bytes]) -> None:
    """Method, target and host, from the pseudo-header fields (RFC 9113 section 8.3.1)."""
    method = pseudo.get(b":method", b"")
    if method not in METHODS and (len(method) > 32 or not syntax.TOKEN.fullmatch(method)):
        raise Malformed("the method is malformed")
    if method == b"CONNECT":
        raise SyntaxFault(405, "CONNECT is not allowed here")
    request.method = method
    target = pseudo.get(b":path", b"")
    if pseudo.get(b":scheme", b"") not in (b"http", b"https"):
        raise Malformed("the scheme is neither http nor https")
    if target[:1] != b"/" and (target != b"*" or method != b"OPTIONS"):
        raise Malformed("the path is malformed")
    try:
        request.path, request.query, _ = split_target(method, target)
        _settle_host(request, pseudo.get(b":authority"))
    except Malformed:
        raise
    except SyntaxFault as fault:
        raise Malformed(fault.reason) from fault


def _settle_host(request: Request, authority: bytes | None) -> None:
    named = request.host_field
    if authority is None:
        authority = named
    request.host, request.port = normal_host(authority)
    if not request.host:
        raise Malformed("the host is malformed")
    if named and normal_host(named) != (request.host, request.port):
        raise Malformed("Host differs from :authority")
    request.host_field = authority


def answer_fields(head: bytes) -> list[tuple[bytes, bytes]]:
    """The field list of an answer's head that l7lb built."""
    lines = head.split(b"\r\n")
    fields = [(b":status", lines[0][9:12])]
    for line in lines[1:-2]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name not in LEFT_OUT:
            fields.append((name, value.strip(OWS)))
    return fields


def trailer_fields(lines: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The field list of trailers."""
    fields = []
    for line in lines:
        name, _, value = line.partition(b":")
        fields.append((name.lower(), value.strip(OWS)))
    return fields


def read_trailers(fields: FieldList, most: int) -> list[bytes]:
    """Trailers as lines that may be passed on; raises Malformed."""
    if len(fields) > most:
        raise Malformed("too many trailer fields")
    lines = []
    for name, value in fields:
        field = _field(name, value)
        if not field.code and name not in syntax.FORBIDDEN_TRAILERS:
            lines.append(field.line)
    return lines
