"""The node's state process: it holds the sticky tables while workers come and go.

Workers connect to its unix socket, are taught what it knows, and tell it what changes; it passes that on to the
others. It outlives the supervisor and the workers. When it dies, they go on with their replicas and teach the one
that comes after it. It needs no privileges::

    python -m l7lb.persistence.state --socket run/state.sock --save run/state/tables --size 1000000

SIGTERM: save and end. SIGINT and SIGHUP, which a terminal sends to all processes of a group, are ignored: the
supervisor decides. Without its parent and without a worker for half a minute it saves and ends, so that no node leaves
it behind. Exit status: 0; 1 where the socket can't be opened or the tables couldn't be saved; 3 where another state
process serves the socket.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from l7lb.core.unixpath import short_path
from l7lb.persistence.asking import Asking
from l7lb.persistence.exchange import STALL, Pace, Sender, receive, together
from l7lb.persistence.mailbox_desk import MailboxDesk
from l7lb.persistence.mailbox_messages import AskMailboxes, Claim, Ended, Opened, Refusal, ToldMailboxes
from l7lb.persistence.messages import (
    ALL,
    LIMIT,
    NAME_LIMIT,
    PROTOCOL,
    Ask,
    BadMessage,
    Changes,
    Counted,
    Debts,
    Follow,
    FromWorker,
    Hold,
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
    from_worker,
)
from l7lb.persistence.pins import PINS, SUFFIX
from l7lb.persistence.roster import SUFFIX as ROSTER
from l7lb.persistence.save import Clock, CorruptFile, load, save
from l7lb.persistence.spending import StateSpending
from l7lb.persistence.stream import Inlet, Outlet
from l7lb.persistence.table import MAX_SIZE, MAX_TTL, Table
from l7lb.persistence.tables import new_origin

CONFIRM = 5.0  # seconds that workers have to confirm an operator's change
RELAY = 0.005  # seconds in which changes gather before they are passed on, at most
TICK = 1.0  # seconds between two rounds of housekeeping
SAVE_INTERVAL = 60.0
ORPHANED = 30.0  # seconds without parent and workers
MAX_WORKERS = 256
ORIGINS = 4096  # processes of this node, past ones too, whose changes other nodes are told
MAX_TABLES = 8192  # pins have tables of their own
EXIT_FAILED = 1
EXIT_SERVED = 3

log = logging.getLogger("l7lb.state")


class AlreadyServed(Exception):
    """Another state process answers at the socket."""


@dataclass
class Following:
    """A worker's replica of one table: where it is in our changes, and how far we merged its own."""

    position: int
    seen: int = ALL
    told: int = ALL  # the ``seen`` that it was told


@dataclass(eq=False)
class Worker:
    """One connected worker."""

    origin: int
    sender: Sender
    following: dict[str, Following] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    holds: set[str] = field(default_factory=set)  # names of limits
    mark: int = 0  # a number that it must confirm, was asked to confirm, and has confirmed
    asked: int = 0
    marked: int = 0
    hits: dict[str, int] = field(default_factory=dict)  # by table, as it said last
    behind: bool = False  # it missed spendings, and must be taught the debts


class StateProcess:
    """The tables and the workers that follow them. ``size`` counts for tables whose size no worker has told; ``roster``
    is the file in which workers are noted.
    """

    def __init__(self, listening: socket.socket, save_path: Path | None, size: int, roster: Path | None = None) -> None:
        self.tables: dict[str, Table] = {}
        self.spending = StateSpending()
        self.mailboxes = MailboxDesk(self.tables, self._table, roster)
        self.asking = Asking(self.tables, lambda name: self._table(name, MAX_TTL), self._everywhere, self.spending)
        self._marks = 0
        self._marked = asyncio.Event()
        self.workers: set[Worker] = set()
        self.ending = asyncio.Event()
        self._listening = listening
        self._save_path = save_path
        self._size = size
        self._origin = new_origin()
        self._ours = {self._origin: None}  # this node's processes, by their numbers in versions
        self._incarnation = int.from_bytes(os.urandom(6), "big") or 1
        self._connections: set[asyncio.Task[None]] = set()
        self._parent = os.getppid()
        self._alone_since = time.monotonic()
        self._saved_changes = 0
        self._forgotten_changes = 0  # of tables that are no more: a new one of the same name counts on from there

    # --- other nodes ----------------------------------------------------------------------------------------

    def outlet(self, node: str, offset: int) -> Outlet:
        """What another node is sent of our tables; ``node`` is our own name."""
        return Outlet(node, self._incarnation, self.tables, offset, self._ours.__contains__)

    def inlet(self, offset: int) -> Inlet:
        """Where another node's changes come in, and go on to the workers."""
        return Inlet(self._table, offset, lambda table: self._wake_followers(table, None))

    # --- life -----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read what was saved; a file that can't be read is moved aside."""
        path = self._save_path
        if path is None:
            return
        try:
            entries = load(path, self._table, Clock.read())
        except FileNotFoundError:
            return
        except (CorruptFile, OSError) as error:
            self.tables.clear()
            aside = path.with_name(f"{path.name}.corrupt")
            try:
                os.replace(path, aside)
            except OSError as failure:
                log.error("%s can't be used (%s) nor moved aside (%s): starting empty", path, error, failure)
            else:
                log.error("%s can't be used (%s): moved to %s, starting empty", path, error, aside.name)
        else:
            log.info("%d entries in %d tables from %s", entries, len(self.tables), path)
        self._saved_changes = self._changes()

    async def run(self) -> bool:
        """Serve until ``ending``, then save; returns whether that worked."""
        try:
            await together(
                self._accept(), self._keep_house(), self._save_at_times(), self._wait_for_end(), self.mailboxes.run()
            )
        finally:
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
        return await self._save()

    async def _wait_for_end(self) -> None:
        await self.ending.wait()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            for table in list(self.tables.values()):
                busy = True
                while busy:
                    busy = table.tick(now)
                    await asyncio.sleep(0)
                if not len(table) and not any(table.name in worker.following for worker in self.workers):
                    self._forgotten_changes += table.sequence
                    self.asking.hits.pop(table.name, None)
                    del self.tables[table.name]
            self.spending.tick(now, set().union(*(worker.holds for worker in self.workers)))
            for worker in self.workers:
                worker.wake.set()  # it is told how far its changes were merged
            if self.workers or os.getppid() == self._parent:
                self._alone_since = now
            elif now - self._alone_since > ORPHANED:
                log.warning("the node is gone: ending")
                self.ending.set()

    # --- the file -------------------------------------------------------------------------------------------

    def _changes(self) -> int:
        return self._forgotten_changes + sum(table.sequence for table in self.tables.values())

    async def _save_at_times(self) -> None:
        while True:
            await asyncio.sleep(SAVE_INTERVAL)
            await self._save()

    async def _save(self) -> bool:
        changes = self._changes()
        if self._save_path is None or changes == self._saved_changes:
            return True
        try:
            await save(self._save_path, list(self.tables.values()), Clock.read())
        except OSError as error:
            log.error("the tables can't be saved: %s", error)
            return False
        self._saved_changes = changes
        return True

    # --- workers --------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listening)
            except OSError as error:  # out of descriptors, or the peer is gone already
                log.warning("can't accept: %s", error)
                await asyncio.sleep(TICK)
                continue
            task = loop.create_task(self._serve(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LIMIT)
        worker: Worker | None = None
        try:
            async with asyncio.timeout(STALL):
                first = from_worker.decode(await receive(reader))
            if isinstance(first, (Ask, AskMailboxes)):
                await self._asked(first, Sender(writer, lambda _: True))
                return
            pid = peer(connection)
            worker = await self._join(first, writer)
            if worker is not None:
                self.workers.add(worker)
                self.mailboxes.joined(worker.origin, worker.sender, pid)
                await together(self._read(reader, worker), self._write(worker))
        except EOFError:
            if worker is None and os.getppid() != self._parent:
                # Our keeper is gone, and the state process of the next one has found the socket taken.
                log.warning("another node has begun here: ending")
                self.ending.set()
        except TimeoutError:
            log.warning("a worker does not read or write: disconnected, it will be taught anew")
        except (BadMessage, msgspec.MsgspecError) as error:
            log.warning("a worker was disconnected: %s", error)
        except OSError:
            pass  # it is gone, as its end would have said
        finally:
            if worker is not None:
                self.workers.discard(worker)
                self.mailboxes.left(worker.origin, worker.sender)
            writer.transport.abort()

    async def _asked(self, ask: Ask | AskMailboxes, sender: Sender) -> None:
        """An operator asks."""
        if ask.protocol != PROTOCOL:
            problem = f"this state process speaks protocol {PROTOCOL}, not {ask.protocol}"
            await sender.send(Told(problem=problem) if isinstance(ask, Ask) else ToldMailboxes(problem))
        elif isinstance(ask, Ask):
            await sender.send(await self.asking.answer(ask))
        else:
            await sender.send(await self.mailboxes.answer(ask))

    async def _everywhere(self) -> int:
        """Have all workers merge what is there so far; returns how many have not in time."""
        self._marks += 1
        number = self._marks
        for worker in self.workers:
            worker.mark = number
            worker.wake.set()
        try:
            async with asyncio.timeout(CONFIRM):
                while self._late(number):
                    self._marked.clear()
                    await self._marked.wait()
        except TimeoutError:
            pass
        return self._late(number)

    def _late(self, number: int) -> int:
        return sum(worker.marked < number <= worker.mark for worker in self.workers)

    def _confirmed(self, message: Marked, worker: Worker) -> None:
        worker.marked = max(worker.marked, message.number)
        for name, hits in message.hits.items():
            if name in self.tables:
                self.asking.hits[name] = self.asking.hits.get(name, 0) + hits - worker.hits.get(name, 0)
                worker.hits[name] = hits
        self._marked.set()

    async def _join(self, join: FromWorker, writer: asyncio.StreamWriter) -> Worker | None:
        if not isinstance(join, Join):
            raise BadMessage("it did not introduce itself")
        worker = Worker(join.origin, Sender(writer, lambda delta: delta[3] != join.origin))
        reason = ""
        if join.protocol != PROTOCOL:
            reason = f"this state process speaks protocol {PROTOCOL}, not {join.protocol}"
        elif len(self.workers) >= MAX_WORKERS:
            reason = f"there are {MAX_WORKERS} workers already"
        if reason:
            await worker.sender.send(Refused(reason))
            writer.close()
            await writer.wait_closed()
            return None
        self._ours.setdefault(join.origin)
        if len(self._ours) > ORIGINS:
            del self._ours[next(origin for origin in self._ours if origin != self._origin)]
        await worker.sender.send(Welcome(PROTOCOL, self._incarnation))
        return worker

    async def _read(self, reader: asyncio.StreamReader, worker: Worker) -> None:
        while True:
            self._apply(from_worker.decode(await receive(reader)), worker)
            await asyncio.sleep(0)

    def _apply(self, message: FromWorker, worker: Worker) -> None:
        match message:
            case Follow():
                self._follow(message, worker)
            case Leave():
                worker.following.pop(message.table, None)
            case Changes():
                check_changes(message)
                table, following = self._followed(message.table, worker)
                if table.merge(message.deltas, time.monotonic()):
                    self._wake_followers(table, worker)
                if message.reaches != ALL:
                    following.seen = message.reaches
            case Taught():
                self._followed(message.table, worker)[1].seen = message.reaches
            case Hold():
                self._hold(message, worker)
            case Spent():
                self.spending.spent(message, lambda news: self._pass_on(news, worker))
                worker.behind = not worker.sender.post(Counted(message.number)) or worker.behind
            case Debts():
                self.spending.learn(message)
            case Marked():
                self._confirmed(message, worker)
            case Opened() | Claim() | Ended() | Refusal():
                self.mailboxes.apply(message, worker.origin)
            case Ask() | AskMailboxes():
                raise BadMessage("a question behind its introduction")
            case Join():
                raise BadMessage("it introduced itself twice")

    def _hold(self, message: Hold, worker: Worker) -> None:
        if not 0 < len(message.limit) <= NAME_LIMIT:
            raise BadMessage("a limit with an impossible name")
        self.spending.hold(message)
        worker.holds.add(message.limit)
        worker.behind = True  # it is taught what is owed
        worker.wake.set()

    def _pass_on(self, message: Spent, but: Worker) -> None:
        for worker in self.workers:
            if worker is not but and worker.holds and not worker.sender.post(message):
                worker.behind = True
                worker.wake.set()

    def _follow(self, message: Follow, worker: Worker) -> None:
        if not 0 < len(message.table) <= NAME_LIMIT:
            raise BadMessage("a table with an impossible name")
        try:
            table = self._table(message.table, message.ttl)
            table.ttl = message.ttl
            table.resize(message.size)
        except ValueError as error:
            raise BadMessage(str(error)) from None
        if message.table not in worker.following:
            worker.following[message.table] = Following(message.position)
            worker.wake.set()

    def _followed(self, name: str, worker: Worker) -> tuple[Table, Following]:
        following = worker.following.get(name)
        if following is None:
            raise BadMessage("changes of a table that it does not hold")
        return self.tables[name], following

    def _table(self, name: str, ttl: float) -> Table:
        table = self.tables.get(name)
        if table is None:
            if len(self.tables) >= MAX_TABLES:
                raise ValueError(f"there are {MAX_TABLES} tables already")
            size = PINS if name.endswith(SUFFIX) else self._size
            table = self.tables[name] = Table(name, ttl, size, self._origin, relay=True)
            table.sequence = self._forgotten_changes
        return table

    def _wake_followers(self, table: Table, but: Worker | None) -> None:
        for worker in self.workers:
            if worker is not but and table.name in worker.following:
                worker.wake.set()

    async def _write(self, worker: Worker) -> None:
        pace = Pace(RELAY)
        while True:
            await worker.wake.wait()
            await pace.gather()
            worker.wake.clear()
            if worker.behind:
                worker.behind = False
                await self._teach_debts(worker)
            for name, following in list(worker.following.items()):
                table = self.tables.get(name)
                if table is None:
                    continue  # it was left while others were told
                if following.position != ALL:
                    following.position = await worker.sender.changes(table, following.position)
                while following.position == ALL:
                    following.position = await worker.sender.teach(table)
                if following.told != following.seen:
                    following.told = following.seen
                    await worker.sender.send(Seen(name, following.seen))
            if worker.mark > worker.asked:
                worker.asked = worker.mark
                await worker.sender.send(Mark(worker.mark))

    async def _teach_debts(self, worker: Worker) -> None:
        for name in sorted(worker.holds):
            for message in self.spending.debts(name, worker.origin):
                await worker.sender.send(message)


# --- the program ----------------------------------------------------------------------------------------------------


def listen(path: Path) -> socket.socket:
    """A listening socket at that path, for its owner only; one that a dead process left is replaced.

    Raises AlreadyServed, or OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as short:
            before = os.umask(0o177)
            try:
                _bind(sock, short)
            finally:
                os.umask(before)
        sock.listen(MAX_WORKERS)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, path: str) -> None:
    try:
        sock.bind(path)
        return
    except OSError:
        if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
            raise
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # nobody listens there any more
        except BlockingIOError:
            raise AlreadyServed from None  # somebody does, and is busy
        else:
            raise AlreadyServed
    sock.bind(path)


def peer(sock: socket.socket) -> int:
    """The process at the other end when it connected (SO_PEERCRED, unix(7))."""
    pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)


async def serve(listening: socket.socket, save_path: Path | None, size: int, roster: Path | None = None) -> bool:
    """Run a state process until SIGTERM; returns whether the tables were saved."""
    state = StateProcess(listening, save_path, size, roster)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, state.ending.set)
    state.load()
    gc.freeze()
    return await state.run()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="l7lb-state", description="holds a node's sticky tables")
    parser.add_argument("--socket", type=Path, required=True, help="where workers connect")
    parser.add_argument("--save", type=Path, help="the file that the tables are kept in")
    parser.add_argument("--size", type=int, default=1_000_000, help="entries of one table")
    options = parser.parse_args(arguments)
    if not 1 <= options.size <= MAX_SIZE:
        parser.error(f"--size must be 1 to {MAX_SIZE}")
    logging.basicConfig(level=logging.INFO, format="l7lb state: %(message)s", stream=sys.stderr)
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        listening = listen(options.socket)
    except AlreadyServed:
        log.error("another state process serves %s", options.socket)
        return EXIT_SERVED
    except OSError as error:
        log.error("can't listen at %s: %s", options.socket, error.strerror or error)
        return EXIT_FAILED
    with listening:
        ours = os.stat(options.socket).st_ino
        roster = options.socket.with_name(f"{options.socket.name}{ROSTER}")
        saved = asyncio.run(serve(listening, options.save, options.size, roster))
        if options.socket.exists() and os.stat(options.socket).st_ino == ours:
            options.socket.unlink()
    return 0 if saved else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
