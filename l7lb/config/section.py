"""What all models have in common: a section of the file that knows its place.

While pydantic validates, each section reports unknown and missing keys itself (it knows which keys it has), registers
with the :class:`Reading`, and runs its own checks as soon as it is valid, whatever is wrong elsewhere. So one pass
finds all problems.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from l7lb.config.document import Mapping, Path, describe_path, locate
from l7lb.config.wording import choice, describe, listing, nearest, printable, quoted, wrong
from l7lb.core.errors import Problem

_FIRST_CLAUSE = re.compile(r"[:;(]|\.(?:\s|\Z)")

UNKNOWN = 100  # unknown keys of one mapping that are reported


@dataclass
class Reading:
    """One configuration file while it is read: what it says, and what is wrong with it."""

    file: str  # as the operator named it
    base: FilePath  # the directory that relative paths start from
    root: Mapping
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def problem(self, path: Path, message: str, key: bool = False) -> None:
        """Something that can't work, at the value (or the key) of ``path``."""
        self.problems.append(self._at(path, message, key))

    def warning(self, path: Path, message: str, key: bool = False) -> None:
        """Something that works but hardly as meant."""
        self.warnings.append(self._at(path, message, key))

    def _at(self, path: Path, message: str, key: bool) -> Problem:
        found, position = locate(self.root, path, key)
        return Problem(self.file, position.line, position.column, describe_path(found), printable(message))

    def line(self, path: Path) -> int:
        """The line where the value of ``path`` begins."""
        return locate(self.root, path)[1].line

    def each(self, kind: type[SectionKind]) -> Iterator[SectionKind]:
        """The valid sections of a kind, in the file's order."""
        return (section for section in self.sections if isinstance(section, kind))


class Section(BaseModel):
    """A mapping of the file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    _place: Path = PrivateAttr(default=())
    _strange: bool = PrivateAttr(default=False)

    @property
    def place(self) -> Path:
        """Its path in the document; () for one that a short form stands for."""
        return self._place

    @property
    def silent(self) -> bool:
        """Whether nothing was meant either: an unknown key that was reported may be what is missed."""
        return not self._strange

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys it may have, as they are written."""
        return tuple(info.alias or name for name, info in cls.model_fields.items())

    @classmethod
    def normal_form(cls, data: Any) -> Any:
        """The mapping that a short form of this section stands for."""
        return data

    def check(self, reading: Reading) -> None:
        """Report what the types alone can't tell; called once all keys are valid."""

    def complain(self, reading: Reading, message: str, *below: str | int) -> None:
        """Report a problem with this section, or with what stands at ``below`` in it."""
        reading.problem((*self._place, *below), message)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        data = cls.normal_form(data)
        if not isinstance(data, dict):
            raise wrong(f"must be a mapping, not {describe(data)}; its keys: {listing(cls.keys())}")
        reading = info.context
        if not isinstance(reading, Reading) or not isinstance(data, Mapping):
            return handler(data)
        known = cls._known(data, reading)
        section = handler(known)
        section._place = data.path
        section._strange = len(known) < len(data)
        reading.sections.append(section)
        section.check(reading)
        return section

    @classmethod
    def _known(cls, data: Mapping, reading: Reading) -> dict[str, Any]:
        """The data without unknown keys; these and missing ones are reported."""
        keys = cls.keys()
        unknown = [key for key in data if key not in keys]
        for key in unknown[:UNKNOWN]:
            message = f"{quoted(key)} is not known here{nearest(key, keys)}"
            message += f"{'' if message.endswith('?') else ';'} known: {listing(sorted(keys))}"
            reading.problem((*data.path, key), message, key=True)
        if len(unknown) > UNKNOWN:
            message = f"{len(unknown) - UNKNOWN} more keys are not known here"
            reading.problem((*data.path, unknown[UNKNOWN]), message, key=True)
        for name, info in cls.model_fields.items():
            if info.is_required() and (info.alias or name) not in data:
                meaning = _FIRST_CLAUSE.split(info.description or "")[0]
                meaning = meaning[:1].lower() + meaning[1:]
                reading.problem(data.path, f"{quoted(info.alias or name)} is missing: {meaning}")
        return {key: value for key, value in data.items() if key in keys}


class Shorthand(Section):
    """A section that a single word can stand for; ``word`` is that word, and no key of the file."""

    WORDS: ClassVar[tuple[str, ...]] = ()

    word: str | None = None

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        inherited = super().keys()
        return tuple(key for key in inherited if key != "word")

    @classmethod
    def normal_form(cls, data: Any) -> Any:
        return {"word": cls.read_word(data)} if isinstance(data, str) else data

    @classmethod
    def read_word(cls, word: str) -> str:
        """The word, if it can stand alone; raises a validator's error."""
        if word in cls.WORDS:
            return word
        raise wrong(choice("this", word, cls.WORDS))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        mapping = handler.resolve_ref_schema(handler(schema))
        mapping.get("properties", {}).pop("word", None)
        inner = dict(mapping)
        mapping.clear()
        mapping |= {"anyOf": [{"type": "string", "enum": list(cls.WORDS)}, inner]}
        return mapping


SectionKind = TypeVar("SectionKind", bound=Section)


def seconds(section: Section) -> dict[str, Any]:
    """A section's values by their keys, durations in seconds and sizes in bytes."""
    return {name: getattr(section, name) for name in type(section).model_fields}
