"""The directory process: answers the node's workers, with libraries that none of them has to load.

The keeper starts it while the configuration has directories. It holds nothing that must survive: a new one has an
empty cache. It takes the socket over from whoever has it, so that a successor with new code serves new workers while
its predecessor, told to end by SIGTERM, answers old ones until they have gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import msgspec

from l7lb.core.directory import FAILED, Question
from l7lb.core.snapshot import Directory
from l7lb.core.unixpath import short_path
from l7lb.routing.directory.lookup import Lookup, chain_find, chain_known, make_source
from l7lb.routing.directory.messages import (
    OPEN,
    PROTOCOL,
    Ask,
    AskNumbers,
    DirectoryNumbers,
    Forget,
    Frames,
    FromProcess,
    Join,
    Numbers,
    Told,
    ToProcess,
    Welcome,
    fields,
    frame,
    to_process,
)
from l7lb.routing.directory.source import Result, Source, log

# What libraries import at their first use.
LATE = ("concurrent.futures.thread", "encodings.idna", "encodings.punycode", "idna.uts46data")

WORKERS = 256  # connections
UNREAD = 8 * 1024 * 1024  # bytes of answers that a worker may leave unread
UNUSED = 60.0  # seconds after which a directory that no worker uses is closed
TICK = 1.0
ORPHANED = 3.0  # seconds without workers, where the parent is gone
ALONE = 60.0  # ... in any case: a node that has directories has workers, and its keeper starts another


class Service:
    """The open directories, by their configuration; :meth:`answer` asks a chain of them."""

    def __init__(self, make: Callable[[Directory], Source] = make_source) -> None:
        self._make = make
        self._open: dict[bytes, Lookup | Result] = {}
        self._users: dict[bytes, set[object]] = {}
        self._unused: dict[bytes, float] = {}

    def use(self, directory: Directory, user: object) -> Lookup | Result:
        """The directory, open for that user; a failure to answer with where it can't be opened."""
        key = self.key(directory)
        found = self._open.get(key)
        if found is None:
            try:
                found = Lookup(directory, self._make(directory))
            except (ValueError, OSError) as error:  # ssl.SSLError is an OSError
                log.error("directory %s can't be used: %s", directory.name, error)
                found = Result(FAILED, why=str(error))
            self._open[key] = found
        self._users.setdefault(key, set()).add(user)
        self._unused.pop(key, None)
        return found

    @staticmethod
    def key(directory: Directory) -> bytes:
        """What makes two directories the same; policies are the asker's business."""
        plain = msgspec.structs.replace(directory, missing="", unknown_server="", server_down="")
        return msgspec.msgpack.encode(plain)

    def leave(self, user: object, now: float, but: frozenset[bytes] = frozenset()) -> None:
        """A user has no more need of them, but for these."""
        for key, users in self._users.items():
            if key not in but:
                users.discard(user)
                if not users:
                    self._unused.setdefault(key, now)

    def numbers(self) -> list[DirectoryNumbers]:
        """How the directories are that somebody uses."""
        used = (lookup for key, lookup in self._open.items() if key not in self._unused)
        return [lookup.numbers for lookup in used if isinstance(lookup, Lookup)]

    async def tidy(self, now: float, after: float = UNUSED) -> None:
        """Close what nobody has used for a while: after a worker's death its successor comes in a moment."""
        for key in [key for key, since in self._unused.items() if now - since >= after]:
            del self._unused[key], self._users[key]
            lookup = self._open.pop(key)
            if isinstance(lookup, Lookup):
                await lookup.close()

    async def close(self) -> None:
        """Close all."""
        self._unused = dict.fromkeys(self._users, 0.0)
        await self.tidy(0.0, 0.0)


class Worker(asyncio.Protocol):
    """One connected worker."""

    def __init__(self, process: DirectoryProcess) -> None:
        self._process = process
        self._frames = Frames()
        self._joined = False
        self._lookups: dict[str, Lookup | Result] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It has connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none of asyncio's classes
        if len(self._process.workers) >= WORKERS:
            self._transport.abort()
        self._process.workers.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._transport = None
        for task in self._tasks.values():
            task.cancel()
        self._process.lost(self)

    def data_received(self, data: bytes) -> None:
        """It speaks."""
        try:
            for body in self._frames.feed(data):
                self._told(to_process.decode(body))
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("a worker says what can't be understood: %s", error)
            self._end()

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _told(self, message: ToProcess) -> None:
        if isinstance(message, Join):
            if message.protocol != PROTOCOL:
                log.warning("a worker of another version is refused")
                self._end()
                return
            self._joined = True
            self._send(Welcome(PROTOCOL))
        elif not self._joined:
            raise ValueError("no introduction")
        elif isinstance(message, Ask):
            self._asked(message)
        elif isinstance(message, Forget):
            task = self._tasks.pop(message.number, None)
            if task is not None:
                task.cancel()
        elif isinstance(message, AskNumbers):
            self._send(Numbers(self._process.service.numbers()))
        else:
            service = self._process.service
            self._lookups = {one.name: service.use(one, self) for one in message.directories}
            kept = frozenset(service.key(one) for one in message.directories)
            service.leave(self, self._process.now(), kept)

    def _asked(self, ask: Ask) -> None:
        chain = []
        for name in ask.names:
            lookup = self._lookups.get(name)
            if not isinstance(lookup, Lookup):
                why = lookup.why if lookup is not None else f"there is no directory {name}"
                self._answer(ask.number, Result(FAILED, why=why), name)
                return
            chain.append(lookup)
        question = ask.question()
        known = chain_known(chain, question)
        if known is not None:
            self._answer(ask.number, *known)
        elif len(self._tasks) >= OPEN:
            self._answer(ask.number, Result(FAILED, why=f"{OPEN} questions wait already"), ask.names[0])
        else:
            self._tasks[ask.number] = asyncio.ensure_future(self._find(ask.number, chain, question))

    async def _find(self, number: int, chain: list[Lookup], question: Question) -> None:
        result, name = await chain_find(chain, question)
        self._tasks.pop(number, None)
        self._answer(number, result, name)

    def _answer(self, number: int, result: Result, name: str) -> None:
        entry = fields(result.entry) if result.entry is not None else None
        self._send(Told(number, result.status, name, result.why, result.wait, entry))

    def _send(self, message: FromProcess) -> None:
        if self._transport is None:
            return
        self._transport.write(frame(message))
        if self._transport.get_write_buffer_size() > UNREAD:
            log.error("a worker doesn't read its answers")
            self._transport.abort()


class DirectoryProcess:
    """See the module."""

    def __init__(self, service: Service | None = None, replaced: Callable[[], bool] = lambda: False) -> None:
        self.service = service or Service()
        self._replaced = replaced
        self.workers: set[Worker] = set()
        self.ending = asyncio.Event()
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._parent = os.getppid()

    def now(self) -> float:
        """Monotonic seconds."""
        return self._loop.time()

    def lost(self, worker: Worker) -> None:
        """A worker has gone."""
        self.workers.discard(worker)
        self.service.leave(worker, self.now())
        self._gone.set()
        if not self.workers and self._replaced():
            self.ending.set()

    async def run(self, listening: socket.socket) -> None:
        """Serve until ``ending``, then answer those that are there until they have gone."""
        server = await self._loop.create_unix_server(lambda: Worker(self), sock=listening)
        house = asyncio.ensure_future(self._keep_house())
        try:
            ending = asyncio.ensure_future(self.ending.wait())
            await asyncio.wait([ending, house], return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            if house.done():
                house.result()
            server.close()
            while self.workers:
                self._gone.clear()
                await self._gone.wait()
        finally:
            house.cancel()
            await asyncio.gather(house, return_exceptions=True)
            server.close()
            await self.service.close()

    async def _keep_house(self) -> None:
        alone = self.now()
        while True:
            await asyncio.sleep(TICK)
            await self.service.tidy(self.now())
            if self.workers:
                alone = self.now()
            elif self._replaced() or self.now() - alone > (ALONE if os.getppid() == self._parent else ORPHANED):
                log.info("nobody needs this process any more: ending")
                self.ending.set()


def listen(path: Path) -> tuple[socket.socket, int]:
    """A listening socket at that path, for its owner only, in place of any that is there; and its file's number, which
    is looked at before others can see the file and replace it. Raises OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        beside.unlink(missing_ok=True)
        with short_path(beside) as short:
            before = os.umask(0o177)
            try:
                sock.bind(short)
            finally:
                os.umask(before)
        sock.listen(WORKERS)
        sock.setblocking(False)
        ours = inode(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        sock.close()
        raise
    return sock, ours


def load_late() -> None:
    """Load what would be loaded later, while it can be read for certain."""
    for name in LATE:
        with contextlib.suppress(ImportError):  # of another version of a library
            importlib.import_module(name)


def inode(path: Path) -> int:
    """What tells one socket at a path from the next; 0: there is none."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def leave(path: Path, ours: int) -> None:
    """Remove the socket's file, unless it is a successor's by now."""
    if inode(path) == ours:
        path.unlink(missing_ok=True)


async def serve(path: Path) -> int:
    """Run until SIGTERM, or until it's replaced, and the last worker's end; returns the exit status."""
    ours = 0
    process = DirectoryProcess(replaced=lambda: inode(path) != ours)
    # First, so that who sees the socket can end this process in good order.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, process.ending.set)
    try:
        listening, ours = listen(path)
    except OSError as error:
        log.error("can't listen at %s: %s", path, error.strerror or error)
        return 1
    gc.freeze()
    await process.run(listening)
    leave(path, ours)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="l7lb-directories", description="asks a node's directories")
    parser.add_argument("--socket", type=Path, required=True, help="where workers connect")
    options = parser.parse_args(arguments)
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="l7lb directories: %(message)s", stream=sys.stderr)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    return asyncio.run(serve(options.socket))


if __name__ == "__main__":
    sys.exit(main())
