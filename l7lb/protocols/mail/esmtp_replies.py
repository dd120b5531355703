"""SMTP's replies (RFC 5321 section 4.2): read from servers, written to clients.

A server's reply reaches the client with its code and its text, but composed anew: line by line, each bounded.
"""

from __future__ import annotations

from typing import Final

from l7lb.core.errors import Failure

LINE_BYTES: Final = 4096  # of one line; RFC 5321 has 512, and servers write more
LINES: Final = 128  # of one reply


class BadReply(Exception):
    """A server said what is no reply."""


class Reply:
    """A reply: its ``code``, and the text of its lines (with the enhanced code, if there is one).

    ``lost`` is why the server could not give it itself, where l7lb speaks for it.
    """

    __slots__ = ("code", "lines", "lost")

    def __init__(self, code: int, lines: list[bytes], lost: Failure | None = None) -> None:
        self.code = code
        self.lines = lines
        self.lost = lost

    @property
    def kind(self) -> int:
        """Its first digit: 2 done, 3 go on, 4 not now, 5 never."""
        return self.code // 100

    def render(self) -> bytes:
        """As it goes over the wire."""
        code = b"%d" % self.code
        last = len(self.lines) - 1
        return b"".join(
            code + (b" " if number == last else b"-") + line + b"\r\n" for number, line in enumerate(self.lines)
        )


def reply(text: bytes) -> Reply:
    """Our own reply of one line, as ``250 2.0.0 OK``."""
    return Reply(int(text[:3]), [text[4:]])


class ReplyReader:
    """Cuts what a server sends into replies. Any split of the bytes gives the same replies."""

    __slots__ = ("_buffer", "_code", "_lines")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._code = b""
        self._lines: list[bytes] = []

    @property
    def empty(self) -> bool:
        """Whether nothing of a next reply has come."""
        return not self._buffer and not self._lines

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        self._buffer += data

    def next(self) -> Reply | None:
        """The next whole reply, None while there is none. Raises BadReply."""
        buffer = self._buffer
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            if end > LINE_BYTES:
                raise BadReply("a line is too long")
            found = self._line(line.removesuffix(b"\r"))
            if found is not None:
                return found
        if len(buffer) > LINE_BYTES:
            raise BadReply("a line is too long")
        return None

    def _line(self, line: bytes) -> Reply | None:
        code, mark = line[:3], line[3:4]
        if not code.isdigit() or not b"200" <= code <= b"599" or mark not in (b"", b" ", b"-") or b"\r" in line:
            raise BadReply("a line is no reply's")
        if self._lines and code != self._code:
            raise BadReply("a reply has two codes")
        self._code = code
        self._lines.append(line[4:].replace(b"\0", b""))
        if len(self._lines) > LINES:
            raise BadReply("a reply has too many lines")
        if mark == b"-":
            return None
        lines, self._lines = self._lines, []
        return Reply(int(code), lines)


def speaks_for(failure: Failure) -> Reply:
    """What the client is told where there is no server, or no longer. Only an address that no directory knows, and a
    rule that refuses it, are permanent; for everything else the client comes again.
    """
    text = _PERMANENT.get(failure) or _TEMPORARY.get(failure) or b"451 4.3.0 This can't be done now, try again later"
    found = reply(text)
    found.lost = failure
    return found


_PERMANENT: Final = {
    Failure.NO_MAILBOX: b"550 5.1.1 There is no such mailbox",
    Failure.NO_ROUTE: b"550 5.7.1 This address is not served here",
}
_TEMPORARY: Final = {
    Failure.NO_SERVER: b"451 4.3.2 No server is available, try again later",
    Failure.QUEUE_FULL: b"451 4.3.2 All servers are busy, try again later",
    Failure.QUEUE_TIMEOUT: b"451 4.3.2 All servers are busy, try again later",
    Failure.CONNECTION_LIMIT: b"451 4.3.2 There are too many connections, try again later",
    Failure.RATE_LIMITED: b"451 4.7.0 This comes too often, try again later",
    Failure.MAILBOX_SERVER: b"451 4.3.2 The mailbox's server is not available, try again later",
    Failure.MAILBOX_MOVING: b"451 4.3.2 The mailbox is being moved, try again later",
    Failure.SESSION_LIMIT: b"451 4.3.2 The mailbox has too many sessions, try again later",
    Failure.ENDED_HERE: b"451 4.3.2 The session was ended, try again later",
    Failure.DIRECTORY: b"451 4.4.3 It is not known where the mailbox is, try again later",
    Failure.SHUTDOWN: b"451 4.3.2 This node is going down, try again later",
    Failure.CONNECT_REFUSED: b"451 4.4.1 The server can't be reached, try again later",
    Failure.CONNECT_TIMEOUT: b"451 4.4.1 The server can't be reached, try again later",
    Failure.CONNECT_TLS: b"451 4.7.5 The server can't be reached safely, try again later",
    Failure.SERVER_CLOSED: b"451 4.4.2 The connection to the server was lost, try again later",
    Failure.SERVER_CLOSED_INSIDE: b"451 4.4.2 The connection to the server was lost, try again later",
    Failure.SERVER_TIMEOUT: b"451 4.4.2 The server did not answer in time, try again later",
    Failure.SERVER_STALLED: b"451 4.4.2 The server takes nothing more, try again later",
    Failure.SERVER_PROTOCOL: b"451 4.3.0 The server's answer was not understood, try again later",
}
