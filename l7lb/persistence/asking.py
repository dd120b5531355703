"""What an operator asks the state process about its tables and limits, and has it change.

A change goes to the workers as all changes do. The answer waits until each of them has said that it has it, for some
seconds at most; ``late`` says how many have not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from heapq import nlargest
from operator import itemgetter

from l7lb.persistence.messages import ALL_ENTRIES, Ask, DebtRow, EntryRow, TableRow, Told
from l7lb.persistence.pins import PINS, SUFFIX, pins_name, read_pin, write_pin
from l7lb.persistence.spending import StateSpending
from l7lb.persistence.table import KEY_LIMIT, TICKS, Delta, Table

_debt = itemgetter(1)
ROWS = 1000  # of one answer

# Has every worker take what is there so far; returns how many have not in time.
Everywhere = Callable[[], Awaitable[int]]


class Asking:
    """The questions, on a state process's tables; ``make`` makes the table of pins beside a table."""

    def __init__(
        self, tables: dict[str, Table], make: Callable[[str], Table], everywhere: Everywhere, spending: StateSpending
    ) -> None:
        self._tables = tables
        self._make = make
        self._everywhere = everywhere
        self._spending = spending
        self.hits: dict[str, int] = {}  # by table: what workers said that are gone, and those that are here

    async def answer(self, ask: Ask) -> Told:
        """The answer; a problem is in its ``problem``."""
        if ask.what == "list":
            await self._everywhere()
            tables = [table for name, table in self._tables.items() if not name.endswith(SUFFIX)]
            return Told(tables=[self._row(table) for table in tables])
        if ask.what == "limits":
            return Told(debts=self._debts(min(ask.limit or ROWS, ROWS)))
        table = self._tables.get(ask.table)
        if table is None:
            return Told(problem=f"no worker has told of a table {ask.table} yet")
        match ask.what:
            case "find":
                return await self._find(table, ask)
            case "delete":
                return await self._delete(table, ask)
            case "pin":
                return await self._pin(table, ask)
        return Told(problem=f"nothing that could be asked: {ask.what}")

    def _row(self, table: Table) -> TableRow:
        pins = self._tables.get(pins_name(table.name))
        held = sum(1 for _, pin, _, _ in _entries(pins) if pin) if pins is not None else 0
        return TableRow(
            name=table.name,
            entries=len(table),
            size=table.size,
            expire=table.ttl,
            pins=held,
            hits=self.hits.get(table.name, 0),
            evicted=table.evicted,
            expired=table.expired,
        )

    def _debts(self, limit: int) -> list[DebtRow]:
        """The keys of all rate limits that are the nearest to them."""
        now = time.monotonic()
        rows = []
        for buckets in self._spending.limits.values():
            for key, debt in nlargest(limit, buckets.debts(now), key=_debt):
                rows.append(DebtRow(buckets.name, key, debt, buckets.burst, buckets.rate))
        return nlargest(limit, rows, key=lambda row: row.debt / row.burst)

    # --- find -----------------------------------------------------------------------------------------------------

    async def _find(self, table: Table, ask: Ask) -> Told:
        limit = min(ask.limit or ROWS, ROWS)
        pins = self._tables.get(pins_name(table.name))
        now = time.monotonic()
        found: dict[bytes, EntryRow] = {}
        for part in _parts(pins, ask.key):
            for key, value, _, _ in part:
                server, until = read_pin(value)
                if server and (not until or until > time.time()) and ask.server in ("", server):
                    found[key] = EntryRow(key, server, 0.0, 0.0, True, until)
        for part in _parts(table, ask.key):
            for key, server, ticks, _ in part:
                left = table.ttl - (now - ticks / TICKS)
                if len(found) >= limit:
                    return Told(entries=list(found.values())[:limit], more=True)
                if key not in found and server and left > 0.0 and ask.server in ("", server):
                    found[key] = EntryRow(key, server, max(0.0, now - ticks / TICKS), left, False, 0.0)
            await asyncio.sleep(0)
        return Told(entries=list(found.values())[:limit])

    # --- change ---------------------------------------------------------------------------------------------------

    async def _delete(self, table: Table, ask: Ask) -> Told:
        deleted: set[bytes] = set()
        if not ask.key and not ask.server:
            return Told(problem="say which entry, or of which server all")
        for one in (self._tables.get(pins_name(table.name)), table):
            for part in _parts(one, ask.key):
                for key, value, _, _ in part:
                    if one is not None and value and ask.server in ("", read_pin(value)[0]):
                        one.delete(key, time.monotonic())
                        deleted.add(key)
                await asyncio.sleep(0)
        return Told(count=len(deleted), late=await self._everywhere())

    async def _pin(self, table: Table, ask: Ask) -> Told:
        if not 0 < len(ask.key) <= KEY_LIMIT or not ask.server or " " in ask.server:
            return Told(problem="a pin needs a key and a server")
        pins = self._make(pins_name(table.name))
        now = time.monotonic()
        if len(pins) >= PINS:
            for key, value, _, _ in list(_entries(pins)):
                until = read_pin(value)[1]
                if until and until < time.time():
                    pins.delete(key, now)
            pins.forget_deleted()
            if len(pins) >= PINS and pins.get(ask.key, now) is None:
                return Told(problem=f"there are {PINS} pins in this table already: delete some")
        pins.put(ask.key, write_pin(ask.server, ask.until), now)
        return Told(count=1, late=await self._everywhere())


def _parts(table: Table | None, key: bytes) -> Iterator[list[Delta]]:
    """A table's entries in pieces, or the one of that key."""
    if table is None:
        return
    if key != ALL_ENTRIES:
        yield table.of([key])
        return
    for index in range(table.parts):
        yield table.part(index)


def _entries(table: Table) -> Iterator[Delta]:
    for part in _parts(table, ALL_ENTRIES):
        yield from part
