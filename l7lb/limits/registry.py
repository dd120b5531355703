"""The limits of one process, by name, and what of them is still to be told to others.

A limit's buckets live as long as somebody holds them: a reload makes the new snapshot's gates before the old ones are
let go, so what users owe carries over.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakValueDictionary

from l7lb.core.snapshot import Limit
from l7lb.limits.buckets import Buckets

Spending = tuple[str, bytes, int]  # a limit's name, a key, and how many were admitted


class Limits:
    """See the module."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] | None = None  # called when there is something to tell; see ``arm``
        self._buckets: WeakValueDictionary[str, Buckets] = WeakValueDictionary()

    def buckets(self, config: Limit, now: float) -> Buckets:
        """The buckets of a limit, made if there are none; living ones take on its rate, burst and size."""
        buckets = self._buckets.get(config.name)
        if buckets is None:
            buckets = self._buckets[config.name] = Buckets(config.name, config.rate, config.burst, config.size, now)
            buckets.wake = self._woken
            self._woken()
        elif (buckets.rate, buckets.burst, buckets.size) != (config.rate, config.burst, config.size):
            buckets.change(config.rate, config.burst, config.size, now)
            self._woken()
        return buckets

    def held(self) -> list[Buckets]:
        """All limits that somebody holds."""
        return list(self._buckets.values())

    def get(self, name: str) -> Buckets | None:
        """The buckets of that name, if somebody holds them."""
        return self._buckets.get(name)

    def arm(self, wake: Callable[[], None]) -> None:
        """Call it at the next spending, or limit that is new or altered."""
        self.wake = wake
        for buckets in self.held():
            buckets.wake = self._woken

    def take_spent(self) -> list[Spending]:
        """What was admitted here since the last call."""
        return [(one.name, key, count) for one in self.held() for key, count in one.take_spent().items()]

    def tick(self, now: float) -> None:
        """Bounded work, about once a second."""
        for buckets in self.held():
            buckets.tick(now)

    def _woken(self) -> None:
        wake = self.wake
        if wake is not None:
            self.wake = None
            wake()
