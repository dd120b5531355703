"""Fixtures of the tests of persistence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sticky_helpers import Nodes, Processes, running

from l7lb.persistence.state import StateProcess


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
    async with running(socket_path) as process:
        yield process


@pytest.fixture
def start_state(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    for process in processes.all:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
