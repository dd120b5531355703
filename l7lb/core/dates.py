"""The wall clock for those who are told the time in monotonic seconds only: HTTP's Date field (RFC 9110 section 6.6.1).

Protocol machines have no clock. Whoever has one says by how much the wall clock is ahead of the monotonic one, again
and again, since an administrator or NTP may set it; until then no date is known and none is made up.
"""

from __future__ import annotations

from time import gmtime

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Dates:
    """Date fields, made once a second."""

    __slots__ = ("_field", "_from", "_known", "_offset", "_until")

    def __init__(self) -> None:
        self._known = False
        self._offset = 0.0
        self._field = b""
        self._from = 0.0
        self._until = 0.0

    def tell(self, offset: float) -> None:
        """The wall clock is so many seconds ahead of the monotonic one."""
        self._known = True
        self._offset = offset
        self._until = self._from = 0.0

    def field(self, now: float) -> bytes:
        """The complete line of a Date field for that monotonic second; nothing where the date is not known."""
        if self._known and not self._from <= now < self._until:
            whole = int(now + self._offset)
            self._from = whole - self._offset
            self._until = self._from + 1.0
            self._field = b"Date: %b\r\n" % imf_date(whole)
        return self._field


def imf_date(seconds: int) -> bytes:
    """Seconds since the epoch as HTTP writes a moment (IMF-fixdate, RFC 9110 section 5.6.7)."""
    at = gmtime(seconds)
    day, month = DAYS[at.tm_wday].encode(), MONTHS[at.tm_mon - 1].encode()
    return b"%b, %02d %b %04d %02d:%02d:%02d GMT" % (
        day, at.tm_mday, month, at.tm_year, at.tm_hour, at.tm_min, at.tm_sec,
    )  # fmt: skip


DATES = Dates()  # of this process; told by the proxy's runtime
