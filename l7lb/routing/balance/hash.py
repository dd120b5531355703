"""Consistent hash with bounded loads: the same key goes to the same server, on every worker and every node.

Each server has points on a ring, placed by the hash of its name, as many as its weight asks for; a key belongs to the
server of the next point. A server that leaves therefore moves its own keys only, each to the server of the next point
after, and they come back with it. Nothing but names, weights and keys decides: no order, address or start time, and
xxhash is the same everywhere.

``bounded_load`` c keeps a popular key from drowning its server (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing
with Bounded Loads", 2018): no server takes more than c times its share by weight of what is in progress, rounded up;
beyond that its keys overflow to the next one on the ring. Since c is more than 1, some server always has room.

A server that starts slowly gets the same growing part of its keys on every worker: each key has, for each server, a
fraction by which it is called home. A request without the key's fact goes by random of two.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from math import ceil, inf

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Balance
from l7lb.routing.balance.common import TierBalancer
from l7lb.routing.balance.random_of_two import RandomOfTwo
from l7lb.routing.matchers import show

POINTS = 128  # for each unit of weight
MAX_POINTS = 131_072  # of a pool; where its weights ask for more, all servers get half, a quarter ... of them
POSITION_BITS = 46
NUMBER_BITS = 14  # a point is its position and its server's number; 60 bits are two digits of a Python integer
NUMBER_MASK = (1 << NUMBER_BITS) - 1
SMALL = 16  # servers whose loads are added up for each choice
RENEWAL = 0.05
MAX_WALK = 1024  # points that are looked at for one key


@lru_cache(maxsize=8)
def ring(servers: tuple[tuple[str, int], ...]) -> list[int]:
    """The sorted points of servers given as name and weight, in the order of their names."""
    total = POINTS * sum(weight for _, weight in servers)
    halvings = 0
    while total >> halvings > MAX_POINTS:
        halvings += 1
    points: list[int] = []
    for number, (name, weight) in enumerate(servers):
        data = name.encode()
        # Two positions from each digest.
        for part in range(max(1, POINTS * weight >> halvings + 1)):
            digest = xxh3_128_intdigest(data, seed=part)
            points.append((digest & (1 << POSITION_BITS) - 1) << NUMBER_BITS | number)
            points.append((digest >> 64 & (1 << POSITION_BITS) - 1) << NUMBER_BITS | number)
    points.sort()
    return points


class HashBalancer(TierBalancer):
    """The server that the key's place on the ring belongs to."""

    def __init__(self, pool: PoolState, settings: Balance, seed: int | None = None) -> None:
        super().__init__(pool, settings, seed)
        if settings.hash_on is None:
            raise ValueError("balance by hash needs the name of a fact, such as hash: path")
        self._kind = settings.hash_on.kind
        self._name = settings.hash_on.name
        self._bound = settings.bounded_load
        self._keyless = RandomOfTwo(pool, settings, seed)
        self._servers: list[ServerState] = []
        self._points: list[int] = []
        self._tier: frozenset[ServerState] = frozenset()
        self._weights: dict[ServerState, float] = {}
        self._weight = 0.0
        self._growing = False
        self._simple = False  # a key's own server gets it, whatever the others do
        self._load = 0
        self._renewal = inf

    def changed(self, now: float) -> None:
        super().changed(now)
        self._keyless.changed(now)

    def rebuild(self, tier: Sequence[ServerState], weights: Sequence[float], now: float) -> None:
        # All servers stand on the ring, the closed ones too: their keys must come back to them. Backups stand on it
        # only while they are the tier.
        members = (
            tier if tier and tier[0].config.backup else [one for one in self.pool.servers if not one.config.backup]
        )
        self._servers = sorted(members, key=lambda server: server.name)
        self._points = ring(tuple((server.name, server.config.weight) for server in self._servers))
        self._tier = frozenset(tier)
        self._weights = dict(zip(tier, weights, strict=True))
        self._weight = sum(weights)
        self._growing = any(weight != server.config.weight for server, weight in self._weights.items())
        self._simple = bool(self._points) and not self._bound and not self._growing
        self._count(now)

    def _count(self, now: float) -> None:
        self._load = sum(server.active + server.others for server in self._tier)
        self._renewal = now + RENEWAL if self._bound and len(self._tier) > SMALL else inf

    def pick(self, facts: Facts, now: float, without: Collection[ServerState]) -> ServerState | None:
        key = facts.text(self._kind, self._name)
        if key is None:
            return self._keyless.choose(facts, now, without)
        digest = xxh3_64_intdigest(key)
        if self._simple:
            server = self._servers[self._points[self._place(digest)] & NUMBER_MASK]
            if server.open and not server.full and server not in without:
                return server
        bounded = self._bound > 0 and self._weight > 0
        allowance = self._allowance(now) if bounded else 0.0
        with_room: ServerState | None = None
        full: ServerState | None = None
        for server in self.walk(digest):
            if not server.open or server in without:
                continue
            if server.full:
                full = full or server
                continue
            with_room = with_room or server
            weight = self._weights.get(server, 0.0)
            if bounded and server.active + server.others >= ceil(allowance * weight):
                continue
            if not self._growing or comes_home(digest, server, weight):
                return server
        return with_room or full

    def _allowance(self, now: float) -> float:
        """What a server may have in progress for each unit of weight, the request to come included."""
        if now >= self._renewal or len(self._tier) <= SMALL:
            self._count(now)
        return self._bound * (self._load + 1) / self._weight

    def _place(self, digest: int) -> int:
        """Where on the ring the key's own point is."""
        place = bisect_left(self._points, digest >> 64 - POSITION_BITS << NUMBER_BITS)
        return place if place < len(self._points) else 0

    def walk(self, digest: int) -> Iterator[ServerState]:
        """The servers in the order in which this key belongs to them, each once."""
        points = self._points
        servers = self._servers
        size = len(points)
        place = self._place(digest)
        seen: set[int] = set()
        for _ in range(min(size, MAX_WALK)):
            number = points[place] & NUMBER_MASK
            place += 1
            if place == size:
                place = 0
            if number not in seen:
                seen.add(number)
                yield servers[number]
                if len(seen) == len(servers):
                    return

    def taken(self, server: ServerState) -> None:
        if server in self._tier:
            self._load += 1

    def released(self, server: ServerState, latency: float) -> None:
        if server in self._tier:
            self._load -= 1

    def explain(self, facts: Facts, now: float) -> str:
        """Why :meth:`choose` gives a key the server it gives it, in plain words."""
        key = facts.text(self._kind, self._name)
        fact = f"{self._kind} {self._name}".strip()
        if key is None:
            return f"the request has no {fact} to hash, so that it goes by random of two"
        if now >= self._due:
            self.renew(now)
        digest = xxh3_64_intdigest(key)
        chosen = self.choose(facts, now, self.pool.down_for(facts.protocol))
        passed = []
        for server in self.walk(digest):
            if server is chosen:
                break
            why = f"down for {facts.protocol}" if facts.protocol in server.down else self._why_not(server)
            passed.append(f"{server.name} ({why})")
        shown = show(key)
        if not passed:
            return f"the hash of {fact} {shown} belongs to it"
        return f"the hash of {fact} {shown} belongs to {passed[0]}; passed over: {', '.join(passed[:10])}"

    def _why_not(self, server: ServerState) -> str:
        if not server.healthy:
            return "down"
        if not server.open:
            return "ejected" if server.ejected else "takes no new users"
        if server.full:
            return "at its connection limit"
        if self._growing and self._weights.get(server, 0.0) < server.config.weight:
            return "starting slowly"
        return "at its bound"


def comes_home(digest: int, server: ServerState, weight: float) -> bool:
    """Whether a server that starts slowly has grown enough to get this key back; the same on every worker."""
    full_weight = server.config.weight
    return weight >= full_weight or xxh3_64_intdigest(server.name.encode(), seed=digest) < weight / full_weight * (
        1 << 64
    )
