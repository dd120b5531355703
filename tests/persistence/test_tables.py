"""A worker's set of tables: they live as long as somebody holds them."""

from __future__ import annotations

import gc

import pytest

from l7lb.core.snapshot import Tables as Limits
from l7lb.persistence.tables import Tables, new_origin


def test_a_name_is_one_table() -> None:
    tables = Tables(Limits(100))
    first = tables.table("web/source", 60.0)
    assert tables.table("web/source", 60.0) is first
    assert tables.get("web/source") is first
    assert tables.table("web/header/x", 60.0) is not first
    assert (first.size, first.ttl, first.origin) == (100, 60.0, tables.origin)


def test_a_table_that_is_held_carries_over() -> None:
    tables = Tables(Limits())
    old = tables.table("web/source", 60.0)
    old.put(b"a", "web1", 1.0)
    new = tables.table("web/source", 120.0)
    del old
    assert new.get(b"a", 100.0) == "web1"
    assert new.ttl == 120.0


def test_a_table_that_nobody_holds_goes() -> None:
    tables = Tables(Limits())
    table = tables.table("web/source", 60.0)
    assert set(tables.held()) == {table, table.pins}
    del table
    gc.collect()
    assert tables.held() == []
    assert tables.get("web/source") is None


def test_other_limits_reach_all_tables() -> None:
    tables = Tables(Limits(100))
    table = tables.table("web/source", 60.0)
    tables.resize(Limits(50))
    assert table.size == 50
    assert tables.table("new", 60.0).size == 50


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        Tables(Limits(0)).table("web/source", 60.0)


def test_wake_is_called_for_new_and_altered_tables() -> None:
    tables = Tables(Limits(100))
    calls: list[int] = []

    def arm() -> int:
        tables.wake = lambda: calls.append(1)
        return len(calls)

    arm()
    table = tables.table("web/source", 60.0)
    assert arm() == 1
    tables.table("web/source", 60.0)
    assert arm() == 1
    table = tables.table("web/source", 61.0)
    assert arm() == 2
    tables.resize(Limits(100))
    assert arm() == 2
    tables.resize(Limits(99))
    assert arm() == 3
    assert table.size == 99


def test_a_life_is_ten_years_at_most() -> None:
    assert Tables(Limits(100)).table("web/source", 1e12).ttl == 10 * 365 * 86_400


def test_tick_reaches_all_tables() -> None:
    tables = Tables(Limits(100))
    held = [tables.table(name, 10.0) for name in ("a", "b")]
    for table in held:
        table.put(b"k", "web1", 1.0)
    assert not tables.tick(50.0)
    assert [len(table) for table in held] == [0, 0]


def test_origins_differ() -> None:
    origins = {new_origin() for _ in range(100)}
    assert len(origins) > 90
    assert all(0 < origin < 1 << 32 for origin in origins)
