"""The data path alone, in one process and without a supervisor: ``python benchmarks/bare.py FILE``.

For profiles (py-spy, strace -c, perf) and for telling what the processes around a worker cost.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from pathlib import Path

import uvloop

from l7lb import config
from l7lb.control.node import NodeState
from l7lb.core.messages import ServerResult
from l7lb.persistence import Tables
from l7lb.protocols import PROTOCOLS
from l7lb.proxy import counts as columns
from l7lb.proxy.counts import Counts
from l7lb.proxy.runtime import Runtime


def _ignore(result: ServerResult) -> None:
    """Passive health is the supervisor's, and there is none."""


async def main(path: Path) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    counts = Counts(columns.create())
    snapshot = NodeState(config.load(path).snapshot, counts=counts).effective()
    runtime = Runtime(loop, PROTOCOLS, counts, Tables(snapshot.tables), _ignore)
    runtime.apply(snapshot)
    for listener in snapshot.listeners:
        for address in listener.bind:
            sock = socket.create_server((address.host, address.port), backlog=listener.backlog)
            sock.setblocking(False)
            runtime.accept_from(str(address), sock)
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    gc.collect()
    gc.freeze()
    await ended.wait()
    runtime.close()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
