"""The supervisor's servers and checks on uvloop, whose transports are not asyncio's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from l7lb.control.admin import AdminServer
from l7lb.control.client import AdminClient
from l7lb.control.health import HealthMonitor
from l7lb.control.metrics import Metrics
from l7lb.control.node import NodeState
from l7lb.core.snapshot import Address, Health, Server

Make = Callable[..., Any]


def test_admin_metrics_and_checks(make_pool: Make, make_snapshot: Make, supervisor: Any, tmp_path: Path) -> None:
    async def whole() -> dict[str, str]:
        node = NodeState(make_snapshot(make_pool("web", "web1")))
        metrics = Metrics(Address(host="127.0.0.1", port=0), node, supervisor)
        await metrics.start()
        http = Health(kind="http", interval=0.01, settings={"path": "/livez", "body": "alive"})
        tcp = Health(kind="tcp", interval=0.01)
        gone = Health(kind="http", interval=0.01, settings={"path": "/none"})
        checked = [
            make_pool(name, make_server(metrics.address), health=health)
            for name, health in (("http", http), ("tcp", tcp), ("gone", gone))
        ]
        node.reload(make_snapshot(*checked))
        admin = AdminServer(tmp_path / "admin.sock", node, supervisor)
        await admin.start()
        monitor = HealthMonitor(node, {})
        await monitor.start()
        try:
            async with asyncio.timeout(10):
                while any(node.verdict(pool.name, "one") is None for pool in node.effective().pools):
                    await asyncio.sleep(0.005)
            rows = await asyncio.to_thread(AdminClient(tmp_path / "admin.sock").get, "servers")
        finally:
            await monitor.stop()
            await admin.stop()
            await metrics.stop()
        return {row["pool"]: row["state"] for row in rows}

    def make_server(address: Address) -> Any:
        return Server(name="one", address=address)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(whole()) == {"http": "up", "tcp": "up", "gone": "down"}
