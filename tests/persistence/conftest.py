"""Fixtures of the tests of persistence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sticky_helpers import Nodes, Processes

from l7lb.persistence.state import StateProcess, listen


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "state.sock"


@pytest_asyncio.fixture
async def nodes(socket_path: Path) -> AsyncIterator[Nodes]:
    made = Nodes(socket_path)
    yield made
    for node in made.all:
        await node.stop()


@pytest_asyncio.fixture
async def state(socket_path: Path) -> AsyncIterator[StateProcess]:
    """A state process in this process."""
    with listen(socket_path) as listening:
        process = StateProcess(listening, None, 10_000)
        task = asyncio.get_running_loop().create_task(process.run())
        yield process
        process.ending.set()
        await task


@pytest.fixture
def start_state(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    for process in processes.all:
        if process.poll() is None:
            process.kill()
        process.communicate()
