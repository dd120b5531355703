"""A real node for tests: `l7lb serve` with its processes, over loopback, and clients that count their failures."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from l7lb.control.client import AdminClient, AdminError

PATIENCE = 30.0  # seconds for what is waited for

CONFIG = """\
node: test
workers: {workers}
shutdown: {{drain: {drain}}}
admin: {{socket: run/admin.sock}}
{extra}
listeners:
  - name: web
    protocol: http
    bind: [{binds}]
    routes:
      - {{match: {{path: "/slow"}}, pool: slow}}
      - {{respond: {{status: 200, body: "{body}"}}}}
pools:
  slow:
    servers: [{{name: one, address: "{server}"}}]
"""


GIVEN: set[int] = set()  # ports that a test has, though nobody may listen there yet


def free_port() -> int:
    """A TCP port that nobody uses now, and that was not given before."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        if port not in GIVEN:
            GIVEN.add(port)
            return port


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until the condition gives something true, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


def alive(pid: int) -> bool:
    """Whether that process runs; a zombie doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def get(address: tuple[str, int] | str, path: str = "/", timeout: float = 5.0) -> bytes:
    """One request over one connection; returns the whole answer."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(timeout)
        sock.connect(address)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := sock.recv(65536):
            answer += part
        return answer


class HangingServer:
    """A server that takes requests and answers when it is told to."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections.append(connection)

    def answer(self) -> None:
        """Answer what waits."""
        for connection in self.connections:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for connection in self.connections:
            connection.close()


class Load:
    """Clients that ask one after another, half of them over a new connection each time; ``failures`` must stay empty.

    A kept connection may only end by an answer that says so: even that a client must not have to ask again.
    """

    def __init__(self, port: int, clients: int = 4) -> None:
        self.port = port
        self.requests = 0
        self.failures: list[str] = []
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number % 2 == 0,)) for number in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def more(self, number: int = 50) -> None:
        """Wait until so many more requests are answered."""
        goal = self.requests + number
        wait_for(lambda: self.requests >= goal or self.failures, f"{number} more answers")

    def _run(self, keep: bool) -> None:
        connection: socket.socket | None = None
        while not self._ending.is_set():
            try:
                if connection is None:
                    connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
                connection.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                answer = b""
                while b"\r\n\r\n" not in answer or not answer.endswith(b"\n"):
                    part = connection.recv(65536)
                    if not part:
                        raise EOFError(f"closed after {len(answer)} bytes")
                    answer += part
                if not answer.startswith(b"HTTP/1.1 200 "):
                    raise ValueError(repr(answer[:80]))
                self.requests += 1
                if not keep or b"connection: close" in answer.lower():
                    connection.close()
                    connection = None
            except (OSError, EOFError, ValueError) as error:
                if connection is not None:
                    connection.close()
                connection = None
                self.failures.append(f"{type(error).__name__}: {error}")
            time.sleep(0.002)
        if connection is not None:
            connection.close()


class NodeProcess:
    """`l7lb serve` in a process group of its own. What is still there at the end is killed by that group."""

    def __init__(self, directory: Path, starts: bool = True, **values: Any) -> None:
        self.directory = directory
        self.starts = starts
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.values = {
            "workers": 2,
            "drain": "3s",
            "extra": "",
            "body": "hello\\n",
            "server": "127.0.0.1:9",
            "binds": f'"127.0.0.1:{self.port}"',
            **values,
        }
        self.file = directory / "l7lb.yaml"
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.groups: list[int] = []
        self.environment: dict[str, str] = {}
        self.before: list[str] = []  # what the command line begins with
        self.passed: tuple[int, ...] = ()  # descriptors that it inherits
        self.write()

    def write(self, **values: Any) -> None:
        """Write the configuration, with other values."""
        self.values.update(values)
        self.file.write_text(CONFIG.format(**self.values))

    def __enter__(self) -> Self:
        if self.starts:
            self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def start(self, group: int | None = None, wait: bool = True) -> subprocess.Popen[bytes]:
        """Start it, in a new process group or an existing one, and wait until it serves."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self.before, sys.executable, "-P", "-m", "l7lb.cli", "serve", "--config", str(self.file)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={**os.environ, **self.environment},
                process_group=group or 0,
                pass_fds=self.passed,
            )
        self.process = process
        if group is None:
            self.groups.append(process.pid)
        if wait:
            self.serving(process.pid)
        return process

    def serving(self, pid: int = 0) -> dict[str, Any]:
        """Wait until the supervisor, that one or any, serves."""

        def look() -> dict[str, Any] | None:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.returncode}:\n{self.output()}")
            status = self.status()
            return (
                status if status and status["state"] == "serving" and pid in (0, status["supervisor"]["pid"]) else None
            )

        try:
            found: dict[str, Any] = wait_for(look, "the node to serve")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}") from None
        return found

    @property
    def admin(self) -> AdminClient:
        return AdminClient(self.directory / "run" / "admin.sock", 10.0)

    def status(self) -> dict[str, Any] | None:
        """What `l7lb status` says, or None."""
        try:
            status: dict[str, Any] = self.admin.get("status")
        except AdminError:
            return None
        return status

    def workers(self, status: dict[str, Any] | None = None) -> dict[int, int]:
        """The workers' process numbers by their index; those that leave are not counted."""
        rows = (status or self.serving())["workers"]
        return {row["index"]: row["pid"] for row in rows if not row["leaving"]}

    def signal(self, number: int) -> None:
        """Send a signal to the process that was started."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the end of the process that was started."""
        assert self.process is not None
        return self.process.wait(seconds)

    def members(self) -> set[int]:
        """All living processes of the node: those in its process groups."""
        found = set()
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                    if int(fields[2]) in self.groups and fields[0] != "Z":
                        found.add(int(name))
        return found

    def output(self) -> str:
        """The log so far."""
        return self.log.read_text()

    def logged(self, pattern: str) -> str:
        """Wait for a line."""
        found = wait_for(lambda: re.search(pattern, self.output()), f"{pattern!r} in the log:\n{self.output()}")
        return str(found.group())
