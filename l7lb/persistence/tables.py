"""The sticky tables of one worker: a replica for each pool and key that needs one.

A table lives as long as somebody holds it. A reload makes the new snapshot's stickiness before the old one is let go,
so its tables carry over; a pool that is gone frees its own. What a worker drops, the node's state process keeps until
it expires.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from weakref import WeakValueDictionary

from l7lb.core.snapshot import Tables as Limits
from l7lb.persistence.pins import PINS, pins_name
from l7lb.persistence.table import MAX_TTL, Table


def new_origin() -> int:
    """A number for a process in versions: random, so that nobody has to hand them out. 32 bits, never 0."""
    return int.from_bytes(os.urandom(4), "big") or 1


class Tables:
    """The tables by name. ``origin`` is this process's number in the versions of entries."""

    def __init__(self, limits: Limits, origin: int | None = None) -> None:
        self.limits = limits
        self.origin = origin if origin is not None else new_origin()
        self.wake: Callable[[], None] | None = None  # called at the next new or altered table; set again by the reader
        self._tables: WeakValueDictionary[str, Table] = WeakValueDictionary()

    def table(self, name: str, ttl: float) -> Table:
        """The table of that name, made if there is none; a living one takes on the time to live.

        More than ten years are ten years.
        """
        ttl = min(ttl, MAX_TTL)
        table = self._tables.get(name)
        if table is None:
            table = self._tables[name] = Table(name, ttl, self.limits.size, self.origin)
            table.pins = self._pins(pins_name(name))
            self._changed()
        elif table.ttl != ttl:
            table.ttl = ttl
            self._changed()
        return table

    def _pins(self, name: str) -> Table:
        """The table of pins of that name; its size is no limit of the configuration's."""
        pins = self._tables.get(name)
        if pins is None:
            pins = self._tables[name] = Table(name, MAX_TTL, PINS, self.origin)
        return pins

    def resize(self, limits: Limits) -> None:
        """Take on other limits, as a reload may bring them; a table that is too large shrinks as it is used."""
        if limits == self.limits:
            return
        self.limits = limits
        for table in self.held():
            if table.pins is not None:
                table.resize(limits.size)
        self._changed()

    def held(self) -> list[Table]:
        """All tables that somebody holds."""
        return list(self._tables.values())

    def get(self, name: str) -> Table | None:
        """The table of that name, if somebody holds it."""
        return self._tables.get(name)

    def tick(self, now: float) -> bool:
        """Bounded work on every table, about once a second; returns whether more is waiting."""
        waiting = [table.tick(now) for table in self.held()]  # all of them, whatever the first says
        return any(waiting)

    def _changed(self) -> None:
        wake = self.wake
        if wake is not None:
            self.wake = None
            wake()
