from __future__ import annotations

from balance_helpers import give_back, key, pool_of, server, take

from l7lb.core.snapshot import Balance
from l7lb.routing.balance import make_balancer
from l7lb.routing.balance.first import RENEWAL

FIRST = Balance("first")


def test_servers_fill_in_their_order() -> None:
    pool = pool_of([server("a", max_connections=2), server("b", max_connections=1), server("c")], FIRST)
    balancer = make_balancer(pool, 0)
    assert [take(balancer).name for _ in range(5)] == ["a", "a", "b", "c", "c"]
    give_back(balancer, pool.servers[1])
    assert take(balancer).name == "b"
    give_back(balancer, pool.servers[0])
    assert take(balancer).name == "a"


def test_a_server_without_a_limit_takes_everything() -> None:
    pool = pool_of([server("a"), server("b")], FIRST)
    balancer = make_balancer(pool, 0)
    assert {take(balancer).name for _ in range(100)} == {"a"}
    assert balancer.choose(key(), 0.0, [pool.servers[0]]) is pool.servers[1]


def test_room_that_another_worker_made_is_found_in_time() -> None:
    pool = pool_of([server("a", max_connections=1), server("b")], FIRST)
    balancer = make_balancer(pool, 0)
    pool.servers[0].others = 1
    assert take(balancer, now=1.0).name == "b"
    pool.servers[0].others = 0
    assert take(balancer, now=1.0 + 2 * RENEWAL).name == "a"


def test_an_excluded_server_is_not_taken_for_a_full_one() -> None:
    pool = pool_of([server("a", max_connections=5), server("b", max_connections=5)], FIRST)
    balancer = make_balancer(pool, 0)
    assert balancer.choose(key(), 0.0, [pool.servers[0]]) is pool.servers[1]
    assert balancer.choose(key(), 0.0) is pool.servers[0]
