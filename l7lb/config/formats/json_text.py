"""JSON (RFC 8259) into nodes with positions.

The standard library's decoder reads the scalars; this module walks mappings and lists itself, because the decoder
doesn't tell where a value stood.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from typing import NoReturn

from l7lb.config.document import DEPTH, Entry, Node, Position, Scalar, Sequence, Table
from l7lb.core.errors import ConfigurationError, Problem

_SPACE = re.compile(r"[ \t\n\r]*")
_LINE = re.compile(r"\n")


def parse(text: str, file: str) -> Node | None:
    """The value in ``text``; None where there is nothing. Raises ConfigurationError."""
    return _Reader(text, file).document()


class _NotJSON(ValueError):
    """A constant that the decoder would take although JSON has no such thing."""


def _refuse(name: str) -> NoReturn:
    raise _NotJSON(f"{name} is not a number that JSON knows")


class _Reader:
    """A recursive descent; its depth is bounded by ``DEPTH``."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.place = 0
        self.lines = [0, *(match.end() for match in _LINE.finditer(text))]
        self.decoder = json.JSONDecoder(parse_constant=_refuse)

    def position(self, place: int) -> Position:
        line = bisect_right(self.lines, place)
        return Position(line, place - self.lines[line - 1] + 1)

    def stop(self, place: int, message: str) -> ConfigurationError:
        return ConfigurationError([Problem(self.file, *self.position(place), "", f"not valid JSON: {message}")])

    def next(self) -> str:
        """Skip white space; the character that comes then, "" at the end."""
        match = _SPACE.match(self.text, self.place)
        assert match is not None  # it matches the empty string
        self.place = match.end()
        return self.text[self.place : self.place + 1]

    def document(self) -> Node | None:
        if not self.next():
            return None
        root = self.value(0)
        if self.next():
            raise self.stop(self.place, "more follows after the end of the value")
        return root

    def value(self, depth: int) -> Node:
        character = self.next()
        at = self.position(self.place)
        if character in ("{", "[") and depth >= DEPTH:
            message = f"mappings and lists are nested more than {DEPTH} deep"
            raise ConfigurationError([Problem(self.file, *at, "", message)])
        if character == "{":
            return self.table(at, depth)
        if character == "[":
            return self.sequence(at, depth)
        return Scalar(self.scalar(), at)

    def scalar(self) -> object:
        start = self.place
        try:
            value, self.place = self.decoder.raw_decode(self.text, start)
        except json.JSONDecodeError as error:
            reason = "a value is expected" if error.msg == "Expecting value" else error.msg[:1].lower() + error.msg[1:]
            raise self.stop(error.pos, reason) from None
        except _NotJSON as error:
            raise self.stop(start, str(error)) from None
        except ValueError:  # more digits than Python converts
            raise self.stop(start, "the number is too long") from None
        return value

    def table(self, at: Position, depth: int) -> Table:
        table = Table(at)
        self.place += 1
        if self.next() == "}":
            self.place += 1
            return table
        while True:
            if self.next() != '"':
                raise self.stop(self.place, "a key in double quotes is expected")
            key_at = self.position(self.place)
            key = str(self.scalar())
            if self.next() != ":":
                raise self.stop(self.place, 'a ":" is expected after the key')
            self.place += 1
            table.entries.append(Entry(key, key_at, self.value(depth + 1)))
            if self.more("}"):
                return table

    def sequence(self, at: Position, depth: int) -> Sequence:
        sequence = Sequence(at)
        self.place += 1
        if self.next() == "]":
            self.place += 1
            return sequence
        while True:
            sequence.items.append(self.value(depth + 1))
            if self.more("]"):
                return sequence

    def more(self, end: str) -> bool:
        """Step over a comma (False) or the end (True)."""
        character = self.next()
        if character not in (",", end) or not character:
            raise self.stop(self.place, f'a "," or "{end}" is expected')
        self.place += 1
        return character == end
