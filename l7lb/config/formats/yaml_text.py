"""YAML 1.2 into nodes with positions.

The parser of ruamel.yaml gives events; building the tree from them here, rather than by the library's constructors,
gives the position of every key and value, YAML 1.2's core schema and nothing else (``yes`` is a word, ``010`` is ten),
and limits that hold while the text is read.
"""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StreamMark, YAMLError, YAMLStreamError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from l7lb.config.document import DEPTH, Alias, Entry, Node, Position, Scalar, Sequence, Table
from l7lb.config.wording import printable
from l7lb.core.errors import ConfigurationError, Problem

_TAG = "tag:yaml.org,2002:"
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEAN = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"[-+]?[0-9]{1,100}\Z")
_OCTAL = re.compile(r"0o[0-7]{1,100}\Z")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,100}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"([-+]?)\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")


def parse(text: str, file: str) -> Node | None:
    """The one document in ``text``; None where there is none. Raises ConfigurationError."""
    parser = YAML(typ="safe", pure=True)
    builder = _Builder(file)
    try:
        for event in parser.parse(text):
            builder.take(event)
    except ConfigurationError:
        raise
    except MarkedYAMLError as error:
        raise builder.stop(_mark(error.problem_mark or error.context_mark), _reworded(error)) from None
    except ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        at = Position(before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise builder.stop(
            at, "this character is not allowed in YAML: write it as an escape in double quotes"
        ) from None
    except (YAMLError, YAMLStreamError, ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        # The library meets some malformed input with errors of its own internals.
        raise builder.stop(builder.last, f"not valid YAML after this place ({type(error).__name__})") from None
    return builder.root


def _mark(mark: StreamMark | None) -> Position:
    return Position(mark.line + 1, mark.column + 1) if mark is not None else Position(0, 0)


def _reworded(error: MarkedYAMLError) -> str:
    """The library's explanation, and advice where the mistake is a common one."""
    problem = str(error.problem or error.context or "unknown reason")
    if "'\\t'" in problem:
        return "not valid YAML: a tab can't indent, use spaces"
    if "mapping values are not allowed" in problem:
        return 'not valid YAML: a ":" where no key can be; is the line above indented right, or does text need quotes?'
    if "'*'" in problem or "'&'" in problem or "alias" in problem or "anchor" in problem:
        return f'not valid YAML: {problem}; text that begins with "*" or "&" needs quotes'
    if error.context and error.context != problem:
        return f"not valid YAML: {problem}, {error.context}"
    return f"not valid YAML: {problem}"


class _Open:
    """A mapping or list whose end has not come yet; ``key`` waits for its value."""

    __slots__ = ("anchor", "key", "merge", "node")

    def __init__(self, node: Table | Sequence, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: tuple[str, Position] | None = None
        self.merge = False


class _Builder:
    """Takes the parser's events one by one and puts the tree together without recursion."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Node | None = None
        self.documents = 0
        self.open: list[_Open] = []
        self.anchors: dict[str, Node] = {}
        self.last = Position(1, 1)

    def stop(self, at: Position, message: str) -> ConfigurationError:
        return ConfigurationError([Problem(self.file, at.line, at.column, "", printable(message))])

    def take(self, event: Event) -> None:
        at = _mark(event.start_mark)
        self.last = at
        if isinstance(event, ScalarEvent):
            self.scalar(event, at)
        elif isinstance(event, (MappingStartEvent, SequenceStartEvent)):
            self.begin(event, at)
        elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            ended = self.open.pop()
            self.add(ended.node, at, ended.anchor)
        elif isinstance(event, AliasEvent):
            node = self.anchors.get(str(event.anchor))
            if node is None:
                raise self.stop(at, f'no anchor "&{event.anchor}" stands before this alias, or the alias is inside it')
            self.add(Alias(at, node), at, None)
        elif isinstance(event, DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise self.stop(at, "a second document begins here: a configuration is one document")
            if event.version not in (None, (1, 2)):
                raise self.stop(at, "this is read as YAML 1.2: remove the %YAML line")

    def begin(self, event: MappingStartEvent | SequenceStartEvent, at: Position) -> None:
        if len(self.open) >= DEPTH:
            raise self.stop(at, f"mappings and lists are nested more than {DEPTH} deep")
        parent = self.open[-1] if self.open else None
        if parent is not None and isinstance(parent.node, Table) and parent.key is None and not parent.merge:
            raise self.stop(at, "a key must be text, not a mapping or a list")
        node: Table | Sequence = Table(at) if isinstance(event, MappingStartEvent) else Sequence(at)
        expected = _TAG + ("map" if isinstance(node, Table) else "seq")
        if event.tag not in (None, "!", expected):
            raise self.stop(at, f"the tag {str(event.tag)[:60]} is not known: tags are not used here")
        self.open.append(_Open(node, event.anchor))

    def scalar(self, event: ScalarEvent, at: Position) -> None:
        parent = self.open[-1] if self.open else None
        if parent is not None and isinstance(parent.node, Table) and parent.key is None and not parent.merge:
            text = str(event.value)
            if event.anchor is not None:
                self.anchors[event.anchor] = Scalar(text, at)
            if text == "<<" and event.style is None and event.tag is None:
                parent.merge = True
            else:
                parent.key = (text, at)
            return
        if parent is not None and parent.key is not None and event.start_mark.index == event.end_mark.index:
            at = parent.key[1]  # a key without a value: the library's mark is at whatever comes next
        self.add(Scalar(self.resolve(event, at), at), at, event.anchor)

    def add(self, node: Node, at: Position, anchor: str | None) -> None:
        """Put a complete node where it belongs."""
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.open:
            self.root = node
            return
        parent = self.open[-1]
        if isinstance(parent.node, Sequence):
            parent.node.items.append(node)
        elif parent.merge:
            parent.node.merged.append((node.at, node))
            parent.merge = False
        elif parent.key is not None:
            parent.node.entries.append(Entry(*parent.key, node))
            parent.key = None
        else:  # an alias as a key
            target = node.node if isinstance(node, Alias) else node
            if not isinstance(target, Scalar):
                raise self.stop(at, "a key must be text, not a mapping or a list")
            parent.key = (str(target.value), at)

    def resolve(self, event: ScalarEvent, at: Position) -> Any:
        """What an untagged plain scalar means in YAML 1.2's core schema; quoted ones are text."""
        text = str(event.value)
        tag = str(event.tag) if event.tag is not None else None
        if tag in ("!", _TAG + "str") or (tag is None and event.style is not None):
            return text
        value = _core(text)
        if tag is None:
            return value
        kinds = {"null": type(None), "bool": bool, "int": int, "float": (int, float)}
        kind: Any = kinds.get(tag.removeprefix(_TAG)) if tag.startswith(_TAG) else None
        if kind is None:
            raise self.stop(at, f"the tag {tag[:60]} is not known: tags are not used here")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.stop(at, f"the value is not what its tag {tag.removeprefix(_TAG)} says")
        return value


def _core(text: str) -> Any:
    """A plain scalar by YAML 1.2.2, section 10.3.2."""
    if text in _NULL:
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    if text[0] not in "-+.0123456789":
        return text
    if _DECIMAL.match(text):
        return int(text)
    if _OCTAL.match(text):
        return int(text, 0)
    if _HEXADECIMAL.match(text):
        return int(text, 0)
    if _FLOAT.match(text):
        return float(text)
    special = _SPECIAL.match(text)
    if special:
        return float("nan") if special.group(3) else float(special.group(1) + "inf")
    return text
