"""The nearest known name, for an operator who mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHOWN = 8  # names listed when none is near


def suggestion(name: str, known: Iterable[str]) -> str:
    """What to add to "no server X": the nearest name, or the first known ones, or that there are none."""
    names = sorted(set(known))
    if not names:
        return "there are none"
    lower = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    if near:
        return f"did you mean {lower[near[0]]}?"
    more = len(names) - SHOWN
    return f"known: {', '.join(names[:SHOWN])}" + (f" and {more} more" if more > 0 else "")
