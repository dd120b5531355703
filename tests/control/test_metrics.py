from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import l7lb
from l7lb.control import collector, metrics
from l7lb.control.collector import CLASSES, descriptor_limit, process_usage
from l7lb.control.health import CheckCounts, HealthMonitor
from l7lb.control.metrics import Metrics
from l7lb.control.node import STRIDE, NodeState
from l7lb.control.operator import Operator
from l7lb.control.outliers import Outliers
from l7lb.core.messages import ServerResult
from l7lb.core.snapshot import Address, Health
from l7lb.core.snapshot import Outliers as OutlierSettings
from l7lb.proxy import counts as columns
from l7lb.proxy.counts import Counts
from l7lb.routing.directory.messages import DirectoryNumbers

pytestmark = pytest.mark.asyncio
Make = Callable[..., Any]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: bytes) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def port(node: NodeState, supervisor: Any, **parts: Any) -> Metrics:
    return Metrics(Address(host="127.0.0.1", port=0), node, supervisor, **parts)


async def fetch(address: Address, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    data = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def test_counts_of_all_workers_add_up(
    make_pool: Make, make_snapshot: Make, supervisor: Any, counts: Counts
) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", "web2"), workers=3), counts=counts)
    first = node.effective().pools[0].servers[0]
    listener = node.effective().listeners[0]
    for worker in range(3):
        for slot in (first.slot, listener.slot):
            row = worker * STRIDE + slot * columns.COLUMNS
            counts.cells[row + columns.ACTIVE] = 1
            counts.cells[row + columns.OPENING] = 1
            counts.cells[row + columns.opening_failure("tls", "timeout")] = 6
            counts.cells[row + columns.CONNECTIONS] = 5
            counts.cells[row + columns.REQUESTS] = 100 + worker
            counts.cells[row + columns.RECEIVED] = 1000
            counts.cells[row + columns.SENT] = 2000
            counts.cells[row + columns.DURATION] = 1_500_000
            for number in range(5):
                counts.cells[row + columns.STATUS_1XX + number] = number
            for bucket in range(11):
                counts.cells[row + columns.HISTOGRAM + bucket] = bucket
    counts.cells[counts.row(node.effective().pools[0].slot) + columns.WAITING] = 4
    counts.clear_gauges(1)  # a worker has died: what it counted stays
    found = parsed(await port(node, supervisor).text())
    where = {"pool": "web", "server": "web1"}
    assert value(found, "l7lb_server_active", **where) == 2
    assert value(found, "l7lb_server_requests_total", **where) == 303
    assert value(found, "l7lb_server_received_bytes_total", **where) == 3000
    assert value(found, "l7lb_listener_open_connections", listener="web") == 2
    assert value(found, "l7lb_listener_opening_connections", listener="web") == 2
    failed = "l7lb_listener_openings_failed_total"
    assert value(found, failed, listener="web", stage="tls", reason="timeout") == 18
    assert value(found, failed, listener="web", stage="proxy", reason="timeout") == 0
    assert value(found, "l7lb_listener_connections_total", listener="web") == 15
    assert value(found, "l7lb_listener_requests_total", listener="web") == 303
    assert [value(found, "l7lb_server_responses_total", code=code, **where) for code in CLASSES] == [0, 3, 6, 9, 12]
    assert value(found, "l7lb_server_requests_total", pool="web", server="web2") == 0
    assert value(found, "l7lb_pool_waiting", pool="web") == 4
    buckets = [
        value(found, "l7lb_server_request_duration_seconds_bucket", le=str(le), **where) for le in columns.BUCKETS
    ]
    assert buckets == [0, 3, 9, 18, 30, 45, 63, 84, 108, 135]
    everything = value(found, "l7lb_server_request_duration_seconds_bucket", le="+Inf", **where)
    assert everything == 165
    assert value(found, "l7lb_server_request_duration_seconds_count", **where) == 165
    assert value(found, "l7lb_server_request_duration_seconds_sum", **where) == 4.5
    assert value(found, "l7lb_listener_request_duration_seconds_sum", listener="web") == 4.5


async def test_states_checks_and_ejections(make_pool: Make, make_snapshot: Make, supervisor: Any) -> None:
    checked = make_pool(
        "web", "web1", "web2", "web3", health=Health(kind="tcp"), outliers=OutlierSettings(1, 10.0, 0.5)
    )
    node = NodeState(make_snapshot(checked))
    health, outliers = HealthMonitor(node, {}), Outliers(node)
    health.counts["web"] = CheckCounts(good=2, bad=1)
    for seconds in (0.0005, 0.003, 30.0):
        health.counts["web"].add(seconds)
    node.set_health("web", "web1", False, "connect refused")
    outliers.result(ServerResult("web", "web2", "connect-refused"))
    Operator(node).weight("web3", 7)
    found = parsed(await port(node, supervisor, health=health, outliers=outliers).text())
    assert value(found, "l7lb_pool_servers", pool="web", state="up") == 1
    assert value(found, "l7lb_pool_servers", pool="web", state="down") == 2
    assert value(found, "l7lb_server_up", pool="web", server="web3") == 1
    assert value(found, "l7lb_server_up", pool="web", server="web1") == 0
    assert value(found, "l7lb_server_healthy", pool="web", server="web2") == 1
    assert value(found, "l7lb_server_ejected", pool="web", server="web2") == 1
    assert value(found, "l7lb_server_weight", pool="web", server="web3") == 7
    assert value(found, "l7lb_health_checks_total", pool="web", result="good") == 2
    assert value(found, "l7lb_health_check_duration_seconds_count", pool="web") == 3
    assert value(found, "l7lb_health_check_duration_seconds_bucket", pool="web", le="0.005") == 2
    assert value(found, "l7lb_ejections_total", pool="web") == 1


async def test_the_node_and_its_processes(make_pool: Make, make_snapshot: Make, supervisor: Any) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1")))
    found = parsed(await port(node, supervisor).text())
    assert value(found, "l7lb_build_info", version="0.1.0", node="lb1") == 1
    assert value(found, "l7lb_config_reload_successful") == 1
    assert value(found, "l7lb_config_reload_timestamp_seconds") == 1767225600.0
    assert value(found, "l7lb_snapshot_version") == 1
    for process in ("supervisor", "worker 0"):
        assert value(found, "l7lb_process_resident_memory_bytes", process=process) > 1_000_000
        assert value(found, "l7lb_process_cpu_seconds_total", process=process) > 0
        assert value(found, "l7lb_process_open_fds", process=process) > 2
        assert value(found, "l7lb_process_max_fds", process=process) > 2


async def test_workers_of_several_generations_are_told_apart(
    make_pool: Make, make_snapshot: Make, supervisor: Any
) -> None:
    worker = {"pid": os.getpid(), "index": 0, "connections": 0, "leaving": False}
    status = supervisor.status() | {"workers": [worker, *[worker | {"leaving": True}] * 2]}
    supervisor.status = lambda: status
    found = parsed(await port(NodeState(make_snapshot(make_pool("web", "web1"))), supervisor).text())
    names = {dict(labels)["process"] for name, labels in found if name == "l7lb_process_open_fds"}
    assert names == {"supervisor", "worker 0", "worker 0 leaving"}


async def test_processes_that_are_gone_are_left_out(make_pool: Make, make_snapshot: Make) -> None:
    class Gone:
        def status(self) -> dict[str, Any]:
            return {"state": "serving", "workers": [{"pid": 2**22 + 1, "index": 0}]}

    found = parsed(await port(NodeState(make_snapshot(make_pool("web", "web1"))), Gone()).text())
    assert not [name for name, _ in found if name.startswith("l7lb_process")]


async def test_the_number_of_series_is_bounded(
    make_pool: Make, make_snapshot: Make, supervisor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "SERVERS", 3)
    node = NodeState(make_snapshot(make_pool("web", *(f"web{number}" for number in range(10)))))
    found = parsed(await port(node, supervisor).text())
    assert len([key for key in found if key[0] == "l7lb_server_up"]) == 3
    assert value(found, "l7lb_metrics_servers_left_out") == 7
    assert value(found, "l7lb_pool_servers", pool="web", state="up") == 10


async def test_every_metric_is_documented(make_pool: Make, make_snapshot: Make, supervisor: Any) -> None:
    page = Path(l7lb.__file__).parent.parent / "docs" / "metrics.md"
    checked = make_pool("web", "web1", health=Health(kind="tcp"), outliers=OutlierSettings())
    node = NodeState(make_snapshot(checked))
    text = await port(node, supervisor, health=HealthMonitor(node, {}), outliers=Outliers(node)).text()
    documented = page.read_text()
    types = [line.split()[2:4] for line in text.decode().splitlines() if line.startswith("# TYPE")]
    shown = {name for name, _ in types}
    assert shown
    assert [name for name in sorted(shown) if f"`{name}`" not in documented] == []


async def test_directories_are_counted(make_pool: Make, make_snapshot: Make, supervisor: Any) -> None:
    class Directories:
        async def numbers(self) -> list[DirectoryNumbers]:
            answers = {"found": 5, "missing": 3, "refused": 0, "failed": 1}
            return [DirectoryNumbers("people", answers, 4, 0.25, 7)]

    node = NodeState(make_snapshot(make_pool("web", "web1")))
    found = parsed(await port(node, supervisor, directories=Directories()).text())
    assert value(found, "l7lb_directory_answers_total", directory="people", status="failed") == 1
    assert value(found, "l7lb_directory_asked_total", directory="people") == 4
    assert value(found, "l7lb_directory_asked_seconds_total", directory="people") == 0.25
    assert value(found, "l7lb_directory_entries", directory="people") == 7


# --- the port -----------------------------------------------------------------------------------------------------


async def test_live_and_ready(make_pool: Make, make_snapshot: Make, supervisor: Any) -> None:
    served = port(NodeState(make_snapshot(make_pool("web", "web1"))), supervisor)
    await served.start()
    try:
        assert await fetch(served.address, "/livez") == (200, b"alive\n")
        for state, status in (("starting", 503), ("serving", 200), ("draining", 503)):
            supervisor.state = state
            assert (await fetch(served.address, "/readyz"))[0] == status
            assert (await fetch(served.address, "/livez"))[0] == 200
        assert (await fetch(served.address, "/metrics"))[0] == 200
        assert (await fetch(served.address, "/other"))[0] == 404
    finally:
        await served.stop()


async def test_a_text_is_given_out_again_for_a_moment(
    make_pool: Make, make_snapshot: Make, supervisor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = port(NodeState(make_snapshot(make_pool("web", "web1"))), supervisor)
    monkeypatch.setattr(metrics, "FRESH", 3600.0)
    first = await served.text()
    assert await served.text() is first


async def test_a_silent_client_is_cut_off(
    make_pool: Make, make_snapshot: Make, supervisor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SECONDS", 0.1)
    served = port(NodeState(make_snapshot(make_pool("web", "web1"))), supervisor)
    await served.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.address.port)
        writer.write(b"GET /metrics HTT")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
    finally:
        await served.stop()


async def test_all_addresses_of_both_families(make_pool: Make, make_snapshot: Make, supervisor: Any) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1")))
    served = Metrics(Address(host="*", port=0), node, supervisor)
    await served.start()
    try:
        assert (await fetch(served.address, "/livez"))[0] == 200
    finally:
        await served.stop()


async def test_numbers_from_proc() -> None:
    seconds, resident = process_usage(os.getpid())
    assert seconds > 0
    assert resident > 1_000_000
    assert descriptor_limit(os.getpid()) > 10
    with pytest.raises(OSError, match="No such file"):
        process_usage(2**22 + 1)
