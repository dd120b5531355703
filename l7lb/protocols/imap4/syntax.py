"""IMAP's grammar as far as it is needed before a login: commands with their literals, strings, lists, responses.

A literal (RFC 3501 section 4.3) stands in the middle of a command: ``{n}`` waits for consent, ``{n+}`` does not (RFC
7888). Whatever becomes of a command, its literals' bytes are never taken for commands: those of the second kind are
read to the end, even if nobody wants them; those of the first kind are not sent once the command is refused.
"""

from __future__ import annotations

import re
from typing import Final

from l7lb.protocols.mail.lines import Lines, LineTooLong

EOL: Final = b"\r\n"
DISCARDED: Final = 1024 * 1024  # bytes of literals that are read for a command that is refused, before it is too much

LITERAL = re.compile(rb"\{([0-9]{1,10})(\+?)\}\Z")
HEAD = re.compile(rb'([^\x00-\x20\x7f-\xff(){%*"\\+]{1,128})(?: ([A-Za-z][A-Za-z0-9.-]{0,63})(?= |\Z))?')
ATOM = re.compile(rb'[^\x00-\x20\x7f(){"\\]+')
QUOTED = re.compile(rb'"((?:[^"\\\r\n\x00]|\\["\\])*)"')
INLINE = re.compile(rb"~?\{([0-9]{1,10})\+?\}\r\n")
ESCAPED = re.compile(rb'\\(["\\])')
SPECIAL = re.compile(rb'(["\\])')
UNQUOTABLE = re.compile(rb"[^\x20-\x7e]")
RESPONSE = re.compile(rb"([^\x00-\x20\x7f-\xff]{1,128}) ([A-Za-z0-9]+)(?: (.*))?\Z", re.DOTALL)
CODE = re.compile(rb"\[([A-Za-z0-9./=+-]{1,64})(?: ([^\]\r\n]*))?\] ?")
CONDITIONS: Final = frozenset({b"OK", b"NO", b"BAD", b"BYE", b"PREAUTH"})


class Malformed(Exception):
    """Arguments that the grammar does not allow; the text says why."""


class Command:
    """One command. ``name`` is in upper case, ``arguments`` all that stands behind it, its space included, literals as
    they came. Without a ``tag`` the line is no command; without a ``name`` it has a tag alone. ``overlong``: its
    literals exceed the limit, and were thrown away.
    """

    __slots__ = ("arguments", "name", "overlong", "tag")

    def __init__(self, whole: bytes, overlong: bool = False) -> None:
        found = HEAD.match(whole)
        self.tag = found[1] if found is not None else b""
        self.name = (found[2] or b"").upper() if found is not None else b""
        self.arguments = whole[found.end() :] if found is not None else b""
        self.overlong = overlong


class Wanted:
    """A command has come to a literal that waits for consent; ``overlong``: it would exceed the limit."""

    __slots__ = ("command", "overlong")

    def __init__(self, command: Command, overlong: bool) -> None:
        self.command = command
        self.overlong = overlong


class Reader:
    """Takes one command after the other out of a buffer. ``line_bytes`` bounds what stands outside literals,
    ``literal_bytes`` all literals of one command together.
    """

    __slots__ = (
        "_left",
        "_lines",
        "_literals",
        "_offered",
        "_overlong",
        "_text",
        "_whole",
        "line_bytes",
        "literal_bytes",
    )

    def __init__(self, line_bytes: int, literal_bytes: int) -> None:
        self.line_bytes = line_bytes
        self.literal_bytes = literal_bytes
        self._lines = Lines(line_bytes)
        self.reset()

    def reset(self) -> None:
        """What was taken of a command until now is void; the buffer is at the beginning of the next."""
        self._whole = bytearray()
        self._lines.reset()
        self._text = 0  # bytes outside literals
        self._literals = 0  # bytes of literals, announced until now
        self._left = 0  # of a literal
        self._offered = 0  # the size of one that waits for consent
        self._overlong = False

    def take(self, buffer: bytearray) -> Command | Wanted | None:
        """The next command, or a literal that waits; None if neither is complete. Raises LineTooLong."""
        while True:
            if self._left:
                self._literal(buffer)
                if self._left:
                    return None
            line = self._lines.take(buffer)
            if line is None:
                return None
            self._text += len(line)
            if self._text > self.line_bytes:
                raise LineTooLong(f"a command of more than {self.line_bytes} bytes")
            self._whole += line
            found = LITERAL.search(line)
            if found is None:
                command = Command(bytes(self._whole), self._overlong)
                self.reset()
                return command
            self._whole += EOL
            size = int(found[1])
            if not found[2]:
                self._offered = size
                overlong = self._overlong or self._literals + size > self.literal_bytes
                return Wanted(Command(bytes(self._whole), overlong), overlong)
            self._announced(size)

    def accept(self) -> None:
        """The literal that waits may come."""
        self._announced(self._offered)

    def _announced(self, size: int) -> None:
        self._literals += size
        if self._literals > self.literal_bytes:
            self._overlong = True
            if self._literals > max(DISCARDED, self.literal_bytes):
                raise LineTooLong(f"literals of more than {DISCARDED} bytes")
        self._left = size

    def _literal(self, buffer: bytearray) -> None:
        size = min(len(buffer), self._left)
        if not self._overlong:
            self._whole += buffer[:size]
        del buffer[:size]
        self._left -= size


class Arguments:
    """Reads a command's arguments one by one; what is not as the grammar has it raises Malformed."""

    __slots__ = ("_at", "_text")

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0

    def space(self) -> Arguments:
        """Exactly one space."""
        if not self._text.startswith(b" ", self._at):
            raise Malformed("a space is missing")
        self._at += 1
        return self

    def end(self) -> None:
        """Nothing more."""
        if self._at < len(self._text):
            raise Malformed("there is more than expected")

    @property
    def more(self) -> bool:
        """Whether there is something."""
        return self._at < len(self._text)

    def astring(self) -> bytes:
        """An atom, a quoted string or a literal."""
        found = ATOM.match(self._text, self._at)
        if found is None:
            return self.string()
        self._at = found.end()
        return found[0]

    def string(self) -> bytes:
        """A quoted string or a literal."""
        found = QUOTED.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
            return ESCAPED.sub(rb"\1", found[1])
        found = INLINE.match(self._text, self._at)
        if found is None:
            raise Malformed("a string is missing")
        self._at = found.end() + int(found[1])
        if self._at > len(self._text):
            raise Malformed("a literal is too short")
        return self._text[found.end() : self._at]

    def skip(self, text: bytes) -> bool:
        """Take this text, in any case, if it is what comes next."""
        if self._text[self._at : self._at + len(text)].upper() != text:
            return False
        self._at += len(text)
        return True

    def nstring(self) -> bytes | None:
        """A string, or NIL, which is None."""
        return None if self.skip(b"NIL") else self.string()


class Response:
    """A line of the server's. ``tag`` is ``*`` for what answers no command, ``+`` for a request to go on.

    ``code`` is the response code in upper case, ``detail`` what stands in the bracket behind it, ``text`` the rest. For
    anything but OK, NO, BAD, BYE and PREAUTH there is no code.
    """

    __slots__ = ("code", "detail", "tag", "text", "word")

    def __init__(self, tag: bytes, word: bytes, text: bytes) -> None:
        self.tag = tag
        self.word = word
        self.code = b""
        self.detail = b""
        found = CODE.match(text) if word in CONDITIONS else None
        if found is not None:
            self.code = found[1].upper()
            self.detail = found[2] or b""
            text = text[found.end() :]
        self.text = text


def response(line: bytes) -> Response | None:
    """The response that a line is; None for what is none."""
    if line[:1] == b"+":
        return Response(b"+", b"", line[1:].lstrip(b" "))
    found = RESPONSE.match(line)
    return Response(found[1], found[2].upper(), found[3] or b"") if found is not None else None


def quotable(text: bytes) -> bool:
    """Whether a quoted string can say this to any server (8-bit characters need UTF8=ACCEPT)."""
    return not UNQUOTABLE.search(text)


def quoted(text: bytes) -> bytes:
    """A quoted string; for text that is :func:`quotable`."""
    return b'"' + SPECIAL.sub(rb"\\\1", text) + b'"'
