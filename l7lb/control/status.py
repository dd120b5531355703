"""The node's state as `l7lb status --json` prints it; SupervisorView says what is in it."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from l7lb import __version__
from l7lb.control.keeper_client import Event
from l7lb.proxy.counts import ACTIVE
from l7lb.proxy.workers.children import WORKER

if TYPE_CHECKING:
    from l7lb.control.supervisor import Supervisor


def describe(supervisor: Supervisor) -> dict[str, Any]:
    """All of it."""
    effective = supervisor.node.effective()
    crew = supervisor.crew
    children = crew.children.values()
    return {
        "node": effective.node,
        "version": __version__,
        "state": supervisor.state,
        "supervisor": {"pid": os.getpid(), "since": supervisor.since},
        "keeper": {"pid": crew.keeper.state["pid"]},
        "state_process": {"pid": crew.state_process},
        "workers": [_worker(supervisor, child) for child in children if child["kind"] == WORKER],
        "listeners": [
            {"name": one.name, "protocol": one.protocol, "bind": [crew.binds.text(bind) for bind in one.bind]}
            for one in effective.listeners
        ],
        "reload": supervisor.last_reload,
        "snapshot": effective.version,
    }


def _worker(supervisor: Supervisor, child: Event) -> dict[str, Any]:
    connections = 0
    if supervisor.crew.counts is not None:
        slots = [listener.slot for listener in supervisor.node.effective().listeners]
        connections = sum(supervisor.crew.counts.of(child["block"], slot, ACTIVE) for slot in slots)
    link = supervisor.services.links.links.get(child["pid"])
    began = datetime.fromtimestamp(time.time() - time.monotonic() + child["started"], UTC)
    return {
        "pid": child["pid"],
        "index": child["index"],
        "connections": connections,
        "snapshot": link.snapshot if link is not None else 0,
        "since": began.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "ready": child["ready"],
        "leaving": child["leaving"],
    }
