"""Processes that are measured: started on a core of their own, counted as a whole process group."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

TICKS = os.sysconf("SC_CLK_TCK")
START_SECONDS = 20.0
STOP_SECONDS = 10.0


class BenchmarkError(Exception):
    """The benchmark can't be run; the text says why."""


@dataclass(frozen=True)
class Cores:
    """Who runs where. The measured one has its core to itself; load and servers share one where there are two."""

    measured: int
    load: int
    servers: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The first core is measured, the last makes the load. Raises BenchmarkError with a single core."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise BenchmarkError("one core is not enough: the load would be measured with what it loads")
        return cls(cores[0], cores[-1], cores[-2] if len(cores) > 2 else cores[-1])


def raise_file_limit(wanted: int = 65_536) -> int:
    """Allow this process and its children as many descriptors as may be had; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, hard), max(wanted, hard)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def free_port() -> int:
    """A port of the loopback interface that nobody has now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float = START_SECONDS) -> None:
    """Wait until the condition holds; raises BenchmarkError when the time is over."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise BenchmarkError(f"{what} did not happen in {seconds:g} s")
        time.sleep(0.02)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether an HTTP server answers on that port with anything below 500."""
    try:
        with socket.create_connection((host, port), 1.0) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: ready.example.com\r\nConnection: close\r\n\r\n")
            return sock.recv(64)[9:10] in (b"2", b"3", b"4")
    except OSError:
        return False


@dataclass
class Group:
    """A program and all its processes. ``port`` is where it listens."""

    name: str
    command: Sequence[str]
    core: int
    folder: Path
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it pinned to its core, and wait until it answers on its port."""
        log = (self.folder / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(
            ["taskset", "-c", str(self.core), *self.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a process group of its own: that is what is counted and ended
            cwd=self.folder,
            env={**os.environ, **self.environment},
        )
        log.close()
        if self.port:
            wait_for(self._ready, f"the start of {self.name} (see {self.folder / self.name}.log)")

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            text = (self.folder / f"{self.name}.log").read_text(errors="replace")
            raise BenchmarkError(f"{self.name} ended with {self.process.returncode}:\n{text[-2000:]}")
        return answers(self.port)

    def pids(self) -> list[int]:
        """All its processes."""
        assert self.process is not None
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                if os.getpgid(int(entry)) == self.process.pid:
                    found.append(int(entry))
            except OSError:
                continue
        return found

    def cpu(self) -> float:
        """Seconds of processor time, user and system, of all its processes and of the children they waited for."""
        total = 0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += sum(int(value) for value in fields[11:15])  # utime, stime, cutime, cstime
        return total / TICKS

    def pss(self) -> int:
        """Proportional set size of all its processes, in bytes."""
        total = 0
        for pid in self.pids():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
        return total

    def stop(self) -> None:
        """End it and everything in its group."""
        if self.process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            try:
                self.process.wait(STOP_SECONDS)
                wait_for(lambda: not self.pids(), f"the end of {self.name}", STOP_SECONDS)
                break
            except (subprocess.TimeoutExpired, BenchmarkError):
                print(f"{self.name} did not end on signal {number}", file=sys.stderr)
        self.process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()  # it runs, though it is not there in time
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
