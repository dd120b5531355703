"""The token buckets of one limit in one process: a bucket for each key, all of the same rate and burst.

**A bucket** fills with what is admitted and drains at ``rate`` a second. One that would hold more than ``burst`` is
over the limit, and nothing is added. So in any time t no key gets more than ``burst + rate * t``.

**One number a key.** What drains is the same for all buckets: the amount since the beginning. An entry is the mark that
this amount will have reached when the bucket is empty; its debt is what is missing to that mark. A key without an entry
is an empty bucket, and so is one whose mark has passed. Another rate only bends the line of what drains: it counts for
all keys at once, and no debt changes.

**Replicas.** Each worker has its own. It tells the others how much it admitted of which key (:meth:`take_spent`), as
amounts and never as totals, and they add it to theirs (:meth:`charge`), beyond the burst if need be. What was admitted
too much before a replica heard of it is so paid back: the key waits until it is drained like all else. A process that
begins is taught the debts (:meth:`debts`, :meth:`learn`).

**Memory.** At most ``size`` keys. From seven eighths of that on, each that comes makes the oldest that owes at most
half of the burst go: whoever is at the limit can't have that forgotten by sending from many other keys, and whoever is
forgotten wins half of a burst at most. Each looks at ``TRIES`` entries at most and leaves those that owe more for
another round, so the last eighth is used only while nearly all owe more; when it is full as well, the one of ``TRIES``
that owes least goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

SIZE = 100_000
TRIES = 8  # entries that are looked at for one that may go
SLACK = 1e-6  # of a token, lost to rounding


class Buckets:
    """See the module. ``now`` is monotonic seconds, the same clock in every call.

    ``wake`` is called when something was spent that has not been told; it is set again by whoever tells.
    """

    __slots__ = (
        "__weakref__",
        "_base",
        "_marks",
        "_spent",
        "_start",
        "burst",
        "evicted",
        "name",
        "rate",
        "size",
        "wake",
    )

    def __init__(self, name: str, rate: float, burst: float, size: int, now: float) -> None:
        if rate <= 0.0 or burst < 1.0 or size < 1:
            raise ValueError("a limit needs a rate of more than 0, a burst of at least 1 and room for a key")
        self.name = name
        self.rate = rate
        self.burst = burst
        self.size = size
        self.evicted = 0  # keys that were forgotten while they owed something
        self.wake: Callable[[], None] | None = None
        self._start = now
        self._base = 0.0
        self._marks: OrderedDict[bytes, float] = OrderedDict()
        self._spent: dict[bytes, int] = {}

    def __len__(self) -> int:
        """Keys that are remembered, some of which may be empty again."""
        return len(self._marks)

    def change(self, rate: float, burst: float, size: int, now: float) -> None:
        """Another limit for the same keys, which counts at once; what they owe stays."""
        self._base = self._drained(now)
        self._start = now
        self.rate = rate
        self.burst = burst
        self.size = size

    def _drained(self, now: float) -> float:
        return self._base + (now - self._start) * self.rate

    # --- the decision ---------------------------------------------------------------------------------------------

    def take(self, key: bytes, now: float) -> float:
        """Admit one of this key, or say in how many seconds one would be admitted: 0.0 if it was."""
        drained = self._base + (now - self._start) * self.rate
        known = self._marks.get(key, -1.0)
        mark = (max(drained, known)) + 1.0
        over = mark - drained - self.burst
        if over > SLACK:
            return over / self.rate
        self._marks[key] = mark
        if known < 0.0:
            self._make_room(drained)
        spent = self._spent
        if key in spent:
            spent[key] += 1
        else:
            spent[key] = 1
            wake = self.wake
            if wake is not None:
                self.wake = None
                wake()
        return 0.0

    def wait(self, key: bytes, now: float) -> float:
        """What ``take`` would return; nothing is admitted."""
        over = self.debt(key, now) + 1.0 - self.burst
        return over / self.rate if over > SLACK else 0.0

    def debt(self, key: bytes, now: float) -> float:
        """What the key's bucket holds."""
        return max(0.0, self._marks.get(key, 0.0) - self._drained(now))

    # --- other replicas -------------------------------------------------------------------------------------------

    def charge(self, key: bytes, count: int, now: float) -> None:
        """Others admitted so many of this key."""
        drained = self._drained(now)
        known = self._marks.get(key, -1.0)
        self._marks[key] = max(known, drained) + count
        if known < 0.0:
            self._make_room(drained)

    def take_spent(self) -> dict[bytes, int]:
        """What was admitted here since the last call."""
        spent = self._spent
        self._spent = {}
        return spent

    def unspoken(self) -> dict[bytes, int]:
        """What ``take_spent`` would return."""
        return dict(self._spent)

    def debts(self, now: float) -> list[tuple[bytes, float]]:
        """All keys that owe something, and how much."""
        drained = self._drained(now)
        return [(key, mark - drained) for key, mark in self._marks.items() if mark > drained]

    def learn(self, key: bytes, debt: float, now: float) -> None:
        """Another replica knows of this debt: the greater one holds, since each has all that it heard of."""
        drained = self._drained(now)
        known = self._marks.get(key, -1.0)
        if debt > 0.0 and known < drained + debt:
            self._marks[key] = drained + debt
            if known < 0.0:
                self._make_room(drained)

    # --- memory ---------------------------------------------------------------------------------------------------

    def _make_room(self, drained: float) -> None:
        """Forget entries, up to two for each that comes, so that a smaller size is reached as well."""
        soft = self.size - (self.size >> 3)
        for _ in range(2):
            if len(self._marks) > soft:
                self._forget_one(drained)

    def _forget_one(self, drained: float) -> None:
        marks = self._marks
        least, lowest = b"", 0.0
        for _ in range(min(TRIES, len(marks))):
            key, mark = marks.popitem(last=False)
            if mark - drained <= self.burst / 2:
                if least:
                    marks[least] = lowest
                self.evicted += mark > drained
                return
            if least and mark >= lowest:
                marks[key] = mark
                continue
            if least:
                marks[least] = lowest
            least, lowest = key, mark
        if len(marks) < self.size:
            marks[least] = lowest
        else:
            self.evicted += 1

    def tick(self, now: float, work: int = 1000) -> None:
        """Bounded work, to be done about once a second: forget some of the keys that owe nothing."""
        if len(self._spent) > self.size:
            self._spent.clear()  # nobody has listened for long
        drained = self._drained(now)
        marks = self._marks
        for _ in range(min(work, len(marks))):
            key, mark = marks.popitem(last=False)
            if mark > drained:
                marks[key] = mark
