"""First: fill the first server up to its connection limit, then the next, in the configuration's order.

For servers that cost while they run: those at the end of the list stay idle, and can be turned off. A server without a
limit takes everything, and those behind it get what it can't take.

The search begins behind the servers that were full; a release, a change or the passing of ``RENEWAL`` seconds (for what
other workers have released) makes it begin at the front again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Balance
from l7lb.routing.balance.common import TierBalancer

RENEWAL = 0.05


class First(TierBalancer):
    """The first server that has room."""

    def __init__(self, pool: PoolState, settings: Balance, seed: int | None = None) -> None:
        super().__init__(pool, settings, seed)
        self._servers: Sequence[ServerState] = ()
        self._numbers: dict[ServerState, int] = {}
        self._start = 0
        self._again = 0.0

    def rebuild(self, tier: Sequence[ServerState], weights: Sequence[float], now: float) -> None:
        self._servers = tier
        self._numbers = {server: number for number, server in enumerate(tier)}
        self._start = 0
        self._again = now + RENEWAL

    def pick(self, facts: Facts, now: float, without: Collection[ServerState]) -> ServerState | None:
        if now >= self._again:
            self._start = 0
            self._again = now + RENEWAL
        servers = self._servers
        front = True
        for number in range(self._start, len(servers)):
            server = servers[number]
            if server.full:
                if front:
                    self._start = number + 1
                continue
            front = False
            if server.open and server not in without:
                return server
        return None

    def released(self, server: ServerState, latency: float) -> None:
        self._start = min(self._start, self._numbers.get(server, self._start))
