"""Who accepts from which socket: right after any order of events."""

from __future__ import annotations

import signal
import socket

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from l7lb.proxy import counts
from l7lb.proxy.workers import channel, herd
from l7lb.proxy.workers.children import DIRECTORIES, STATE, WORKER, Child, Pauses
from l7lb.proxy.workers.herd import Bind, Herd
from l7lb.proxy.workers.listening import open_sockets


class FakeChild(Child):
    """A process that isn't there; ``theirs`` is its end of the control channel."""

    theirs: socket.socket
    signals: tuple[int, ...] = ()

    def reap(self) -> int | None:
        self.theirs.close()
        assert self.control is not None
        self.control.close()
        return -9

    def signal(self, number: int) -> None:
        self.signals += (number,)

    def heard(self) -> list[dict]:
        """What it was told since."""
        found = []
        self.theirs.setblocking(False)
        while True:
            try:
                packet, descriptors = channel.receive(self.theirs)
            except BlockingIOError:
                return found
            channel.close_all(descriptors)
            if packet["op"] == "serve":
                assert len(packet["new"]) == len(descriptors)
            found.append(packet)


class World:
    """A herd whose children are fakes, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.pid = 0
        self.events: list[tuple[str, int]] = []
        descriptor = counts.create()
        self.herd = Herd(
            descriptor,
            lambda child: self.events.append(("started", child.pid)),
            lambda child: self.events.append(("leaving", child.pid)),
            lambda child, code: self.events.append(("ended", child.pid)),
        )
        self.commands: list[list[str]] = []
        monkeypatch.setattr(herd, "start_worker", self.start_worker)
        monkeypatch.setattr(herd, "spawn", self.spawn)
        monkeypatch.setattr(herd, "Child", self.make_child)

    def spawn(self, command: list[str]) -> int:
        self.commands.append(command)
        self.pid += 1
        return self.pid

    def make_child(self, kind: str, pid: int, **fields) -> FakeChild:
        child = FakeChild(kind, pid, **fields)
        child.control, child.theirs = channel.pair()
        return child

    def start_worker(self, options, index: int, block: int, generation: int, now: float) -> FakeChild:
        ours, theirs = channel.pair()
        ours.setblocking(False)
        self.pid += 1
        child = FakeChild(WORKER, self.pid, index, block, generation, now, control=ours)
        child.theirs = theirs
        return child

    def open(self, key: str, count: int, shared: bool = False) -> None:
        sockets = open_sockets("127.0.0.1", 0, "", backlog=5, count=1 if shared else count)
        self.herd.open(Bind(key, "127.0.0.1", 0, "", 5, shared, sockets))

    def advance(self, seconds: float = 0.0) -> float | None:
        self.now += seconds
        return self.herd.advance(self.now)

    def close(self) -> None:
        for child in self.herd.children:
            child.reap()
        for bind in self.herd.binds.values():
            bind.close(unlink=False)
        self.herd._cells.close()


@pytest.fixture
def world(monkeypatch):
    made = World(monkeypatch)
    yield made
    made.close()


def ready(world: World) -> list[FakeChild]:
    for child in world.herd.workers:
        child.ready = True
    world.advance()
    return world.herd.workers


def test_workers_get_their_own_sockets_once_they_are_ready(world: World) -> None:
    world.open("a", 2)
    world.herd.wanted.count = 2
    world.advance()
    first, second = world.herd.workers
    assert [packet["op"] for packet in first.heard()] == ["start"]
    second.ready = True
    world.advance()
    assert second.served == {"a": {0, 1}}  # the first is not ready
    first.ready = True
    world.advance()
    assert first.served == {"a": {0}}
    assert second.served == {"a": {1}}
    assert [(p["slots"], p["new"]) for p in second.heard() if p["op"] == "serve"] == [([0, 1], [0, 1]), ([1], [])]


def test_a_sibling_serves_for_a_dead_worker_before_anything_else_happens(world: World) -> None:
    world.open("a", 2)
    world.herd.wanted.count = 2
    world.advance()
    first, second = ready(world)
    cells = world.herd._cells.cells
    gauge, counter = (
        first.block * counts.ROWS * counts.COLUMNS,
        first.block * counts.ROWS * counts.COLUMNS + counts.CONNECTIONS,
    )
    row = 5 * counts.COLUMNS
    cells[gauge + row], cells[counter + row] = 7, 9
    world.herd.remove(first, world.now)
    assert second.served == {"a": {0, 1}}
    assert (cells[gauge + row], cells[counter + row]) == (0, 9)
    world.advance()
    successor = world.herd.workers[-1]
    assert (successor.index, successor.block) == (first.index, first.block)


def test_a_new_generation_takes_over_one_by_one(world: World) -> None:
    world.open("a", 2)
    world.herd.wanted.count = 2
    world.advance()
    old = ready(world)
    world.herd.wanted.generation += 1
    world.advance()
    new = [child for child in world.herd.workers if child not in old]
    assert {child.block for child in new}.isdisjoint(child.block for child in old)
    assert world.herd._cells.blocks == 4
    new[0].ready = True
    world.advance()
    world.advance()
    assert [child.leaving for child in old] == [True, False]
    assert (new[0].served, old[0].served, old[1].served) == ({"a": {0}}, {}, {"a": {1}})
    assert [packet["op"] for packet in old[0].heard()][-2:] == ["serve", "drain"]
    assert new[1].served == {}


def test_going_back_to_the_old_generation_keeps_its_workers(world: World) -> None:
    world.open("a", 2)
    world.herd.wanted.count = 2
    world.advance()
    old = ready(world)
    world.herd.wanted.generation = 1
    world.advance()
    world.herd.wanted.generation = 0
    world.advance()
    assert [child.leaving for child in world.herd.workers] == [False, False, True, True]
    assert [child.served for child in old] == [{"a": {0}}, {"a": {1}}]


def test_fewer_workers_leave_no_socket_alone(world: World) -> None:
    world.open("a", 3)
    world.open("b", 1, shared=True)
    world.herd.wanted.count = 3
    world.advance()
    workers = ready(world)
    world.herd.wanted.count = 1
    world.advance()
    assert [child.leaving for child in workers] == [False, True, True]
    assert workers[0].served == {"a": {0, 1, 2}, "b": {0}}


def test_the_end_is_drain_then_state_then_nothing(world: World, monkeypatch) -> None:
    state = FakeChild(STATE, 99)
    world.open("a", 1)
    world.herd.wanted.count = 1
    world.advance()
    (worker,) = ready(world)
    world.herd.children.append(state)
    world.herd.end(5.0, world.now)
    world.advance()
    assert world.herd.binds == {}
    assert worker.heard()[-1] == {"op": "drain", "seconds": 5.0, "patient": False}
    assert state.signals == ()
    world.advance(6.0)
    assert worker.signals == ()
    world.advance(2.0)
    assert worker.signals == (signal.SIGKILL,)
    world.herd.remove(worker, world.now)
    world.advance()
    assert state.signals == (signal.SIGTERM,)
    world.advance(herd.SAVING + herd.GRACE)
    assert state.signals == (signal.SIGTERM, signal.SIGKILL)
    world.herd.children.clear()


def directories(world: World) -> list[Child]:
    return [child for child in world.herd.children if child.kind == DIRECTORIES]


def test_the_directory_process_is_there_while_there_are_directories(world: World) -> None:
    world.advance()
    assert directories(world) == []
    world.herd.wanted.directories = ["--directory", "run"]
    world.advance()
    world.advance()
    (child,) = directories(world)
    assert world.commands[-1][-4:] == ["l7lb.app", "directories", "--directory", "run"]
    world.herd.remove(child, world.now)
    world.advance()
    (child,) = directories(world)
    world.herd.wanted.directories = None
    world.advance()
    world.advance()
    assert isinstance(child, FakeChild)
    assert child.signals == (signal.SIGTERM,)
    assert directories(world) == [child]
    world.herd.remove(child, world.now)
    world.advance(60.0)
    assert directories(world) == []


def test_new_code_has_a_directory_process_of_its_own_beside_the_old(world: World) -> None:
    world.herd.wanted.directories = []
    world.advance()
    (old,) = directories(world)
    world.herd.wanted.generation = 1
    world.advance()
    kept, new = directories(world)
    assert kept is old
    assert isinstance(old, FakeChild)
    assert old.signals == (signal.SIGTERM,)
    assert (old.leaving, new.leaving, new.generation) == (True, False, 1)
    world.advance(100.0)
    assert old.signals == (signal.SIGTERM,)  # it answers old workers as long as they may take


def test_the_directory_process_ends_after_the_workers(world: World) -> None:
    world.herd.wanted.count, world.herd.wanted.directories = 1, []
    world.advance()
    (worker,) = ready(world)
    (child,) = directories(world)
    assert isinstance(child, FakeChild)
    world.herd.end(5.0, world.now)
    world.advance()
    assert child.signals == ()
    world.herd.remove(worker, world.now)
    world.advance()
    assert child.signals == (signal.SIGTERM,)


def test_a_worker_that_is_never_ready_is_killed(world: World) -> None:
    world.herd.wanted.count = 1
    assert world.advance() == herd.STARTING
    (worker,) = world.herd.workers
    world.advance(herd.STARTING)
    assert worker.signals == (signal.SIGKILL,)


def fill(sock: socket.socket) -> None:
    """Send until there is no room."""
    while True:
        try:
            channel.send(sock, {"op": "noise"})
        except BlockingIOError:
            return


def test_a_worker_that_does_not_read_is_told_when_it_does(world: World) -> None:
    world.open("a", 1)
    world.herd.wanted.count = 1
    world.advance()
    (worker,) = world.herd.workers
    assert worker.control is not None
    fill(worker.control)
    worker.ready = True
    assert world.advance() == pytest.approx(herd.AGAIN)
    assert worker.served == {}
    worker.heard()
    assert world.advance() is None
    assert worker.served == {"a": {0}}


def test_pauses_grow_with_short_lives_and_are_forgotten_after_a_long_one() -> None:
    pauses = Pauses()
    found = [pauses.ended(Child(WORKER, 1, started=100.0), 101.0) for _ in range(12)]
    assert found[:4] == [0.0, 0.1, 0.2, 0.4]
    assert found[-1] == 10.0
    assert pauses.until(WORKER, 0) == 111.0
    assert pauses.until(WORKER, 1) == 0.0
    assert pauses.ended(Child(WORKER, 1, started=100.0), 200.0) == 0.0
    assert pauses.ended(Child(WORKER, 1, started=200.0), 201.0) == 0.0


class Order(RuleBasedStateMachine):
    """Any order of events; after each, the sockets are served as they should be."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.world = World(self.patch)
        self.binds = 0
        self.world.herd.wanted.count = 1
        self.settle()

    def teardown(self) -> None:
        self.world.close()
        self.patch.undo()

    def settle(self) -> None:
        for _ in range(4):
            self.world.advance()
        for child in self.world.herd.workers:
            child.heard()

    @rule(count=st.integers(1, 4))
    def want(self, count: int) -> None:
        for bind in self.world.herd.binds.values():
            bind.grow(count)
        self.world.herd.wanted.count = count
        self.settle()

    @rule()
    def renew(self) -> None:
        self.world.herd.wanted.generation += 1
        self.settle()

    @precondition(lambda self: len(self.world.herd.binds) < 3)
    @rule(shared=st.booleans())
    def open(self, shared: bool) -> None:
        self.binds += 1
        self.world.open(f"bind {self.binds}", self.world.herd.wanted.count, shared)
        self.settle()

    @precondition(lambda self: self.world.herd.binds)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.world.herd.close(data.draw(st.sampled_from(sorted(self.world.herd.binds))))
        self.settle()

    @precondition(lambda self: self.world.herd.workers)
    @rule(data=st.data())
    def becomes_ready(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.world.herd.workers)).ready = True
        self.settle()

    @precondition(lambda self: self.world.herd.workers)
    @rule(data=st.data(), life=st.floats(0.0, 20.0))
    def dies(self, data: st.DataObject, life: float) -> None:
        self.world.now += life
        self.world.herd.remove(data.draw(st.sampled_from(self.world.herd.workers)), self.world.now)
        self.settle()

    @invariant()
    def every_socket_has_one_worker(self) -> None:
        keeper = self.world.herd
        able = [child for child in keeper.of_kind(WORKER) if child.ready]
        for child in keeper.workers:
            if child not in able:
                assert child.served == {}
        for key, bind in keeper.binds.items():
            for slot in range(len(bind.sockets)):
                servers = [child for child in able if slot in child.served.get(key, ())]
                assert len(servers) == (len(able) if bind.shared else min(1, len(able)))

    @invariant()
    def nobody_shares_a_block(self) -> None:
        blocks = [child.block for child in self.world.herd.workers]
        assert len(set(blocks)) == len(blocks)
        assert self.world.herd._cells.blocks == max(blocks, default=-1) + 1

    @invariant()
    def a_ready_worker_leaves_only_for_a_ready_one(self) -> None:
        keeper = self.world.herd
        if any(child.leaving for child in keeper.workers) and any(child.ready for child in keeper.workers):
            assert len(list(keeper.of_kind(WORKER))) >= 1


TestOrder = Order.TestCase
TestOrder.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
