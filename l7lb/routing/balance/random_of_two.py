"""Random of two: draw two servers by weight, take the one with less in progress for its weight.

Two draws already keep the greatest load close to the average (Mitzenmacher, "The Power of Two Choices in Randomized
Load Balancing", 2001), and, other than always taking the least loaded, several workers and nodes that know of one
another's work only with delay don't all run to the same server.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate

from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Balance
from l7lb.routing.balance.common import TierBalancer

ROUNDS = 8  # draws of two, before every server is looked at


class RandomOfTwo(TierBalancer):
    """The less loaded of two servers drawn by weight."""

    def __init__(self, pool: PoolState, settings: Balance, seed: int | None = None) -> None:
        super().__init__(pool, settings, seed)
        self._servers: Sequence[ServerState] = ()
        self._weights: Sequence[float] = ()
        self._cumulative: list[float] = []

    def rebuild(self, tier: Sequence[ServerState], weights: Sequence[float], now: float) -> None:
        self._servers = tier
        self._weights = weights
        self._cumulative = list(accumulate(weights))

    def cost(self, server: ServerState, weight: float, now: float) -> float:
        """What is compared; the smaller wins."""
        return (server.active + server.others) / weight

    def pick(self, facts: Facts, now: float, without: Collection[ServerState]) -> ServerState | None:
        cumulative = self._cumulative
        if not cumulative:
            return None
        servers, weights = self._servers, self._weights
        draw = self.chance.random
        total = cumulative[-1]
        last = len(servers) - 1
        for _ in range(ROUNDS):
            one = min(bisect_right(cumulative, draw() * total), last)
            other = self._other(one)
            first = servers[one]
            second = servers[other]
            first_fits = first.open and not first.full and first not in without
            second_fits = second.open and not second.full and second not in without
            if first_fits and second_fits:
                less = self.cost(first, weights[one], now) <= self.cost(second, weights[other], now)
                return first if less else second
            if first_fits or second_fits:
                return first if first_fits else second
        return None

    def _other(self, one: int) -> int:
        """A second server by weight, not the first: the first's stretch of the line is left out."""
        cumulative = self._cumulative
        if len(cumulative) == 1:
            return one
        start = cumulative[one - 1] if one else 0.0
        width = cumulative[one] - start
        point = self.chance.random() * (cumulative[-1] - width)
        if point >= start:
            point += width
        other = min(bisect_right(cumulative, point), len(cumulative) - 1)
        # Rounding may lead back to the first.
        return other if other != one else (one + 1) % len(cumulative)
