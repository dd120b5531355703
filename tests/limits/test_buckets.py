"""The algorithm of the rate limits, on a clock that the tests hold in their hands."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7lb.limits.buckets import Buckets

ANNA = b"anna"


def buckets(rate: float = 10.0, burst: float = 5.0, size: int = 1000) -> Buckets:
    return Buckets("web", rate, burst, size, 100.0)


def admitted(limit: Buckets, key: bytes, now: float, tries: int) -> int:
    return sum(limit.take(key, now) == 0.0 for _ in range(tries))


def test_a_burst_and_then_the_rate() -> None:
    limit = buckets()
    assert admitted(limit, ANNA, 100.0, 20) == 5
    assert admitted(limit, ANNA, 100.05, 20) == 0
    assert admitted(limit, ANNA, 100.1, 20) == 1
    assert admitted(limit, ANNA, 100.5, 20) == 4
    assert admitted(limit, ANNA, 200.0, 20) == 5


def test_keys_are_limited_each_for_itself() -> None:
    limit = buckets()
    assert admitted(limit, ANNA, 100.0, 20) == 5
    assert admitted(limit, b"bob", 100.0, 20) == 5


def test_it_says_how_long_to_wait_and_keeps_its_word() -> None:
    limit = buckets(rate=0.5, burst=1.0)
    assert limit.take(ANNA, 100.0) == 0.0
    assert limit.take(ANNA, 100.5) == pytest.approx(1.5)
    assert limit.wait(ANNA, 100.5) == pytest.approx(1.5)
    assert limit.take(ANNA, 101.9) == pytest.approx(0.1)
    assert limit.wait(ANNA, 102.0) == 0.0
    assert limit.take(ANNA, 102.0) == 0.0


@given(
    rate=st.floats(0.01, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
@settings(deadline=None)
def test_never_more_than_the_rate_and_the_burst(rate: float, burst: int, pauses: list[float]) -> None:
    limit = buckets(rate, burst)
    now = 100.0
    times = []
    for pause in pauses:
        now += pause
        if limit.take(ANNA, now) == 0.0:
            times.append(now)
    for first in range(len(times)):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + rate * (times[last] - times[first]) + 1e-3


@given(
    offered=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 0.02)), min_size=1, max_size=300),
    rate=st.floats(1, 200),
    burst=st.integers(1, 20),
    delay=st.floats(0, 0.05),
)
@settings(deadline=None, max_examples=60)
def test_several_replicas_stay_within_the_stated_bound(
    offered: list[tuple[int, float]], rate: float, burst: int, delay: float
) -> None:
    """k workers that hear of one another after ``delay``: at most k bursts, and what the rate gives, in any time."""
    replicas = [buckets(rate, burst) for _ in range(4)]
    on_the_way: list[tuple[float, int]] = []
    now, times = 100.0, []
    for which, pause in offered:
        now += pause
        while on_the_way and on_the_way[0][0] <= now:
            arrives, origin = on_the_way.pop(0)
            for number, replica in enumerate(replicas):
                if number != origin:
                    replica.charge(ANNA, 1, arrives)
        if replicas[which].take(ANNA, now) == 0.0:
            on_the_way.append((now + delay, which))
            times.append(now)
    bound = len(replicas) * burst + (len(replicas) - 1) * rate * delay
    for first in range(len(times)):
        assert len(times) - first <= bound + rate * (times[-1] - times[first]) + 1e-3


def test_what_was_too_much_is_paid_back() -> None:
    """Two replicas give a burst each before they hear of one another; then nothing, until that is drained."""
    one, other = buckets(), buckets()
    assert admitted(one, ANNA, 100.0, 20) == admitted(other, ANNA, 100.0, 20) == 5
    one.charge(ANNA, other.take_spent()[ANNA], 100.01)
    other.charge(ANNA, one.take_spent()[ANNA], 100.01)
    assert one.debt(ANNA, 100.01) == pytest.approx(9.9)
    assert admitted(one, ANNA, 100.55, 20) == admitted(other, ANNA, 100.55, 20) == 0
    assert admitted(one, ANNA, 100.6, 20) == 1


def test_what_was_spent_is_told_once() -> None:
    limit = buckets()
    woken = []
    limit.wake = lambda: woken.append(True)
    admitted(limit, ANNA, 100.0, 3)
    assert limit.take_spent() == {ANNA: 3}
    assert limit.take_spent() == {}
    assert woken == [True]
    limit.charge(ANNA, 1, 100.0)
    assert limit.take_spent() == {}


def test_another_rate_counts_at_once_and_debts_stay() -> None:
    limit = buckets()
    admitted(limit, ANNA, 100.0, 5)
    limit.change(100.0, 5.0, 1000, 100.1)
    assert limit.debt(ANNA, 100.1) == pytest.approx(4.0)
    assert limit.debt(ANNA, 100.12) == pytest.approx(2.0)
    limit.change(1.0, 10.0, 1000, 100.12)
    assert admitted(limit, ANNA, 100.12, 20) == 8
    assert admitted(limit, ANNA, 101.0, 20) == 0
    assert admitted(limit, ANNA, 101.2, 20) == 1


def test_a_newcomer_learns_debts() -> None:
    one, other = buckets(), Buckets("web", 10.0, 5.0, 1000, 7.0)
    admitted(one, ANNA, 100.0, 4)
    for key, debt in one.debts(100.1):
        other.learn(key, debt, 100.1)
    assert other.debt(ANNA, 100.1) == pytest.approx(3.0)
    other.learn(ANNA, 1.0, 100.1)
    assert other.debt(ANNA, 100.1) == pytest.approx(3.0)


def test_a_million_sources_fill_no_memory_and_free_nobody() -> None:
    limit = buckets(rate=10.0, burst=100.0, size=10_000)
    heavy = [b"heavy %d" % number for number in range(100)]
    for key in heavy:
        assert admitted(limit, key, 100.0, 200) == 100
    for number in range(1_000_000):
        limit.take(number.to_bytes(4, "big"), 100.0)
        if not number % 200_000:
            limit.take_spent()
    assert 8750 <= len(limit) <= 10_000
    assert all(limit.take(key, 100.0) > 0.0 for key in heavy)
    assert sys.getsizeof(limit._marks) < 3_000_000


def test_where_all_owe_much_the_one_of_eight_that_owes_least_goes() -> None:
    limit = buckets(rate=1.0, burst=4.0, size=100)
    chance = random.Random(1)
    for number in range(100):
        for _ in range(chance.choice((3, 4))):
            limit.charge(b"%d" % number, 1, 100.0)
    full = [key for key, debt in limit.debts(100.0) if debt == 4.0]
    for number in range(20):
        limit.charge(b"new %d" % number, 4, 100.0)
    assert len(limit) == 100
    assert limit.evicted >= 20
    assert sum(limit.debt(key, 100.0) == 4.0 for key in full) > 0.9 * len(full)


def test_those_who_owe_nothing_are_forgotten_in_time() -> None:
    limit = buckets()
    for number in range(500):
        limit.take(b"%d" % number, 100.0)
    admitted(limit, ANNA, 100.9, 5)
    limit.tick(101.0, work=100)
    assert len(limit) == 401
    for _ in range(5):
        limit.tick(101.0, work=100)
    assert [key for key, _ in limit.debts(101.0)] == [ANNA]
    assert len(limit) == 1


def test_without_a_listener_what_was_spent_does_not_pile_up() -> None:
    limit = buckets(size=100)
    for number in range(1000):
        limit.take(b"%d" % number, 100.0)
    limit.tick(100.0)
    assert limit.take_spent() == {}


@pytest.mark.parametrize(("rate", "burst", "size"), [(0.0, 1.0, 1), (1.0, 0.5, 1), (1.0, 1.0, 0)])
def test_impossible_limits_are_refused(rate: float, burst: float, size: int) -> None:
    with pytest.raises(ValueError, match="a limit needs"):
        Buckets("web", rate, burst, size, 0.0)
