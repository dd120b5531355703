"""The stream of changes between nodes: state processes joined by a carrier of the test converge, whatever it does."""

from __future__ import annotations

import random
import socket
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sticky_helpers import everything

from l7lb.persistence import table as table_module
from l7lb.persistence.messages import ALL
from l7lb.persistence.state import StateProcess
from l7lb.persistence.stream import Batch, Inlet, Outlet, Want
from l7lb.persistence.table import TICKS, Delta, Table

NAME = "web/source"


@dataclass
class Node:
    """A node's state process, without workers: the tests write for them."""

    name: str
    lead: float = 0.0  # of its wall clock, in seconds
    offset: int = 0
    state: StateProcess = field(init=False)
    inlet: Inlet = field(init=False)
    outlet: Outlet = field(init=False)

    def __post_init__(self) -> None:
        # Each machine has a monotonic clock of its own: here all share one, and the offsets tell them apart.
        self.state = StateProcess(socket.socket(socket.AF_UNIX), None, 10_000)
        self.state._listening.close()
        self.offset = int(self.lead * TICKS)
        self.inlet = self.state.inlet(self.offset)
        self.outlet = self.state.outlet(self.name, self.offset)

    def table(self, name: str = NAME) -> Table:
        return self.state._table(name, 600.0)

    def contents(self, name: str = NAME) -> list[Delta]:
        """The table's entries with the wall clock's times, which must be the same at all nodes."""
        return [
            (key, server, ticks + self.offset, origin) for key, server, ticks, origin in everything(self.table(name))
        ]

    def wants(self, other: Node) -> None:
        for want in self.inlet.wants():
            other.outlet.want(want)


class Carrier:
    """Brings messages between two nodes: as well as ``chance`` lets it. Everything goes over as bytes."""

    def __init__(self, one: Node, other: Node, seed: int = 0, bad: float = 0.0) -> None:
        self.nodes = (one, other)
        self.chance = random.Random(seed)
        self.bad = bad
        self.under_way: list[tuple[Node, bytes]] = []

    def send(self, to: Node, message: Batch | Want) -> None:
        data = msgspec.msgpack.encode(message)
        if self.chance.random() < self.bad:
            return
        copies = 2 if self.chance.random() < self.bad else 1
        self.under_way += [(to, data)] * copies

    def round(self) -> None:
        """Everything that is to be sent is, and much of what is under way arrives."""
        one, other = self.nodes
        for source, target in ((one, other), (other, one)):
            for batch in source.outlet.take():
                self.send(target, batch)
        if self.bad:
            self.chance.shuffle(self.under_way)
        keep = self.chance.randrange(len(self.under_way) + 1) // 2 if self.bad else 0
        arriving, self.under_way = self.under_way[keep:], self.under_way[:keep]
        for target, data in arriving:
            source = one if target is other else other
            message: Any = msgspec.msgpack.decode(data, type=Batch | Want)
            if isinstance(message, Want):
                target.outlet.want(message)
                continue
            want = target.inlet.receive(message, time.monotonic())
            if want is not None:
                self.send(source, want)

    def tick(self) -> None:
        one, other = self.nodes
        for source, target in ((one, other), (other, one)):
            for batch in source.outlet.tick():
                self.send(target, batch)
            for want in target.inlet.wants():
                self.send(source, want)

    def settle(self) -> None:
        """Until both are the same, with a carrier that has become a good one."""
        self.bad = 0.0
        for _ in range(60):
            self.tick()
            for _ in range(20):
                self.round()
            if self.nodes[0].contents() == self.nodes[1].contents():
                return
        raise AssertionError("they did not converge")


def put(node: Node, key: bytes, server: str, name: str = NAME) -> None:
    node.table(name).put(key, server, time.monotonic())


def test_what_one_node_learns_the_other_knows_and_nothing_comes_back() -> None:
    one, other = Node("lb1"), Node("lb2")
    carrier = Carrier(one, other)
    put(one, b"anna", "web1")
    put(other, b"bob", "web2")
    carrier.round()
    carrier.round()
    assert one.contents() == other.contents()
    assert len(one.contents()) == 2
    put(one, b"carl", "web1")
    before = other.table().sequence
    carrier.round()
    carrier.round()
    assert other.table().sequence == before + 1
    assert [batch.deltas for batch in other.outlet.take()] == []


def test_changes_come_in_their_order_from_a_number_on() -> None:
    one = Node("lb1")
    put(one, b"a", "web1")
    position = one.table().sequence
    for key in (b"b", b"c"):
        put(one, key, "web1")
    one.outlet.want(Want(one.outlet.incarnation, NAME, position))
    (batch,) = one.outlet.take()
    assert (batch.since, batch.reaches, [delta[0] for delta in batch.deltas]) == (position, position + 2, [b"b", b"c"])
    assert one.outlet.take() == []


def test_a_gap_is_seen_and_filled() -> None:
    one, other = Node("lb1"), Node("lb2")
    put(one, b"a", "web1")
    Carrier(one, other).round()
    put(one, b"b", "web1")
    (lost,) = one.outlet.take()
    put(one, b"c", "web1")
    (late,) = one.outlet.take()
    want = other.inlet.receive(late, time.monotonic())
    assert want == Want(one.outlet.incarnation, NAME, lost.since)
    one.outlet.want(want)
    for batch in one.outlet.take():
        assert other.inlet.receive(batch, time.monotonic()) is None
    assert one.contents() == other.contents()


def test_the_loss_of_the_last_batch_shows() -> None:
    one, other = Node("lb1"), Node("lb2")
    put(one, b"a", "web1")
    Carrier(one, other).round()
    put(one, b"b", "web1")
    one.outlet.take()  # lost
    (beat,) = one.outlet.tick()
    want = other.inlet.receive(beat, time.monotonic())
    assert want is not None
    one.outlet.want(want)
    for batch in one.outlet.take():
        other.inlet.receive(batch, time.monotonic())
    assert one.contents() == other.contents()


def test_a_restart_is_taught_whole() -> None:
    one, other = Node("lb1"), Node("lb2")
    for number in range(3000):
        put(one, b"%d" % number, "web1")
    carrier = Carrier(one, other)
    for _ in range(50):
        carrier.round()
    assert len(other.contents()) == 3000
    again = Node("lb1")
    put(again, b"new", "web2")
    again.outlet.want(other.inlet.wants()[0])  # of another incarnation
    carrier = Carrier(again, other)
    other.outlet.want(Want(0, NAME, ALL))
    carrier.settle()
    assert len(again.contents()) == 3001


def test_who_is_behind_the_journal_is_taught_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "JOURNAL", 100)
    one, other = Node("lb1"), Node("lb2")
    put(one, b"a", "web1")
    carrier = Carrier(one, other)
    carrier.round()
    for number in range(1000):
        put(one, b"%d" % number, "web1")
    batches = one.outlet.take()
    assert batches[0].since == ALL
    for batch in batches:
        other.inlet.receive(batch, time.monotonic())
    assert one.contents() == other.contents()
    assert len(one.table()._journal) == 100  # that is all that is kept for others


def test_the_last_writer_wins_whatever_the_clocks_say() -> None:
    """The other node's clock is 20 s behind: who writes after he has heard of an entry wins all the same."""
    one, other = Node("lb1", lead=20.0), Node("lb2")
    carrier = Carrier(one, other)
    put(one, b"anna", "web1")
    carrier.settle()
    put(other, b"anna", "web2")
    carrier.settle()
    assert [delta[1] for delta in one.contents()] == ["web2"]


def test_a_deletion_is_a_change_and_is_remembered_for_a_time() -> None:
    one, other = Node("lb1"), Node("lb2")
    carrier = Carrier(one, other)
    put(one, b"anna", "web1")
    carrier.settle()
    (old,) = one.contents()
    other.table().delete(b"anna", time.monotonic())
    carrier.settle()
    assert [delta[1] for delta in one.contents()] == [""]
    late = Batch("lb3", 9, NAME, 600.0, 0, 1, [old])
    one.inlet.receive(late, time.monotonic())
    assert one.table().get(b"anna", time.monotonic()) is None
    one.table().tick(time.monotonic() + 700.0)
    assert one.contents() == []


def test_pins_go_to_other_nodes_as_well() -> None:
    one, other = Node("lb1"), Node("lb2")
    one.state._table("web/source#pins", 1e8).put(b"anna", "web1", time.monotonic())
    carrier = Carrier(one, other)
    carrier.round()
    assert [delta[:2] for delta in other.contents("web/source#pins")] == [(b"anna", "web1")]


writings = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 5), st.sampled_from(["web1", "web2", "web3", ""])), max_size=40
)


@given(seed=st.integers(0, 2**32), bad=st.floats(0.0, 0.6), rounds=st.lists(writings, min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_they_converge_over_a_carrier_that_loses_doubles_and_reorders(
    seed: int, bad: float, rounds: list[list[tuple[int, int, str]]]
) -> None:
    nodes = (Node("lb1", lead=random.Random(seed).uniform(-10, 10)), Node("lb2"))
    carrier = Carrier(*nodes, seed=seed, bad=bad)
    for written in rounds:
        for which, key, server in written:
            if server:
                put(nodes[which], b"%d" % key, server)
            else:
                nodes[which].table().delete(b"%d" % key, time.monotonic())
        carrier.round()
        if carrier.chance.random() < 0.3:
            carrier.tick()
    carrier.settle()
    assert len(nodes[0].contents()) == len({key for written in rounds for _, key, server in written if server})


@pytest.mark.parametrize(
    "batch",
    [
        Batch("lb2", 1, "", 600.0, 0, 1, [(b"a", "web1", 1, 1)]),
        Batch("lb2", 1, NAME, -1.0, 0, 1, [(b"a", "web1", 1, 1)]),
        Batch("lb2", 1, NAME, 600.0, 0, 1, [(b"x" * 256, "web1", 1, 1)]),
        Batch("lb2", 1, NAME, 600.0, 0, 1, [(b"a", "w" * 2000, 1, 1)]),
        Batch("lb2", 1, NAME, 600.0, 0, 1, [(b"a", "web1", 1, 0)]),
    ],
)
def test_what_can_t_be_is_refused(batch: Batch) -> None:
    node = Node("lb1")
    assert node.inlet.receive(batch, time.monotonic()) is None
    assert node.inlet.refused == 1
    assert node.contents() == []
