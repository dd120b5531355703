"""The alerts that a client gets (RFC 8446 section 6), and the words for one that spoke no TLS."""

from __future__ import annotations

from l7lb.core.errors import Failure

UNEXPECTED_MESSAGE = 10
RECORD_OVERFLOW = 22
HANDSHAKE_FAILURE = 40
ILLEGAL_PARAMETER = 47
DECODE_ERROR = 50
PROTOCOL_VERSION = 70
INTERNAL_ERROR = 80
MISSING_EXTENSION = 109
UNRECOGNIZED_NAME = 112

NAMES = {
    UNEXPECTED_MESSAGE: "unexpected_message",
    RECORD_OVERFLOW: "record_overflow",
    HANDSHAKE_FAILURE: "handshake_failure",
    ILLEGAL_PARAMETER: "illegal_parameter",
    DECODE_ERROR: "decode_error",
    PROTOCOL_VERSION: "protocol_version",
    INTERNAL_ERROR: "internal_error",
    MISSING_EXTENSION: "missing_extension",
    UNRECOGNIZED_NAME: "unrecognized_name",
}

FATAL = 2
BODY = b"This port speaks TLS: use https.\n"
PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%b" % (len(BODY), BODY)
)


def alert(code: int, version: int = 0x0303) -> bytes:
    """A fatal alert in a record. ``version`` is the record's: no more than TLS 1.2 is ever written there."""
    return b"\x15%b\x00\x02%c%c" % (min(max(version, 0x0300), 0x0303).to_bytes(2, "big"), FATAL, code)


def no_server(failure: Failure, sni: bool, tls13: bool) -> int:
    """The alert for a client for which there is no server.

    No rule for its name is 112 (RFC 6066 section 3). Without a name a TLS 1.3 client learns that it has to give one
    (RFC 8446 section 9.2), an older one knows no such alert. All else is nothing that the client could mend.
    """
    if failure is not Failure.NO_ROUTE:
        return INTERNAL_ERROR
    if sni:
        return UNRECOGNIZED_NAME
    return MISSING_EXTENSION if tls13 else HANDSHAKE_FAILURE
