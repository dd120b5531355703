"""Active health checks: one task a server, once for the whole node.

Each task checks its server, feeds the result to :class:`RiseFall`, tells NodeState what it means and sleeps. The first
check comes at once; the first pause is random, so that servers that were configured together are not asked together
for ever, and later ones vary by a tenth.

A node with much to check may become slow to notice, but must not take a healthy server out because it was busy itself.
So a check's time starts when its turn has come; at most ``concurrency`` run at a time, and few of them are younger than
a moment, so that a thousand first checks are no storm; and a check that ended long after its time, since this process
could not run, says nothing.

A reload keeps the tasks, and with them the streaks, of servers whose address and checks stayed the same.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from l7lb.control import probes
from l7lb.control.node import Change, NodeState
from l7lb.control.probes import HttpProbe, ProbeUnavailable
from l7lb.control.rise_fall import RiseFall
from l7lb.control.verdicts import checked
from l7lb.core.contracts import Probe, ProbeTls, ProtocolSpec
from l7lb.core.errors import ProbeFailed
from l7lb.core.finding import Finding
from l7lb.core.snapshot import Address, Health, Pool, Server, ServerTls
from l7lb.proxy.tls_contexts import server_context

CONCURRENCY = 400  # checks at a time
YOUNG = 32  # of them, not older than HOLD
HOLD = 0.05  # seconds
BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds, of the duration histogram

TaskKey = tuple[str, str, str]  # the pool's name, the server's, the protocol

log = structlog.get_logger("l7lb.health")


@dataclass
class CheckCounts:
    """What a pool's checks came to; kept for as long as the pool is checked. ``buckets`` are not cumulative."""

    good: int = 0
    bad: int = 0
    unavailable: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))

    def add(self, seconds: float) -> None:
        """One check took so long."""
        self.seconds += seconds
        place = next((place for place, limit in enumerate(BUCKETS) if seconds <= limit), len(BUCKETS))
        self.buckets[place] += 1


@dataclass(frozen=True)
class Target:
    """One server to be checked, in one protocol if it has several; equal targets keep their task over a reload."""

    pool: str
    server: str
    address: Address
    health: Health
    tls: ServerTls | None = None
    protocol: str = ""  # that this check speaks for; "": for the whole server

    @property
    def label(self) -> str:
        """Its name in logs."""
        return f"{self.pool}/{self.server}" + (f" ({self.protocol})" if self.protocol else "")


def _targets(pool: Pool, health: Health, server: Server) -> list[Target]:
    """What is to be checked of a server: the whole, or its protocols one by one."""

    def target(spoken: str, protocol: str) -> Target:
        of_server = probes.of_server(health, server, spoken, pool.client_address)
        return Target(pool.name, server.name, server.address_for(spoken), of_server, server.tls, protocol)

    one_by_one = checked(health, server)
    if one_by_one:
        return [target(protocol, protocol) for protocol in one_by_one]
    return [target("http" if health.kind == "http" else health.protocol, "")]


class Turns:
    """Lets checks begin: so many at a time, and not many at once. ``async with turns.turn():``."""

    def __init__(self, concurrency: int, young: int) -> None:
        self._all = asyncio.Semaphore(concurrency)
        self._young = asyncio.Semaphore(young)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it."""
        async with self._all:
            await self._young.acquire()
            grown = asyncio.get_running_loop().call_later(HOLD, self._young.release)
            try:
                yield
            finally:
                if grown.when() > asyncio.get_running_loop().time() and not grown.cancelled():
                    grown.cancel()
                    self._young.release()


class HealthMonitor:
    """See the module. ``choose`` finds the probe; by default those of :mod:`l7lb.control.probes`."""

    def __init__(
        self,
        node: NodeState,
        protocols: Mapping[str, ProtocolSpec],
        concurrency: int = CONCURRENCY,
        rng: random.Random | None = None,
        choose: Callable[[Health], Probe] | None = None,
    ) -> None:
        self.counts: dict[str, CheckCounts] = {}
        self._node = node
        self._http = HttpProbe()
        self._choose = choose or probes.chooser(protocols, self._http)
        self._random = rng or random.Random()
        self._turns = Turns(concurrency, YOUNG)
        self._tls: dict[ServerTls, ProbeTls] = {}
        self._tasks: dict[TaskKey, tuple[Target, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._running = False
        self._said_unavailable: set[str] = set()
        node.subscribe(self._changed)

    async def start(self) -> None:
        """Begin to check."""
        self._running = True
        self._reconcile()

    async def stop(self) -> None:
        """End all checks."""
        self._running = False
        for key in list(self._tasks):
            self._end(key)
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._http.close()

    def _changed(self, change: Change) -> None:
        if change.snapshot and self._running:
            self._reconcile()

    def _reconcile(self) -> None:
        """Start and end tasks so that exactly the servers in force are checked."""
        wanted: dict[TaskKey, Target] = {}
        for pool in self._node.effective().pools:
            if pool.health is not None:
                self.counts.setdefault(pool.name, CheckCounts())
                for server in pool.servers:
                    for target in _targets(pool, pool.health, server):
                        wanted[pool.name, server.name, target.protocol] = target
        in_use = {target.tls for target in wanted.values()}
        self._tls = {tls: known for tls, known in self._tls.items() if tls in in_use}
        pools = {pool for pool, _, _ in wanted}
        self.counts = {pool: counts for pool, counts in self.counts.items() if pool in pools}
        for key, (target, _) in list(self._tasks.items()):
            if wanted.get(key) != target:
                self._end(key)
        for key, target in wanted.items():
            if key not in self._tasks:
                self._tasks[key] = target, asyncio.create_task(self._watch(target), name=f"check {target.label}")

    def _end(self, key: TaskKey) -> None:
        _, task = self._tasks.pop(key)
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _watch(self, target: Target) -> None:
        streak = RiseFall(target.health.rise, target.health.fall, self._known(target))
        interval = target.health.interval
        pause = interval * self._random.uniform(0.25, 1.0)
        while True:
            began = time.monotonic()
            await self._check(target, streak)
            await asyncio.sleep(max(pause - (time.monotonic() - began), interval * 0.05))
            pause = interval * self._random.uniform(0.9, 1.1)

    def _known(self, target: Target) -> bool | None:
        """What the checks before these said, if there were any."""
        verdict = self._node.verdict(target.pool, target.server)
        if verdict is None:
            return None
        if not target.protocol:
            return verdict.healthy
        part = verdict.parts.get(target.protocol)
        return part.healthy if part is not None else None

    async def _check(self, target: Target, streak: RiseFall) -> None:
        health = target.health
        counts = self.counts[target.pool]
        async with self._turns.turn():
            began = time.monotonic()
            try:
                probe = self._choose(health)
                async with asyncio.timeout(health.timeout):
                    settings = self._settings(target)
                    reason = await probe(probes.target(target.address, health), settings, health.timeout)
                good = True
                if isinstance(reason, Finding):
                    protocol = target.protocol or health.protocol
                    self._node.set_offers(target.pool, target.server, protocol, reason.offers)
                if health.kind != "ping":
                    reason = f"{reason} in {(time.monotonic() - began) * 1000:.0f} ms"
            except ProbeUnavailable as problem:
                counts.unavailable += 1
                self._unavailable(target, str(problem))
                return
            except ProbeFailed as problem:
                good, reason = False, str(problem)
            except TimeoutError:
                good, reason = False, probes.describe_timeout(health.timeout)
            except Exception as error:
                log.exception(f"{target.label}: its check is broken", check=health.kind)
                good, reason = False, f"the check is broken: {type(error).__name__}"
            seconds = time.monotonic() - began
        if not good and seconds > health.timeout * 1.25 + 0.1:
            counts.unavailable += 1
            return
        counts.add(seconds)
        if good:
            counts.good += 1
        else:
            counts.bad += 1
        streak.feed(good)
        self._verdict(target, bool(streak.healthy), streak.words(reason))

    def _settings(self, target: Target) -> dict[str, Any]:
        """What the probe is told: the pool's settings, and how to speak TLS to a server that wants it."""
        tls = target.tls
        if tls is None:
            return target.health.settings
        known = self._tls.get(tls)
        if known is None:
            plain = msgspec.structs.replace(tls, alpn=())  # checks speak HTTP/1.1
            known = self._tls[tls] = ProbeTls(server_context(plain), tls.server_name or None, tls.mode)
        return {**target.health.settings, "tls": known}

    def _verdict(self, target: Target, healthy: bool, why: str) -> None:
        if not self._node.set_health(target.pool, target.server, healthy, why, target.protocol):
            return
        servers = next((pool.servers for pool in self._node.effective().pools if pool.name == target.pool), ())
        left = sum(self._node.is_open(target.pool, server, target.protocol) for server in servers)
        say = log.info if healthy else log.warning
        say(
            f"{target.label} is {'up' if healthy else 'down'}: {why}",
            pool=target.pool,
            server=target.server,
            open_servers=left,
        )
        if not left and not healthy:
            what = f" for {target.protocol}" if target.protocol else ""
            log.error(f"pool {target.pool} has no server left{what}", pool=target.pool)

    def _unavailable(self, target: Target, why: str) -> None:
        """The check can't be made: what was known of the server stays."""
        healthy = self._node.healthy_for(target.pool, target.server, target.protocol)
        self._node.set_health(target.pool, target.server, healthy, why, target.protocol)
        if target.pool not in self._said_unavailable:
            self._said_unavailable.add(target.pool)
            log.warning(f"pool {target.pool}: {why}", pool=target.pool)
