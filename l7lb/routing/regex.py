"""Regular expressions that a client's path can't make slow.

Python's matcher goes back and tries again, and a pattern such as ``(a+)+$`` takes time that doubles with every byte
that a client adds; nothing can interrupt it. So a pattern is judged when the configuration is read: the worst number
of steps on a path of a given length is estimated from the parsed pattern.

- A repetition with a choice inside (another repetition, alternatives that can begin alike) is refused at once: that
  is where exponential time comes from. Possessive repetitions and atomic groups (``++``, ``(?>...)``) never go back
  and may stand inside.
- A repetition whose end is certain, since what follows can't begin with what it repeats (``[^/]+/``), is one scan.
- One whose end has to be found by trying (``.*x``) does what follows once for each length it may have, and a pattern
  that isn't tied with ``^`` is tried at each place.

From this comes the longest path that a pattern may see, ``limit``: 32 KiB where its work grows with the length, about
1,000 bytes where it grows with the square, and a pattern that can't see ``LEAST_INPUT`` bytes is refused. A path
beyond the limit, in a request whose route depends on the pattern, matches no rule at all: failing just this condition
would let a long path walk around the rule.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

BUDGET = 2_400_000  # steps; one takes some nanoseconds
INPUTS = (32_768, 16_384, 8192, 4096, 2048, 1024, 768)
LEAST_INPUT = INPUTS[-1]
MAX_PATTERN = 1024

# The parser behind `re`; `sre_parse`, its public name, is deprecated.
_parser: Any = importlib.import_module("re._parser")

ALL = (1 << 256) - 1
DIGIT = sum(1 << code for code in b"0123456789")
SPACE = sum(1 << code for code in b" \t\n\r\f\v")
WORD = sum(1 << code for code in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
CATEGORIES = {
    "CATEGORY_DIGIT": DIGIT,
    "CATEGORY_NOT_DIGIT": ALL ^ DIGIT,
    "CATEGORY_SPACE": SPACE,
    "CATEGORY_NOT_SPACE": ALL ^ SPACE,
    "CATEGORY_WORD": WORD,
    "CATEGORY_NOT_WORD": ALL ^ WORD,
}
BEGINNINGS = ("AT_BEGINNING", "AT_BEGINNING_STRING")

Items = list[tuple[str, Any]]


class _Refused(Exception):
    """The reason, in words for the operator."""


class Regex:
    """A compiled pattern for ``search``, and the longest input in bytes that it may be given.

    Raises ValueError, in words for the operator, for what is no pattern or could take long.
    """

    __slots__ = ("limit", "pattern", "search")

    def __init__(self, text: str, exact_case: bool = False) -> None:
        if len(text) > MAX_PATTERN:
            raise ValueError(f"the regular expression is longer than {MAX_PATTERN} characters")
        if not text.isascii():
            raise ValueError("paths are percent-encoded when they are compared: write other characters as %XX")
        try:
            self.pattern = re.compile(text.encode(), 0 if exact_case else re.IGNORECASE)
            items = _items(_parser.parse(text.encode(), re.IGNORECASE))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        self.search = self.pattern.search
        self.limit = _limit(items)


def check_regex(text: str) -> str | None:
    """What is wrong with a regular expression, in words for the operator; None: it is fine."""
    try:
        Regex(text)
    except ValueError as problem:
        return str(problem)
    return None


def _limit(items: Items) -> int:
    anchored = _anchored(items)
    try:
        for size in INPUTS:
            if (1 if anchored else size) * _work(items, 0, 1, size) <= BUDGET:
                return size
    except _Refused as refused:
        raise ValueError(f"could take very long on some paths: {refused}") from None
    hint = "" if anchored else ' begin it with "^", or'
    raise ValueError(
        f"could take very long on some paths, since several repetitions can share the same characters:{hint} "
        'repeat less than "." (such as [^/]*)'
    )


def _items(parsed: Any) -> Items:
    return [(str(code), argument) for code, argument in parsed]


def _work(items: Items, follow: int, after: int, size: int) -> int:
    """The worst number of steps of ``items`` on ``size`` bytes, where what comes after begins with a byte of
    ``follow`` and takes ``after`` steps each time it is tried.
    """
    for code, argument in reversed(items):
        after = _work_of(code, argument, follow, after, size)
        first, nullable = _first_of(code, argument)
        follow = first | follow if nullable else first
    return after


def _work_of(code: str, argument: Any, follow: int, after: int, size: int) -> int:
    if code in ("MAX_REPEAT", "MIN_REPEAT"):
        return _repeat_work(argument, follow, after, size)
    if code == "POSSESSIVE_REPEAT":
        _refuse_choices(_items(argument[2]))
        return size + after
    if code == "ATOMIC_GROUP":
        return _work(_items(argument), 0, 1, size) + after
    if code == "SUBPATTERN":
        return _work(_items(argument[3]), follow, after, size)
    if code in ("ASSERT", "ASSERT_NOT"):
        return _work(_items(argument[1]), 0, 1, size) + after
    if code == "BRANCH":
        branches = [_items(branch) for branch in argument[1]]
        works = [_work(branch, follow, after, size) for branch in branches]
        return sum(works) if _overlap(branches) else max(works) + len(works)
    if code.startswith("GROUPREF"):
        raise _Refused("it refers back to a group")
    return after  # single bytes: nearly all tries end at the first


def _repeat_work(argument: Any, follow: int, after: int, size: int) -> int:
    least, most, parsed = argument
    body = _items(parsed)
    first, nullable = _first(body)
    certain = not nullable and not first & follow
    if most == 1:
        return _work(body, follow, after, size) + (1 if certain else after)
    _refuse_choices(body)
    most = min(int(most), size)
    return most + (1 if certain else max(1, most - int(least))) * after


def _refuse_choices(items: Items) -> None:
    """Raise where a repeated part can match the same text in more than one way."""
    for code, argument in items:
        if code in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, body = argument
            if least != most:
                raise _Refused("a repetition inside a repetition; write it without, or make the inner one possessive")
            _refuse_choices(_items(body))
        elif code == "SUBPATTERN":
            _refuse_choices(_items(argument[3]))
        elif code == "BRANCH":
            branches = [_items(branch) for branch in argument[1]]
            if _overlap(branches):
                raise _Refused("a repetition of alternatives that can begin alike")
            for branch in branches:
                _refuse_choices(branch)
        elif code.startswith("GROUPREF"):
            raise _Refused("it refers back to a group")
        elif code in ("ASSERT", "ASSERT_NOT"):
            raise _Refused("it looks ahead or behind inside a repetition")


def _overlap(branches: list[Items]) -> bool:
    seen = 0
    for branch in branches:
        first, nullable = _first(branch)
        if nullable or first & seen:
            return True
        seen |= first
    return False


def _anchored(items: Items) -> bool:
    """Whether a match can begin at the beginning only."""
    if not items:
        return False
    code, argument = items[0]
    if code == "AT":
        return str(argument) in BEGINNINGS
    if code == "SUBPATTERN":
        return _anchored(_items(argument[3]))
    if code == "BRANCH":
        return all(_anchored(_items(branch)) for branch in argument[1])
    return False


# --- which bytes can come first, as a set of 256 bits ----------------------------------------------------------------


def _first(items: Items) -> tuple[int, bool]:
    """The bytes that a match of ``items`` can begin with, and whether it can be empty."""
    found = 0
    for code, argument in items:
        first, nullable = _first_of(code, argument)
        found |= first
        if not nullable:
            return found, False
    return found, True


def _first_of(code: str, argument: Any) -> tuple[int, bool]:
    if code in ("LITERAL", "NOT_LITERAL", "IN", "ANY"):
        return _byte_set(code, argument), False
    if code in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        first, nullable = _first(_items(argument[2]))
        return first, nullable or argument[0] == 0
    if code == "ATOMIC_GROUP":
        return _first(_items(argument))
    if code == "SUBPATTERN":
        return _first(_items(argument[3]))
    if code == "BRANCH":
        firsts = [_first(_items(branch)) for branch in argument[1]]
        found = 0
        for first, _ in firsts:
            found |= first
        return found, any(nullable for _, nullable in firsts)
    # Anchors and assertions take no byte themselves.
    return (0, True) if code in ("AT", "ASSERT", "ASSERT_NOT") else (ALL, False)


def _byte_set(code: str, argument: Any) -> int:
    if code == "ANY":
        return ALL ^ (1 << 10)
    if code == "LITERAL":
        return _both_cases(1 << argument)
    if code == "NOT_LITERAL":
        return ALL ^ (1 << int(argument))
    found = 0
    negated = False
    for kind, value in argument:
        name = str(kind)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            found |= 1 << value
        elif name == "RANGE":
            low, high = value
            found |= (1 << high + 1) - (1 << low)
        else:
            found |= CATEGORIES.get(str(value), ALL)
    return ALL ^ found if negated else _both_cases(found)


def _both_cases(bits: int) -> int:
    upper = bits & (((1 << 26) - 1) << 65)
    lower = bits & (((1 << 26) - 1) << 97)
    return bits | upper << 32 | lower >> 32
