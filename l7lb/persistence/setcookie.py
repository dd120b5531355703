"""Reading Set-Cookie of a server's answer, as far as persistence needs it: name, value, and whether it deletes.

RFC 6265, section 4.1.1 says what a server should send, 5.2 what browsers make of the rest. What is learned here
decides where a user goes, so only the former is learned.
"""

from __future__ import annotations

import calendar
import re
from typing import NamedTuple

LIMIT = 8192  # bytes of a Set-Cookie value; browsers take 4,096 and some attributes

_PAIR = re.compile(rb"""([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=([!#-+\--:<-\[\]-~]*|"[!#-+\--:<-\[\]-~]*")[ \t]*\Z""")
_MAX_AGE = re.compile(rb"-?[0-9]{1,19}\Z")
_MONTHS = (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec")
_DATE = re.compile(rb"\A[a-z]{3,9}, (\d{2})[ -]([a-z]{3})[ -](\d{4}|\d{2}) (\d{2}):(\d{2}):(\d{2}) gmt\Z")


class SetCookie(NamedTuple):
    """A cookie that a server set; ``expires`` is in seconds of Unix time, ``max_age`` goes before it."""

    name: bytes
    value: bytes
    max_age: int | None
    expires: int | None

    def deletes(self, wall: float) -> bool:
        """Whether the browser will forget the cookie, at this Unix time."""
        if self.max_age is not None:
            return self.max_age <= 0
        return self.expires is not None and self.expires <= wall


def unquoted(value: bytes) -> bytes:
    """The value without the quotes around it, which are no part of it for some and are for others."""
    return value[1:-1] if len(value) > 1 and value[:1] == b'"' == value[-1:] else value


def parse_set_cookie(text: bytes) -> SetCookie | None:
    """The header's value taken apart; None where it isn't what RFC 6265 lets a server send."""
    if len(text) > LIMIT:
        return None
    first, *attributes = text.split(b";")
    pair = _PAIR.match(first.lstrip(b" \t"))
    if pair is None:
        return None
    max_age = expires = None
    for attribute in attributes:
        name, _, value = attribute.partition(b"=")
        name = name.strip(b" \t").lower()
        if name == b"max-age" and _MAX_AGE.match(value := value.strip(b" \t")):
            max_age = int(value)
        elif name == b"expires":
            expires = _date(value.strip(b" \t").lower())
    return SetCookie(pair[1], unquoted(pair[2]), max_age, expires)


def _date(text: bytes) -> int | None:
    """An RFC 1123 date, with the dashes and short years of older ones; None for anything else."""
    found = _DATE.match(text)
    if found is None or found[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(found[group]) for group in (1, 3, 4, 5, 6))
    if len(found[3]) == 2:
        year += 1900 if year >= 70 else 2000
    if not (1 <= day <= 31 and year >= 1601 and hour <= 23 and minute <= 59 and second <= 60):
        return None
    return calendar.timegm((year, _MONTHS.index(found[2]) + 1, day, hour, minute, second))
