"""The data path is tested on both event loops where a loop is involved."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine; afterwards the process has no more descriptors than before."""

    def runner(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as loop:
            loop.run(coroutine)

    # The first loop of its kind opens descriptors that it never closes.
    with asyncio.Runner(loop_factory=request.param) as loop:
        loop.run(asyncio.sleep(0))
    before = len(os.listdir("/proc/self/fd"))
    yield runner
    assert len(os.listdir("/proc/self/fd")) <= before
