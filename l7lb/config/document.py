"""A configuration file as plain data that knows where each piece of it was written.

The three formats (YAML, JSON, TOML) are read into one small tree of :class:`Scalar`, :class:`Sequence` and
:class:`Table` nodes with positions; :func:`plain` turns that into dictionaries and lists for the models. The rules
that don't depend on the format live here, once: a key is written once, aliases and merge keys expand, and depth and
number of values are bounded, so that a short file can't unfold into a gigabyte.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from l7lb.config.wording import printable
from l7lb.core.errors import ConfigurationError, Problem

BYTES = 16 * 1024 * 1024  # of a file
VALUES = 2_000_000  # in a file, those that aliases repeat counted each time
ALIASED_VALUES = 100_000  # of these, how many may come from aliases
DEPTH = 32  # of mappings and lists in one another

HALF = "half of a surrogate pair is not a character"

Path = tuple[str | int, ...]


class Position(NamedTuple):
    """A place in the file; both count from 1, and 0 says that it isn't known."""

    line: int
    column: int


NOWHERE = Position(0, 0)


@dataclass(slots=True)
class Scalar:
    """Text, a number, true, false or nothing."""

    value: Any
    at: Position


@dataclass(slots=True)
class Sequence:
    """A list."""

    at: Position
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Entry:
    """One key of a table and its value."""

    key: str
    at: Position
    value: Node


@dataclass(slots=True)
class Table:
    """A mapping, as written: a key may still be there twice. ``merged`` are the mappings of its ``<<``."""

    at: Position
    entries: list[Entry] = field(default_factory=list)
    merged: list[tuple[Position, Node]] = field(default_factory=list)


@dataclass(slots=True)
class Alias:
    """A further use of a node, at its own place."""

    at: Position
    node: Node


Node = Scalar | Sequence | Table | Alias


class Mapping(dict[str, Any]):
    """A dictionary with its path in the document and the positions of its keys and values."""

    __slots__ = ("at", "keys_at", "path", "values_at")

    def __init__(self, path: Path, at: Position) -> None:
        super().__init__()
        self.path = path
        self.at = at
        self.keys_at: dict[str, Position] = {}
        self.values_at: dict[str, Position] = {}


class Items(list[Any]):
    """A list with its path in the document and the positions of its items."""

    __slots__ = ("at", "items_at", "path")

    def __init__(self, path: Path, at: Position) -> None:
        super().__init__()
        self.path = path
        self.at = at
        self.items_at: list[Position] = []


def locate(root: Mapping, path: Path, key: bool = False) -> tuple[Path, Position]:
    """The part of ``path`` that exists in the document, and where it is written.

    ``key`` asks for the position of the last key rather than that of its value. An index is passed over where the
    file has one value that stands for a list.
    """
    here: Any = root
    position = root.at
    found: list[str | int] = []
    for number, step in enumerate(path):
        last = number == len(path) - 1
        if isinstance(here, Mapping) and isinstance(step, str) and step in here:
            position = here.keys_at[step] if key and last else here.values_at[step]
        elif isinstance(here, Items) and isinstance(step, int) and step < len(here):
            position = here.items_at[step]
        elif isinstance(step, int) and not isinstance(here, Items):
            continue
        else:
            break
        here = here[step]
        found.append(step)
    return tuple(found), position


def describe_path(path: Path) -> str:
    """A path as an operator reads it: ``listeners[0].routes[2].pool``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{printable(step)}" if text else printable(step)
    return text


def plain(root: Node, file: str) -> Any:
    """The document as :class:`Mapping`, :class:`Items` and plain values.

    Raises ConfigurationError with every key that is written twice, and for a document over the limits.
    """
    return _Expansion(file).run(root)


def _writable(text: str) -> bool:
    """Whether text is characters only; escapes can make halves of some, which no file or socket takes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Expansion:
    """One walk over the nodes, with the counts that bound it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.values = 0
        self.aliased = 0

    def run(self, root: Node) -> Any:
        data = self.value(root, (), False)
        if self.problems:
            raise ConfigurationError(self.problems)
        return data

    def problem(self, at: Position, path: Path, message: str) -> Problem:
        return Problem(self.file, at.line, at.column, describe_path(path), message)

    def stop(self, at: Position, path: Path, message: str) -> ConfigurationError:
        """For what makes going on pointless."""
        return ConfigurationError([*self.problems, self.problem(at, path, message)])

    def value(self, node: Node, path: Path, aliased: bool) -> Any:
        while isinstance(node, Alias):
            node, aliased = node.node, True
        self.values += 1
        self.aliased += aliased
        if self.values > VALUES:
            raise self.stop(node.at, path, f"the file has more than {VALUES:,} values")
        if self.aliased > ALIASED_VALUES:
            raise self.stop(node.at, path, f"aliases repeat more than {ALIASED_VALUES:,} values")
        if len(path) > DEPTH:
            raise self.stop(node.at, path[:4], f"mappings and lists are nested more than {DEPTH} deep")
        if isinstance(node, Scalar):
            return self.scalar(node, path)
        if isinstance(node, Sequence):
            items = Items(path, node.at)
            for number, item in enumerate(node.items):
                items.items_at.append(item.at)
                items.append(self.value(item, (*path, number), aliased))
            return items
        return self.table(node, path, aliased)

    def scalar(self, node: Scalar, path: Path) -> Any:
        if isinstance(node.value, str) and not _writable(node.value):
            self.problems.append(self.problem(node.at, path, HALF))
        return node.value

    def table(self, node: Table, path: Path, aliased: bool) -> Mapping:
        mapping = Mapping(path, node.at)
        for entry in node.entries:
            if entry.key in mapping:
                first = mapping.keys_at[entry.key]
                message = f"this key is written twice, first in line {first.line}: keep one"
                self.problems.append(self.problem(entry.at, (*path, entry.key), message))
                continue
            if not _writable(entry.key):
                self.problems.append(self.problem(entry.at, path, HALF))
                continue
            mapping.keys_at[entry.key] = entry.at
            mapping.values_at[entry.key] = entry.value.at
            mapping[entry.key] = self.value(entry.value, (*path, entry.key), aliased)
        for at, merged in node.merged:
            self.merge(mapping, at, merged, aliased)
        return mapping

    def merge(self, mapping: Mapping, at: Position, node: Node, aliased: bool) -> None:
        """Add what ``<<`` brings: keys that are already there win, and of several mappings the first."""
        path = mapping.path
        while isinstance(node, Alias):
            node, aliased = node.node, True
        sources = node.items if isinstance(node, Sequence) else [node]
        for source in sources:
            whole = self.value(source, (*path, "<<"), aliased)
            if not isinstance(whole, Mapping):
                message = "a merge key takes a mapping, or a list of mappings"
                self.problems.append(self.problem(at, (*path, "<<"), message))
                continue
            part = self.moved(whole, path)
            for key in part:
                if key not in mapping:
                    mapping[key] = part[key]
                    mapping.keys_at[key] = part.keys_at[key]
                    mapping.values_at[key] = part.values_at[key]

    def moved(self, value: Any, path: Path) -> Any:
        """The same data under another path."""
        if isinstance(value, Mapping):
            mapping = Mapping(path, value.at)
            mapping.keys_at, mapping.values_at = value.keys_at, value.values_at
            for key, inner in value.items():
                mapping[key] = self.moved(inner, (*path, key))
            return mapping
        if isinstance(value, Items):
            items = Items(path, value.at)
            items.items_at = value.items_at
            items.extend(self.moved(inner, (*path, number)) for number, inner in enumerate(value))
            return items
        return value
