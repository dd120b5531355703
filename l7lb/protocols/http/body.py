"""Bodies as they arrive: by length, in chunks, or until the connection ends (RFC 9112 sections 6 and 7).

A reader takes bytes and returns the body's own bytes; ``rest`` is what came after its end. Chunks are read strictly
and written anew, extensions are dropped, so that no two readers can see different ends.

States of the chunked reader::

    SIZE --size line--> DATA --size bytes--> DATA_END --CR LF--> SIZE
    SIZE --"0" line--> TRAILERS --empty line--> DONE
"""

from __future__ import annotations

from typing import Final

from l7lb.protocols.http import syntax
from l7lb.protocols.http.syntax import OWS, SyntaxFault, field_name

SIZE: Final = 0
DATA: Final = 1
DATA_END: Final = 2
TRAILERS: Final = 3
DONE: Final = 4

MAX_SIZE_LINE = 256  # bytes of a chunk's size and extensions
MAX_SIZE_DIGITS = 15
MAX_TRAILER_BYTES = 8192
HEX = frozenset(b"0123456789abcdefABCDEF")


class LengthReader:
    """A body of a known length."""

    __slots__ = ("done", "remaining", "rest")

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in ``data``."""
        size = len(data)
        if size < self.remaining:
            self.remaining -= size
            return data
        self.done = True
        cut = self.remaining
        self.remaining = 0
        if size == cut:
            return data
        self.rest = data[cut:]
        return data[:cut]


class CloseReader:
    """A body that ends with its connection."""

    __slots__ = ("done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """All of it."""
        return data


class ChunkedReader:
    """A chunked body. ``trailers`` holds the lines that may be passed on, once ``done``."""

    __slots__ = ("_buffer", "_fields", "_remaining", "_state", "_trailer_bytes", "done", "rest", "trailers")

    def __init__(self, fields: int) -> None:
        self.done = False
        self.rest = b""
        self.trailers: list[bytes] = []
        self._buffer = b""
        self._fields = fields
        self._remaining = 0
        self._state = SIZE
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in ``data``, chunk frames removed; raises SyntaxFault(400) for broken framing."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        body: list[bytes] = []
        position = 0
        size = len(data)
        while position < size and self._state != DONE:
            if self._state == DATA:
                take = min(self._remaining, size - position)
                body.append(data[position : position + take])
                position += take
                self._remaining -= take
                if not self._remaining:
                    self._state = DATA_END
            elif self._state == DATA_END:
                if not data.startswith(b"\r\n"[: size - position], position):
                    raise SyntaxFault(400, "a chunk does not end where its size says")
                if size - position < 2:
                    break
                position += 2
                self._state = SIZE
            else:
                end = self._line_end(data, position)
                if end < 0:
                    break
                self._line(data[position:end])
                position = end + 2
        if self._state == DONE:
            self.done = True
            self.rest = data[position:]
        else:
            self._buffer = data[position:]
        return body[0] if len(body) == 1 else b"".join(body)

    def _line_end(self, data: bytes, position: int) -> int:
        limit = MAX_SIZE_LINE if self._state == SIZE else MAX_TRAILER_BYTES - self._trailer_bytes
        newline = data.find(b"\n", position, position + limit)
        carriage = data.find(b"\r", position, newline if newline >= 0 else position + limit)
        if newline < 0:
            if len(data) - position >= limit:
                raise SyntaxFault(400, "a chunk's size line or the trailers are too long")
            if 0 <= carriage < len(data) - 1:
                raise SyntaxFault(400, "a line must end in CR LF")
            return -1
        if carriage < 0 or carriage != newline - 1:
            raise SyntaxFault(400, "a line must end in CR LF")
        return carriage

    def _line(self, line: bytes) -> None:
        if self._state == TRAILERS:
            self._trailer_bytes += len(line) + 2
            self._trailer(line)
            return
        digits, _, extension = line.partition(b";")
        if extension:
            digits = digits.rstrip(OWS)
        if not digits or len(digits) > MAX_SIZE_DIGITS or not HEX.issuperset(digits):
            raise SyntaxFault(400, "a chunk's size is not a hexadecimal number")
        if line.translate(None, syntax.LINE_BYTES):
            raise SyntaxFault(400, "a control character in a chunk's size line")
        self._remaining = int(digits, 16)
        self._state = DATA if self._remaining else TRAILERS

    def _trailer(self, line: bytes) -> None:
        if not line:
            self._state = DONE
            return
        self._fields -= 1
        if self._fields < 0:
            raise SyntaxFault(431, "too many trailer fields")
        name, colon, value = line.partition(b":")
        if not colon or line.translate(None, syntax.LINE_BYTES):
            raise SyntaxFault(400, "a malformed trailer")
        lower, code = field_name(name)
        if not code and lower not in syntax.FORBIDDEN_TRAILERS:
            self.trailers.append(name + b": " + value.strip(OWS))


class FramedReader(ChunkedReader):
    """A body of unknown length in frames (HTTP/2): they say where it ends, by :meth:`end`."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(0)

    def feed(self, data: bytes) -> bytes:
        """All of it."""
        return data

    def end(self, trailers: list[bytes]) -> None:
        """The frame that ended the body has come, with these trailers."""
        self.trailers = trailers
        self.done = True


BodyReader = LengthReader | CloseReader | ChunkedReader


def chunk(data: bytes) -> bytes:
    """One chunk of these bytes; nothing for none, since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def last_chunk(trailers: list[bytes]) -> bytes:
    """The end of a chunked body."""
    if not trailers:
        return b"0\r\n\r\n"
    return b"0\r\n" + b"\r\n".join(trailers) + b"\r\n\r\n"
