"""Deadlines of many connections for the price of an attribute.

A connection that is armed lies in the bucket of its deadline's tick. Moving the deadline further away costs nothing:
when the bucket comes up, the connection says when it really is due and is put there. Only a nearer deadline moves it.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from time import monotonic
from typing import Final, Protocol

TICK: Final = 0.05  # seconds; how late a deadline may be noticed


class Timed(Protocol):
    """What can be due. ``armed`` is the tick that it waits for, 0 for none; it belongs to the timers."""

    armed: int

    def due(self, now: float) -> float:
        """Act if the time has come; returns the next deadline, 0.0 for none."""
        ...


class Timers:
    """All deadlines of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: dict[int, set[Timed]] = {}
        self._ticks: list[int] = []
        self._wakeup: asyncio.TimerHandle | None = None
        self._wakeup_tick = 0

    def arm(self, timed: Timed, deadline: float) -> None:
        """Have ``timed.due`` called at ``deadline`` or up to a tick later, unless it is armed for earlier."""
        tick = int(deadline / TICK) + 1
        if timed.armed:
            if timed.armed <= tick:
                return
            self._leave(timed)
        timed.armed = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = bucket = set()
            heappush(self._ticks, tick)
            if self._wakeup is None or tick < self._wakeup_tick:
                self._schedule()
        bucket.add(timed)

    def disarm(self, timed: Timed) -> None:
        """Forget it."""
        if timed.armed:
            self._leave(timed)
            timed.armed = 0

    def _leave(self, timed: Timed) -> None:
        bucket = self._buckets.get(timed.armed)
        if bucket is not None:
            bucket.discard(timed)

    def close(self) -> None:
        """Forget all."""
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None
        self._buckets.clear()
        self._ticks.clear()

    def _schedule(self) -> None:
        if self._wakeup is not None:
            self._wakeup.cancel()
        self._wakeup_tick = self._ticks[0]
        self._wakeup = self._loop.call_at(self._wakeup_tick * TICK, self._run)

    def _forget(self) -> None:
        # In a method of its own: what is called below may set it again, which a compiler that sees the assignment of
        # None in the same function does not expect.
        self._wakeup = None

    def _run(self) -> None:
        self._forget()
        now = monotonic()
        limit = int(now / TICK)
        while self._ticks and self._ticks[0] <= limit:
            tick = heappop(self._ticks)
            for timed in self._buckets.pop(tick):
                if timed.armed != tick:
                    continue  # one that came before it in this tick disarmed or moved it
                timed.armed = 0
                deadline = timed.due(now)
                if deadline:
                    self.arm(timed, max(deadline, now))
        if self._ticks and self._wakeup is None:
            self._schedule()
