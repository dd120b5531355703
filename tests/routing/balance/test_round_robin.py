from __future__ import annotations

from balance_helpers import key, pool_of, server, take, weighted
from hypothesis import given
from hypothesis import strategies as st

from l7lb.core.contracts import Balancer
from l7lb.core.snapshot import Balance
from l7lb.routing.balance import make_balancer

ROUND_ROBIN = Balance("round-robin")


def sequence(balancer: Balancer, count: int) -> str:
    found = [balancer.choose(key(), 0.0) for _ in range(count)]
    return " ".join(one.name if one else "-" for one in found)


def nginx(weights: list[int], count: int) -> list[int]:
    """The reference: all values grow by their weights, the greatest wins and loses the sum."""
    current = [0] * len(weights)
    found = []
    for _ in range(count):
        current = [value + weight for value, weight in zip(current, weights, strict=True)]
        best = current.index(max(current))
        current[best] -= sum(weights)
        found.append(best)
    return found


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_the_order_is_that_of_nginx(weights: list[int]) -> None:
    _, balancer = weighted(weights, ROUND_ROBIN)
    count = 3 * sum(weights) + 5
    assert sequence(balancer, count) == " ".join(f"s{number}" for number in nginx(weights, count))


def test_a_heavy_server_does_not_get_its_share_in_one_lump() -> None:
    _, balancer = weighted([5, 1, 1], ROUND_ROBIN)
    assert sequence(balancer, 14) == "s0 s0 s1 s0 s2 s0 s0 s0 s0 s1 s0 s2 s0 s0"


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_in_each_cycle_each_server_has_its_weight(weights: list[int]) -> None:
    _, balancer = weighted(weights, ROUND_ROBIN)
    for _ in range(3):
        cycle = sequence(balancer, sum(weights)).split()
        assert [cycle.count(f"s{number}") for number in range(len(weights))] == weights


def test_an_excluded_server_keeps_its_turn() -> None:
    pool, balancer = weighted([1, 1, 1], ROUND_ROBIN)
    without = [pool.servers[0]]
    assert balancer.choose(key(), 0.0, without) is pool.servers[1]
    assert balancer.choose(key(), 0.0) is pool.servers[0]


def test_a_full_server_rests_and_does_not_save_up_turns() -> None:
    pool = pool_of([server("a", max_connections=1), server("b"), server("c")], ROUND_ROBIN)
    balancer = make_balancer(pool, 0)
    first = take(balancer)
    assert first.name == "a"
    others = sequence(balancer, 100).split()
    assert "a" not in others
    assert others.count("b") == others.count("c") == 50
    first.active -= 1
    balancer.released(first, 0.01)
    after = sequence(balancer, 9).split()
    assert after.count("a") == 3


def test_room_that_another_worker_made_is_found() -> None:
    pool = pool_of([server("a", max_connections=1), server("b")], ROUND_ROBIN)
    balancer = make_balancer(pool, 0)
    pool.servers[0].others = 1
    assert sequence(balancer, 4) == "b b b b"
    pool.servers[0].others = 0
    assert sequence(balancer, 4).split().count("a") == 2


def test_what_is_left_from_a_large_pool_is_not_a_lump_in_a_small_one() -> None:
    pool, balancer = weighted([1] * 100, ROUND_ROBIN)
    sequence(balancer, 50)
    for state in pool.servers[2:]:
        if state is not pool.servers[99]:
            state.healthy = False
    balancer.changed(0.0)
    found = sequence(balancer, 30).split()
    for name in ("s0", "s1", "s99"):
        assert 9 <= found.count(name) <= 11


def test_processes_begin_with_different_servers() -> None:
    first = {sequence(weighted([1] * 50, ROUND_ROBIN, seed=None)[1], 1) for _ in range(40)}
    assert len(first) > 5
