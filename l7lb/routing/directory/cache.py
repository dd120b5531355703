"""What directories said, for a while: entries, and apart from them what is missing."""

from __future__ import annotations

import struct

import msgspec

from l7lb.core.directory import FOUND, MISSING
from l7lb.routing.directory.messages import Fields, entry, fields
from l7lb.routing.directory.source import Result

TICKS = 10.0  # of a second
STEP = 64  # entries that one look-up tidies away at most
MISSING_SHARE = 4  # a quarter of the room is for what is missing
_until = struct.Struct(">I")
_decoder = msgspec.msgpack.Decoder(Fields)


class Cache:
    """Answers by key, so many at most.

    Each is one bytes object: until when, and the entry. Entries and what is missing have a table each, because who
    tries addresses at random must not drive out those of people. All of a table live equally long, so the first in is
    the first to go.
    """

    def __init__(self, ttl: float, negative_ttl: float, size: int, now: float) -> None:
        self._start = now
        missing = (size + MISSING_SHARE - 1) // MISSING_SHARE if negative_ttl > 0 else 0
        self._found: dict[bytes, bytes] = {}
        self._missing: dict[bytes, bytes] = {}
        self._ttl = {FOUND: ttl, MISSING: negative_ttl}
        self._size = {FOUND: size - missing, MISSING: missing}

    def __len__(self) -> int:
        return len(self._found) + len(self._missing)

    def get(self, key: bytes, now: float) -> Result | None:
        """What is remembered."""
        ticks = self._ticks(now)
        value = self._found.get(key)
        if value is not None and _until.unpack_from(value)[0] > ticks:
            return Result(FOUND, entry(_decoder.decode(memoryview(value)[4:])))
        value = self._missing.get(key)
        if value is not None and _until.unpack_from(value)[0] > ticks:
            return Result(MISSING)
        return None

    def put(self, key: bytes, result: Result, now: float) -> None:
        """Remember that."""
        ttl = self._ttl.get(result.status, 0.0)
        if ttl <= 0 or not result.lasting:
            return
        self._found.pop(key, None)
        self._missing.pop(key, None)
        table = self._found if result.status == FOUND else self._missing
        body = msgspec.msgpack.encode(fields(result.entry)) if result.entry is not None else b""
        table[key] = _until.pack(self._ticks(now + ttl)) + body
        self._tidy(table, self._size[result.status], self._ticks(now))

    def _ticks(self, now: float) -> int:
        return min(max(0, int((now - self._start) * TICKS)), 2**32 - 1)

    @staticmethod
    def _tidy(table: dict[bytes, bytes], size: int, ticks: int) -> None:
        """Drop some of the oldest: those whose time is over, and those that are too many."""
        gone: list[bytes] = []
        for key in table:
            if len(gone) == STEP or (len(table) - len(gone) <= size and _until.unpack_from(table[key])[0] > ticks):
                break
            gone.append(key)
        for key in gone:
            del table[key]
