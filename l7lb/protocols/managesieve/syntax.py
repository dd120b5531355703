"""ManageSieve's grammar (RFC 5804 section 4): commands and responses, which are lines with literals inside.

A client's literal is ``{n+}`` and never waits for consent; a server's is ``{n}``. So that a literal's bytes are never
taken for commands, a line that can't be read and ends in a literal is the end of the conversation; any other is
refused, and the next one is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

TOKENS = 32  # in one command or response; before login none needs more than ten
QUOTED_BYTES: Final = 1024  # what is longer is sent as a literal (RFC 5804 section 4)
LITERAL = re.compile(rb"\{([0-9]{1,10})(\+?)\}\Z")
QUOTED = re.compile(rb'"([^"\\\r\n\0]*(?:\\["\\][^"\\\r\n\0]*)*)"')
ATOM = re.compile(rb"[!#-'*-\[\]-z|-~]+")
ESCAPED = re.compile(rb'\\(["\\])')
SPECIAL = re.compile(rb'(["\\])')
UNQUOTABLE = re.compile(rb"[\r\n\0]")


class Atom(bytes):
    """A word without quotes, or a parenthesis. A string, quoted or literal, is plain bytes."""

    __slots__ = ()


OPEN = Atom(b"(")
SHUT = Atom(b")")


class Malformed(Exception):
    """What came is no command or response. ``fatal``: nobody knows where the next one begins.

    ``limit``: it is longer than allowed.
    """

    def __init__(self, detail: str, fatal: bool = False, limit: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fatal = fatal
        self.limit = limit


class Reader:
    """Takes one command, or one line of a response, after the other out of a buffer.

    ``line_bytes`` bounds what stands outside literals, ``literal_bytes`` all literals of one command together.
    ``marked``: literals are a client's, with a plus sign.
    """

    __slots__ = ("_left", "_line", "_literals", "_marked", "_scanned", "_tokens", "line_bytes", "literal_bytes")

    def __init__(self, line_bytes: int, literal_bytes: int, marked: bool) -> None:
        self.line_bytes = line_bytes
        self.literal_bytes = literal_bytes
        self._marked = marked
        self._reset()

    def _reset(self) -> None:
        self._tokens: list[bytes] = []
        self._scanned = 0  # of the buffer: there is no end of a line in it
        self._line = 0  # bytes of its lines that were taken
        self._literals = 0
        self._left = -1  # of a literal; -1: a line is read

    def take(self, buffer: bytearray) -> list[bytes] | None:
        """The next one's tokens; None if it is not complete. An empty line has none. Raises Malformed."""
        while True:
            if self._left >= 0:
                if len(buffer) < self._left:
                    return None
                self._add(bytes(buffer[: self._left]))
                del buffer[: self._left]
                self._left = -1
            line = self._take_line(buffer)
            if line is None:
                return None
            if not self._read(line):
                tokens = self._tokens
                self._reset()
                return tokens

    def _take_line(self, buffer: bytearray) -> bytes | None:
        end = buffer.find(b"\n", self._scanned)
        if self._line + (len(buffer) if end < 0 else end) > self.line_bytes:
            raise Malformed(f"a line of more than {self.line_bytes} bytes", fatal=True, limit=True)
        if end < 0:
            self._scanned = len(buffer)
            return None
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        self._scanned = 0
        self._line += end
        return line[:-1] if line.endswith(b"\r") else line

    def _add(self, token: bytes) -> None:
        if len(self._tokens) >= TOKENS:
            raise Malformed(f"more than {TOKENS} words", fatal=True, limit=True)
        self._tokens.append(token)

    def _read(self, line: bytes) -> bool:
        """A line, or the rest of one behind a literal; whether a literal follows."""
        literal = LITERAL.search(line)
        try:
            self._split(line if literal is None else line[: literal.start()])
        except Malformed as fault:
            if literal is None and not fault.fatal:
                self._reset()
            fault.fatal = fault.fatal or literal is not None
            raise
        if literal is None:
            return False
        if bool(literal[2]) is not self._marked:
            wanted = "{n+}" if self._marked else "{n}"
            raise Malformed(f"a literal is written {wanted} here", fatal=True)
        self._left = int(literal[1])
        self._literals += self._left
        if self._literals > self.literal_bytes:
            raise Malformed(f"literals of more than {self.literal_bytes} bytes", fatal=True, limit=True)
        return True

    def _split(self, line: bytes) -> None:
        """The tokens of a line; strings and words have a space between them."""
        at, apart = 0, not self._tokens
        while at < len(line):
            char = line[at : at + 1]
            if char == b" ":
                at, apart = at + 1, True
                continue
            if char in (b"(", b")"):
                self._add(Atom(char))
                at, apart = at + 1, char == b"("
                continue
            if not apart:
                raise Malformed("there is no space between two words")
            at, apart = self._word(line, at), False

    def _word(self, line: bytes, at: int) -> int:
        """A string or an atom; returns where it ends."""
        quoted = QUOTED.match(line, at)
        if quoted is not None:
            self._add(ESCAPED.sub(rb"\1", quoted[1]))
            return quoted.end()
        atom = ATOM.match(line, at)
        if atom is None:
            raise Malformed("a quoted string that doesn't end" if line[at : at + 1] == b'"' else "an odd character")
        self._add(Atom(atom[0]))
        return atom.end()


class Result:
    """A server's OK, NO or BYE (RFC 5804 section 1.3). ``code`` is in upper case, ``about`` the string behind it."""

    __slots__ = ("about", "code", "text", "word")

    def __init__(self, word: bytes) -> None:
        self.word = word
        self.code = b""
        self.about = b""
        self.text = b""


def result(tokens: Sequence[bytes]) -> Result | None:
    """The result that a line of a response is; None for other lines. Raises Malformed."""
    if not tokens or not isinstance(tokens[0], Atom) or tokens[0].upper() not in (b"OK", b"NO", b"BYE"):
        return None
    found = Result(tokens[0].upper())
    rest = list(tokens[1:])
    if rest and _depth(rest[0]) > 0:
        end = _closing(rest)
        if end < 2 or not isinstance(rest[1], Atom):
            raise Malformed("a response code that can't be read")
        found.code = rest[1].upper()
        found.about = next((token for token in rest[2:end] if not isinstance(token, Atom)), b"")
        del rest[: end + 1]
    if len(rest) > 1 or (rest and isinstance(rest[0], Atom)):
        raise Malformed("a response that can't be read")
    found.text = rest[0] if rest else b""
    return found


def _closing(tokens: Sequence[bytes]) -> int:
    """Where the parenthesis that comes first is closed; 0: nowhere."""
    depth = 0
    for at, token in enumerate(tokens):
        depth += _depth(token)
        if not depth:
            return at
    return 0


def _depth(token: bytes) -> int:
    if not isinstance(token, Atom):
        return 0
    return 1 if token == OPEN else -1 if token == SHUT else 0


def string(value: bytes, marked: bool = False) -> bytes:
    """A string as it is written: quoted if it can be, else as a literal (``marked``: a client's)."""
    if len(value) > QUOTED_BYTES or UNQUOTABLE.search(value):
        return b"{%d%b}\r\n%b" % (len(value), b"+" if marked else b"", value)
    return b'"%b"' % SPECIAL.sub(rb"\\\1", value)
