"""The node's numbers as Prometheus metrics: the shared counts, servers' states, checks, processes.

:func:`gather` copies what it needs in the supervisor's loop, in one piece, so that the numbers belong together;
:class:`Collector` turns the copy into metrics, which takes longer and can run in a thread. Every label's value is a
name of the configuration or one of a fixed few, never something that came over the wire; pools with very many servers
are cut off at ``SERVERS``, and a gauge says how many were left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector as RegistryCollector

from l7lb import __version__
from l7lb.control import health as checks
from l7lb.control.certificates import Expiry, expiries
from l7lb.control.effective import limits_of_listener
from l7lb.control.health import HealthMonitor
from l7lb.control.node import NodeState
from l7lb.control.operator import Operator
from l7lb.control.outliers import Outliers
from l7lb.control.sticky import TableOf
from l7lb.proxy import counts as columns
from l7lb.routing.directory.messages import DirectoryNumbers

SERVERS = 5_000  # whose own series are shown
STATES = ("up", "down", "draining", "disabled")
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")

Labels = tuple[str, ...]
Row = tuple[Labels, list[int]]

# What a listener's and a server's row have in common: the name's end, the column, what it says.
TRAFFIC = (
    ("requests", columns.REQUESTS, "Requests that have ended."),
    ("received_bytes", columns.RECEIVED, "Bytes from clients."),
    ("sent_bytes", columns.SENT, "Bytes to clients."),
)
LISTENER = (
    ("connections", columns.CONNECTIONS, "Connections accepted from clients."),
    *TRAFFIC,
    ("aborted", columns.ABORTED, "Requests that the client gave up."),
    ("timeouts", columns.TIMEOUTS, "Requests that a time limit ended."),
    ("failed", columns.REFUSED, "Requests that failed otherwise: malformed, over a limit, no server."),
)
LIMIT = (("refused", columns.REFUSED, "Requests, connections or logins that the rate limit refused."),)
TABLE = (
    ("entries", "Entries of the sticky table.", GaugeMetricFamily),
    ("pins", "Pins of the sticky table.", GaugeMetricFamily),
    ("hits", "Look-ups that found a server.", CounterMetricFamily),
    ("evicted", "Entries that went because the table was full.", CounterMetricFamily),
    ("expired", "Entries that went because they were not used.", CounterMetricFamily),
)
SERVER = (
    ("connections", columns.CONNECTIONS, "Connections opened to the server."),
    ("reused", columns.REUSED, "Requests over a connection that was kept."),
    *TRAFFIC,
    ("sticky", columns.STICKY, "Requests that a persistence key sent to the server."),
    ("retries", columns.RETRIES, "Attempts at the server that were followed by another."),
    ("connect_errors", columns.CONNECT_ERRORS, "Connections that failed to open."),
    ("response_errors", columns.RESPONSE_ERRORS, "Answers that failed: none, none in time, or broken."),
)


@dataclass
class Gathered:
    """The numbers of one moment."""

    node: str
    state: str
    snapshot: int
    listeners: list[Row] = field(default_factory=list)
    pools: list[Row] = field(default_factory=list)
    limits: list[Row] = field(default_factory=list)
    tables: list[TableOf] = field(default_factory=list)
    directories: list[DirectoryNumbers] = field(default_factory=list)
    servers: list[Row] = field(default_factory=list)
    server_gauges: list[tuple[Labels, dict[str, float]]] = field(default_factory=list)
    protocols: list[tuple[tuple[str, str, str], bool]] = field(default_factory=list)
    states: list[tuple[Labels, int]] = field(default_factory=list)  # pool and state: how many servers
    left_out: int = 0
    checks: list[tuple[str, checks.CheckCounts]] = field(default_factory=list)
    ejections: list[tuple[str, int]] = field(default_factory=list)
    certificates: list[Expiry] = field(default_factory=list)
    processes: list[tuple[str, int]] = field(default_factory=list)  # name and pid
    reload_ok: bool = True
    reload_time: float = 0.0


def gather(
    node: NodeState, status: dict[str, Any], health: HealthMonitor | None, outliers: Outliers | None
) -> Gathered:
    """Copy the numbers."""
    snapshot = node.effective()
    found = Gathered(snapshot.node, str(status.get("state", "")), snapshot.version)
    found.listeners = [((one.name,), node.cells(one.slot)) for one in snapshot.listeners]
    found.pools = [((pool.name,), node.cells(pool.slot)) for pool in snapshot.pools]
    found.limits = [
        ((one.name, limit.name), node.cells(limit.slot))
        for one in snapshot.listeners
        for limit in limits_of_listener(one)
    ]
    operator = Operator(node)
    states = {(pool.name, state): 0 for pool in snapshot.pools for state in STATES}
    for absent in node.absent:
        states[absent.pool, "down"] += 1
    for pool in snapshot.pools:
        for server in pool.servers:
            row = operator.row(pool, server)
            states[pool.name, row.state] += 1
            if len(found.servers) >= SERVERS:
                found.left_out += 1
                continue
            found.servers.append(((pool.name, server.name), node.cells(server.slot)))
            gauges = {"up": row.state in ("up", "draining"), "healthy": row.healthy, "ejected": row.ejected}
            found.server_gauges.append(((pool.name, server.name), {**gauges, "weight": row.weight}))
            found.protocols.extend(
                ((pool.name, server.name, protocol), one.state == "up") for protocol, one in row.protocols.items()
            )
    found.states = list(states.items())
    if health is not None:
        found.checks = list(health.counts.items())
    if outliers is not None:
        found.ejections = [
            (pool.name, outliers.ejections.get(pool.name, 0)) for pool in snapshot.pools if pool.outliers
        ]
    found.certificates = expiries(snapshot)
    found.processes = list(_processes(status).items())
    reload = status.get("reload") or {}
    found.reload_ok = bool(reload.get("ok", True))
    found.reload_time = float(reload.get("time", 0.0))
    return found


def _processes(status: dict[str, Any]) -> dict[str, int]:
    """The node's processes by a name for each; of several that leave with the same index one is shown."""
    found: dict[str, int] = {}
    for key, name in (("supervisor", "supervisor"), ("keeper", "keeper"), ("state_process", "state")):
        found[name] = (status.get(key) or {}).get("pid", 0)
    for worker in status.get("workers", ()):
        leaving = " leaving" if worker.get("leaving") else ""
        found.setdefault(f"worker {worker.get('index', 0)}{leaving}", worker.get("pid", 0))
    return {name: pid for name, pid in found.items() if pid}


class Collector(RegistryCollector):
    """The metrics of one gathering."""

    def __init__(self, numbers: Gathered) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        """Every metric; docs/metrics.md explains each."""
        yield from self._about()
        numbers = self._numbers
        yield from _counters("l7lb_listener", ("listener",), LISTENER, numbers.listeners)
        yield _gauge(
            "l7lb_listener_open_connections",
            "Connections of clients that are open.",
            ("listener",),
            numbers.listeners,
            columns.ACTIVE,
        )
        yield _gauge(
            "l7lb_listener_opening_connections",
            "Of these, those whose PROXY header or TLS handshake is not complete.",
            ("listener",),
            numbers.listeners,
            columns.OPENING,
        )
        yield _openings(numbers.listeners)
        text = "TLS handshakes with clients that were completed, by whether an earlier session went on."
        yield _handshakes("l7lb_listener", text, ("listener",), numbers.listeners)
        yield _responses("l7lb_listener", ("listener",), numbers.listeners)
        yield _durations("l7lb_listener", ("listener",), numbers.listeners)
        yield from _counters("l7lb_limit", ("listener", "limit"), LIMIT, numbers.limits)
        yield from self._tables()
        yield from self._directories()
        yield _gauge("l7lb_pool_waiting", "Requests that wait for a server.", ("pool",), numbers.pools, columns.WAITING)
        yield from self._servers()
        yield from self._health()
        yield self._certificates()
        yield from _process_metrics(numbers.processes)

    def _about(self) -> Iterator[Metric]:
        numbers = self._numbers
        build = GaugeMetricFamily("l7lb_build_info", "The running version.", labels=("version", "node"))
        build.add_metric((__version__, numbers.node), 1)
        yield build
        yield GaugeMetricFamily("l7lb_ready", "Whether the node takes traffic.", value=numbers.state == "serving")
        yield GaugeMetricFamily(
            "l7lb_snapshot_version", "The version of the snapshot in force.", value=numbers.snapshot
        )
        yield GaugeMetricFamily(
            "l7lb_config_reload_successful",
            "Whether the last (re)load of the configuration worked.",
            value=numbers.reload_ok,
        )
        yield GaugeMetricFamily(
            "l7lb_config_reload_timestamp_seconds",
            "When the configuration was last (re)loaded.",
            value=numbers.reload_time,
        )
        yield GaugeMetricFamily(
            "l7lb_metrics_servers_left_out",
            f"Servers beyond the first {SERVERS}, whose series are not shown.",
            value=numbers.left_out,
        )

    def _tables(self) -> Iterator[Metric]:
        for name, text, kind in TABLE:
            metric = kind(f"l7lb_table_{name}", text, labels=("table",))
            for table in self._numbers.tables:
                metric.add_metric((table.table,), getattr(table, name))
            yield metric

    def _directories(self) -> Iterator[Metric]:
        labels = ("directory",)
        answers = CounterMetricFamily(
            "l7lb_directory_answers", "Answers of the directory.", labels=("directory", "status")
        )
        asked = CounterMetricFamily("l7lb_directory_asked", "Questions to which no answer was known.", labels=labels)
        seconds = CounterMetricFamily(
            "l7lb_directory_asked_seconds", "Seconds that these took together.", labels=labels
        )
        entries = GaugeMetricFamily("l7lb_directory_entries", "Entries of the directory in memory.", labels=labels)
        for one in self._numbers.directories:
            for status, number in one.answers.items():
                answers.add_metric((one.directory, status), number)
            asked.add_metric((one.directory,), one.asked)
            seconds.add_metric((one.directory,), one.seconds)
            entries.add_metric((one.directory,), one.entries)
        yield from (answers, asked, seconds, entries)

    def _servers(self) -> Iterator[Metric]:
        numbers = self._numbers
        labels = ("pool", "server")
        states = GaugeMetricFamily("l7lb_pool_servers", "Servers of the pool by state.", labels=("pool", "state"))
        for pair, number in numbers.states:
            states.add_metric(pair, number)
        yield states
        help_texts = {
            "up": "Whether it can be used: healthy, not ejected, not disabled.",
            "healthy": "Whether the active checks let it be used.",
            "ejected": "Whether passive health has taken it out.",
            "weight": "The weight in force.",
        }
        for name, text in help_texts.items():
            gauge = GaugeMetricFamily(f"l7lb_server_{name}", text, labels=labels)
            for pair, values in numbers.server_gauges:
                gauge.add_metric(pair, values[name])
            yield gauge
        text = "Whether its checks let it be used in that protocol; of servers whose protocols are checked one by one."
        protocols = GaugeMetricFamily("l7lb_server_protocol_up", text, labels=(*labels, "protocol"))
        for triple, up in numbers.protocols:
            protocols.add_metric(triple, up)
        yield protocols
        yield _gauge("l7lb_server_active", "Requests in progress.", labels, numbers.servers, columns.ACTIVE)
        yield from _counters("l7lb_server", labels, SERVER, numbers.servers)
        text = "TLS handshakes with the server that were completed, by whether an earlier session went on."
        yield _handshakes("l7lb_server", text, labels, numbers.servers)
        yield _responses("l7lb_server", labels, numbers.servers)
        yield _durations("l7lb_server", labels, numbers.servers)

    def _certificates(self) -> Metric:
        text = "When a listener's certificate ends, in seconds since the epoch."
        gauge = GaugeMetricFamily("l7lb_certificate_expiry_timestamp_seconds", text, labels=("listener", "name"))
        for one in self._numbers.certificates:
            gauge.add_metric((one.listener, one.name), one.expires)
        return gauge

    def _health(self) -> Iterator[Metric]:
        results = CounterMetricFamily("l7lb_health_checks", "Active checks by result.", labels=("pool", "result"))
        durations = HistogramMetricFamily(
            "l7lb_health_check_duration_seconds", "How long active checks took.", labels=("pool",)
        )
        for pool, counts in self._numbers.checks:
            for result in ("good", "bad", "unavailable"):
                results.add_metric((pool, result), getattr(counts, result))
            durations.add_metric((pool,), _cumulative(checks.BUCKETS, counts.buckets), sum_value=counts.seconds)
        yield results
        yield durations
        ejections = CounterMetricFamily("l7lb_ejections", "Servers that passive health took out.", labels=("pool",))
        for pool, number in self._numbers.ejections:
            ejections.add_metric((pool,), number)
        yield ejections


def _counters(prefix: str, labels: Labels, which: Iterable[tuple[str, int, str]], rows: list[Row]) -> Iterator[Metric]:
    for name, column, text in which:
        metric = CounterMetricFamily(f"{prefix}_{name}", text, labels=labels)
        for values, cells in rows:
            metric.add_metric(values, cells[column])
        yield metric


def _handshakes(prefix: str, text: str, labels: Labels, rows: list[Row]) -> Metric:
    metric = CounterMetricFamily(f"{prefix}_tls_handshakes", text, labels=(*labels, "kind"))
    for values, cells in rows:
        metric.add_metric((*values, "full"), cells[columns.HANDSHAKES])
        metric.add_metric((*values, "resumed"), cells[columns.RESUMED])
    return metric


def _gauge(name: str, text: str, labels: Labels, rows: list[Row], column: int) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=labels)
    for values, cells in rows:
        metric.add_metric(values, cells[column])
    return metric


def _responses(prefix: str, labels: Labels, rows: list[Row]) -> Metric:
    metric = CounterMetricFamily(
        f"{prefix}_responses", "Answers by the first digit of their status.", labels=(*labels, "code")
    )
    for values, cells in rows:
        for number, code in enumerate(CLASSES):
            metric.add_metric((*values, code), cells[columns.STATUS_1XX + number])
    return metric


def _openings(rows: list[Row]) -> Metric:
    text = "Connections that ended before their session began."
    metric = CounterMetricFamily("l7lb_listener_openings_failed", text, labels=("listener", "stage", "reason"))
    for values, cells in rows:
        for stage in columns.STAGES:
            for reason in columns.REASONS:
                metric.add_metric((*values, stage, reason), cells[columns.opening_failure(stage, reason)])
    return metric


def _durations(prefix: str, labels: Labels, rows: list[Row]) -> Metric:
    text = "From a request's first byte to its answer's last."
    metric = HistogramMetricFamily(f"{prefix}_request_duration_seconds", text, labels=labels)
    for values, cells in rows:
        buckets = cells[columns.HISTOGRAM : columns.HISTOGRAM + len(columns.BUCKETS) + 1]
        metric.add_metric(values, _cumulative(columns.BUCKETS, buckets), sum_value=cells[columns.DURATION] / 1_000_000)
    return metric


def _cumulative(limits: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    total = 0
    found: list[tuple[str, float]] = []
    for limit, count in zip((*map(str, limits), "+Inf"), counts, strict=True):
        total += count
        found.append((limit, total))
    return found


# --- processes ------------------------------------------------------------------------------------------------------


def _process_metrics(processes: list[tuple[str, int]]) -> Iterator[Metric]:
    labels = ("process",)
    cpu = CounterMetricFamily("l7lb_process_cpu_seconds", "Processor time, user and system.", labels=labels)
    memory = GaugeMetricFamily("l7lb_process_resident_memory_bytes", "Resident memory.", labels=labels)
    files = GaugeMetricFamily("l7lb_process_open_fds", "Open file descriptors.", labels=labels)
    limit = GaugeMetricFamily("l7lb_process_max_fds", "The limit of open file descriptors.", labels=labels)
    for name, pid in processes:
        try:
            used, resident = process_usage(pid)
            cpu.add_metric((name,), used)
            memory.add_metric((name,), resident)
            files.add_metric((name,), len(os.listdir(f"/proc/{pid}/fd")))
            limit.add_metric((name,), descriptor_limit(pid))
        except OSError:
            continue  # it has ended, or belongs to another user: nothing to say about it
    yield from (cpu, memory, files, limit)


def process_usage(pid: int) -> tuple[float, int]:
    """Processor seconds and resident bytes of a process (proc(5)). Raises OSError."""
    # The command's name may hold spaces and brackets; behind its last bracket come fields 3 and on.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def descriptor_limit(pid: int) -> float:
    """The soft limit of open files of a process. Raises OSError."""
    for line in Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines():
        if line.startswith("Max open files"):
            soft = line.split()[3]
            return float("inf") if soft == "unlimited" else float(soft)
    return 0.0
