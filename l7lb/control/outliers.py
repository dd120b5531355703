"""Passive health: a server that fails its users several times in a row is out for a while.

Workers report failures, and the first good answer after one; they are added up here, so that a server whose failures
are spread over the workers is found as soon as one that fails in a single worker. The time out grows with each
repetition, up to ten times the configured one, and is forgotten after the server was well for as long as that.

Some servers always stay: no more than ``max_ejected`` of the pool are out at once (but one may be, unless the share is
0), and never the last one that is open. When the others go down later, those that are out come back before their time.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import structlog

from l7lb.control.effective import Key
from l7lb.control.node import Change, NodeState
from l7lb.core.messages import ServerResult
from l7lb.core.snapshot import Pool, Server

GROWTH = 10  # times eject_for at most

log = structlog.get_logger("l7lb.outliers")


@dataclass
class Record:
    """One server's errors in a row, and how often it was out lately."""

    errors: int = 0
    times: int = 0
    back_at: float = 0.0  # monotonic
    said: bool = False  # that it stays because too many are out


def allowed(pool: Pool) -> int:
    """How many of the pool's servers may be out at once."""
    if pool.outliers is None or pool.outliers.max_ejected <= 0:
        return 0
    return max(1, math.floor(pool.outliers.max_ejected * len(pool.servers)))


class Outliers:
    """See the module."""

    def __init__(self, node: NodeState) -> None:
        self.ejections: dict[str, int] = {}  # by pool, ever
        self._node = node
        self._records: dict[Key, Record] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        node.subscribe(self._changed)

    async def start(self) -> None:
        """Begin to put servers back when their time has come."""
        self._task = asyncio.create_task(self._run(), name="outliers")

    async def stop(self) -> None:
        """End; who is out stays out."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def result(self, message: ServerResult) -> None:
        """A worker reports a failure, or ("") that the server answers again."""
        pool = self._pool(message.pool)
        server = self._node.server(message.pool, message.server)
        if pool is None or pool.outliers is None or server is None:
            return
        key = message.pool, message.server
        if not message.failure:
            record = self._records.get(key)
            if record is not None:
                record.errors, record.said = 0, False
            return
        record = self._records.setdefault(key, Record())
        record.errors += 1
        if record.errors >= pool.outliers.consecutive_errors and self._node.ejection(*key) is None:
            self._eject(pool, server, record, message.failure)

    def expire(self, now: float) -> None:
        """Put back those whose time has come, and those that the pool can't do without."""
        for pool in self._node.effective().pools:
            if pool.outliers is None:
                continue
            out = self._out(pool)
            for server in list(out):
                if self._until(pool, server) <= now:
                    self._back(pool, server, "its time is over")
                    out.remove(server)
            while len(out) > allowed(pool):
                self._back(pool, out.pop(0), "too many of the pool are out")
            if out and not any(self._node.is_open(pool.name, server) for server in pool.servers):
                for server in out:
                    self._back(pool, server, "no other server of the pool is open")

    def next_time(self) -> float:
        """When ``expire`` has something to do, infinity if nobody is out."""
        times = [
            self._until(pool, server)
            for pool in self._node.effective().pools
            if pool.outliers is not None
            for server in self._out(pool)
        ]
        return min(times, default=math.inf)

    def _eject(self, pool: Pool, server: Server, record: Record, failure: str) -> None:
        settings = pool.outliers
        assert settings is not None
        label = f"{pool.name}/{server.name}"
        others_open = any(self._node.is_open(pool.name, other) for other in pool.servers if other != server)
        limit = allowed(pool)
        if len(self._out(pool)) >= limit or not others_open:
            if not record.said:
                record.said = True
                reason = f"{limit} of the pool's servers may be out" if others_open else "no other one is open"
                log.warning(
                    f"{label} is not ejected after {record.errors} errors: {reason}",
                    pool=pool.name,
                    server=server.name,
                    failure=failure,
                )
            return
        now = self._node.clock()
        if now - record.back_at > settings.eject_for * GROWTH:
            record.times = 0
        record.times += 1
        seconds = settings.eject_for * min(record.times, GROWTH)
        why = f"ejected after {record.errors} errors"
        self.ejections[pool.name] = self.ejections.get(pool.name, 0) + 1
        self._node.set_ejected(pool.name, server.name, seconds, why)
        self._wake.set()
        log.warning(
            f"{label} is {why}, for {seconds:g} s", pool=pool.name, server=server.name, failure=failure, seconds=seconds
        )

    def _back(self, pool: Pool, server: Server, why: str) -> None:
        record = self._records.setdefault((pool.name, server.name), Record())
        record.errors, record.said, record.back_at = 0, False, self._node.clock()
        self._node.set_ejected(pool.name, server.name, 0)
        log.info(f"{pool.name}/{server.name} is no longer ejected: {why}", pool=pool.name, server=server.name)

    def _out(self, pool: Pool) -> list[Server]:
        """The pool's ejected servers, the one that comes back first in front."""
        out = [server for server in pool.servers if self._node.ejection(pool.name, server.name) is not None]
        return sorted(out, key=lambda server: self._until(pool, server))

    def _until(self, pool: Pool, server: Server) -> float:
        ejection = self._node.ejection(pool.name, server.name)
        return ejection.until if ejection is not None else math.inf

    def _pool(self, name: str) -> Pool | None:
        return next((pool for pool in self._node.effective().pools if pool.name == name), None)

    def _changed(self, change: Change) -> None:
        if change.snapshot:
            self._records = {key: record for key, record in self._records.items() if self._node.server(*key)}
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            self.expire(self._node.clock())
            pause = self.next_time() - self._node.clock()
            try:
                async with asyncio.timeout(None if math.isinf(pause) else max(0.0, pause) + 0.001):
                    await self._wake.wait()
            except TimeoutError:
                pass
