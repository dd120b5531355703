"""Deadlines, on a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.proxy import timers as module
from l7lb.proxy.timers import TICK, Timers


class Clock:
    """A loop that only knows time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: dict[int, tuple[float, object]] = {}
        self.number = 0

    def call_at(self, when: float, call: object) -> Handle:
        self.number += 1
        self.calls[self.number] = (when, call)
        return Handle(self, self.number)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.calls:
            number, (when, call) = min(self.calls.items(), key=lambda item: item[1][0])
            if when > end:
                break
            del self.calls[number]
            self.now = max(self.now, when)
            call()
        self.now = end


class Handle:
    def __init__(self, clock: Clock, number: int) -> None:
        self.clock = clock
        self.number = number

    def cancel(self) -> None:
        self.clock.calls.pop(self.number, None)


class Thing:
    """Has a deadline, and notes when it was told of it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.armed = 0
        self.told: list[float] = []
        self.deadline = 0.0
        self.then: object = None

    def due(self, now: float) -> float:
        if self.deadline > now:
            return self.deadline
        self.told.append(self.clock.now)
        self.deadline = 0.0
        if self.then is not None:
            self.then()
        return self.deadline


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "monotonic", lambda: made.now)
    return made


def test_a_deadline_is_noticed_within_a_tick(clock: Clock) -> None:
    timers, thing = Timers(clock), Thing(clock)
    thing.deadline = clock.now + 1.0
    timers.arm(thing, thing.deadline)
    clock.advance(0.99)
    assert not thing.told
    clock.advance(TICK * 2)
    assert len(thing.told) == 1
    assert 1001.0 <= thing.told[0] <= 1001.0 + 2 * TICK
    clock.advance(100)
    assert len(thing.told) == 1
    assert not clock.calls


def test_a_deadline_that_moved_away_costs_nothing(clock: Clock) -> None:
    timers, thing = Timers(clock), Thing(clock)
    thing.deadline = clock.now + 1.0
    timers.arm(thing, thing.deadline)
    thing.deadline = clock.now + 5.0
    timers.arm(thing, thing.deadline)
    clock.advance(4.9)
    assert not thing.told
    clock.advance(0.3)
    assert len(thing.told) == 1


def test_a_nearer_deadline_moves_it(clock: Clock) -> None:
    timers, thing = Timers(clock), Thing(clock)
    timers.arm(thing, clock.now + 5.0)
    thing.deadline = clock.now + 1.0
    timers.arm(thing, thing.deadline)
    clock.advance(1.2)
    assert len(thing.told) == 1
    clock.advance(10)
    assert len(thing.told) == 1


def test_disarmed_things_are_forgotten(clock: Clock) -> None:
    timers, thing = Timers(clock), Thing(clock)
    timers.arm(thing, clock.now + 1.0)
    timers.disarm(thing)
    timers.disarm(thing)
    clock.advance(5)
    assert not thing.told


def test_one_may_disarm_or_move_another_of_the_same_tick(clock: Clock) -> None:
    timers = Timers(clock)
    things = [Thing(clock) for _ in range(20)]
    for number, thing in enumerate(things):
        thing.then = lambda: [timers.disarm(other) or timers.arm(other, clock.now + 9) for other in things]
        thing.number = number
        timers.arm(thing, clock.now + 1.0)
    clock.advance(2)
    assert sum(len(thing.told) for thing in things) == 1
    clock.advance(12)
    assert sum(len(thing.told) for thing in things) == 2  # again the first moves the others


def test_close_forgets_all(clock: Clock) -> None:
    timers, thing = Timers(clock), Thing(clock)
    timers.arm(thing, clock.now + 1.0)
    timers.close()
    assert not clock.calls


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-1.0, 3.0), st.floats(0.0, 1.0)), max_size=30))
def test_nobody_is_forgotten_or_told_early(steps: list[tuple[int, float, float]]) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "monotonic", lambda: clock.now)
        timers = Timers(clock)
        things = [Thing(clock) for _ in range(5)]
        for number, ahead, passes in steps:
            thing = things[number]
            deadline = clock.now + ahead
            thing.deadline = deadline
            told = len(thing.told)
            timers.arm(thing, deadline)
            clock.advance(passes)
            if passes > max(ahead, 0.0) + 2 * TICK:
                assert len(thing.told) > told
            for at in thing.told[told:]:
                assert at >= deadline - 1e-6
        clock.advance(10)
        assert not any(thing.deadline for thing in things)
        assert not clock.calls
