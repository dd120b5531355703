"""Latency: of two servers drawn by weight, the one that is likely to answer sooner.

The estimate is a moving average of a server's answers times what it has in progress, the request to come included
(Finagle's "peak EWMA"). The average follows a slower answer at once and a faster one with time: a server that gets into
trouble is left quickly and trusted again slowly. Without answers the average fades, so that a server that was slow once
is tried again.

A server that has not answered this worker yet comes first, but with one request at a time until it has. One that gives
no answer at all (refused, reset) counts as slow: an average of nothing must not make it the favourite.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from math import exp, inf

from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Balance
from l7lb.routing.balance.random_of_two import RandomOfTwo

DECAY = 10.0  # seconds in which an old answer's part falls to 1/e
NO_ANSWER = 0.1  # seconds that no answer counts at least
LONGEST = 60.0
UNKNOWN = 1000.0  # seconds; what a second request to a server that has not answered the first is taken to cost
LOOKED_AT = 4  # servers that have not answered yet, for each choice


class Latency(RandomOfTwo):
    """The one of two servers that is likely to answer sooner."""

    def __init__(self, pool: PoolState, settings: Balance, seed: int | None = None) -> None:
        super().__init__(pool, settings, seed)
        self._now = 0.0
        self._stamps: dict[ServerState, float] = {}
        self._unknown: deque[ServerState] = deque()

    def rebuild(self, tier: Sequence[ServerState], weights: Sequence[float], now: float) -> None:
        self._now = now
        self._stamps = {server: self._stamps.get(server, now) for server in self.pool.servers}
        self._unknown = deque(server for server in tier if server.latency <= 0.0)
        # Two are drawn from those that have answered, if any.
        known = [pair for pair in zip(tier, weights, strict=True) if pair[0].latency > 0.0]
        if known:
            super().rebuild([server for server, _ in known], [weight for _, weight in known], now)
        else:
            super().rebuild(tier, weights, now)

    def pick(self, facts: Facts, now: float, without: Collection[ServerState]) -> ServerState | None:
        self._now = now
        unknown = self._unknown
        for _ in range(min(len(unknown), LOOKED_AT)):
            server = unknown[0]
            unknown.rotate(-1)
            if server.active == 0 and server.open and not server.full and server not in without:
                return server
        return super().pick(facts, now, without)

    def cost(self, server: ServerState, weight: float, now: float) -> float:
        load = server.active + server.others
        if server.latency <= 0.0:
            return UNKNOWN * (load + 1) / weight
        return self.estimate(server, now) * (load + 1) / weight

    def estimate(self, server: ServerState, now: float) -> float:
        """The moving average in seconds, faded since the last answer."""
        age = now - self._stamps.get(server, now)
        return server.latency * exp(-age / DECAY) if age > 0 else server.latency

    def released(self, server: ServerState, latency: float) -> None:
        now = self._now
        known = server.latency > 0.0
        average = self.estimate(server, now)
        if latency < 0:
            server.latency = min(max(2 * average, NO_ANSWER), LONGEST)
        elif not known or latency >= average:
            server.latency = max(latency, 1e-6)
        else:
            # The faded average is old/e^(age/DECAY): adding the rest of the new answer keeps the parts' sum at one.
            part = exp(-max(now - self._stamps.get(server, now), 0.0) / DECAY)
            server.latency = max(server.latency * part + latency * (1 - part), latency)
        self._stamps[server] = now
        if not known:
            self._due = -inf
