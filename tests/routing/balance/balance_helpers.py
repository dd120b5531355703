"""Pools without a proxy: servers whose state a test sets, and requests that are taken and given back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import sqrt

from l7lb.core.contracts import Balancer
from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Balance, FactName, Pool, Server
from l7lb.routing.balance import ALGORITHMS, make_balancer

HASH = Balance("hash", FactName("path"))
BOUNDED = Balance("hash", FactName("path"), 1.25)
EVERY = [*(Balance(name) for name in ALGORITHMS if name != "hash"), HASH, BOUNDED]


def every_id(balance: Balance) -> str:
    return balance.algorithm + ("-bounded" if balance.bounded_load else "")


def key(text: object = "/") -> Facts:
    facts = Facts("http", "web", "192.0.2.1")
    facts.path = str(text).encode()
    return facts


def server(name: str, weight: int = 1, **settings: int | bool | str) -> Server:
    return Server(name=name, address=Address("127.0.0.1", 80), weight=weight, **settings)  # type: ignore[arg-type]


def pool_of(servers: Sequence[Server], balance: Balance, slow_start: float = 0.0) -> PoolState:
    config = Pool(name="web", servers=tuple(servers), balance=balance, slow_start=slow_start)
    return PoolState(config, [ServerState("web", one) for one in servers])


def weighted(weights: Iterable[int], balance: Balance, seed: int | None = 0) -> tuple[PoolState, Balancer]:
    """Servers s0, s1, ... of these weights, and their balancer."""
    pool = pool_of([server(f"s{number}", weight) for number, weight in enumerate(weights)], balance)
    return pool, make_balancer(pool, seed)


def take(balancer: Balancer, facts: Facts | None = None, now: float = 0.0) -> ServerState:
    """Choose a server and begin a request on it."""
    chosen = balancer.choose(facts or key(), now)
    assert chosen is not None
    chosen.active += 1
    balancer.taken(chosen)
    return chosen


def give_back(balancer: Balancer, chosen: ServerState, latency: float = 0.01) -> None:
    """The request is over."""
    chosen.active -= 1
    balancer.released(chosen, latency)


def assert_shares(counts: Counter[str], weights: Mapping[str, float]) -> None:
    """Chi-square: the counts follow the weights; the bound is passed by chance in less than one of 10,000 runs."""
    total = sum(counts.values())
    whole = sum(weights.values())
    expected = {name: total * weight / whole for name, weight in weights.items()}
    statistic = sum((counts[name] - wanted) ** 2 / wanted for name, wanted in expected.items())
    freedom = len(weights) - 1
    # Wilson and Hilferty's approximation of the distribution's quantile, at 3.72 standard deviations.
    part = 2 / (9 * freedom)
    limit = freedom * (1 - part + 3.72 * sqrt(part)) ** 3
    assert statistic < limit, (statistic, limit, counts)
