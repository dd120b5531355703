from __future__ import annotations

from collections import Counter

from balance_helpers import assert_shares, give_back, key, pool_of, server, take, weighted

from l7lb.core.snapshot import Balance
from l7lb.routing.balance import make_balancer

RANDOM = Balance("random-of-two")


def test_without_load_the_draws_are_even() -> None:
    _, balancer = weighted([1] * 8, RANDOM, seed=1)
    counts = Counter(balancer.choose(key(), 0.0).name for _ in range(8000))  # type: ignore[union-attr]
    assert_shares(counts, {f"s{number}": 1 for number in range(8)})


def test_the_second_draw_follows_the_weights_too() -> None:
    _, balancer = weighted([1, 2, 5], RANDOM, seed=3)
    balancer.choose(key(), 0.0)
    draws = Counter(balancer._other(0) for _ in range(7000))  # type: ignore[attr-defined]
    assert_shares(Counter({str(number): count for number, count in draws.items()}), {"1": 2, "2": 5})


def test_the_less_loaded_of_two_wins() -> None:
    pool, balancer = weighted([1, 1], RANDOM, seed=1)
    pool.servers[0].others = 1
    assert {balancer.choose(key(), 0.0).name for _ in range(50)} == {"s1"}  # type: ignore[union-attr]


def test_the_greatest_load_stays_close_to_the_average() -> None:
    pool, balancer = weighted([1] * 100, RANDOM, seed=5)
    for _ in range(1000):
        take(balancer)
    assert max(state.active for state in pool.servers) <= 14


def test_load_in_progress_follows_the_weights() -> None:
    pool, balancer = weighted([1, 2, 3, 4] * 5, RANDOM, seed=5)
    running = [take(balancer) for _ in range(2000)]
    for chosen in running[:500]:
        give_back(balancer, chosen)
    for _ in range(500):
        take(balancer)
    for state in pool.servers:
        assert 25 <= state.active / state.config.weight <= 55


def test_a_server_alone_and_servers_that_are_full() -> None:
    pool = pool_of([server("a", max_connections=1), server("b", max_connections=1)], RANDOM)
    balancer = make_balancer(pool, 1)
    names = [take(balancer).name for _ in range(2)]
    assert sorted(names) == ["a", "b"]
    assert take(balancer).full
    pool.servers[0].healthy = False
    balancer.changed(0.0)
    assert take(balancer).name == "b"
