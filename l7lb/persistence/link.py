"""A worker's link to the node's state process: own changes, spendings and claims of mailboxes out, others' in.

The worker never waits for it, but for claims. Without a state process it goes on with its replicas; when there is one
again it teaches it what it holds. Changes leave some milliseconds after they were made, the latest of each key only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import msgspec

from l7lb.core.unixpath import short_path
from l7lb.limits import Limits
from l7lb.persistence.claims import Claims
from l7lb.persistence.exchange import STALL, Pace, Sender, receive, together
from l7lb.persistence.mailbox_messages import Denied, Dismiss, Granted, ToldMailboxes
from l7lb.persistence.messages import (
    ALL,
    LIMIT,
    PROTOCOL,
    BadMessage,
    Changes,
    Counted,
    Debts,
    Follow,
    FromState,
    Join,
    Leave,
    Mark,
    Marked,
    Refused,
    Seen,
    Spent,
    Taught,
    Told,
    Welcome,
    check_changes,
    from_state,
)
from l7lb.persistence.spending import WorkerSpending
from l7lb.persistence.table import Table
from l7lb.persistence.tables import Tables

INTERVAL = 0.010  # seconds in which changes gather before they leave, at most
BACKOFF = 0.05  # seconds before the first new attempt to connect; doubles
MAX_BACKOFF = 1.0
PATIENCE = 2.0  # seconds without a state process that nobody needs to hear about
TICK = 1.0  # seconds between two rounds of housekeeping
BUSY_TICK = 0.020  # while work is waiting

log = logging.getLogger("l7lb.persistence")


class NoState(Exception):
    """The state process won't have this worker; the text says why."""


@dataclass
class Position:
    """Where the exchange of one table is, in the incarnation that was met last."""

    sent: int = ALL  # our sequence number that has been sent
    seen: int = ALL  # ... and merged for certain
    received: int = ALL  # the state process's sequence number that was merged here
    told: tuple[float, int] = (0.0, 0)  # time to live and size as they were told in this connection


class StateLink:
    """Keeps a worker's tables in touch with the state process at ``socket_path``; ``run`` does it, for ever.

    ``synced`` is set once every table of the worker has been taught: before, users known to the node may be new here.
    """

    def __init__(
        self, tables: Tables, socket_path: str | Path, limits: Limits | None = None, claims: Claims | None = None
    ) -> None:
        self.tables = tables
        self.claims = claims if claims is not None else Claims()
        self._spending = WorkerSpending(limits if limits is not None else Limits(), tables.origin)
        self.path = Path(socket_path)
        self.connected = False
        self.synced = asyncio.Event()
        self._wake = asyncio.Event()
        self._incarnation = 0
        self._positions: WeakKeyDictionary[Table, Position] = WeakKeyDictionary()
        self._followed: set[str] = set()  # names, in this connection
        self._lost = time.monotonic()  # since when there is no state process
        self._mark = 0  # that is to be confirmed
        self._said = ""  # the trouble that was logged last, so that it's logged once

    async def run(self) -> None:
        """Connect, exchange, connect again; ends only when cancelled."""
        await together(self._connect_for_ever(), self._keep_house())

    async def _connect_for_ever(self) -> None:
        backoff = BACKOFF
        while True:
            try:
                await self._connect()
            except (OSError, EOFError, BadMessage, NoState, msgspec.MsgspecError) as error:
                if self.connected:
                    backoff = BACKOFF
                    self._lost = time.monotonic()
                self._say(error)
            self.connected = False
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF)

    def _say(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if text != self._said and time.monotonic() - self._lost > PATIENCE:
            self._said = text
            log.warning("no state process (%s): sticky tables stay in this worker until there is one", text)

    async def _connect(self) -> None:
        with short_path(self.path) as short:
            reader, writer = await asyncio.open_unix_connection(short, limit=LIMIT)
        try:
            sender = Sender(writer, self._ours)
            await sender.send(Join(PROTOCOL, self.tables.origin, self._incarnation))
            async with asyncio.timeout(STALL):
                answer = from_state.decode(await receive(reader))
            new = self._welcomed(answer)
            self.claims.join(sender)
            await together(self._read(reader), self._write(sender), self._spending.run(sender, teach=new))
        finally:
            self.claims.leave()
            writer.transport.abort()

    def _welcomed(self, answer: object) -> bool:
        """Raises NoState where we aren't; returns whether this state process knows nothing of us."""
        if isinstance(answer, Refused):
            raise NoState(answer.reason)
        if not isinstance(answer, Welcome) or answer.protocol != PROTOCOL:
            raise NoState("it speaks another protocol")
        new = answer.incarnation != self._incarnation
        if new:
            self._incarnation = answer.incarnation
            self._positions.clear()
        for position in self._positions.values():
            position.sent = position.seen
        self._followed.clear()
        self.connected = True
        if self._said:
            self._said = ""
            log.info("joined the state process again")
        return new

    def _ours(self, delta: tuple[bytes, str, int, int]) -> bool:
        return delta[3] == self.tables.origin

    # --- out ------------------------------------------------------------------------------------------------

    async def _write(self, sender: Sender) -> None:
        pace = Pace(INTERVAL)
        while True:
            self._arm()  # before tables are read, so that no change is missed
            await self._round(sender)
            if self._mark:
                number, self._mark = self._mark, 0
                await sender.send(Marked(number, {table.name: table.hits for table in self.tables.held()}))
            await self._wake.wait()
            await pace.gather()

    def _arm(self) -> None:
        self._wake.clear()
        self.tables.wake = self._wake.set
        for table in self.tables.held():
            table.wake = self._wake.set

    async def _round(self, sender: Sender) -> None:
        tables = self.tables.held()
        for name in self._followed - {table.name for table in tables}:
            await sender.send(Leave(name))
            self._followed.discard(name)
        for table in tables:
            await self._follow(sender, table)
        self._check_synced()
        for table in tables:
            position = self._positions[table]
            if position.sent != ALL:
                position.sent = await sender.changes(table, position.sent)
            if position.sent == ALL:
                position.sent = await sender.teach(table)

    async def _follow(self, sender: Sender, table: Table) -> None:
        """Say that we hold it, where that isn't known yet."""
        position = self._positions.get(table)
        if position is None:
            position = self._positions[table] = Position()
            if table.name in self._followed:  # another table of the same name was, which is gone
                await sender.send(Leave(table.name))
                self._followed.discard(table.name)
        settings = (table.ttl, table.size)
        if table.name not in self._followed or position.told != settings:
            self._followed.add(table.name)
            position.told = settings
            await sender.send(Follow(table.name, table.ttl, table.size, position.received))

    # --- in -------------------------------------------------------------------------------------------------

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            self._apply(from_state.decode(await receive(reader)))
            await asyncio.sleep(0)  # requests come between two messages, also when many are there

    def _apply(self, message: FromState) -> None:
        if isinstance(message, (Granted, Denied, Dismiss)):
            self.claims.apply(message)
            return
        if isinstance(message, (Welcome, Refused, Told, ToldMailboxes)):
            raise BadMessage("a second answer to the same question")
        if isinstance(message, (Spent, Counted, Debts)):
            self._spending.apply(message)
            return
        if isinstance(message, Mark):
            self._mark = message.number
            self._wake.set()
            return
        table = self.tables.get(message.table)
        position = self._positions.get(table) if table is not None else None
        if table is None or position is None:
            return  # nobody holds it any more
        match message:
            case Changes():
                check_changes(message)
                table.merge(message.deltas, time.monotonic())
                if position.received != ALL and message.reaches != ALL:
                    position.received = message.reaches
            case Taught():
                position.received = message.reaches
                self._check_synced()
            case Seen():
                position.seen = message.reaches
                table.seen(message.reaches)

    def _check_synced(self) -> None:
        held = (self._positions.get(table) for table in self.tables.held())
        if all(position is not None and position.received != ALL for position in held):
            self.synced.set()

    async def _keep_house(self) -> None:
        while True:
            now = time.monotonic()
            busy = self.tables.tick(now)
            if not busy:
                self._spending.limits.tick(now)
            if len(self._followed) > len(self.tables.held()):
                self._wake.set()  # nobody says when a table is let go
            await asyncio.sleep(BUSY_TICK if busy else TICK)
