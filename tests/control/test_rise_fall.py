from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.control.rise_fall import RiseFall

# rise, fall, the checks (+ good, - bad), the verdict after each
TABLE = [
    (2, 3, "+", "U"),
    (2, 3, "-", "D"),
    (2, 3, "+--", "UUU"),
    (2, 3, "+---", "UUUD"),
    (2, 3, "+--+--", "UUUUUU"),
    (2, 3, "+---+", "UUUDD"),
    (2, 3, "+---++", "UUUDDU"),
    (2, 3, "-+-+", "DDDD"),
    (2, 3, "-++---", "DDUUUD"),
    (1, 1, "+-+-", "UDUD"),
    (3, 1, "+-+++", "UDDDU"),
]


@pytest.mark.parametrize(("rise", "fall", "checks", "verdicts"), TABLE)
def test_the_verdict_after_each_check(rise: int, fall: int, checks: str, verdicts: str) -> None:
    machine = RiseFall(rise, fall)
    found = ""
    for check in checks:
        before = machine.healthy
        changed = machine.feed(check == "+")
        assert changed == (machine.healthy != before)
        found += "U" if machine.healthy else "D"
    assert found == verdicts


def test_it_goes_on_from_what_was_known() -> None:
    machine = RiseFall(2, 3, healthy=True)
    machine.feed(False)
    assert machine.healthy


def test_the_words_say_how_far_a_check_counts() -> None:
    machine = RiseFall(2, 3)
    machine.feed(False)
    assert machine.words("connect refused") == "connect refused (first check)"
    machine.feed(False)
    assert machine.words("connect refused") == "connect refused (2 of 3 checks)"
    machine.feed(True)
    assert machine.words("status 200") == "status 200 (1 of 2 good checks)"
    machine.feed(True)
    assert machine.words("status 200") == "status 200"
    machine.feed(False)
    assert machine.words("connect refused") == "connect refused (1 of 3 checks)"
    machine.feed(False)
    machine.feed(False)
    assert machine.words("connect refused") == "connect refused (3 of 3 checks)"
    machine.feed(False)
    assert machine.words("connect refused") == "connect refused (3 of 3 checks)"


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_verdict_changes_only_after_a_whole_row(rise: int, fall: int, checks: list[bool]) -> None:
    machine = RiseFall(rise, fall)
    for place, good in enumerate(checks):
        if machine.feed(good) and place:
            row = rise if good else fall
            assert checks[max(0, place - row + 1) : place + 1] == [good] * row
        assert machine.streak < (fall if machine.healthy else rise)
