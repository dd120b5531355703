"""Reading a configuration file: bytes, text, nodes, data, models, checks, snapshot, in this order.

Each step reports all it can find; only what makes the next step pointless ends the reading. Nothing but
ConfigurationError leaves :func:`load`, whatever the file holds.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from l7lb.config.checks import check_account, check_all, check_shown, check_unused
from l7lb.config.checks_mail import check_mail
from l7lb.config.compile import compile_settings, compile_snapshot
from l7lb.config.document import BYTES, Mapping, Node, plain
from l7lb.config.files import Unreadable, read_file
from l7lb.config.formats import json_text, toml_text, yaml_text
from l7lb.config.model import Configuration
from l7lb.config.section import Reading
from l7lb.config.settings import Loaded
from l7lb.config.translate import report
from l7lb.config.wording import describe
from l7lb.core.errors import ConfigurationError, Problem

PARSERS: dict[str, Callable[[str, str], Node | None]] = {
    "yaml": yaml_text.parse,
    "json": json_text.parse,
    "toml": toml_text.parse,
}
ENDINGS = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}


def load(
    path: str | os.PathLike[str],
    *,
    text: str | bytes | None = None,
    format: str | None = None,  # noqa: A002
) -> Loaded:
    """The compiled configuration of a file; its ending tells the format.

    With ``text`` nothing is read, and ``path`` only names the file and the directory that relative paths start
    from. ``format`` (yaml, json or toml) overrides the ending. Raises ConfigurationError with all problems.
    """
    file = os.fspath(path)
    format = format or _format(file)  # noqa: A001
    raw = _read(file) if text is None else text
    data = parse(raw if isinstance(raw, str) else _decode(raw, file), file, format)
    place = Path(os.path.abspath(file))
    reading = Reading(file, place.parent, data)
    configuration = _validate(reading)
    check_all(reading)
    if configuration is not None:
        check_shown(configuration, reading)
        check_mail(configuration, reading)
        check_unused(configuration, reading)
        check_account(configuration, reading)
    if configuration is None or reading.problems:
        raise ConfigurationError(_in_order(reading.problems))
    return Loaded(
        snapshot=compile_snapshot(configuration, reading),
        settings=compile_settings(configuration, reading, place),
        warnings=_in_order(reading.warnings),
    )


def parse(text: str, file: str, format: str) -> Mapping:  # noqa: A002
    """The text as data with positions, without the operator's own ``x-`` keys. Raises ConfigurationError."""
    if format not in PARSERS:
        raise _refused(file, f'the format "{format}" is not known; known: {", ".join(PARSERS)}')
    root = PARSERS[format](text, file)
    data = plain(root, file) if root is not None else None
    if data is None:
        raise _refused(file, "the file is empty: give listeners and pools", line=1)
    if not isinstance(data, Mapping):
        raise _refused(file, f"must be a mapping with keys such as listeners and pools, not {describe(data)}", line=1)
    for key in [key for key in data if key.startswith("x-")]:
        del data[key]
    return data


def _validate(reading: Reading) -> Configuration | None:
    try:
        return Configuration.model_validate(reading.root, context=reading)
    except ValidationError as errors:
        for error in errors.errors(include_url=False):
            report(error, reading)
    return None


def _in_order(problems: list[Problem]) -> list[Problem]:
    """By their place in the file, each once: aliases can lead to the same mistake several times."""
    unique: dict[tuple[int, int, str], Problem] = {}
    for problem in problems:
        unique.setdefault((problem.line, problem.column, problem.message), problem)
    return sorted(unique.values(), key=lambda problem: (problem.line, problem.column))


def _refused(file: str, message: str, line: int = 0) -> ConfigurationError:
    return ConfigurationError([Problem(file, line, line, "", message)])


def _format(file: str) -> str:
    ending = os.path.splitext(file)[1].lower()
    if ending not in ENDINGS:
        shown = f"the ending {ending}" if ending else "no ending"
        raise _refused(file, f"has {shown}, which tells no format; known: {', '.join(ENDINGS)}")
    return ENDINGS[ending]


def _read(file: str) -> bytes:
    """The file's bytes, no more than the limit. Raises ConfigurationError."""
    try:
        return read_file(file, BYTES)
    except Unreadable as problem:
        message = "is a directory: name the configuration file in it" if problem.directory else str(problem)
        raise _refused(file, message) from None


def _decode(raw: bytes, file: str) -> str:
    """UTF-8, with or without a byte order mark. Raises ConfigurationError."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _refused(file, "is UTF-16: save it as UTF-8", line=1)
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        message = f"is not UTF-8 text: the byte 0x{raw[error.start]:02x} can't stand here"
        raise ConfigurationError([Problem(file, line, column, "", message)]) from None
