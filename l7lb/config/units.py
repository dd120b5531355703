"""Values with their unit, as pydantic field types: durations (``10s``), sizes (``32KiB``), shares (``50%``) and rates
(``100/s``).

A number without a unit is refused: whether ``10`` means seconds or milliseconds shall not need a manual.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

from l7lb.config.wording import describe, wrong

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
RATES = {unit: SECONDS[unit] for unit in ("s", "m", "h", "d")}
FASTEST = 1e7  # a second
LONGEST = 366 * 86400.0  # seconds; more is a mistake, and would overflow what the kernel takes
LARGEST = 1024**5  # bytes

_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([A-Za-z%]+)\Z", re.ASCII)
_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)/([A-Za-z]+)\Z", re.ASCII)
_SIZE_MEANT = {"k": "KiB", "kb": "KiB", "kib": "KiB", "m": "MiB", "mb": "MiB", "mib": "MiB", "g": "GiB", "gb": "GiB"}
_SIZE_MEANT |= {"gib": "GiB", "t": "TiB", "tb": "TiB", "tib": "TiB", "b": "B", "byte": "B", "bytes": "B"}
_TIME_MEANT = {"sec": "s", "secs": "s", "second": "s", "seconds": "s", "min": "m", "mins": "m", "minute": "m"}
_TIME_MEANT |= {"minutes": "m", "hour": "h", "hours": "h", "hr": "h", "day": "d", "days": "d", "msec": "ms"}


def parse_duration(value: object) -> float:
    """``500ms``, ``10s``, ``1.5s``, ``5m``, ``1h``, ``2d`` as seconds; raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit: write {value}s, {value}ms ...")
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            f"is {describe(value)}, which is not a time: write a number with its unit, such as 10s or 500ms"
        )
    number, unit = match.groups()
    if unit not in SECONDS:
        meant = _TIME_MEANT.get(unit.lower(), unit.lower() if unit.lower() in SECONDS else "")
        hint = f"write {number}{meant}" if meant else "the units are ms, s, m, h and d"
        raise ValueError(f"{unit} is not a unit of time: {hint}")
    seconds = round(float(number) * SECONDS[unit], 9)
    if seconds > LONGEST:
        raise ValueError(f"{value} is more than a year")
    return seconds


def parse_size(value: object) -> int:
    """``32KiB``, ``10GiB``, ``100B`` as bytes; raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit: write {value}B, {value}KiB ...")
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"is {describe(value)}, which is not a size: write a number with its unit, such as 32KiB")
    number, unit = match.groups()
    if unit not in BYTES:
        meant = _SIZE_MEANT.get(unit.lower())
        hint = f"write {number}{meant}" if meant else "the units are B, KiB, MiB, GiB and TiB"
        raise ValueError(f"{unit} is not a unit of size: {hint}")
    size = float(number) * BYTES[unit]
    if size != int(size):
        raise ValueError(f"{value} is not a whole number of bytes")
    if size > LARGEST:
        raise ValueError(f"{value} is too large")
    return int(size)


def parse_rate(value: object) -> float:
    """``100/s``, ``600/m``, ``10000/h``, ``5/d`` as how many a second; raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value} does not say in which time: write {value}/s, {value}/m ...")
    match = _RATE.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            f"is {describe(value)}, which is not a rate: write how many in which time, such as 100/s or 600/m"
        )
    number, unit = match.groups()
    if unit not in RATES:
        meant = _TIME_MEANT.get(unit.lower(), unit.lower() if unit.lower() in RATES else "")
        raise ValueError(f"{unit} is not a time: write {number}/{meant}" if meant else f"{unit}: use s, m, h or d")
    rate = float(number) / RATES[unit]
    if rate > FASTEST:
        raise ValueError(f"{value} is more than any node takes")
    return rate


def parse_share(value: object) -> float:
    """``50%`` as 0.5; raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit: write a percentage, such as 50%")
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    if match is None or match[2] != "%":
        raise ValueError(f"is {describe(value)}, which is not a percentage: write a number with %, such as 50%")
    share = float(match[1]) / 100
    if share > 1:
        raise ValueError(f"{value} is more than 100%")
    return share


def format_duration(seconds: float) -> str:
    """Seconds in the largest unit that keeps them whole."""
    nanoseconds = round(seconds * 1e9)
    for unit in ("d", "h", "m", "s", "ms"):
        number, rest = divmod(nanoseconds, round(SECONDS[unit] * 1e9))
        if number and not rest:
            return f"{number}{unit}"
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def format_size(size: int) -> str:
    """Bytes in the largest unit that keeps them whole."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % BYTES[unit] == 0:
            return f"{size // BYTES[unit]}{unit}"
    return f"{size}B"


def format_rate(rate: float) -> str:
    """How many in the shortest time that makes them whole."""
    for unit, seconds in RATES.items():
        number = rate * seconds
        if number >= 1 and abs(number - round(number)) < 1e-6 * number:
            return f"{round(number)}/{unit}"
    return f"{rate:.9g}/s"


def format_share(share: float) -> str:
    """A share as a percentage."""
    return f"{round(share * 100, 7):g}%"


def _field(parse: Callable[[object], Any], positive: bool) -> BeforeValidator:
    def validate(value: object) -> Any:
        try:
            parsed = parse(value)
        except ValueError as error:
            raise wrong(str(error)) from None
        if positive and parsed <= 0:
            raise wrong(f"{value} is not more than nothing")
        return parsed

    return BeforeValidator(validate)


def _schema(unit: str, pattern: str, examples: list[str]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": examples, UNIT: unit})


UNIT = "x-unit"  # in the JSON schema, for those that format a default
FORMATS: dict[str, Callable[[Any], str]] = {
    "time": format_duration,
    "size": format_size,
    "share": format_share,
    "rate": format_rate,
}

_TIMES = _schema("time", r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$", ["10s", "500ms", "1h"])
_SIZES = _schema("size", r"^[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB)$", ["32KiB", "10GiB"])
_SHARES = _schema("share", r"^[0-9]+(\.[0-9]+)?%$", ["50%"])
_RATES = _schema("rate", r"^[0-9]+(\.[0-9]+)?/(s|m|h|d)$", ["100/s", "600/m"])

Duration = Annotated[float, _field(parse_duration, True), PlainSerializer(format_duration), _TIMES]
DurationOrZero = Annotated[float, _field(parse_duration, False), PlainSerializer(format_duration), _TIMES]
Size = Annotated[int, _field(parse_size, True), PlainSerializer(format_size), _SIZES]
Share = Annotated[float, _field(parse_share, False), PlainSerializer(format_share), _SHARES]
Rate = Annotated[float, _field(parse_rate, True), PlainSerializer(format_rate), _RATES]


def within(least: int, most: int) -> AfterValidator:
    """Limits of a size, as a validator."""

    def check(size: int) -> int:
        if not least <= size <= most:
            raise wrong(f"{format_size(size)} is not between {format_size(least)} and {format_size(most)}")
        return size

    return AfterValidator(check)
