"""What the tests of persistence share: facts without a protocol, workers, processes, waiting for a condition."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from l7lb.core.facts import Facts
from l7lb.core.snapshot import Address, PersistenceKey, Pool, Server
from l7lb.core.snapshot import Tables as Limits
from l7lb.persistence.link import StateLink
from l7lb.persistence.state import StateProcess, listen
from l7lb.persistence.table import Delta, Table
from l7lb.persistence.tables import Tables

TIME_LIMIT = 20.0


class Request(Facts):
    """Facts as a protocol would fill them."""

    def __init__(
        self,
        source: str = "192.0.2.1",
        cookies: dict[bytes, Sequence[bytes]] | None = None,
        headers: dict[bytes, Sequence[bytes]] | None = None,
        scheme: bytes = b"http",
    ) -> None:
        super().__init__("http", "web", source)
        self.scheme = scheme
        self.cookies = cookies or {}
        self.headers = headers or {}

    def cookie(self, name: bytes) -> Sequence[bytes]:
        return self.cookies.get(name, ())

    def header(self, name: bytes) -> Sequence[bytes]:
        return self.headers.get(name, ())


def pool(*keys: PersistenceKey, servers: Sequence[str] = ("web1", "web2", "web3"), name: str = "web") -> Pool:
    return Pool(
        name=name,
        servers=tuple(Server(name=server, address=Address("127.0.0.1", 80)) for server in servers),
        persistence=keys,
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds; fails after a while."""
    end = time.monotonic() + TIME_LIMIT
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("the condition did not come")
        await asyncio.sleep(0.002)


class Node:
    """A worker's side: its tables and its link."""

    def __init__(self, path: Path, size: int = 10_000) -> None:
        self.tables = Tables(Limits(size))
        self.link = StateLink(self.tables, path)
        self.task: asyncio.Task[None] | None = None

    def table(self, name: str = "web/source", ttl: float = 600.0) -> Table:
        return self.tables.table(name, ttl)

    def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.link.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None


def everything(table: Table) -> list[Delta]:
    """All entries of a table, sorted."""
    return sorted(itertools.chain.from_iterable(table.part(index) for index in range(table.parts)))


@asynccontextmanager
async def running(path: Path, save: Path | None = None, size: int = 10_000) -> AsyncIterator[StateProcess]:
    """A state process in this process."""
    with listen(path) as listening:
        process = StateProcess(listening, save, size)
        process.load()
        task = asyncio.get_running_loop().create_task(process.run())
        try:
            yield process
        finally:
            process.ending.set()
            await task


class Nodes:
    """Makes workers that are stopped at the test's end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: list[Node] = []

    def __call__(self, size: int = 10_000, start: bool = True) -> Node:
        node = Node(self.path, size)
        self.all.append(node)
        if start:
            node.start()
        return node


class Processes:
    """Starts real state processes; those that live at the end are killed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.all: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "l7lb.persistence.state", *map(str, arguments)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.all.append(process)
        return process
