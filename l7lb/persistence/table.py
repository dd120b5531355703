"""The sticky table: which server a user's key belongs to, until it has not been used for a while.

One engine stands under every key that needs a memory (source address, header, an application's cookie). It is a
replica: each process has its own, and replicas agree by telling one another what changed.

**Last writer wins.** An entry has a version: the time of its writing and, where two are equal, the number of the
process that wrote it (its origin), then the server's name. The greater version stays, in whatever order and however
often changes arrive, so replicas that have seen the same changes are equal. A deletion is an entry without a server
(a tombstone); it stays as long as an entry does, and by then every older writing of its key has expired as well.

**Time** is monotonic, in ticks of a microsecond: all processes of a node share that clock, and nobody sets it. The
same number is the version and the last use. It is renewed only when it is older than the *grain*, a 32nd of the time
to live and at most a minute, so that a busy user costs a look-up and no writing; an entry lives at least its time to
live from its last use, and at most a grain longer.

**Order.** A dict keeps the order of insertion, and an entry that is renewed goes to its end: the first is the one
least recently used, which goes when the table is full, and the next to expire. Expiry is lazy (a look-up never
returns an expired entry) and incremental (an insertion removes up to two entries at the front; ``tick`` does bounded
work). Changes from other replicas may come late and break the order; ``tick`` sorts such a part again.

**No pauses.** A dict of a million entries takes 100 ms to grow. So the entries lie in many small dicts, chosen by the
key's hash. In a table for more than 1,023 entries the entry that goes is therefore the oldest of its part and not of
all. An entry's value is one int, because an object for each would make every garbage collection visit them all.

**Changes** have sequence numbers, one for each writing. A journal of the latest keys lets any number of readers
follow, each at its own position; who falls behind the journal reads the whole table instead.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from operator import itemgetter

from l7lb.persistence.pins import pinned_server

# A change: key, server ("": deleted), time of writing in ticks, origin. A plain tuple, since many are made.
Delta = tuple[bytes, str, int, int]

TICKS = 1_000_000  # in a second
PART = 512  # entries of one dict in a full table, up to twice as many
JOURNAL = 65_536  # changes that a reader may be behind
KEY_LIMIT = 255  # bytes of a key
MAX_GRAIN = 60.0  # seconds
MAX_TTL = 10.0 * 365 * 86_400  # seconds

# An entry's value: | ticks | origin: 32 bits | number of the server's name: 28 bits |, which sorts by version.
_NAME_BITS = 28
_ORIGIN_BITS = 32
_TICKS_SHIFT = _NAME_BITS + _ORIGIN_BITS
_NAME_MASK = (1 << _NAME_BITS) - 1
_ORIGIN_MASK = (1 << _ORIGIN_BITS) - 1
MAX_SIZE = _NAME_MASK - 1  # entries, so that the numbers of their servers' names can't run out
_LATE = TICKS  # a change so much older than the newest breaks the order of its part
_AHEAD = 60 * TICKS
_by_version = itemgetter(1)


def to_ticks(now: float) -> int:
    """Monotonic seconds as ticks."""
    return int(now * TICKS)


class Table:
    """One sticky table. ``now`` is always monotonic seconds.

    ``size`` is its limit of entries, tombstones included; ``origin`` the number of this process in versions, which
    no other process that it exchanges changes with may have. With ``relay`` merged changes enter the journal too.
    """

    __slots__ = (
        "__weakref__",
        "_count",
        "_cursor",
        "_grain",
        "_ids",
        "_journal",
        "_last",
        "_lifetime",
        "_mask",
        "_names",
        "_newest",
        "_parts",
        "_relay",
        "_spare",
        "_ttl",
        "_unsorted",
        "_uses",
        "evicted",
        "expired",
        "hits",
        "name",
        "origin",
        "pins",
        "sequence",
        "size",
        "wake",
    )

    def __init__(self, name: str, ttl: float, size: int, origin: int, relay: bool = False) -> None:
        if not 0 < origin <= _ORIGIN_MASK:
            raise ValueError(f"an origin must be 1 to {_ORIGIN_MASK}, not {origin}")
        self.resize(size)
        self.name = name
        self.origin = origin
        self.sequence = 0  # of the latest change in the journal
        self.evicted = 0  # entries that went because the table was full
        self.expired = 0
        self.hits = 0  # look-ups that found a server
        self.pins: Table | None = None  # an operator's, which go before what was learned
        self.wake: Callable[[], None] | None = None  # called once, at the next change; set again by the reader
        self._relay = relay
        parts = 1 << max(0, (size // PART).bit_length() - 1)
        self._parts: list[dict[bytes, int]] = [{} for _ in range(parts)]
        self._mask = parts - 1
        self._count = 0
        self._cursor = 0  # the part where the next tick goes on
        self._last = -(1 << 62)  # the ticks of our last writing
        self._newest = 0  # the greatest ticks of an entry so far
        self._unsorted: set[int] = set()
        self._journal: deque[bytes] = deque(maxlen=JOURNAL)
        self._names: list[str | None] = [None]  # by number; 0 is the tombstone's
        self._ids = {"": 0}
        self._uses: list[int] = [0]  # entries of each name, so that names of past servers don't pile up
        self._spare: list[int] = []
        self._ttl = self._grain = self._lifetime = 0
        self.ttl = ttl

    @property
    def ttl(self) -> float:
        """Seconds that an entry lives from its last use; may be changed, and counts for all entries at once."""
        return self._ttl / TICKS

    @ttl.setter
    def ttl(self, seconds: float) -> None:
        if not 0.0 < seconds <= MAX_TTL:
            raise ValueError(f"a time to live must be greater than 0 and at most {MAX_TTL:.0f} s, not {seconds}")
        self._ttl = to_ticks(seconds)
        self._grain = min(self._ttl // 32, to_ticks(MAX_GRAIN))
        self._lifetime = self._ttl + self._grain

    def resize(self, size: int) -> None:
        """Set the limit of entries; a table that holds more shrinks with every insertion."""
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"a table's size must be 1 to {MAX_SIZE} entries, not {size}")
        self.size = size

    def __len__(self) -> int:
        """Entries, with tombstones and those that have expired and are not yet removed."""
        return self._count

    # --- use ------------------------------------------------------------------------------------------------

    def get(self, key: bytes, now: float) -> str | None:
        """The key's server, or None. Does not count as a use: ``put`` follows when the server was chosen."""
        pins = self.pins
        if pins is not None and pins._count:
            pinned = pinned_server(pins.get(key, now))
            if pinned is not None:
                self.hits += 1
                return pinned
        index = hash(key) & self._mask
        value = self._parts[index].get(key)
        if value is None:
            return None
        if now * TICKS - (value >> _TICKS_SHIFT) > self._lifetime:
            self._remove(self._parts[index], key, value)
            self.expired += 1
            return None
        server = self._names[value & _NAME_MASK]
        if server is not None:
            self.hits += 1
        return server

    def put(self, key: bytes, server: str, now: float) -> bool:
        """The key was used with this server; returns whether that is a change that others must hear."""
        index = hash(key) & self._mask
        old = self._parts[index].get(key)
        ticks = int(now * TICKS)
        if old is not None and self._names[old & _NAME_MASK] == server and ticks - (old >> _TICKS_SHIFT) < self._grain:
            return False
        if not key or len(key) > KEY_LIMIT or not server:
            raise ValueError("a key has 1 to 255 bytes, and a server a name")
        self._write(index, key, old, server, ticks)
        return True

    def delete(self, key: bytes, now: float) -> bool:
        """Forget the key, here and at the other replicas; returns whether it was known."""
        index = hash(key) & self._mask
        old = self._parts[index].get(key)
        if old is None or not old & _NAME_MASK:
            return False
        self._write(index, key, old, "", to_ticks(now))
        return True

    def users(self, server: str) -> int:
        """How many entries name this server (some may have expired)."""
        return self._uses[self._ids[server]] if server in self._ids else 0

    def _write(self, index: int, key: bytes, old: int | None, server: str, ticks: int) -> None:
        """A change of our own: newer than our last one, and than what is there though another's clock was ahead."""
        ticks = max(ticks, self._last + 1)
        if old is not None and old >> _TICKS_SHIFT >= ticks:
            ticks = (old >> _TICKS_SHIFT) + 1
        self._last = ticks
        self._store(index, key, old, ticks << _ORIGIN_BITS | self.origin, server)
        self._note(key)
        if old is None:
            self._trim(index, ticks)

    # --- changes --------------------------------------------------------------------------------------------

    def merge(self, deltas: Iterable[Delta], now: float) -> int:
        """Apply changes of other replicas; returns how many were news. Raises ValueError for an impossible one.

        One from a minute or more ahead is passed over: it would beat every other for so long.
        """
        oldest = to_ticks(now) - self._lifetime
        latest = to_ticks(now) + _AHEAD
        news = 0
        for key, server, ticks, origin in deltas:
            if not 0 < len(key) <= KEY_LIMIT or not 0 < origin <= _ORIGIN_MASK:
                raise ValueError("a change with an impossible key or origin")
            if not oldest <= ticks < latest:
                continue
            index = hash(key) & self._mask
            old = self._parts[index].get(key)
            version = ticks << _ORIGIN_BITS | origin
            if old is not None:
                known = old >> _NAME_BITS
                if version < known or (version == known and server <= (self._names[old & _NAME_MASK] or "")):
                    continue
            self._store(index, key, old, version, server)
            if ticks < self._newest - _LATE:
                self._unsorted.add(index)
            if self._relay:
                self._note(key)
            if self._count > self.size:
                self._trim(index, oldest + self._lifetime)
            news += 1
        return news

    def since(self, position: int, limit: int) -> tuple[list[Delta], int] | None:
        """Changes after that sequence number, the latest of each key, and the number that they reach.

        At most ``limit`` changes; the caller comes again until the number is ``sequence``. None where the journal
        does not reach back so far: the whole table must be read, by ``part``.
        """
        behind = self.sequence - position
        if not 0 <= behind <= len(self._journal):
            return None
        keys = list(islice(reversed(self._journal), behind))
        keys.reverse()
        del keys[limit:]
        return self._deltas(dict.fromkeys(keys)), position + len(keys)

    def seen(self, position: int) -> None:
        """The only reader has got everything up to that sequence number for certain: forget it in the journal."""
        for _ in range(len(self._journal) - max(0, self.sequence - position)):
            self._journal.popleft()

    @property
    def parts(self) -> int:
        """How many parts the table has; each is small enough to read at once."""
        return len(self._parts)

    def part(self, index: int) -> list[Delta]:
        """One part's entries, tombstones included, those least recently used first."""
        return self._deltas(self._parts[index])

    def of(self, keys: Iterable[bytes]) -> list[Delta]:
        """The entries of these keys that there are, tombstones included."""
        return self._deltas(keys)

    def forget_deleted(self) -> None:
        """Drop all tombstones at once: for a small table that has run full of them."""
        for part in self._parts:
            for key, value in [(key, value) for key, value in part.items() if not value & _NAME_MASK]:
                self._remove(part, key, value)

    def _deltas(self, keys: Iterable[bytes]) -> list[Delta]:
        deltas: list[Delta] = []
        for key in keys:
            value = self._parts[hash(key) & self._mask].get(key)
            if value is not None:
                server = self._names[value & _NAME_MASK] or ""
                deltas.append((key, server, value >> _TICKS_SHIFT, value >> _NAME_BITS & _ORIGIN_MASK))
        return deltas

    def _note(self, key: bytes) -> None:
        self._journal.append(key)
        self.sequence += 1
        wake = self.wake
        if wake is not None:
            self.wake = None
            wake()

    # --- storage --------------------------------------------------------------------------------------------

    def _store(self, index: int, key: bytes, old: int | None, version: int, server: str) -> None:
        """Write an entry at the end of its part."""
        number = self._ids.get(server)
        if number is None:
            number = self._number(server)
        self._uses[number] += 1
        part = self._parts[index]
        if old is not None:
            self._remove(part, key, old)
        part[key] = version << _NAME_BITS | number
        self._count += 1
        if version >> _ORIGIN_BITS > self._newest:
            self._newest = version >> _ORIGIN_BITS

    def _remove(self, part: dict[bytes, int], key: bytes, value: int) -> None:
        del part[key]
        self._count -= 1
        number = value & _NAME_MASK
        uses = self._uses[number] = self._uses[number] - 1
        if not uses and number:
            name = self._names[number]
            assert name is not None
            del self._ids[name]
            self._names[number] = None
            self._spare.append(number)

    def _number(self, server: str) -> int:
        """A number for a name that has none."""
        server = sys.intern(server)
        if self._spare:
            number = self._spare.pop()
            self._names[number] = server
        else:
            number = len(self._names)
            self._names.append(server)
            self._uses.append(0)
        self._ids[server] = number
        return number

    def _trim(self, index: int, ticks: int) -> None:
        """After an insertion: up to two entries leave at the front, those beyond the size or expired.

        Two for one, so that expired entries become fewer while new ones come, and a smaller size is reached.
        """
        part = home = self._parts[index]
        for _ in range(2):
            full = self._count > self.size
            if full and len(part) <= (part is home):  # the new entry stays
                part = next(other for other in self._parts if len(other) > (other is home))
            if not part:
                return
            key, value = next(iter(part.items()))
            expired = ticks - (value >> _TICKS_SHIFT) > self._lifetime
            if not (expired or full):
                return
            self._remove(part, key, value)
            if expired:
                self.expired += 1
            else:
                self.evicted += 1
                if self._count <= self.size:
                    return  # what comes after one that hasn't expired hasn't either

    def tick(self, now: float, work: int = 200) -> bool:
        """Bounded work, to be called about once a second: remove expired entries, sort parts again.

        Removes at most ``work`` entries, visits at most 64 parts and sorts at most one: a millisecond at most.
        Returns whether it should be called again soon, because more is waiting.
        """
        if self._unsorted:
            self._sort_one()
        oldest = to_ticks(now) - self._lifetime
        removed = 0
        for _ in range(min(len(self._parts), 64)):
            part = self._parts[self._cursor]
            while part and removed < work:
                key, value = next(iter(part.items()))
                if value >> _TICKS_SHIFT >= oldest:
                    break
                self._remove(part, key, value)
                removed += 1
            if removed == work:
                break
            self._cursor = (self._cursor + 1) & self._mask
        self.expired += removed
        return removed == work or bool(self._unsorted)

    def sort(self) -> None:
        """Sort all parts that need it, at once: for the time before there is work."""
        while self._unsorted:
            self._sort_one()

    def _sort_one(self) -> None:
        index = self._unsorted.pop()
        self._parts[index] = dict(sorted(self._parts[index].items(), key=_by_version))
