"""pydantic's errors in words for an operator."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import ErrorDetails

from l7lb.config.section import Reading
from l7lb.config.wording import REPORTED, choice, describe

_EXPECTED = re.compile(r"'([^']*)'")


def _text(value: Any) -> str:
    if isinstance(value, bool | int | float):
        written = str(value).lower() if isinstance(value, bool) else value
        return f'must be text, not {describe(value)}: write it in quotes, "{written}"'
    return f"must be text, not {describe(value)}"


def _literal(value: Any, expected: str) -> str:
    words = _EXPECTED.findall(expected)
    if isinstance(value, str):
        return choice("", value, words)
    hint = f': write it in quotes, "{value}"' if str(value) in words else ""
    return f"must be one of {', '.join(words)}, not {describe(value)}{hint}"


_TYPES = {
    "int_type": "a whole number, not {}",
    "int_from_float": "a whole number, not {}",
    "float_type": "a number, not {}",
    "finite_number": "a number, not {}",
    "bool_type": "true or false, not {}",
    "list_type": "a list, not {}: write it in [ ]",
    "dict_type": "a mapping of keys and values, not {}",
}


def message(error: ErrorDetails) -> str:
    """One of pydantic's errors as a sentence about the value."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "l7lb":
        return str(context["message"])
    if kind in _TYPES:
        return "must be " + _TYPES[kind].format(describe(value))
    if kind == "string_type":
        return _text(value)
    if kind == "literal_error":
        return _literal(value, str(context["expected"]))
    if kind in ("too_short", "string_too_short"):
        return "is empty: give at least one" if kind == "too_short" else "is empty"
    if kind == "string_too_long":
        return f"has more than {context['max_length']} characters"
    if kind == "greater_than_equal":
        return f"{describe(value)} is too small: at least {context['ge']}"
    if kind == "less_than_equal":
        return f"{describe(value)} is too large: at most {context['le']}"
    return error["msg"]


def report(error: ErrorDetails, reading: Reading) -> None:
    """Add one of pydantic's errors to the problems, unless the section has reported it in its own words."""
    kind = error["type"]
    if kind in (REPORTED, "missing", "extra_forbidden"):
        return
    location = error["loc"]
    key = bool(location) and location[-1] == "[key]"
    reading.problem(location[:-1] if key else location, message(error), key)
