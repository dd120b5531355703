"""Replicas that have seen the same changes are equal: in whatever order, and however often, these arrived."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from sticky_helpers import everything

from l7lb.persistence.table import TICKS, Delta, Table

KEYS = [b"a", b"b", b"c"]
SERVERS = ["web1", "web2", "web3"]
REPLICAS = 3
TTL = 10.0


replicas = st.integers(0, REPLICAS - 1)
keys = st.sampled_from(KEYS)
puts = st.tuples(st.just("put"), replicas, keys, st.sampled_from(SERVERS))
deletes = st.tuples(st.just("delete"), replicas, keys)
deliveries = st.tuples(st.just("deliver"), replicas, st.integers(0, 1000))
waits = st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 0.5, 4.0]))
commands = st.lists(st.one_of(puts, deletes, deliveries, waits), max_size=40)


def collect(table: Table, position: int, wire: list[Delta]) -> int:
    """Put what the replica wrote on the wire."""
    found = table.since(position, 10_000)
    assert found is not None
    wire += found[0]
    return found[1]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(commands, st.data())
def test_any_delivery_ends_equal(todo: list[tuple[object, ...]], data: st.DataObject) -> None:
    tables = [Table("t", TTL, 1000, origin=index + 1) for index in range(REPLICAS)]
    positions = [0] * REPLICAS
    wire: list[Delta] = []
    now = 1000.0
    for command in todo:
        match command:
            case ("put", int(index), bytes(key), str(server)):
                tables[index].put(key, server, now)
                positions[index] = collect(tables[index], positions[index], wire)
            case ("delete", int(index), bytes(key)):
                tables[index].delete(key, now)
                positions[index] = collect(tables[index], positions[index], wire)
            case ("deliver", int(index), int(which)) if wire:
                tables[index].merge([wire[which % len(wire)]], now)
            case ("wait", float(seconds)):
                now += seconds
                for table in tables:
                    table.tick(now)
    for table in tables:
        order = data.draw(st.permutations(wire))
        again = data.draw(st.lists(st.sampled_from(wire), max_size=5)) if wire else []
        table.merge(again, now)
        for delta in order:
            table.merge([delta], now)
        table.merge(again, now)
    for key in KEYS:
        assert len({table.get(key, now) for table in tables}) == 1
    for table in tables:
        while table.tick(now):
            pass
    live = [[delta for delta in everything(table) if delta[2] > (now - TTL) * TICKS] for table in tables]
    assert live[0] == live[1] == live[2]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(keys, st.sampled_from([*SERVERS, ""]), st.integers(0, 3), st.integers(1, 3)), max_size=12),
    st.randoms(),
)
def test_any_order_of_any_changes_ends_equal(changes: list[Delta], random: object) -> None:
    """Also of changes that no honest replica makes, such as two of one time and origin."""
    results = []
    for _ in range(3):
        random.shuffle(changes)  # type: ignore[attr-defined]
        table = Table("t", TTL, 1000, origin=9)
        table.merge(changes, 1.0)
        results.append(everything(table))
    assert results[0] == results[1] == results[2]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(replicas, keys, st.sampled_from(SERVERS)), max_size=40))
def test_a_whole_table_teaches_as_well_as_its_changes(writings: list[tuple[int, bytes, str]]) -> None:
    tables = [Table("t", TTL, 1000, origin=index + 1) for index in range(REPLICAS)]
    for number, (index, key, server) in enumerate(writings):
        tables[index].put(key, server, 1000.0 + number / 1000)
    by_changes, by_parts = Table("t", TTL, 1000, origin=8), Table("t", TTL, 1000, origin=9)
    for table in tables:
        wire: list[Delta] = []
        collect(table, 0, wire)
        by_changes.merge(wire, 1001.0)
    for table in reversed(tables):
        by_parts.merge(everything(table), 1001.0)
    assert everything(by_changes) == everything(by_parts)
