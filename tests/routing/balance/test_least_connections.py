from __future__ import annotations

from collections import Counter

import pytest
from balance_helpers import give_back, key, pool_of, server, take, weighted
from hypothesis import given, settings
from hypothesis import strategies as st

from l7lb.core.snapshot import Balance
from l7lb.routing.balance import make_balancer
from l7lb.routing.balance.least_connections import RENEWAL, SMALL

LEAST = Balance("least-connections")
SIZES = [3, SMALL, SMALL + 1, 60]


@pytest.mark.parametrize("size", SIZES)
def test_ties_take_turns(size: int) -> None:
    _, balancer = weighted([1] * size, LEAST)
    names = [balancer.choose(key(), 0.0).name for _ in range(3 * size)]  # type: ignore[union-attr]
    assert Counter(names) == {f"s{number}": 3 for number in range(size)}
    assert len(set(names[:size])) == size


@pytest.mark.parametrize("size", SIZES)
def test_ties_take_turns_by_weight(size: int) -> None:
    weights = [1 + number % 3 for number in range(size)]
    _, balancer = weighted(weights, LEAST)
    count = 10 * sum(weights)
    names = Counter(balancer.choose(key(), 0.0).name for _ in range(count))  # type: ignore[union-attr]
    for number, weight in enumerate(weights):
        assert abs(names[f"s{number}"] - 10 * weight) <= weight


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=SMALL + 8),
    st.lists(st.tuples(st.booleans(), st.integers(0, 1000)), max_size=80),
)
def test_no_server_has_less_to_do_for_its_weight(weights: list[int], steps: list[tuple[bool, int]]) -> None:
    pool, balancer = weighted(weights, LEAST)
    taken = []
    for begins, which in steps:
        if begins or not taken:
            least = min(state.load / state.config.weight for state in pool.servers)
            chosen = take(balancer)
            taken.append(chosen)
            assert (chosen.load - 1) / chosen.config.weight == least
        else:
            give_back(balancer, taken.pop(which % len(taken)))


@pytest.mark.parametrize("size", SIZES)
def test_others_counts_and_weights_change_under_it(size: int) -> None:
    pool, balancer = weighted([1] * size, LEAST)
    take(balancer)
    for state in pool.servers:
        state.others = 5
    pool.servers[1].others = 0
    # A pool that is looked through sees it at once, a heap when its entry comes up or with the next renewal.
    now = 0.0 if size <= SMALL else 2 * RENEWAL
    assert balancer.choose(key(), now) is pool.servers[1]
    for state in pool.servers:
        state.others = 0 if state is pool.servers[2] else 9
    assert balancer.choose(key(), now + 2 * RENEWAL) is pool.servers[2]
    pool.servers[2].config = server("s2", weight=1, state="draining")
    balancer.changed(now)
    assert balancer.choose(key(), now + 2 * RENEWAL) is not pool.servers[2]


def test_a_server_that_comes_back_does_not_get_all_ties() -> None:
    pool, balancer = weighted([1, 1, 1], LEAST)
    pool.servers[0].healthy = False
    balancer.changed(0.0)
    for _ in range(300):
        balancer.choose(key(), 0.0)
    pool.servers[0].healthy = True
    balancer.changed(0.0)
    names = Counter(balancer.choose(key(), 0.0).name for _ in range(30))  # type: ignore[union-attr]
    assert names["s0"] <= 11


def test_the_heap_stays_bounded() -> None:
    pool = pool_of([server(f"s{number}") for number in range(SMALL + 4)], LEAST)
    balancer = make_balancer(pool, 0)
    for _ in range(20_000):
        give_back(balancer, take(balancer))
    assert len(balancer._heap) <= 9 * (SMALL + 4)  # type: ignore[attr-defined]


def test_full_closed_and_excluded_servers_in_a_heap() -> None:
    size = SMALL + 4
    pool = pool_of([server(f"s{number}", max_connections=1) for number in range(size)], LEAST)
    balancer = make_balancer(pool, 0)
    assert len({take(balancer).name for _ in range(size - 2)}) == size - 2
    left = [state for state in pool.servers if not state.full]
    assert balancer.choose(key(), 0.0, left[:1]) is left[1]
    assert balancer.choose(key(), 0.0, left[1:]) is left[0]
    left[0].healthy = False  # and nobody told
    assert take(balancer) is left[1]
    full = balancer.choose(key(), 0.0)
    assert full is not None
    assert full.full
    give_back(balancer, left[1])
    assert balancer.choose(key(), 0.0) is left[1]
