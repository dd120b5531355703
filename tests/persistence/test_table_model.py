"""The sticky table against a plain model: any order of uses, deletions, time and sizes gives the same."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from l7lb.persistence.table import TICKS, Table

KEYS = [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]
SERVERS = ["web1", "web2", "web3"]
TTL = 32.0
GRAIN = 1.0


class PlainTable:
    """The same with a list, as slowly as one likes. Times are whole ticks."""

    def __init__(self) -> None:
        self.entries: list[tuple[bytes, str, int]] = []  # key, server ("": deleted), ticks; least recently used first
        self.size = 5
        self.last = 0
        self.lifetime = int((TTL + GRAIN) * TICKS)

    def find(self, key: bytes) -> tuple[bytes, str, int] | None:
        return next((entry for entry in self.entries if entry[0] == key), None)

    def get(self, key: bytes, now: int) -> str | None:
        entry = self.find(key)
        if entry is not None and now - entry[2] > self.lifetime:
            self.entries.remove(entry)
            entry = None
        return entry[1] or None if entry is not None else None

    def put(self, key: bytes, server: str, now: int) -> bool:
        entry = self.find(key)
        if entry is not None and entry[1] == server and now - entry[2] < GRAIN * TICKS:
            return False
        self.write(key, server, now)
        return True

    def delete(self, key: bytes, now: int) -> bool:
        entry = self.find(key)
        if entry is None or not entry[1]:
            return False
        self.write(key, "", now)
        return True

    def write(self, key: bytes, server: str, now: int) -> None:
        entry = self.find(key)
        if entry is not None:
            self.entries.remove(entry)
            now = max(now, entry[2] + 1)
        now = self.last = max(now, self.last + 1)
        self.entries.append((key, server, now))
        if entry is None:
            for _ in range(2):
                first = self.entries[0]
                if len(self.entries) > self.size or now - first[2] > self.lifetime:
                    self.entries.remove(first)

    def tick(self, now: int) -> None:
        while self.entries and now - self.entries[0][2] > self.lifetime:
            self.entries.pop(0)


class TableAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = Table("t", TTL, 5, origin=1)
        self.model = PlainTable()
        self.ticks = 1_000_000
        self.replica = Table("t", TTL, 100, origin=2)
        self.position = 0

    @property
    def now(self) -> float:
        return self.ticks / TICKS

    @rule(key=st.sampled_from(KEYS), server=st.sampled_from(SERVERS))
    def put(self, key: bytes, server: str) -> None:
        assert self.table.put(key, server, self.now) == self.model.put(key, server, self.ticks)

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key: bytes) -> None:
        assert self.table.delete(key, self.now) == self.model.delete(key, self.ticks)

    @rule(key=st.sampled_from(KEYS))
    def get(self, key: bytes) -> None:
        assert self.table.get(key, self.now) == self.model.get(key, self.ticks)

    @rule(step=st.sampled_from([0.25, 1.0, 7.0, 16.5, 33.0, 50.0]))
    def time_passes(self, step: float) -> None:
        self.ticks += int(step * TICKS)

    @rule()
    def tick(self) -> None:
        self.table.tick(self.now)
        self.model.tick(self.ticks)

    @rule(size=st.integers(1, 7))
    def resize(self, size: int) -> None:
        self.table.resize(size)
        self.model.size = size

    @rule(limit=st.integers(1, 5))
    def replicate(self, limit: int) -> None:
        """What a reader of the journal gets makes its replica know what this table knows."""
        while self.position != self.table.sequence:
            found = self.table.since(self.position, limit)
            assert found is not None
            self.replica.merge(found[0], self.now)
            self.position = found[1]
        for key, server, ticks in self.model.entries:
            if self.ticks - ticks <= self.model.lifetime:
                assert self.replica.get(key, self.now) == (server or None)

    @invariant()
    def same_entries_in_the_same_order(self) -> None:
        assert [delta[:3] for delta in self.table.part(0)] == self.model.entries
        assert len(self.table) == len(self.model.entries)

    @invariant()
    def users_are_counted(self) -> None:
        for server in SERVERS:
            assert self.table.users(server) == sum(entry[1] == server for entry in self.model.entries)


TestTableAgainstModel = TableAgainstModel.TestCase
TestTableAgainstModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, derandomize=True)
