"""Balancing: one file an algorithm. ``ALGORITHMS`` has them by their names in the configuration."""

from __future__ import annotations

from l7lb.core.servers import PoolState
from l7lb.routing.balance.common import TierBalancer
from l7lb.routing.balance.first import First
from l7lb.routing.balance.hash import HashBalancer
from l7lb.routing.balance.latency import Latency
from l7lb.routing.balance.least_connections import LeastConnections
from l7lb.routing.balance.random_of_two import RandomOfTwo
from l7lb.routing.balance.round_robin import RoundRobin

ALGORITHMS: dict[str, type[TierBalancer]] = {
    "round-robin": RoundRobin,
    "least-connections": LeastConnections,
    "random-of-two": RandomOfTwo,
    "latency": Latency,
    "first": First,
    "hash": HashBalancer,
}

__all__ = ["ALGORITHMS", "make_balancer"]


def make_balancer(pool: PoolState, seed: int | None = None) -> TierBalancer:
    """The pool's balancer. With the same ``seed`` it makes the same choices; None: each process its own.

    Raises ValueError for an unknown algorithm, and for a hash without the name of a fact.
    """
    settings = pool.config.balance
    algorithm = ALGORITHMS.get(settings.algorithm)
    if algorithm is None:
        raise ValueError(f'there is no algorithm "{settings.algorithm}"; there are {", ".join(ALGORITHMS)}')
    return algorithm(pool, settings, seed)
