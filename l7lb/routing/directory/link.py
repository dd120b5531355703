"""A worker's link to the directory process: questions out, answers in.

Every question has its limit here, whatever becomes of the process. One that dies is asked again when it is back, so
that a login waits some hundred milliseconds and nobody hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from l7lb.core.directory import FAILED, Answer, Question
from l7lb.core.snapshot import Directory, HttpSource
from l7lb.core.unixpath import short_path
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
    Use,
    Welcome,
    budget,
    entry,
    frame,
    from_process,
)

MARGIN = 3.0  # seconds beyond what the directories may take: for a process that must be started
BACKOFF = 0.05  # seconds before the first new attempt to connect; doubles
MAX_BACKOFF = 1.0
HELLO = 5.0  # seconds for the process's first word

log = logging.getLogger("l7lb.directories")


@dataclass
class Waiting:
    """A question that was asked, or will be when there is a process."""

    ask: Ask
    done: Callable[[Answer], None]
    limit: asyncio.TimerHandle


class DirectoryLink:
    """Implements :class:`l7lb.core.directory.Directories`; ``run`` keeps the connection, for ever."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket_path: str | Path) -> None:
        self.path = Path(socket_path)
        self.connected = False
        self._loop = loop
        self._directories: dict[str, Directory] = {}
        self._wanted = asyncio.Event()
        self._line: _Line | None = None
        self._waiting: dict[int, Waiting] = {}
        self._number = 0
        self._trouble = ""  # that was logged last

    def use(self, directories: tuple[Directory, ...]) -> None:
        """The configuration's directories, from now on."""
        wanted = {one.name: one for one in directories}
        if wanted == self._directories:
            return
        self._directories = wanted
        if wanted:
            self._wanted.set()
            self._send(Use(directories))
        else:
            self._wanted.clear()
            self._hang_up()

    # --- questions ------------------------------------------------------------------------------------------------

    def ask(self, names: tuple[str, ...], question: Question, done: Callable[[Answer], None]) -> Callable[[], None]:
        """See Directories."""
        found = [self._directories.get(name) for name in names]
        known = [one for one in found if one is not None]
        why = ""
        if not names or len(known) != len(names):
            why = f"there is no directory {', '.join(names)}"
        elif len(self._waiting) >= OPEN:
            why = f"{OPEN} questions wait already"
        if why:
            return self._loop.call_soon(done, self._failed(why, names)).cancel
        self._number += 1
        number = self._number
        ask = Ask.of(number, names, question)
        if not any(isinstance(one.source, HttpSource) for one in known):
            ask.password = b""  # nobody there judges it
        seconds = sum(budget(one) for one in known) + MARGIN
        limit = self._loop.call_later(seconds, self._expired, number, seconds)
        self._waiting[number] = Waiting(ask, done, limit)
        self._send(ask)
        return lambda: self._forget(number)

    def _forget(self, number: int) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.limit.cancel()
            self._send(Forget(number))

    def _expired(self, number: int, seconds: float) -> None:
        waiting = self._waiting[number]
        self._forget(number)
        why = "the directory process is not there" if not self.connected else f"no answer within {seconds:g} s"
        waiting.done(self._failed(why, waiting.ask.names))

    def _failed(self, why: str, names: tuple[str, ...]) -> Answer:
        answer = Answer(FAILED, why=why)
        self._policy(answer, names[-1] if names else "")
        return answer

    def _policy(self, answer: Answer, name: str) -> None:
        directory = self._directories.get(name)
        answer.directory = name
        if directory is not None:
            answer.missing = directory.missing
            answer.unknown_server = directory.unknown_server
            answer.server_down = directory.server_down

    def _told(self, told: Told) -> None:
        waiting = self._waiting.pop(told.number, None)
        if waiting is None:
            return  # its limit was over, or nobody wants it
        waiting.limit.cancel()
        answer = Answer(told.status, entry(told.entry) if told.entry is not None else None, told.why)
        answer.wait = told.wait
        self._policy(answer, told.directory)
        try:
            waiting.done(answer)
        except Exception:  # a fault of who asked must not end the line that others wait at
            log.exception("a fault in what an answer of a directory led to")

    # --- the connection -------------------------------------------------------------------------------------------

    def _send(self, message: ToProcess) -> None:
        if self._line is not None and self.connected:
            self._line.send(message)

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.end()

    async def run(self) -> None:
        """Connect, and again; ends only when cancelled."""
        backoff = BACKOFF
        while True:
            await self._wanted.wait()
            try:
                if await self._connect():
                    backoff = BACKOFF
            except OSError as error:
                self._say(error.strerror or type(error).__name__)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, MAX_BACKOFF)

    async def _connect(self) -> bool:
        """Until the connection ends; returns whether it was one. Raises OSError; TimeoutError is one."""
        line = _Line(self._heard)
        with short_path(self.path) as short:
            await self._loop.create_unix_connection(lambda: line, short)
        self._line = line
        try:
            line.send(Join(PROTOCOL))
            async with asyncio.timeout(HELLO):
                await line.welcomed.wait()
            if not self.connected:
                self._say("it speaks another version, or has ended")
                return False
            await line.lost.wait()
            if self._directories:
                log.info("the directory process has ended; questions wait for the next one")
            return True
        finally:
            self.connected = False
            self._line = None
            line.end()

    def _heard(self, message: FromProcess) -> None:
        if isinstance(message, Told):
            self._told(message)
        if not isinstance(message, Welcome):
            return
        self.connected = True
        self._trouble = ""
        self._send(Use(tuple(self._directories.values())))
        for waiting in list(self._waiting.values()):
            self._send(waiting.ask)

    def _say(self, trouble: str) -> None:
        if self._waiting and trouble != self._trouble:
            self._trouble = trouble
            log.warning("no directory process (%s): %d questions wait for it", trouble, len(self._waiting))


class _Line(asyncio.Protocol):
    """One connection; ``heard`` gets every message."""

    def __init__(self, heard: Callable[[FromProcess], None]) -> None:
        self.welcomed = asyncio.Event()  # by a word or by its end
        self.lost = asyncio.Event()
        self._heard = heard
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none of asyncio's classes

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.lost.set()
        self.welcomed.set()

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                message = from_process.decode(body)
                if self._transport is None or self._transport.is_closing():
                    return
                self._heard(message)
                self.welcomed.set()
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("the directory process says what can't be understood: %s", error)
            self.end()

    def send(self, message: ToProcess) -> None:
        if self._transport is not None:
            self._transport.write(frame(message))

    def end(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def ask_numbers(socket_path: Path, seconds: float) -> list[DirectoryNumbers]:
    """What the directory process says of its directories. Raises OSError, of which TimeoutError is one."""
    answer: asyncio.Future[Numbers] = asyncio.get_running_loop().create_future()

    def heard(message: FromProcess) -> None:
        if isinstance(message, Numbers) and not answer.done():
            answer.set_result(message)

    line = _Line(heard)
    with short_path(socket_path) as short:
        await asyncio.get_running_loop().create_unix_connection(lambda: line, short)
    try:
        line.send(Join(PROTOCOL))
        line.send(AskNumbers())
        async with asyncio.timeout(seconds):
            return (await answer).rows
    finally:
        line.end()
