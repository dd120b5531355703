"""Lines out of a buffer, of bounded length; and what is no line of a mail client at all."""

from __future__ import annotations

import re

# A browser that a page made talk to a mail port says one of these first (ALPACA, cross-protocol requests).
HTTP = re.compile(
    rb"(?:GET|POST|PUT|HEAD|CONNECT|OPTIONS|DELETE|PATCH|TRACE|PRI)[ \t]+(?:\S+[ \t]+HTTP/|[/*]|https?:)", re.IGNORECASE
)
OTHERS = (b"\x16\x03", b"\x80", b"SSH-")  # a TLS ClientHello to a port in the clear, and others that went astray


class LineTooLong(Exception):
    """A line is longer than allowed."""


class Lines:
    """Takes one line after the other. A line ends in CRLF or LF; ``limit`` is its longest without that."""

    __slots__ = ("_scanned", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._scanned = 0  # of the buffer: there is no end of a line in it

    def take(self, buffer: bytearray) -> bytes | None:
        """The next line without its end, taken out of the buffer; None if it is not complete. Raises LineTooLong."""
        end = buffer.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(buffer)
            if len(buffer) > self.limit + 1:  # a CR may be its end
                raise LineTooLong(f"a line of more than {self.limit} bytes")
            return None
        self._scanned = 0
        line = bytes(buffer[: end - 1 if end and buffer[end - 1] == 13 else end])
        del buffer[: end + 1]
        if len(line) > self.limit:
            raise LineTooLong(f"a line of more than {self.limit} bytes")
        return line

    def reset(self) -> None:
        """The buffer was emptied."""
        self._scanned = 0


def foreign(start: bytes | bytearray) -> bool:
    """Whether what a client says first is another protocol's: HTTP, TLS, SSH. Nothing of it may be carried out."""
    return bool(HTTP.match(start)) or bytes(start[:4]).startswith(OTHERS)
