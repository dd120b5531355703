"""The sticky table alone: use, expiry, size, changes."""

from __future__ import annotations

import itertools
import random

import pytest
from sticky_helpers import everything

from l7lb.persistence import table as module
from l7lb.persistence.table import KEY_LIMIT, MAX_SIZE, MAX_TTL, TICKS, Delta, Table


def make(ttl: float = 100.0, size: int = 1000, origin: int = 1, relay: bool = False) -> Table:
    return Table("web/source", ttl, size, origin, relay)


# --- use ----------------------------------------------------------------------------------------------------


def test_a_new_key_is_unknown() -> None:
    assert make().get(b"a", 1.0) is None


def test_what_was_put_is_found() -> None:
    table = make()
    assert table.put(b"a", "web1", 1.0)
    assert table.get(b"a", 2.0) == "web1"
    assert len(table) == 1


def test_another_server_takes_the_key_over() -> None:
    table = make()
    table.put(b"a", "web1", 1.0)
    assert table.put(b"a", "web2", 1.0)
    assert table.get(b"a", 1.0) == "web2"
    assert len(table) == 1


def test_deleted_is_forgotten_once() -> None:
    table = make()
    table.put(b"a", "web1", 1.0)
    assert table.delete(b"a", 2.0)
    assert table.get(b"a", 2.0) is None
    assert not table.delete(b"a", 2.0)
    assert not table.delete(b"b", 2.0)


def test_a_deleted_key_can_come_again() -> None:
    table = make()
    table.put(b"a", "web1", 1.0)
    table.delete(b"a", 1.0)
    table.put(b"a", "web2", 1.0)
    assert table.get(b"a", 1.0) == "web2"


@pytest.mark.parametrize(("key", "server"), [(b"", "web1"), (b"k" * (KEY_LIMIT + 1), "web1"), (b"k", "")])
def test_impossible_entries_are_refused(key: bytes, server: str) -> None:
    with pytest.raises(ValueError, match="a key has"):
        make().put(key, server, 1.0)


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        make(size=size)


@pytest.mark.parametrize("ttl", [0.0, -1.0, MAX_TTL * 1.1, float("inf"), float("nan")])
def test_impossible_times_to_live_are_refused(ttl: float) -> None:
    with pytest.raises(ValueError, match="time to live"):
        make(ttl=ttl)


@pytest.mark.parametrize("origin", [0, -1, 1 << 32])
def test_impossible_origins_are_refused(origin: int) -> None:
    with pytest.raises(ValueError, match="origin"):
        make(origin=origin)


def test_users_of_a_server_are_counted() -> None:
    table = make()
    for key in (b"a", b"b", b"c"):
        table.put(key, "web1", 1.0)
    table.put(b"c", "web2", 2.0)
    table.delete(b"b", 2.0)
    assert (table.users("web1"), table.users("web2"), table.users("web3")) == (1, 1, 0)


def test_names_of_past_servers_leave_nothing_behind() -> None:
    table = make()
    for number in range(5000):
        table.put(b"a", f"dns-{number}", float(number) / 100)
    assert table.users("dns-4999") == 1
    assert len(table._names) <= 3
    assert len(table._ids) == 2


# --- time ---------------------------------------------------------------------------------------------------


def test_an_entry_lives_its_time_from_the_last_use() -> None:
    table = make(ttl=100.0)
    table.put(b"a", "web1", 0.0)
    table.put(b"a", "web1", 90.0)
    assert table.get(b"a", 190.0) == "web1"
    assert table.get(b"a", 90.0 + 100.0 * 33 / 32 + 0.01) is None
    assert table.expired == 1
    assert len(table) == 0


def test_a_use_within_the_grain_still_lives_its_time() -> None:
    table = make(ttl=320.0)
    table.put(b"a", "web1", 0.0)
    assert not table.put(b"a", "web1", 9.9)
    assert table.get(b"a", 9.9 + 320.0) == "web1"


def test_looking_up_is_no_use() -> None:
    table = make(ttl=10.0)
    table.put(b"a", "web1", 0.0)
    table.get(b"a", 9.0)
    assert table.get(b"a", 11.0) is None


def test_a_new_time_to_live_counts_for_old_entries() -> None:
    table = make(ttl=100.0)
    table.put(b"a", "web1", 0.0)
    table.ttl = 10.0
    assert table.ttl == 10.0
    assert table.get(b"a", 50.0) is None


def test_a_new_time_to_live_can_save_an_entry() -> None:
    table = make(ttl=10.0)
    table.put(b"a", "web1", 0.0)
    table.ttl = 100.0
    assert table.get(b"a", 50.0) == "web1"


def test_tick_removes_what_has_expired_in_bounded_work() -> None:
    table = make(ttl=10.0, size=4000)
    for number in range(1000):
        table.put(b"%d" % number, "web1", 0.0)
    table.put(b"young", "web1", 8.0)
    assert table.tick(11.0, work=100)
    assert len(table) == 901
    while table.tick(11.0, work=100):
        pass
    assert len(table) == 1
    assert table.expired == 1000
    assert table.get(b"young", 11.0) == "web1"


def test_tick_comes_round_all_parts() -> None:
    table = make(ttl=10.0, size=200 * module.PART)
    assert table.parts == 128
    for number in range(150):
        table.put(b"%d" % number, "web1", 0.0)
    table.tick(11.0)
    assert 0 < len(table) < 150
    table.tick(11.0)
    assert len(table) == 0


def test_insertions_remove_what_has_expired() -> None:
    table = make(ttl=10.0, size=1000)
    for number in range(100):
        table.put(b"old%d" % number, "web1", 0.0)
    for number in range(100):
        table.put(b"new%d" % number, "web1", 20.0)
    assert len(table) == 100


# --- size ---------------------------------------------------------------------------------------------------


def test_the_least_recently_used_goes() -> None:
    table = make(ttl=32.0, size=3)
    for now, key in enumerate((b"a", b"b", b"c")):
        table.put(key, "web1", float(now))
    table.put(b"a", "web1", 5.0)
    table.put(b"d", "web1", 6.0)
    assert [table.get(key, 6.0) for key in (b"a", b"b", b"c", b"d")] == ["web1", None, "web1", "web1"]
    assert table.evicted == 1


def test_one_entry_is_a_size() -> None:
    table = make(size=1)
    table.put(b"a", "web1", 1.0)
    table.put(b"b", "web1", 1.0)
    assert len(table) == 1
    assert table.get(b"b", 1.0) == "web1"


def test_a_large_table_keeps_its_limit_and_its_newest() -> None:
    table = make(ttl=1e6, size=4 * module.PART)
    assert table.parts > 1
    for number in range(20 * module.PART):
        table.put(b"%d" % number, "web1", float(number))
        assert len(table) <= table.size
    kept = [number for number in range(20 * module.PART) if table.get(b"%d" % number, 1e4)]
    assert len(kept) == table.size
    assert min(kept) > 14 * module.PART  # of 16 that an exact order would keep from


def test_a_new_key_alone_in_its_part_does_not_push_itself_out() -> None:
    table = make(size=8 * module.PART)
    table.resize(4)
    for number in range(100):
        table.put(b"%d" % number, "web1", float(number) / 100)
        assert table.get(b"%d" % number, 1.0) == "web1"
        assert len(table) <= 4


def test_a_new_key_stays_while_a_table_shrinks() -> None:
    table = make(size=8 * module.PART)
    for number in range(100):
        table.put(b"%d" % number, "web1", float(number) / 100)
    table.resize(1)
    for number in range(100, 300):
        table.put(b"%d" % number, "web1", 1.0)
        assert table.get(b"%d" % number, 1.0) == "web1"
    assert len(table) == 1


def test_a_smaller_size_is_reached_by_insertions() -> None:
    table = make(size=100)
    for number in range(100):
        table.put(b"%d" % number, "web1", 0.0)
    table.resize(50)
    for number in range(60):
        table.put(b"n%d" % number, "web1", 1.0)
    assert len(table) == 50


# --- changes ------------------------------------------------------------------------------------------------


def test_every_writing_has_a_number() -> None:
    table = make()
    table.put(b"a", "web1", 1.0)
    table.put(b"a", "web1", 1.0)  # within the grain: none
    table.put(b"b", "web1", 1.0)
    table.delete(b"a", 2.0)
    assert table.sequence == 3


def test_changes_are_the_latest_of_each_key() -> None:
    table = make(origin=7)
    table.put(b"a", "web1", 1.0)
    table.put(b"b", "web1", 1.0)
    table.put(b"a", "web2", 2.0)
    found = table.since(0, 100)
    assert found == ([(b"a", "web2", 2 * TICKS, 7), (b"b", "web1", TICKS + 1, 7)], 3)
    assert table.since(3, 100) == ([], 3)


def test_changes_come_in_portions() -> None:
    table = make()
    for number in range(10):
        table.put(b"%d" % number, "web1", 1.0)
    position, got = 0, []
    while position != table.sequence:
        deltas, position = table.since(position, 3) or ([], -1)
        assert len(deltas) <= 3
        got += deltas
    assert [delta[0] for delta in got] == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("position", [-1, 11, 1 << 60])
def test_a_number_that_never_was_asks_for_the_whole(position: int) -> None:
    table = make()
    for number in range(10):
        table.put(b"%d" % number, "web1", 1.0)
    assert table.since(position, 100) is None


def test_who_is_behind_the_journal_reads_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JOURNAL", 5)
    table = make()
    for number in range(10):
        table.put(b"%d" % number, "web1", 1.0)
    assert table.since(4, 100) is None
    assert table.since(5, 100) is not None
    assert len(everything(table)) == 10


def test_what_was_seen_leaves_the_journal() -> None:
    table = make()
    for number in range(10):
        table.put(b"%d" % number, "web1", 1.0)
    table.seen(4)
    assert table.since(3, 100) is None
    assert len((table.since(4, 100) or ([], 0))[0]) == 6
    table.seen(99)
    assert table.since(10, 100) == ([], 10)
    table.put(b"x", "web1", 1.0)
    assert len((table.since(10, 100) or ([], 0))[0]) == 1


def test_wake_is_called_once_for_many_changes() -> None:
    table = make()
    calls = []
    table.wake = lambda: calls.append(1)
    table.put(b"a", "web1", 1.0)
    table.put(b"b", "web1", 1.0)
    assert len(calls) == 1


def test_the_later_writer_wins_whoever_comes_first() -> None:
    early, late = (b"a", "web1", 1 * TICKS, 9), (b"a", "web2", 2 * TICKS, 1)
    for order in ([early, late], [late, early], [late, early, late, early]):
        table = make(origin=5)
        table.merge(order, 2.0)
        assert table.get(b"a", 2.0) == "web2"


def test_of_two_at_the_same_time_the_greater_origin_wins() -> None:
    one, other = (b"a", "web1", TICKS, 1), (b"a", "web2", TICKS, 2)
    for order in ([one, other], [other, one]):
        table = make(origin=5)
        table.merge(order, 2.0)
        assert table.get(b"a", 2.0) == "web2"


def test_of_two_alike_the_greater_name_wins() -> None:
    one, other, gone = (b"a", "web1", TICKS, 1), (b"a", "web2", TICKS, 1), (b"a", "", TICKS, 1)
    for order in itertools.permutations([one, other, gone]):
        table = make(origin=5)
        table.merge(order, 2.0)
        assert table.get(b"a", 2.0) == "web2"


def test_an_own_writing_wins_over_what_it_has_seen() -> None:
    table = make(origin=1)
    table.merge([(b"a", "web1", int(2.005 * TICKS), 9)], 2.0)  # a clock reading some milliseconds ahead
    table.put(b"a", "web2", 2.0)
    other = make(origin=9)
    other.merge([(b"a", "web1", int(2.005 * TICKS), 9)], 2.0)
    other.merge(everything(table), 2.0)
    assert other.get(b"a", 2.0) == "web2"


def test_a_deletion_is_not_undone_by_an_older_change() -> None:
    table = make()
    table.put(b"a", "web1", 1.0)
    old = everything(table)
    table.delete(b"a", 2.0)
    assert table.merge(old, 3.0) == 0
    assert table.get(b"a", 3.0) is None


def test_what_has_expired_is_not_merged() -> None:
    table = make(ttl=10.0)
    assert table.merge([(b"a", "web1", TICKS, 2)], 100.0) == 0
    assert len(table) == 0


def test_what_comes_from_the_future_is_not_merged() -> None:
    table = make()
    assert table.merge([(b"a", "web1", 1000 * TICKS, 2)], 100.0) == 0


@pytest.mark.parametrize(
    "delta", [(b"", "web1", 1, 1), (b"k" * 256, "web1", 1, 1), (b"a", "w", 1, 0), (b"a", "w", 1, 1 << 32)]
)
def test_impossible_changes_are_refused(delta: Delta) -> None:
    with pytest.raises(ValueError, match="impossible"):
        make().merge([delta], 1.0)


def test_merged_changes_are_passed_on_by_a_relay_only() -> None:
    changes: list[Delta] = [(b"a", "web1", TICKS, 2), (b"a", "web1", TICKS, 2)]
    plain, relay = make(), make(relay=True)
    assert plain.merge(changes, 1.0) == relay.merge(changes, 1.0) == 1
    assert plain.sequence == 0
    assert relay.since(0, 10) == (changes[:1], 1)


def test_times_before_the_boot_are_times_too() -> None:
    table = make(ttl=100.0)
    table.merge([(b"a", "web1", -50 * TICKS, 2)], 1.0)
    assert table.get(b"a", 1.0) == "web1"
    assert everything(table) == [(b"a", "web1", -50 * TICKS, 2)]
    table.put(b"a", "web2", 1.0)
    assert table.get(b"a", 60.0) == "web2"


def test_merged_entries_are_limited_by_the_size() -> None:
    table = make(size=10)
    table.merge([(b"%d" % number, "web1", number, 2) for number in range(100)], 1.0)
    assert len(table) == 10


def test_late_changes_are_put_in_order_again() -> None:
    table = make(ttl=1000.0, size=100)
    numbers = list(range(100))
    random.Random(1).shuffle(numbers)
    table.merge([(b"%d" % number, "web1", number * 5 * TICKS, 2) for number in numbers], 500.0)
    while table.tick(500.0):
        pass
    assert [delta[2] for delta in table.part(0)] == [number * 5 * TICKS for number in range(100)]
    for number in range(50):
        table.put(b"n%d" % number, "web1", 500.0)
    assert all((table.get(b"%d" % number, 500.0) is None) == (number < 50) for number in range(100))
