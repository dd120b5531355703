"""The JSON schema of the configuration, for editors."""

from __future__ import annotations

from typing import Any

from l7lb.config.model import Configuration
from l7lb.config.units import FORMATS, UNIT

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema of a configuration file, with every key's meaning and default as it is written there."""
    schema: dict[str, Any] = _tidy(Configuration.model_json_schema(by_alias=True))
    return {
        "$schema": DIALECT,
        "title": "l7lb configuration",
        **schema,
        "patternProperties": {"^x-": {"description": "Yours, for anchors and the like: not looked at."}},
    }


def _tidy(node: Any, names: bool = False) -> Any:
    """Defaults with their units, and without what only repeats: titles made from names, defaults of whole sections.

    ``names`` says that the keys of ``node`` are keys of the file.
    """
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    if names:
        return {key: _tidy(value) for key, value in node.items()}
    tidy = {}
    for key, value in node.items():
        if key == "title" or (key == "default" and (value is None or isinstance(value, dict))):
            continue
        if key == "default":
            tidy[key] = _default(node, value)
        elif key == "description":
            tidy[key] = value.replace("``", "`")
        elif key not in (UNIT, "examples"):
            tidy[key] = _tidy(value, key in ("properties", "$defs"))
        elif key == "examples":
            tidy[key] = value
    return tidy


def _default(node: dict[str, Any], value: Any) -> Any:
    unit = node.get(UNIT)
    return FORMATS[unit](value) if unit else value
