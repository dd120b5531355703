"""The strict syntax of an HTTP/1.x head, for both directions (RFC 9112; RFC 9110 section 5).

A head is judged in one order whatever the splits it came in: the discipline of line ends first, then its size, then
its first line and its fields. Nothing ambiguous passes: no bare CR or LF, no NUL, no folding, no
space around a name, one Content-Length of digits, never beside Transfer-Encoding, and `chunked` once and last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from mypy_extensions import mypyc_attr

from l7lb.core.errors import L7lbError

OWS: Final = b" \t"
# What may stand in a line of a head: visible ASCII, space, tab and the bytes above ASCII (obs-text).
LINE_BYTES: Final = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
TARGET_BYTES: Final = bytes(set(range(0x21, 0x7F)) - set(b'"#<>\\`'))  # visible ASCII, less what must be encoded
LINE_END: Final = re.compile(rb"[^\r]\n|\r[^\n]")
NO_NAME: Final = re.compile(rb"[^a-z0-9]")
MAX_LENGTH_DIGITS: Final = 18
MAX_KNOWN: Final = 2048
MAX_RECENT: Final = 4096
MAX_RECENT_BYTES: Final = 160

# What the exchange must look at or leave out; every other field passes through.
HOST: Final = 1
CONTENT_LENGTH: Final = 2
TRANSFER_ENCODING: Final = 3
CONNECTION: Final = 4
HOP_BY_HOP: Final = 5
UPGRADE: Final = 6
EXPECT: Final = 7
FORWARDED: Final = 8
REQUEST_ID: Final = 9
COOKIE: Final = 10
SET_COOKIE: Final = 11
VIA: Final = 12
DATE: Final = 14  # passes; a server's is looked for
UNSAFE: Final = 13  # names that a gateway on the server's side could take for another one
MAX_FORWARDS: Final = 15

CODES: Final = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"keep-alive": HOP_BY_HOP,
    b"proxy-connection": HOP_BY_HOP,
    b"te": HOP_BY_HOP,
    b"http2-settings": HOP_BY_HOP,
    b"proxy": HOP_BY_HOP,  # nobody's; as HTTP_PROXY of a CGI program it would lead the program's own requests astray
    b"max-forwards": MAX_FORWARDS,
    b"upgrade": UPGRADE,
    b"expect": EXPECT,
    b"forwarded": FORWARDED,
    b"x-request-id": REQUEST_ID,
    b"cookie": COOKIE,
    b"set-cookie": SET_COOKIE,
    b"via": VIA,
    b"date": DATE,
}
CLIENT_CERTIFICATE = b"x-ssl-client-"  # how the fields begin that tell of a client's certificate
# In trailers these would change what the head has settled (RFC 9110 section 6.5.1).
FORBIDDEN_TRAILERS: Final = frozenset(
    [*CODES, b"content-encoding", b"content-type", b"content-range", b"trailer", b"authorization", b"cache-control"]
)

_known: Final[dict[bytes, tuple[bytes, int]]] = {}


class SyntaxFault(L7lbError):
    """A message that breaks the protocol; ``status`` is what a client is answered."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def field_name(name: bytes) -> tuple[bytes, int]:
    """A field's name in lower case and its code; raises SyntaxFault(400) where it is no token.

    Names seen before are remembered, up to a limit, since clients repeat the same few.
    """
    known = _known.get(name)
    if known is not None:
        return known
    if not TOKEN.fullmatch(name):
        raise SyntaxFault(400, "a field name is not a token")
    lower = name.lower()
    code = CODES.get(lower, 0)
    if not code:
        plain = gateway_name(lower)
        if plain.startswith(b"x-forwarded-"):
            code = FORWARDED if plain == lower else UNSAFE
        elif plain.startswith(CLIENT_CERTIFICATE):
            code = UNSAFE  # these are l7lb's own words
        elif plain != lower and plain in CODES:
            code = UNSAFE
    known = (lower, code)
    if len(_known) < MAX_KNOWN:
        _known[name] = known
    return known


def gateway_name(lower: bytes) -> bytes:
    """The name as a gateway may see it: CGI, WSGI and the like know letters and digits, all else is one character."""
    return NO_NAME.sub(b"-", lower)


def split_head(buffer: bytes, limit: int, searched: int = 0) -> tuple[bytes, int]:
    """The head at the buffer's beginning without its last CRLF CRLF, and where that stands: see :func:`find_end`.

    Nothing and -1 while it is incomplete. Raises SyntaxFault as it does.
    """
    if not searched:
        # Most heads come in one piece. It is done with one call that makes what is needed anyway.
        head, mark, _ = buffer.partition(b"\r\n\r\n")
        if mark and len(head) + 4 <= limit:
            return head, len(head)
    end = find_end(buffer, limit, searched)
    return (buffer[:end], end) if end >= 0 else (b"", -1)


def find_end(buffer: bytes, limit: int, searched: int = 0) -> int:
    """Where the head's last line ends (the index of its CRLF CRLF), or -1 while it is incomplete.

    ``searched`` bytes were looked at before. Raises SyntaxFault: 400 for a bare CR or LF, 414 or 431 beyond
    ``limit`` bytes.
    """
    end = buffer.find(b"\r\n\r\n", searched - 3, limit) if searched > 3 else buffer.find(b"\r\n\r\n", 0, limit)
    if end >= 0:
        return end
    # Incomplete or too large: a client that ends lines in another way should not have to wait for a time-out.
    if LINE_END.search(buffer, max(0, searched - 2), limit) or buffer[:1] == b"\n":
        raise SyntaxFault(400, "a line must end in CR LF")
    if len(buffer) >= limit:
        if buffer.find(b"\r\n", 0, limit) < 0:
            raise SyntaxFault(414, "the request line is too long")
        raise SyntaxFault(431, "the header is too large")
    return -1


@mypyc_attr(acyclic=True)
class Field:
    """A header line that has been read: its name in lower case, its code, its value, and how it is sent on.

    ``number`` is a Content-Length's, ``tokens`` a Connection's elements in lower case; ``persists``: it says nothing
    that HTTP/1.1 does not say by itself. ``asked`` is the cookie that was last looked for in a Cookie line, ``found``
    its values.
    """

    __slots__ = ("asked", "code", "found", "line", "name", "number", "persists", "tokens", "value")

    def __init__(self, name: bytes, code: int, value: bytes, line: bytes) -> None:
        self.name = name
        self.code = code
        self.value = value
        self.line = line
        self.number = content_length(value) if code == CONTENT_LENGTH else -1
        self.tokens = tokens(value) if code == CONNECTION else []
        self.persists = self.tokens == [b"keep-alive"]
        self.asked = b""
        self.found: Sequence[bytes] = ()


FIELDS: Final[dict[bytes, Field]] = {}  # those read last, by their line


def read_field(line: bytes) -> Field:
    """A header line in parsed form; raises SyntaxFault(400).

    Clients and servers repeat most of their lines, so the parsed form of those seen last is kept: callers look into
    ``FIELDS`` first.
    """
    name, colon, value = line.partition(b":")
    if not colon:
        raise SyntaxFault(400, "a header line without a colon")
    if line.translate(None, LINE_BYTES):
        raise SyntaxFault(400, "a control character in the header")
    lower, code = field_name(name)
    value = value.strip(OWS)
    field = Field(lower, code, value, name + b": " + value)
    if len(line) <= MAX_RECENT_BYTES:
        if len(FIELDS) >= MAX_RECENT:
            FIELDS.clear()
        FIELDS[line] = field
    return field


def content_length(value: bytes) -> int:
    """The number of a Content-Length field; raises SyntaxFault(400) for anything but digits."""
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise SyntaxFault(400, "Content-Length is not a number")
    return int(value)


def check_chunked(value: bytes) -> None:
    """Refuse every Transfer-Encoding but `chunked`: 501 for a coding we don't know, 400 for a misuse of it."""
    codings = [coding.strip(OWS).lower() for coding in value.split(b",")]
    if codings == [b"chunked"]:
        return
    if codings.count(b"chunked") > 1 or (b"chunked" in codings and codings[-1] != b"chunked"):
        raise SyntaxFault(400, "chunked must be the last transfer coding, and once")
    if not all(TOKEN.match(coding) for coding in codings):
        raise SyntaxFault(400, "Transfer-Encoding is malformed")
    raise SyntaxFault(501, "an unknown transfer coding")


def tokens(value: bytes) -> list[bytes]:
    """The elements of a comma-separated list in lower case, empty ones left out."""
    if value.find(b",") < 0:
        return [value.lower()] if value else []
    return [element for part in value.split(b",") if (element := part.strip(OWS).lower())]
