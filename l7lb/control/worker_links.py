"""The supervisor's side of the lines to its workers: ``node.sock``, to which every worker connects and says hello.

A worker of another protocol number or unknown to the keeper isn't configured: it is told to drain by whoever owns this
object. What a worker doesn't read is bounded: beyond it the line is cut, and the worker connects again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import structlog

from l7lb.control.http_server import listen_unix, remove_unix
from l7lb.core import messages
from l7lb.core.messages import FromWorker, SessionRow, ToWorker
from l7lb.proxy.workers import channel, wire

log = structlog.get_logger("l7lb.workers")

UNREAD = 128 * 1024 * 1024  # bytes
QUESTION = 2.0  # seconds until an answer to AskSessions


class Link:
    """One worker's line."""

    def __init__(self, hello: messages.Hello, writer: asyncio.StreamWriter) -> None:
        self.hello = hello
        self.pid = hello.pid
        self.snapshot = hello.snapshot  # the version it runs
        self.problem = ""  # why it doesn't run the one it got last
        self.configured = False  # whether it gets configurations
        self._writer = writer

    def tell(self, *sent: ToWorker) -> None:
        """Send messages."""
        self.send(b"".join(wire.frame(message) for message in sent))

    def send(self, frame: bytes) -> None:
        """Send a frame, or cut the line of a worker that doesn't read."""
        if self._writer.transport.get_write_buffer_size() > UNREAD:
            log.warning("a worker does not read: its line is cut", worker=self.pid)
            self._writer.transport.abort()
        else:
            self._writer.write(frame)


class WorkerLinks:
    """See the module. ``joined`` decides what a worker is told first, ``resulted`` hears what passive health needs.

    ``changed`` is set when a worker has joined, left or applied a snapshot.
    """

    def __init__(
        self,
        path: Path,
        joined: Callable[[Link], None],
        resulted: Callable[[messages.ServerResult], None],
        changed: asyncio.Event,
    ) -> None:
        self.path = path
        self.changed = changed
        self.joined = joined
        self.resulted = resulted
        self.links: dict[int, Link] = {}
        self._server: asyncio.Server | None = None
        self._identity = (0, 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._questions = 0
        self._answers: dict[int, tuple[set[int], list[SessionRow], asyncio.Event]] = {}

    async def start(self) -> None:
        """Open the socket. Raises OSError."""
        listening, self._identity = listen_unix(self.path)
        self._server = await asyncio.start_unix_server(self._serve, sock=listening)

    async def stop(self) -> None:
        """Close it; the workers look for another supervisor."""
        if self._server is not None:
            self._server.close()
            remove_unix(self.path, self._identity)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.links.clear()

    def broadcast(self, sent: Iterable[ToWorker]) -> None:
        """Tell all workers that are configured."""
        frames = b"".join(wire.frame(message) for message in sent)
        for link in list(self.links.values()):
            if link.configured:
                link.problem = ""
                link.send(frames)

    async def somebody(self, seconds: float) -> bool:
        """Whether a worker has a line to us within that time."""
        return await self._until(lambda: bool(self.links), seconds)

    async def all_of(self, pids: set[int], seconds: float) -> bool:
        """Whether all these workers have a line to us within that time."""
        return await self._until(lambda: pids <= self.links.keys(), seconds)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    async def applied(self, version: int, seconds: float) -> list[str]:
        """Wait until all configured workers have taken that version or a later one, or have said why not.

        Returns notes about those that did neither.
        """

        def late() -> list[Link]:
            return [one for one in self.links.values() if one.configured and one.snapshot < version and not one.problem]

        await self._until(lambda: not late(), seconds)
        return [f"worker {link.pid} has not confirmed the configuration within {seconds:g} s" for link in late()]

    @property
    def problem(self) -> str:
        """Why a worker can't use the configuration that it got last; "" where all can."""
        return next((link.problem for link in self.links.values() if link.configured and link.problem), "")

    async def sessions(self, limit: int, wanted: messages.Wanted) -> list[SessionRow]:
        """What all workers have in progress, so many rows at most; those that don't answer in time are left out."""
        self._questions += 1
        number = self._questions
        asked = {pid for pid, link in self.links.items() if link.hello.protocol == messages.PROTOCOL}
        if not asked:
            return []
        rows: list[SessionRow] = []
        complete = asyncio.Event()
        self._answers[number] = asked, rows, complete
        frame = wire.frame(messages.AskSessions(number, limit, wanted))
        for pid in list(asked):
            self.links[pid].send(frame)
        try:
            async with asyncio.timeout(QUESTION):
                await complete.wait()
        except TimeoutError:
            log.warning("workers did not list their sessions in time", workers=sorted(asked))
        finally:
            del self._answers[number]
        return sorted(rows, key=lambda row: row.since)[:limit]

    # --- one line -------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link: Link | None = None
        try:
            link = await self._greet(reader, writer)
            if link is not None:
                while True:
                    self._hear(link, wire.from_worker.decode(await wire.receive(reader, wire.FROM_WORKER)))
        except (OSError, EOFError, TimeoutError):
            pass  # it has ended, and the keeper says how
        except (msgspec.MsgspecError, wire.TooLong) as error:
            log.warning("a worker's message can't be understood", error=str(error))
        except asyncio.CancelledError:
            pass
        finally:
            if link is not None and self.links.get(link.pid) is link:
                del self.links[link.pid]
                for asked, _, complete in self._answers.values():
                    asked.discard(link.pid)
                    if not asked:
                        complete.set()
                self.changed.set()
            writer.transport.abort()
            self._tasks.discard(task)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Link | None:
        pid, uid = channel.peer(writer.get_extra_info("socket"))
        if uid not in (0, os.geteuid()):
            log.warning("a stranger at node.sock is refused", by_pid=pid, by_user=uid)
            return None
        async with asyncio.timeout(wire.PATIENCE):
            hello = wire.from_worker.decode(await wire.receive(reader, wire.FROM_WORKER))
        if not isinstance(hello, messages.Hello):
            log.warning("a worker did not introduce itself", by_pid=pid)
            return None
        hello.pid = pid  # as the kernel says
        link = Link(hello, writer)
        self.links[pid] = link
        self.joined(link)
        self.changed.set()
        return link

    def _hear(self, link: Link, message: FromWorker) -> None:
        match message:
            case messages.Applied():
                if not message.problem:
                    link.snapshot = message.snapshot
                else:
                    log.error("a worker can't use the configuration", worker=link.pid, problem=message.problem)
                link.problem = message.problem
                self.changed.set()
            case messages.ServerResult():
                self.resulted(message)
            case messages.Sessions():
                waiting = self._answers.get(message.question)
                if waiting is not None:
                    asked, rows, complete = waiting
                    rows.extend(message.rows)
                    asked.discard(link.pid)
                    if not asked:
                        complete.set()
            case messages.Hello():
                log.warning("a worker introduced itself twice", worker=link.pid)
