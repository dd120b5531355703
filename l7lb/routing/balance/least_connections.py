"""Least connections: the server with the least in progress for its weight.

In progress counts the whole node's work, other workers' included. Servers that are equal take turns by weight: each
has a turn that moves by 1/weight when it is chosen, never behind the turn of the last one chosen (start-time fair
queueing), so that a server that was away doesn't get all ties until it has caught up.

A small pool is looked through for each choice. A large one is kept in a heap: what this worker takes and gives back
moves its server's entry at once; entries that were overtaken are recognised and dropped. Other workers' counts change
without notice, so the heap is made anew every ``RENEWAL`` seconds; an entry whose server has meanwhile got more to do
is put right when it comes up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from heapq import heapify, heappop, heappush
from math import inf

from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Balance
from l7lb.routing.balance.common import TierBalancer

SMALL = 16  # servers that are looked through
RENEWAL = 0.05

Entry = tuple[float, float, int, int]  # load for its weight, turn, number, version


class LeastConnections(TierBalancer):
    """The server with the least load for its weight."""

    def __init__(self, pool: PoolState, settings: Balance, seed: int | None = None) -> None:
        super().__init__(pool, settings, seed)
        self._servers: Sequence[ServerState] = ()
        self._weights: Sequence[float] = ()
        self._turns: list[float] = []
        self._clock = 0.0
        self._numbers: dict[ServerState, int] = {}
        self._versions: list[int] = []
        self._heap: list[Entry] = []
        self._large = False
        self._renewal = inf
        self._fresh = seed is None

    def rebuild(self, tier: Sequence[ServerState], weights: Sequence[float], now: float) -> None:
        before = {server: self._turns[number] for server, number in self._numbers.items()}
        self._servers = tier
        self._weights = weights
        self._numbers = {server: number for number, server in enumerate(tier)}
        # Processes that start together must not all begin with the same server.
        self._turns = [
            before.get(server, self._clock + (self.chance.random() / weight if self._fresh else 0.0))
            for server, weight in zip(tier, weights, strict=True)
        ]
        self._fresh = False
        self._versions = [0] * len(tier)
        self._large = len(tier) > SMALL
        self._fill(now)

    def _fill(self, now: float) -> None:
        self._heap = []
        self._renewal = inf
        if self._large:
            self._renewal = now + RENEWAL
            weights, turns, versions = self._weights, self._turns, self._versions
            self._heap = [
                ((server.active + server.others) / weights[number], turns[number], number, versions[number])
                for number, server in enumerate(self._servers)
            ]
            heapify(self._heap)

    def pick(self, facts: Facts, now: float, without: Collection[ServerState]) -> ServerState | None:
        if now >= self._renewal:
            self._fill(now)
        number = self._from_heap(without) if self._large else self._look_through(without)
        if number < 0:
            return None
        turn = max(self._turns[number], self._clock)
        self._clock = turn
        self._turns[number] = turn + 1.0 / self._weights[number]
        if self._large:
            self._push(number)
        return self._servers[number]

    def _look_through(self, without: Collection[ServerState]) -> int:
        best = -1
        best_cost = best_turn = inf
        clock = self._clock
        servers = self._servers
        for number, server, weight, turn in zip(range(len(servers)), servers, self._weights, self._turns, strict=True):
            cost = (server.active + server.others) / weight
            if cost > best_cost:
                continue
            if turn < clock:
                turn = clock  # noqa: PLW2901 - max() would cost more than the rest
            if cost == best_cost and turn >= best_turn:
                continue
            if server.open and not server.full and server not in without:
                best, best_cost, best_turn = number, cost, turn
        return best

    def _from_heap(self, without: Collection[ServerState]) -> int:
        heap = self._heap
        passed: list[Entry] = []
        found = -1
        while heap:
            cost, _, number, version = heap[0]
            server = self._servers[number]
            if version != self._versions[number]:
                heappop(heap)  # overtaken
            elif (server.active + server.others) / self._weights[number] != cost:
                heappop(heap)
                self._push(number)
            elif server.full or not server.open:
                heappop(heap)  # it comes back with the next renewal, or when something is given back
            elif without and server in without:
                passed.append(heappop(heap))
            else:
                found = number
                break
        for entry in passed:
            heappush(heap, entry)
        return found

    def _push(self, number: int) -> None:
        server = self._servers[number]
        version = self._versions[number] = self._versions[number] + 1
        cost = (server.active + server.others) / self._weights[number]
        heappush(self._heap, (cost, max(self._turns[number], self._clock), number, version))
        if len(self._heap) > 8 * len(self._servers):
            self._renewal = -inf  # mostly overtaken entries

    def taken(self, server: ServerState) -> None:
        if self._large and server in self._numbers:
            self._push(self._numbers[server])

    def released(self, server: ServerState, latency: float) -> None:
        if self._large and server in self._numbers:
            self._push(self._numbers[server])
