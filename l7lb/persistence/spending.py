"""The exchange of what rate limits admitted: a worker's side and the state process's.

A worker tells what it admitted at once after a quiet time, and within ``INTERVAL`` while much is admitted; the state
process passes that on at once and keeps the sums, to teach them to workers that begin. So a worker knows what others
admitted until some 15 ms ago. What the state process has not confirmed is told again to the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator

from l7lb.limits.buckets import Buckets
from l7lb.limits.registry import Limits
from l7lb.persistence.exchange import Pace, Sender
from l7lb.persistence.messages import (
    SPENDINGS,
    BadMessage,
    Counted,
    Debts,
    Hold,
    Spent,
    check_debts,
    check_spent,
)

INTERVAL = 0.010  # seconds in which what was admitted gathers before it is told, at most
UNCONFIRMED = 1024  # messages that are kept to be told again
ORIGINS = 1024  # processes whose numbers are remembered
MAX_LIMITS = 4096
RATES = (0.0, 1e9)


class Heard:
    """The last number that was heard of each origin, so that nothing is added twice."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def last(self, origin: int) -> int:
        """The number that was heard last of this origin."""
        return self._numbers.get(origin, 0)

    def new(self, origin: int, number: int) -> bool:
        """Whether this one was not heard yet; it is from now on."""
        known = self._numbers.pop(origin, 0)
        self._numbers[origin] = max(known, number)
        if len(self._numbers) > ORIGINS:
            del self._numbers[next(iter(self._numbers))]
        return number > known


def in_messages(limit: str, debts: list[tuple[bytes, float]], number: int = 0) -> Iterator[Debts]:
    """A limit's debts, in messages; ``number``: see :class:`Debts`."""
    for start in range(0, len(debts), SPENDINGS):
        yield Debts(limit, debts[start : start + SPENDINGS], number)


class WorkerSpending:
    """A worker's side. One for its whole life; ``run`` serves one connection."""

    def __init__(self, limits: Limits, origin: int) -> None:
        self.limits = limits
        self.lost = 0  # messages that went unconfirmed for too long
        self._origin = origin
        self._number = 0
        self._wake = asyncio.Event()
        self._unconfirmed: deque[Spent] = deque()
        self._heard = Heard()
        self._told: dict[str, tuple[float, float, int]] = {}

    async def run(self, sender: Sender, teach: bool) -> None:
        """Tell what is admitted, for as long as the connection lives; ``teach`` a state process that knows nothing."""
        self._told.clear()
        self._gather()
        debts = [message for one in self.limits.held() for message in self._confirmed(one)] if teach else []
        await self._hold(sender)
        for known in debts:
            await sender.send(known)
        for message in list(self._unconfirmed):
            await sender.send(message)
        pace = Pace(INTERVAL)
        while True:
            self._wake.clear()
            self.limits.arm(self._wake.set)
            await self._hold(sender)
            for message in self._gather():
                await sender.send(message)
            await self._wake.wait()
            await pace.gather()

    def _confirmed(self, buckets: Buckets) -> Iterator[Debts]:
        """All debts without what is told again after them."""
        ours = self._unheard(buckets, 0)
        found = ((key, debt - ours.get(key, 0)) for key, debt in buckets.debts(time.monotonic()))
        return in_messages(buckets.name, [(key, debt) for key, debt in found if debt > 0.0])

    async def _hold(self, sender: Sender) -> None:
        held = self.limits.held()
        for buckets in held:
            settings = (buckets.rate, buckets.burst, buckets.size)
            if self._told.get(buckets.name) != settings:
                self._told[buckets.name] = settings
                await sender.send(Hold(buckets.name, *settings))
        if len(self._told) > 2 * len(held) + 16:
            names = {buckets.name for buckets in held}
            self._told = {name: told for name, told in self._told.items() if name in names}

    def _gather(self) -> list[Spent]:
        """What was admitted since the last time, as messages, which are kept until they are confirmed."""
        spendings = self.limits.take_spent()
        messages = []
        for start in range(0, len(spendings), SPENDINGS):
            self._number += 1
            messages.append(Spent(self._origin, self._number, spendings[start : start + SPENDINGS]))
        self._unconfirmed.extend(messages)
        while len(self._unconfirmed) > UNCONFIRMED:
            self._unconfirmed.popleft()
            self.lost += 1
        return messages

    def apply(self, message: Spent | Counted | Debts) -> None:
        """What the state process says. Raises BadMessage."""
        now = time.monotonic()
        match message:
            case Spent():
                check_spent(message)
                if message.origin != self._origin and self._heard.new(message.origin, message.number):
                    for name, key, count in message.spendings:
                        buckets = self.limits.get(name)
                        if buckets is not None:
                            buckets.charge(key, count, now)
            case Counted():
                while self._unconfirmed and self._unconfirmed[0].number <= message.number:
                    self._unconfirmed.popleft()
            case Debts():
                check_debts(message)
                buckets = self.limits.get(message.limit)
                if buckets is not None:
                    ours = self._unheard(buckets, message.number)
                    for key, debt in message.debts:
                        buckets.learn(key, debt + ours.get(key, 0), now)

    def _unheard(self, buckets: Buckets, number: int) -> dict[bytes, int]:
        """What we admitted and the state process, which has heard us up to that number, does not know."""
        ours = buckets.unspoken()
        for message in self._unconfirmed:
            if message.number > number:
                for name, key, count in message.spendings:
                    if name == buckets.name:
                        ours[key] = ours.get(key, 0) + count
        return ours


class StateSpending:
    """The state process's side: what is owed over all workers, and what the others must hear."""

    def __init__(self) -> None:
        self.limits: dict[str, Buckets] = {}
        self._heard = Heard()

    def hold(self, message: Hold) -> Buckets:
        """A worker has this limit. Raises BadMessage."""
        now = time.monotonic()
        buckets = self.limits.get(message.limit)
        try:
            if buckets is None:
                if len(self.limits) >= MAX_LIMITS:
                    raise ValueError(f"there are {MAX_LIMITS} limits already")
                buckets = Buckets(message.limit, message.rate, message.burst, message.size, now)
                self.limits[message.limit] = buckets
            elif not (RATES[0] < message.rate < RATES[1] and message.burst >= 1 and message.size >= 1):
                raise ValueError("a limit that can't be")
            else:
                buckets.change(message.rate, message.burst, message.size, now)
        except ValueError as error:
            raise BadMessage(str(error)) from None
        return buckets

    def spent(self, message: Spent, tell: Callable[[Spent], None]) -> None:
        """Somebody admitted this; the others are told if it is news. Raises BadMessage."""
        check_spent(message)
        if not self._heard.new(message.origin, message.number):
            return
        now = time.monotonic()
        for name, key, count in message.spendings:
            buckets = self.limits.get(name)
            if buckets is not None:
                buckets.charge(key, count, now)
        tell(message)

    def debts(self, name: str, origin: int) -> list[Debts]:
        """What a worker must be taught of a limit."""
        buckets = self.limits.get(name)
        if buckets is None:
            return []
        return list(in_messages(name, buckets.debts(time.monotonic()), self._heard.last(origin)))

    def learn(self, message: Debts) -> None:
        """A worker knows of these debts. Raises BadMessage."""
        check_debts(message)
        buckets = self.limits.get(message.limit)
        now = time.monotonic()
        if buckets is not None:
            for key, debt in message.debts:
                buckets.learn(key, debt, now)

    def tick(self, now: float, held: set[str]) -> None:
        """Bounded work, about once a second; limits that nobody has and no key owes are forgotten."""
        for name, buckets in list(self.limits.items()):
            buckets.tick(now)
            if not len(buckets) and name not in held:
                del self.limits[name]
