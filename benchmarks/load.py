"""What makes the load: wrk for as much as goes, h2load at a given rate, and connections that only sit there."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import find
from benchmarks.processes import BenchmarkError, Group

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Load:
    """What a run of wrk did. Latencies are seconds, under full load."""

    requests: int
    seconds: float
    errors: int
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def sticky_cookie(port: int) -> str:
    """The cookie that a new user gets, as a request gives it back. Raises BenchmarkError where none is set."""
    with socket.create_connection(("127.0.0.1", port), 5.0) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n")
        data = b""
        while piece := sock.recv(65536):
            data += piece
    found = re.search(rb"(?im)^set-cookie: *(L7LB=[^;\r]*)", data)
    if not found:
        raise BenchmarkError(f"no cookie came from port {port}: {data[:300]!r}")
    return found[1].decode()


def wrk(
    port: int,
    core: int,
    seconds: float,
    connections: int = 50,
    path: str = "/",
    headers: tuple[str, ...] = (),
    host: str = "www.example.com",
    scheme: str = "http",
    address: str = "127.0.0.1",
    urls: Path | None = None,
) -> Load:
    """As many requests as go, over so many connections: for one path, or at random for those in a file."""
    options = [word for header in headers for word in ("-H", header)]
    whole = max(1, round(seconds))  # wrk takes no fractions
    words = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--latency", "-H", f"Host: {host}", *options]
    words.append(f"{scheme}://{address}:{port}{path}")
    if urls is not None:
        words += ["-s", str(Path(__file__).with_name("urls.lua")), "--", str(urls)]
    text = _run(core, whole, words)
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", text)
    if not total:
        raise BenchmarkError(f"wrk failed: {text}")
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = sum(int(value) for value in socket_errors.groups()) if socket_errors else 0
    return Load(
        requests=int(total[1]),
        seconds=float(total[2]) * UNITS[total[3]],
        errors=errors + (int(bad[1]) if bad else 0),
        p50=_percentile(text, "50%"),
        p99=_percentile(text, "99%"),
    )


def _run(core: int, seconds: float, words: list[str]) -> str:
    """Run a program on a core and return what it prints. Raises BenchmarkError."""
    done = subprocess.run(
        ["taskset", "-c", str(core), find(words[0]), *words[1:]],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=seconds + 60,
    )
    if done.returncode:
        raise BenchmarkError(f"{words[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout


def _percentile(text: str, which: str) -> float:
    found = re.search(rf"^\s*{which}\s+([\d.]+)(us|ms|s|m)", text, re.MULTILINE)
    return float(found[1]) * UNITS[found[2]] if found else 0.0


def h2load(port: int, core: int, seconds: float, rate: float, folder: Path, cookie: str, connections: int = 20) -> Load:
    """Requests at a steady rate over HTTP/1.1; the latencies are exact, from the log of every request."""
    log = folder / "h2load.log"
    log.unlink(missing_ok=True)
    each = max(1, round(rate / connections))
    words = ["h2load", "--h1", "-t1", f"-c{connections}", f"-D{max(1, round(seconds))}", f"--rps={each}"]
    text = _run(core, seconds, [*words, f"--log-file={log}", "-H", f"Cookie: {cookie}", f"http://127.0.0.1:{port}/"])
    rows = [line.split("\t") for line in log.read_text().splitlines()]
    times = sorted(int(row[2]) / 1e6 for row in rows if len(row) == 3 and row[1].startswith("2"))
    if not times:
        raise BenchmarkError(f"h2load got no answer: {text}")
    return Load(
        requests=len(times),
        seconds=seconds,
        errors=len(rows) - len(times),
        p50=times[len(times) // 2],
        p99=times[min(len(times) - 1, len(times) * 99 // 100)],
    )


def streams(port: int, core: int, seconds: float, count: int, connections: int = 4) -> Load:
    """As many requests as go over HTTP/2 without TLS, ``count`` at a time on each connection."""
    whole = max(1, round(seconds))
    words = ["h2load", "-t1", f"-c{connections}", f"-m{count}", f"-D{whole}"]
    text = _run(core, seconds, [*words, "-H", ":authority: www.example.com", f"http://127.0.0.1:{port}/"])
    found = re.search(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed", text)
    if not found:
        raise BenchmarkError(f"h2load failed: {text}")
    return Load(requests=int(found[2]), seconds=float(whole), errors=int(found[3]), p50=0.0, p99=0.0)


def idle_connections(group: Group, count: int, connect: Callable[[], socket.socket] | None = None) -> float:
    """Bytes of memory that one idle keep-alive client costs: it has sent one request and read its answer."""
    make = connect or (lambda: socket.create_connection(("127.0.0.1", group.port), 10.0))
    request = b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
    clients: list[socket.socket] = []
    try:
        # Some to warm up, so that buffers, caches and the servers' connections don't count as clients.
        for _ in range(200):
            with make() as sock:
                _roundtrip(sock, request)
        before = group.pss()
        for _ in range(count):
            sock = make()
            clients.append(sock)
            _roundtrip(sock, request)
        return (group.pss() - before) / count
    finally:
        for sock in clients:
            sock.close()


def _roundtrip(sock: socket.socket, request: bytes) -> None:
    sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(4096)
        if not piece:
            raise BenchmarkError(f"the connection was closed after {data!r}")
        data += piece
    length = re.search(rb"(?i)content-length: *(\d+)", data)
    missing = (int(length[1]) if length else 0) - len(data.partition(b"\r\n\r\n")[2])
    while missing > 0:
        missing -= len(sock.recv(65536)) or missing
