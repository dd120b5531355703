"""Smooth weighted round robin: nginx's, at a cost that does not grow with the number of servers.

In nginx's form every server has a current value. For each request all values grow by their servers' weights, the
greatest wins (the first in the list on a tie) and is reduced by the sum of all weights. With weights 5, 1, 1 that gives
a a b a c a a: no server gets its share in one lump.

Going through all servers for each request is not needed. Servers of one weight grow alike, so that their order among
one another changes only when one of them is chosen: a class of equal weight has one clock, and a heap ordered by
``clock - current``. Only the heads of the classes are compared.

A server that is met at its connection limit rests, its value frozen, until it has room: as in nginx, it doesn't save
up turns. One that is only excluded for this request keeps its turn for the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from heapq import heapify, heappop, heappush, heapreplace

from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Balance
from l7lb.routing.balance.common import TierBalancer

Place = tuple[float, int]  # clock minus current value; the server's number


class _Class:
    """The servers of one weight."""

    __slots__ = ("clock", "heap", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.clock = 0.0
        self.heap: list[Place] = []


class RoundRobin(TierBalancer):
    """Servers take turns by weight."""

    def __init__(self, pool: PoolState, settings: Balance, seed: int | None = None) -> None:
        super().__init__(pool, settings, seed)
        self._servers: Sequence[ServerState] = ()
        self._weights: Sequence[float] = ()
        self._classes: dict[float, _Class] = {}
        self._total = 0.0
        self._resting: deque[tuple[int, float]] = deque()  # number, current value
        self._is_resting: set[ServerState] = set()
        # Processes that start together must not all begin with the first server.
        self._skip = seed is None

    def rebuild(self, tier: Sequence[ServerState], weights: Sequence[float], now: float) -> None:
        before = self._currents()
        old_total = sum(self._weights)
        # Whole numbers stay exact however long it runs.
        self._weights = [int(weight) if weight == int(weight) else weight for weight in weights]
        self._servers = tier
        self._total = sum(self._weights)
        self._resting.clear()
        self._is_resting.clear()
        self._classes = {}
        unchanged = self._total == old_total
        for number, (server, weight) in enumerate(zip(tier, self._weights, strict=True)):
            current = before.get(server, 0)
            if not unchanged and current:
                current *= self._total / old_total  # what is left over from a large pool is not a small one's lump
            self._class(weight).heap.append((-current, number))
        for group in self._classes.values():
            heapify(group.heap)
        if self._skip and tier:
            self._skip = False
            for _ in range(self.chance.randrange(len(tier))):
                self._next(())

    def _class(self, weight: float) -> _Class:
        group = self._classes.get(weight)
        if group is None:
            group = self._classes[weight] = _Class(weight)
        return group

    def _currents(self) -> dict[ServerState, float]:
        found = {self._servers[number]: current for number, current in self._resting}
        for group in self._classes.values():
            found.update((self._servers[number], group.clock - offset) for offset, number in group.heap)
        return found

    def pick(self, facts: Facts, now: float, without: Collection[ServerState]) -> ServerState | None:
        if self._resting:
            self._wake(1)
        server = self._next(without)
        if server is None and self._resting and self._wake(len(self._resting)):
            server = self._next(without)
        return server

    def _next(self, without: Collection[ServerState]) -> ServerState | None:
        best: _Class | None = None
        best_current = 0.0
        best_number = 0
        passed: list[tuple[_Class, Place]] = []
        for group in self._classes.values():
            group.clock += group.weight
            head = self._head(group, without, passed)
            if head is not None:
                current = group.clock - head[0]
                if best is None or current > best_current or (current == best_current and head[1] < best_number):
                    best, best_current, best_number = group, current, head[1]
        server = None
        if best is not None:
            heapreplace(best.heap, (best.heap[0][0] + self._total, best_number))
            server = self._servers[best_number]
        for group, place in passed:
            heappush(group.heap, place)
        return server

    def _head(
        self, group: _Class, without: Collection[ServerState], passed: list[tuple[_Class, Place]]
    ) -> Place | None:
        """The first of a class that can be given; those before it go to rest or, if only excluded, to ``passed``."""
        heap = group.heap
        while heap:
            offset, number = heap[0]
            server = self._servers[number]
            if server.full or not server.open:
                heappop(heap)
                self._total -= group.weight
                self._resting.append((number, group.clock - offset))
                self._is_resting.add(server)
            elif without and server in without:
                passed.append((group, heappop(heap)))
            else:
                return heap[0]
        return None

    def _wake(self, count: int) -> bool:
        """Look at so many of the resting servers, and put back those that have room."""
        woken = False
        for _ in range(count):
            number, current = self._resting.popleft()
            server = self._servers[number]
            if server.full or not server.open:
                self._resting.append((number, current))
                continue
            weight = self._weights[number]
            group = self._class(weight)
            heappush(group.heap, (group.clock - current, number))
            self._total += weight
            self._is_resting.discard(server)
            woken = True
        return woken

    def released(self, server: ServerState, latency: float) -> None:
        if server in self._is_resting and not server.full:
            for place, (number, _) in enumerate(self._resting):
                if self._servers[number] is server:
                    self._resting.rotate(-place)
                    self._wake(1)
                    break
