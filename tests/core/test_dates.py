"""The Date field, for those who are told the time in monotonic seconds."""

from __future__ import annotations

from email.utils import formatdate

from hypothesis import given
from hypothesis import strategies as st

from l7lb.core.dates import Dates, imf_date


@given(st.integers(0, 253_402_300_799))
def test_a_date_is_written_as_others_write_it(seconds: int) -> None:
    assert imf_date(seconds).decode() == formatdate(seconds, usegmt=True)


def test_no_date_is_made_up() -> None:
    assert Dates().field(5.0) == b""


def test_a_date_lasts_to_the_end_of_its_second_and_no_longer() -> None:
    dates = Dates()
    dates.tell(99.75)
    assert dates.field(0.0) == b"Date: Thu, 01 Jan 1970 00:01:39 GMT\r\n"
    assert dates.field(0.24) == dates.field(0.0)
    assert dates.field(0.25) == b"Date: Thu, 01 Jan 1970 00:01:40 GMT\r\n"
    assert dates.field(0.0) == b"Date: Thu, 01 Jan 1970 00:01:39 GMT\r\n"


def test_a_clock_that_was_set_is_followed() -> None:
    dates = Dates()
    dates.tell(100.0)
    dates.field(0.5)
    dates.tell(3700.0)
    assert dates.field(0.5) == b"Date: Thu, 01 Jan 1970 01:01:40 GMT\r\n"
