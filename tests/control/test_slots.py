from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.control.slots import NoRowLeft, Slots
from l7lb.proxy.counts import ACTIVE, REQUESTS, Counts


def test_a_name_keeps_its_row_and_row_0_is_nobodys() -> None:
    slots = Slots()
    first = slots.assign(["a", "b"], None)
    assert sorted(first.values()) == [1, 2]
    assert slots.assign(["c", "b", "a"], None) == {**first, "c": 3}


def test_a_name_that_comes_back_gets_its_old_row_and_numbers(counts: Counts) -> None:
    slots = Slots()
    row = slots.assign(["a"], counts)["a"]
    counts.cells[counts.row(row) + REQUESTS] = 7
    slots.assign([], counts)
    assert slots.retired() == {"a": row}
    assert slots.assign(["a"], counts)["a"] == row
    assert counts.total(row, REQUESTS) == 7


def test_a_row_is_cleared_before_another_name_gets_it(counts: Counts) -> None:
    slots = Slots(rows=3)
    row = slots.assign(["a", "b"], counts)["a"]
    counts.cells[counts.row(row) + REQUESTS] = 7
    assert slots.assign(["b", "c"], counts)["c"] == row
    assert counts.total(row, REQUESTS) == 0


def test_a_row_with_work_in_progress_is_not_given_away(counts: Counts) -> None:
    slots = Slots(rows=4)
    rows = slots.assign(["a", "b", "c"], counts)
    counts.cells[counts.row(rows["a"]) + ACTIVE] = 1
    assert slots.assign(["c", "d"], counts)["d"] == rows["b"]
    with pytest.raises(NoRowLeft, match="still have sessions"):
        slots.assign(["c", "d", "e"], counts)
    assert slots.assign(["c", "d"], counts) == {"c": rows["c"], "d": rows["b"]}


def test_more_names_than_rows_are_refused_and_change_nothing() -> None:
    slots = Slots(rows=3)
    before = slots.assign(["a", "b"], None)
    with pytest.raises(NoRowLeft, match="3 listeners, limits, pools and servers are more than the 2"):
        slots.assign(["a", "b", "c"], None)
    assert slots.assign(["a", "b"], None) == before


def test_rows_that_another_supervisor_may_have_used_are_cleared(counts: Counts) -> None:
    counts.cells[counts.row(1) + REQUESTS] = 5
    counts.cells[counts.row(2) + REQUESTS] = 9
    counts.cells[counts.row(3) + ACTIVE] = 1
    slots = Slots()
    slots.adopt({"b": 2, "odd": 0})
    assert slots.assign(["b", "new", "newer"], counts) == {"b": 2, "new": 1, "newer": 4}
    assert counts.total(1, REQUESTS) == 0
    assert counts.total(2, REQUESTS) == 9


@given(st.lists(st.sets(st.sampled_from("abcdefgh"), max_size=5), max_size=20))
def test_rows_are_never_shared_and_never_change_while_a_name_stays(steps: list[set[str]]) -> None:
    slots = Slots(rows=9)
    before: dict[str, int] = {}
    for names in steps:
        now = slots.assign(sorted(names), None)
        assert set(now) == names
        assert len(set(now.values())) == len(now)
        assert all(now[name] == before[name] for name in now.keys() & before.keys())
        before = now
