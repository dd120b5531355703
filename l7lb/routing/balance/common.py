"""What the algorithms share: which servers are in the running, and what to do when a quick choice finds none.

Servers form two tiers: the backups are in the running only while no other server is open. The tier and the weights are
worked out when something has changed and kept until then; while a server starts slowly, they are renewed as it grows.
An algorithm's :meth:`TierBalancer.pick` may therefore be quick and a little out of date. What it must never do is give
a server that is closed, full or excluded; where it has none to give, :meth:`TierBalancer.last_resort` looks at every
server as it is now.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Collection, Sequence
from math import inf

from l7lb.core.contracts import Balancer
from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Balance

SLOW_STEPS = 50  # renewals of the weights during one slow start
LEAST_STEP = 0.05  # seconds between two renewals


class TierBalancer(Balancer):
    """The base of the algorithms. ``seed`` None: each process draws differently."""

    def __init__(self, pool: PoolState, settings: Balance, seed: int | None = None) -> None:
        super().__init__(pool, settings, seed or 0)
        self.chance = random.Random(seed)
        self._due = -inf  # when the tier has to be worked out again

    def choose(self, facts: Facts, now: float, without: Collection[ServerState] = ()) -> ServerState | None:
        if now >= self._due:
            self.renew(now)
        return self.pick(facts, now, without) or self.last_resort(now, without)

    def changed(self, now: float) -> None:
        self._due = -inf

    def renew(self, now: float) -> None:
        """Work out the tier and the weights."""
        slow_start = self.pool.config.slow_start
        tier = tier_of(self.pool.servers)
        weights = [server.weight(now, slow_start) for server in tier]
        growing = slow_start > 0 and any(server.up_since > 0 and now < server.up_since + slow_start for server in tier)
        self._due = now + max(slow_start / SLOW_STEPS, LEAST_STEP) if growing else inf
        self.rebuild(tier, weights, now)

    @abstractmethod
    def rebuild(self, tier: Sequence[ServerState], weights: Sequence[float], now: float) -> None:
        """These servers, with these weights, are in the running from now on."""

    @abstractmethod
    def pick(self, facts: Facts, now: float, without: Collection[ServerState]) -> ServerState | None:
        """An open server that isn't full or in ``without``; None where none is found quickly."""

    def last_resort(self, now: float, without: Collection[ServerState]) -> ServerState | None:
        """The least loaded of the servers as they are now: one with room if there is any, a backup if need be."""
        slow_start = self.pool.config.slow_start
        best: ServerState | None = None
        best_cost = (True, True, inf)
        for server in self.pool.servers:
            if server.open and server not in without:
                cost = (server.config.backup, server.full, server.load / server.weight(now, slow_start))
                if cost < best_cost:
                    best, best_cost = server, cost
        if best is not None and not best_cost[1]:
            self._due = -inf  # the tier has missed it
        return best


def tier_of(servers: Sequence[ServerState]) -> list[ServerState]:
    """The open servers, or the open backups where there are no others."""
    tier = [server for server in servers if server.open and not server.config.backup]
    return tier or [server for server in servers if server.open]
