"""Writes plain data in the three formats, for tests that compare them."""

from __future__ import annotations

import json
import re
from typing import Any


def _scalar(value: Any) -> str:
    """A value in the words that YAML and TOML share, with text in double quotes."""
    if not isinstance(value, str):
        return json.dumps(value)
    text = ""
    for character in value:
        if " " <= character <= "~":
            text += "\\" + character if character in '"\\' else character
        else:
            text += f"\\U{ord(character):08x}"
    return f'"{text}"'


def to_json(data: Any) -> str:
    return json.dumps(data, indent=1)


def to_yaml(data: Any, indent: int = 0) -> str:
    """Block style; strings in double quotes, whose escapes YAML shares with JSON."""
    space = " " * indent
    if isinstance(data, dict) and data:
        return "".join(f"{space}{_scalar(key)}:{_below(value, indent)}" for key, value in data.items())
    if isinstance(data, list) and data:
        return "".join(f"{space}-{_below(value, indent)}" for value in data)
    return f"{space}{_scalar(data) if not isinstance(data, dict | list) else json.dumps(data)}\n"


def _below(value: Any, indent: int) -> str:
    if isinstance(value, dict | list) and value:
        return "\n" + to_yaml(value, indent + 2)
    return f" {_scalar(value) if not isinstance(value, dict | list) else json.dumps(value)}\n"


def to_toml(data: dict[str, Any]) -> str:
    """Tables for mappings, arrays of tables for lists of mappings, the rest inline. Has no word for None."""
    lines: list[str] = []
    _tables(data, "", lines)
    return "\n".join(lines) + "\n"


def _tables(data: dict[str, Any], prefix: str, lines: list[str]) -> None:
    later = []
    for key, value in data.items():
        if isinstance(value, dict) or (isinstance(value, list) and value and all(isinstance(v, dict) for v in value)):
            later.append((f"{prefix}{_key(key)}", value))
        else:
            lines.append(f"{_key(key)} = {_inline(value)}")
    for name, value in later:
        for inner in value if isinstance(value, list) else [value]:
            lines.append(f"[[{name}]]" if isinstance(value, list) else f"[{name}]")
            _tables(inner, f"{name}.", lines)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _scalar(key)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_inline(inner) for inner in value) + "]"
    return _scalar(value)
