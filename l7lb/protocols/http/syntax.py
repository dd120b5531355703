"""The strict syntax of an HTTP/1.x head, for both directions (RFC 9112; RFC 9110 section 5).

A head is judged in one order whatever the splits it came in: the discipline of line ends first, then its size, then
its characters, its first line and its fields. Nothing ambiguous passes: no bare CR or LF, no NUL, no folding, no
space around a name, one Content-Length of digits, never beside Transfer-Encoding, and `chunked` once and last.
"""

from __future__ import annotations

import re

from l7lb.core.errors import L7lbError

OWS = b" \t"
# What may stand in a head at all: visible ASCII, space, tab, the bytes above ASCII (obs-text) and line ends.
HEAD_BYTES = bytes([0x09, 0x0A, 0x0D, *range(0x20, 0x7F), *range(0x80, 0x100)])
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
TARGET = re.compile(rb"[!$-;=?-\[\]-_a-z|~{}]+")  # visible ASCII without " # < > \ ^ `, and DEL
LINE_END = re.compile(rb"[^\r]\n|\r[^\n]")
MAX_LENGTH_DIGITS = 18
MAX_KNOWN = 2048

# What the exchange must look at or leave out; every other field passes through.
HOST = 1
CONTENT_LENGTH = 2
TRANSFER_ENCODING = 3
CONNECTION = 4
HOP_BY_HOP = 5
UPGRADE = 6
EXPECT = 7
FORWARDED = 8
REQUEST_ID = 9
COOKIE = 10
SET_COOKIE = 11
VIA = 12
UNSAFE = 13  # names that a gateway on the server's side could take for another one

CODES = {
    b"host": HOST,
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"keep-alive": HOP_BY_HOP,
    b"proxy-connection": HOP_BY_HOP,
    b"te": HOP_BY_HOP,
    b"http2-settings": HOP_BY_HOP,
    b"upgrade": UPGRADE,
    b"expect": EXPECT,
    b"forwarded": FORWARDED,
    b"x-request-id": REQUEST_ID,
    b"cookie": COOKIE,
    b"set-cookie": SET_COOKIE,
    b"via": VIA,
}
# In trailers these would change what the head has settled (RFC 9110 section 6.5.1).
FORBIDDEN_TRAILERS = frozenset(
    [*CODES, b"content-encoding", b"content-type", b"content-range", b"trailer", b"authorization", b"cache-control"]
)

_known: dict[bytes, tuple[bytes, int]] = {}


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
        plain = lower.replace(b"_", b"-")
        if plain.startswith(b"x-forwarded-"):
            code = FORWARDED
        elif plain != lower and plain in CODES:
            code = UNSAFE
    known = (lower, code)
    if len(_known) < MAX_KNOWN:
        _known[name] = known
    return known


def find_end(buffer: bytes, limit: int, searched: int = 0) -> int:
    """Where the head's last line ends (the index of its CRLF CRLF), or -1 while it is incomplete.

    ``searched`` bytes were looked at before. Raises SyntaxFault: 400 for a bare CR or LF, 414 or 431 beyond
    ``limit`` bytes.
    """
    end = buffer.find(b"\r\n\r\n", max(0, searched - 3), limit)
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


def split_head(head: bytes, fields: int) -> list[bytes]:
    """The lines of a complete head; raises SyntaxFault for bare line ends, control characters, too many fields."""
    lines = head.split(b"\r\n")
    ends = len(lines) - 1
    if head.count(b"\n") != ends or head.count(b"\r") != ends:
        raise SyntaxFault(400, "a line must end in CR LF")
    if head.translate(None, HEAD_BYTES):
        raise SyntaxFault(400, "a control character in the header")
    if ends > fields:
        raise SyntaxFault(431, "too many header fields")
    return lines


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
    if b"," not in value:
        return [value.lower()] if value else []
    return [element for part in value.split(b",") if (element := part.strip(OWS).lower())]
