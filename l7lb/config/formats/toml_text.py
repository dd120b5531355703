"""TOML 1.0 into nodes with positions.

The standard library's parser decides what the text means but doesn't tell where; a second walk over the text, which
may rely on it being valid, finds where each key and value stands.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import Any

from l7lb.config.document import DEPTH, NOWHERE, Entry, Node, Path, Position, Scalar, Sequence, Table
from l7lb.config.wording import printable
from l7lb.core.errors import ConfigurationError, Problem

_WHERE = re.compile(r"\s*\((?:at line (\d+), column (\d+)|at end of document)\)\Z")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_LITERAL = re.compile(r"[^\s,\]}#]+(?: [0-9][^\s,\]}#]*)?")  # a number, true, false, or a date with its space
_STRINGS = (
    re.compile(r'"""(?:\\.|[^\\])*?"{3,5}', re.DOTALL),
    re.compile(r"'''.*?'{3,5}", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
)


# A key of so many parts can't be meant, and the parser's time grows with their square.
_PARTS = re.compile(
    r"""(?:^[ \t]*\[{0,2}|[{,])[ \t]*(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){%s}""" % DEPTH,  # noqa: UP031
    re.MULTILINE,
)


def parse(text: str, file: str) -> Node | None:
    """The document in ``text``; None where it has no keys. Raises ConfigurationError."""
    many = _PARTS.search(text)
    if many:
        raise _problem(file, *_place(text, many.start()), f"mappings and lists are nested more than {DEPTH} deep")
    try:
        data = tomllib.loads(text)
        return _node(data, (), Scanner(text).positions) if data else None
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        where = _WHERE.search(message)
        line, column = (int(where[1]), int(where[2])) if where and where[1] else _place(text, len(text))
        reason = _WHERE.sub("", message)
        raise _problem(file, line, column, f"not valid TOML: {reason[:1].lower() + reason[1:]}") from None
    except RecursionError:
        raise _problem(file, 0, 0, f"nested more than {DEPTH} deep") from None
    except ValueError:  # more digits than Python converts
        raise _problem(file, 0, 0, "not valid TOML: a number is too long") from None


def _problem(file: str, line: int, column: int, message: str) -> ConfigurationError:
    return ConfigurationError([Problem(file, line, column, "", printable(message))])


def _place(text: str, index: int) -> tuple[int, int]:
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


Positions = dict[Path, tuple[Position, Position]]  # of the key, and of the value


def _node(value: Any, path: Path, positions: Positions) -> Node:
    at = positions.get(path, (NOWHERE, NOWHERE))[1] if path else Position(1, 1)
    if isinstance(value, dict):
        table = Table(at)
        for key, inner in value.items():
            where = (*path, key)
            key_at = positions.get(where, (NOWHERE, NOWHERE))[0]
            table.entries.append(Entry(key, key_at, _node(inner, where, positions)))
        return table
    if isinstance(value, list):
        return Sequence(at, [_node(inner, (*path, number), positions) for number, inner in enumerate(value)])
    return Scalar(value, at)


class Scanner:
    """Walks over valid TOML; ``positions`` is complete afterwards."""

    def __init__(self, text: str) -> None:
        # The parser reads CRLF as LF and counts columns accordingly; a line's beginning is not moved by that.
        self.text = text
        self.place = 0
        self.lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self.positions: Positions = {}
        self.lengths: dict[Path, int] = {}  # arrays of tables: how many have begun
        self.run()

    def here(self) -> Position:
        line = bisect_right(self.lines, self.place)
        return Position(line, self.place - self.lines[line - 1] + 1)

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.place)
        assert match is not None  # these patterns match the empty string
        self.place = match.end()

    def run(self) -> None:
        table: Path = ()
        while True:
            self.skip(_BLANK)
            if self.place >= len(self.text):
                return
            if self.text.startswith("[[", self.place):
                table = self.header(2, array=True)
            elif self.text.startswith("[", self.place):
                table = self.header(1, array=False)
            else:
                self.pair(table)

    def note(self, path: Path, key: Position, value: Position) -> None:
        self.positions.setdefault(path, (key, value))

    def header(self, brackets: int, array: bool) -> Path:
        """``[a.b]`` or ``[[a.b]]``: the path that the keys below it belong to."""
        self.place += brackets
        path: Path = ()
        keys = self.key()
        for number, (name, at) in enumerate(keys):
            path = (*path, name)
            self.note(path, at, at)
            if array and number == len(keys) - 1:
                index = self.lengths.get(path, 0)
                self.lengths[path] = index + 1
                path = (*path, index)
                self.note(path, at, at)
            elif path in self.lengths:
                path = (*path, self.lengths[path] - 1)
        self.skip(_SPACE)
        self.place += brackets
        return path

    def key(self) -> list[tuple[str, Position]]:
        """A key with its dots."""
        parts: list[tuple[str, Position]] = []
        while True:
            self.skip(_SPACE)
            at = self.here()
            bare = _BARE.match(self.text, self.place)
            if bare:
                parts.append((bare.group(), at))
                self.place = bare.end()
            else:
                start = self.place
                self.string()
                quoted = self.text[start : self.place]
                parts.append((str(tomllib.loads(f"k = {quoted}")["k"]), at))
            self.skip(_SPACE)
            if not self.text.startswith(".", self.place):
                return parts
            self.place += 1

    def string(self) -> bool:
        """Step over a string if one stands here."""
        for pattern in _STRINGS:
            match = pattern.match(self.text, self.place)
            if match:
                self.place = match.end()
                return True
        return False

    def pair(self, table: Path) -> None:
        """``a.b = value``."""
        path = table
        keys = self.key()
        self.place += 1  # the equals sign
        self.skip(_SPACE)
        for name, at in keys:
            path = (*path, name)
            self.note(path, at, self.here() if (name, at) == keys[-1] else at)
        self.value(path)

    def value(self, path: Path) -> None:
        """Step over a value and note what is inside it."""
        character = self.text[self.place : self.place + 1]
        if character == "{":
            self.place += 1
            self.skip(_BLANK)
            while not self.text.startswith("}", self.place):
                self.pair(path)
                self.comma()
            self.place += 1
        elif character == "[":
            self.place += 1
            self.skip(_BLANK)
            number = 0
            while not self.text.startswith("]", self.place):
                at = self.here()
                self.note((*path, number), at, at)
                self.value((*path, number))
                self.comma()
                number += 1
            self.place += 1
        elif not self.string():
            match = _LITERAL.match(self.text, self.place)
            self.place = match.end() if match else self.place + 1

    def comma(self) -> None:
        self.skip(_BLANK)
        if self.text.startswith(",", self.place):
            self.place += 1
            self.skip(_BLANK)
