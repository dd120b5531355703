"""The state process's side of mailboxes: workers' claims come in, :class:`Mailboxes` decides, the answers go out.

A worker whose connection ends is looked at: with its process its sessions have ended; while the process lives they have
not. A state process that follows another grants nothing until the workers that its predecessor knew have said which
sessions they have, or have died, for ``LEARN`` seconds at most.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from l7lb.persistence.exchange import Sender
from l7lb.persistence.mailbox_messages import (
    MAILBOX_LIMIT,
    SESSIONS,
    AskMailboxes,
    Claim,
    Ended,
    Held,
    MailboxFromWorker,
    MailboxRow,
    MailboxToWorker,
    Opened,
    Refusal,
    ToldMailboxes,
)
from l7lb.persistence.mailbox_pins import TablePins, table_name
from l7lb.persistence.mailboxes import Key, Mailboxes
from l7lb.persistence.messages import NAME_LIMIT, BadMessage
from l7lb.persistence.roster import Process, Roster, began
from l7lb.persistence.table import Table

LEARN = 10.0  # seconds that workers have to say what they have open
LOOK = 0.02  # seconds between two looks at whether they have, or have died
HELD = 100_000  # sessions of one worker
LONGEST = 366 * 86_400.0  # seconds of a pin

log = logging.getLogger("l7lb.state")


class Present:
    """A connected worker."""

    def __init__(self, sender: Sender, pid: int) -> None:
        self.sender = sender
        self.pid = pid
        self.told: list[Held] | None = []  # what it has said so far; None: all of it


class MailboxDesk:
    """See the module. ``tables`` and ``make`` are the state process's; ``roster`` is where workers are noted."""

    def __init__(
        self, tables: Mapping[str, Table], make: Callable[[str, float], Table], roster: Path | None = None
    ) -> None:
        self.engine = Mailboxes(TablePins(tables, make), self._send)
        self._tables = tables
        self._roster = Roster(roster)
        self._workers: dict[int, Present] = {}
        self._watched: dict[int, int] = {}  # descriptors of the processes of workers without a connection
        self._wake = asyncio.Event()
        self._due = 0.0
        self._untold: set[Process] = set()

    async def run(self) -> None:
        """Grant when the time has come, and keep the time."""
        self._untold = self._roster.load()
        await self._learn()
        self.engine.open(time.monotonic())
        try:
            while True:
                self._wake.clear()
                self._due = due = self.engine.next
                try:
                    async with asyncio.timeout(max(0.0, due - time.monotonic()) if due else None):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self.engine.tick(time.monotonic())
        finally:
            for worker in list(self._watched):
                self._unwatch(worker)
            self._roster.close()

    async def _learn(self) -> None:
        until = time.monotonic() + LEARN
        while self._untold and time.monotonic() < until:
            told = {one.pid for one in self._workers.values() if one.told is None}
            for pid, start in list(self._untold):
                if pid in told or began(pid) != start:
                    self._untold.discard((pid, start))
            self.engine.tick(time.monotonic())
            await asyncio.sleep(LOOK if self._untold else 0)
        if self._untold:
            log.warning("workers have not said in %.0f s which sessions they have: %d", LEARN, len(self._untold))

    # --- workers --------------------------------------------------------------------------------------------------

    def joined(self, worker: int, sender: Sender, pid: int) -> None:
        """A worker has connected; ``pid`` 0: unknown."""
        self._unwatch(worker)
        self._workers[worker] = Present(sender, pid)
        self._roster.came(pid)

    def left(self, worker: int, sender: Sender) -> None:
        """Its connection has ended."""
        present = self._workers.get(worker)
        if present is None or present.sender is not sender:
            return  # it has come back by another one already
        del self._workers[worker]
        try:
            if present.pid in (0, os.getpid()):
                raise ProcessLookupError
            descriptor = os.pidfd_open(present.pid)
        except OSError:
            self._gone(worker, present.pid)
            return
        self.engine.absent(worker, time.monotonic())
        self._watched[worker] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._died, worker, present.pid)
        self._hurry()

    def _died(self, worker: int, pid: int) -> None:
        self._unwatch(worker)
        self._gone(worker, pid)

    def _gone(self, worker: int, pid: int) -> None:
        self._roster.went(pid)
        self.engine.gone(worker, time.monotonic())
        self._hurry()

    def _unwatch(self, worker: int) -> None:
        descriptor = self._watched.pop(worker, -1)
        if descriptor >= 0:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def apply(self, message: MailboxFromWorker, worker: int) -> None:
        """What a worker says. Raises BadMessage."""
        now = time.monotonic()
        present = self._workers.get(worker)
        if present is None:
            return
        if isinstance(message, Opened):
            self._told(present, message, worker, now)
        elif present.told is not None:
            raise BadMessage("it claims before it has said what it has")
        elif isinstance(message, Claim):
            _check(message.held)
            self.engine.claim(worker, message, now)
        elif isinstance(message, Ended):
            self.engine.ended(worker, message.numbers, now)
        elif isinstance(message, Refusal):
            self.engine.refused(message, now)
        self._hurry()

    def _told(self, present: Present, message: Opened, worker: int, now: float) -> None:
        if present.told is None or len(message.sessions) > SESSIONS or len(present.told) > HELD:
            raise BadMessage("sessions beyond what can be")
        for held in message.sessions:
            _check(held)
        present.told += message.sessions
        if message.last:
            sessions, present.told = present.told, None
            self.engine.taught(worker, sessions, now)

    def _send(self, worker: int, message: MailboxToWorker) -> None:
        present = self._workers.get(worker)
        if present is not None and not present.sender.post(message):
            log.warning("a worker does not read what it is granted: disconnected")
            present.sender.give_up()

    def _hurry(self) -> None:
        """The engine may have something to do sooner than was known."""
        due = self.engine.next
        if due and (not self._due or due < self._due):
            self._wake.set()

    # --- an operator ----------------------------------------------------------------------------------------------

    async def answer(self, ask: AskMailboxes) -> ToldMailboxes:
        """What an operator asks, and the changes that he wants; a problem is in the answer's ``problem``."""
        if self._untold:
            return ToldMailboxes("the state process has just begun: workers have not said yet which sessions they have")
        now = time.monotonic()
        if ask.what == "find":
            return ToldMailboxes(rows=self._find(ask, now))
        if ask.what == "forget":
            return ToldMailboxes(count=await self._forget(ask.pool, ask.server))
        key = self._key(ask, now)
        match ask.what:
            case "kick":
                return ToldMailboxes(rows=self._rows([key], now), count=self.engine.kick(key))
            case "move":
                return await self._move(key, ask)
            case "switch":
                done = self.engine.switch(key, ask.server, now)
                return ToldMailboxes("" if done else "the move was given up: it took too long")
            case "abort":
                self.engine.abort(key, now)
                return ToldMailboxes()
        return ToldMailboxes(f"nothing that could be asked: {ask.what}")

    def _key(self, ask: AskMailboxes, now: float) -> Key:
        """The first of the names that is known, else the last; in whichever pool where none is named."""
        pools = [ask.pool] if ask.pool else self._pools()
        for mailbox in ask.mailboxes:
            for pool in pools:
                if self.engine.row((pool, mailbox), now) is not None:
                    return pool, mailbox
        return ask.pool, ask.mailboxes[-1] if ask.mailboxes else b""

    def _pools(self) -> list[str]:
        suffix = table_name("")
        pinned = {name.removesuffix(suffix) for name in self._tables if name.endswith(suffix)}
        return sorted(pinned | self.engine.pools())

    def _find(self, ask: AskMailboxes, now: float) -> list[MailboxRow]:
        if ask.mailboxes:
            pools = [ask.pool] if ask.pool else self._pools()
            return self._rows([(pool, mailbox) for mailbox in dict.fromkeys(ask.mailboxes) for pool in pools], now)
        keys = []
        for key in self.engine.on_server(ask.pool, ask.server):
            keys.append(key)
            if len(keys) >= ask.limit:
                break
        return self._rows(keys, now)

    def _rows(self, keys: list[Key], now: float) -> list[MailboxRow]:
        return [row for key in keys if (row := self.engine.row(key, now)) is not None]

    async def _move(self, key: Key, ask: AskMailboxes) -> ToldMailboxes:
        before = self.engine.row(key, time.monotonic())
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            count = self.engine.move(
                key,
                min(ask.expire, LONGEST),
                min(ask.wait, 3600.0),
                time.monotonic(),
                lambda ready: None if ended.done() else ended.set_result(ready),
            )
        except ValueError as error:
            return ToldMailboxes(str(error))
        self._hurry()
        rows = [before] if before is not None else [MailboxRow(*key, "", 0, True, False)]
        if not await ended:
            return ToldMailboxes("its sessions did not end in time: it stays where it is", rows, count)
        return ToldMailboxes("", rows, count)

    async def _forget(self, pool: str, server: str) -> int:
        """Forget a server's pins that have no session."""
        table = self._tables.get(table_name(pool))
        count = 0
        if table is None or not table.users(server):
            return 0
        for number, part in enumerate(_parts(table)):
            now = time.monotonic()
            for key, value, _, _ in part:
                if value == server and not self.engine.has((pool, key)):
                    count += table.delete(key, now)
            if not number % 16:
                await asyncio.sleep(0)
        return count


def _parts(table: Table) -> Iterator[list[tuple[bytes, str, int, int]]]:
    for index in range(table.parts):
        yield table.part(index)


def _check(held: Held) -> None:
    """Raises BadMessage where a session is out of bounds; an honest worker's never is."""
    texts = (held.pool, held.server, held.protocol, held.address)
    if not 0 < len(held.mailbox) <= MAILBOX_LIMIT or any(len(text) > NAME_LIMIT for text in texts) or not held.pool:
        raise BadMessage("a session with an impossible mailbox, pool or server")
    if not held.expire < LONGEST * 10 or held.per_mailbox < 0 or held.per_address < 0:
        raise BadMessage("a session with an impossible time or limit")
