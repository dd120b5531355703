"""How values, keys and suggestions are worded in problems, in one place so that they read alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic_core import PydanticCustomError

LONGEST = 60  # characters of a value that a message repeats
LONGEST_NAME = 200  # characters of a name that is compared with others
COMPARED = 200  # names that one is compared with
LISTED = 12  # names that a message lists


def wrong(message: str) -> PydanticCustomError:
    """A validator's verdict, in words for the operator."""
    return PydanticCustomError("l7lb", "{message}", {"message": message})


REPORTED = "l7lb_reported"


def reported() -> PydanticCustomError:
    """A validator's verdict where the problem itself has been reported already."""
    return PydanticCustomError(REPORTED, "reported")


def printable(text: str) -> str:
    """Text that may hold anything, fit for a terminal and a line of a log: control characters as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(text: str) -> str:
    """A value from the file, short and printable, in quotes."""
    shown = printable(text[: LONGEST + 1])
    if len(shown) > LONGEST:
        shown = shown[:LONGEST] + "..."
    return f'"{shown}"'


def describe(value: Any) -> str:
    """What stands in the file, in an operator's terms."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {str(value)[:LONGEST]}"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "a date" if hasattr(value, "isoformat") else "something else"


def listing(names: Iterable[str]) -> str:
    """Names with commas, and how many more there are."""
    known = [str(name) for name in names]
    text = ", ".join(printable(name) for name in known[:LISTED])
    return text if len(known) <= LISTED else f"{text} and {len(known) - LISTED} more"


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean "x"?`` where some known name is like this one, else nothing."""
    if len(name) > LONGEST_NAME:
        return ""
    known = list(known)
    if len(known) > COMPARED:  # comparing with all takes long, and a mistake seldom changes the first letter
        known = [other for other in known if other[:1].lower() == name[:1].lower()][:COMPARED]
    lowered = {other.lower().replace("_", "-"): other for other in reversed(known)}
    close = difflib.get_close_matches(name.lower().replace("_", "-"), lowered, n=1, cutoff=0.6)
    return f"; did you mean {quoted(lowered[close[0]])}?" if close else ""


def choice(what: str, name: str, known: Iterable[str]) -> str:
    """That ``name`` is none of ``known``, with the nearest and the list."""
    known = list(known)
    text = f"{what} {quoted(name)} is not known{nearest(name, known)}".lstrip()
    return f"{text}{'' if text.endswith('?') else ';'} known: {listing(known)}"
