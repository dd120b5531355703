"""The link on the loop that workers run on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import uvloop
from sticky_helpers import Nodes, Processes, until


def test_links_work_on_uvloop(socket_path: Path, start_state: Processes) -> None:
    start_state("--socket", socket_path)

    async def exchange() -> None:
        made = Nodes(socket_path)
        one, other = made(), made()
        a, b = one.table(), other.table()
        for number in range(2000):
            a.put(b"%d" % number, "web1", time.monotonic())
        await until(lambda: len(b) == 2000)
        await one.stop()
        await other.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(exchange())
