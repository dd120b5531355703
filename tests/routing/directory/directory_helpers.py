"""What the tests of directories share: a process and links in this loop, and sources that answer as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from l7lb.core.contracts import Entry
from l7lb.core.directory import FOUND, Answer, Question
from l7lb.core.snapshot import Directory, FileSource
from l7lb.routing.directory.link import DirectoryLink
from l7lb.routing.directory.process import DirectoryProcess, Service, listen
from l7lb.routing.directory.source import Result


def file_directory(path: Path, name: str = "people", **settings: object) -> Directory:
    return Directory(name=name, source=FileSource(path=str(path), columns=("address", "server")), **settings)  # type: ignore[arg-type]


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Scripted:
    """A source that answers with what ``answers`` holds, when ``gate`` is open."""

    def __init__(self) -> None:
        self.answers: dict[bytes, Result] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[bytes] = []
        self.closed = False

    def known(self, question: Question) -> Result | None:
        return None

    def key(self, question: Question) -> bytes | None:
        return question.address

    async def find(self, question: Question) -> Result:
        self.asked.append(question.address)
        await self.gate.wait()
        return self.answers.get(question.address, Result("missing"))

    def size(self) -> int:
        return 0

    async def close(self) -> None:
        self.closed = True


def found(server: str = "mx1", mailbox: bytes = b"") -> Result:
    return Result(FOUND, Entry(mailbox, server))


@asynccontextmanager
async def serving(path: Path, service: Service | None = None) -> AsyncIterator[DirectoryProcess]:
    """A directory process in this process."""
    process = DirectoryProcess(service)
    task = asyncio.ensure_future(process.run(listen(path)[0]))
    try:
        yield process
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def linked(path: Path, *directories: Directory) -> AsyncIterator[DirectoryLink]:
    link = DirectoryLink(asyncio.get_running_loop(), path)
    link.use(directories)
    task = asyncio.ensure_future(link.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(link: DirectoryLink, address: bytes, *names: str, **more: object) -> Answer:
    """One question, answered."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    question = Question(address)
    for name, value in more.items():
        setattr(question, name, value)
    link.ask(names or ("people",), question, future.set_result)
    async with asyncio.timeout(20.0):
        return await future
