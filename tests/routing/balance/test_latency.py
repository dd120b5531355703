from __future__ import annotations

from collections import Counter

from balance_helpers import give_back, key, take, weighted

from l7lb.core.contracts import Balancer
from l7lb.core.snapshot import Balance
from l7lb.routing.balance.latency import DECAY, NO_ANSWER

LATENCY = Balance("latency")


def serve(balancer: Balancer, latencies: dict[str, float], count: int, now: float = 0.0) -> Counter[str]:
    """One request after another, each answered with its server's latency."""
    counts: Counter[str] = Counter()
    for number in range(count):
        chosen = take(balancer, now=now + number / 1000)
        counts[chosen.name] += 1
        give_back(balancer, chosen, latencies[chosen.name])
    return counts


def test_the_faster_of_two_wins() -> None:
    _, balancer = weighted([1, 1], LATENCY)
    counts = serve(balancer, {"s0": 0.001, "s1": 0.1}, 200)
    assert counts["s0"] >= 198


def test_unknown_servers_come_first_but_one_request_at_a_time() -> None:
    pool, balancer = weighted([1, 1, 1], LATENCY)
    pool.servers[0].latency = 0.001
    assert [take(balancer).name for _ in range(2)] == ["s1", "s2"]
    assert {take(balancer).name for _ in range(20)} == {"s0"}
    give_back(balancer, pool.servers[1], 0.002)
    assert pool.servers[1].latency == 0.002


def test_several_unknown_servers_share_what_comes_before_their_first_answers() -> None:
    pool, balancer = weighted([1] * 4, LATENCY)
    for _ in range(40):
        take(balancer)
    assert max(state.active for state in pool.servers) <= 16


def test_a_slower_answer_counts_at_once_and_a_faster_one_with_time() -> None:
    pool, balancer = weighted([1], LATENCY)
    state = pool.servers[0]
    give_back(balancer, take(balancer, now=1.0), 0.010)
    assert state.latency == 0.010
    give_back(balancer, take(balancer, now=1.1), 0.500)
    assert state.latency == 0.500
    give_back(balancer, take(balancer, now=1.2), 0.010)
    assert 0.4 < state.latency < 0.5
    for tenth in range(12, 700):
        give_back(balancer, take(balancer, now=tenth / 10), 0.010)
    assert abs(state.latency - 0.010) < 0.002


def test_a_server_that_was_slow_is_tried_again() -> None:
    pool, balancer = weighted([1, 1], LATENCY)
    serve(balancer, {"s0": 0.001, "s1": 1.0}, 50)
    assert serve(balancer, {"s0": 0.001, "s1": 0.001}, 50, now=1.0)["s1"] == 0
    assert serve(balancer, {"s0": 0.001, "s1": 0.001}, 50, now=12 * DECAY)["s1"] > 0
    assert pool.servers[1].latency > 0


def test_a_server_that_gives_no_answer_is_not_the_favourite() -> None:
    pool, balancer = weighted([1, 1], LATENCY)
    counts = serve(balancer, {"s0": -1.0, "s1": 0.005}, 100)
    assert counts["s0"] <= 2
    assert pool.servers[0].latency >= NO_ANSWER * 0.9


def test_what_is_in_progress_counts() -> None:
    pool, balancer = weighted([1, 1], LATENCY)
    for state in pool.servers:
        state.latency = 0.01
    pool.servers[0].others = 3
    assert {take(balancer).name for _ in range(3)} == {"s1"}


def test_the_average_survives_a_reload() -> None:
    pool, balancer = weighted([1, 1], LATENCY)
    serve(balancer, {"s0": 0.001, "s1": 0.1}, 10)
    again = type(balancer)(pool, LATENCY, 1)
    assert serve(again, {"s0": 0.001, "s1": 0.1}, 50)["s1"] == 0
    assert again.choose(key(), 0.0) is pool.servers[0]
