"""A cluster on this machine: a node with a configuration, and a web server for each server that it names.

Every port of 127.0.0.1 that the configuration holds becomes one that is free; where ``keep_ports`` is set, those
that are free already stay. The changed configuration is ``l7lb.yaml`` in the cluster's directory, beside ``run/`` with
the node's sockets and logs. All processes are on a leash: they end with the one that started them.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from l7lb.config import load
from l7lb.control.client import AdminClient, AdminError

PATIENCE = 30.0  # seconds for what is waited for
PORTS = range(15_000, 32_000)  # below those that the kernel gives to outgoing connections
ADDRESS = re.compile(r"\b127\.0\.0\.1:([0-9]{2,5})\b")
PORTS_OF_ONE = re.compile(r"\bports: \{[^}]*\}")


class Unexpected(Exception):
    """Something is not as it should be; the text is a line for people."""


def expect(condition: object, otherwise: str) -> None:
    """Go on only where the condition holds. Raises Unexpected."""
    if not condition:
        raise Unexpected(otherwise)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until the condition gives something true, and return that. Raises Unexpected."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise Unexpected(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)


def is_free(port: int) -> bool:
    """Whether a server could listen at that port of 127.0.0.1 now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def place(text: str, keep: bool) -> str:
    """The configuration with ports that are free; ``keep`` leaves those that are free already.

    The ports of a server that has several are its own, also where an address of the node has the same.
    """
    addresses: dict[str, str] = {}
    ports: dict[str, str] = {}
    chance = random.SystemRandom()

    def other(port: str, known: dict[str, str]) -> str:
        if port not in known:
            taken = {*addresses.values(), *ports.values()}
            tries = (port if keep else "", *(str(chance.choice(PORTS)) for _ in range(1000)))
            known[port] = next(one for one in tries if one and one not in taken and is_free(int(one)))
        return known[port]

    def others(found: re.Match[str]) -> str:
        return re.sub(r"(?<=: )[0-9]+", lambda number: other(number[0], ports), found[0])

    text = ADDRESS.sub(lambda found: f"127.0.0.1:{other(found[1], addresses)}", text)
    return PORTS_OF_ONE.sub(others, text)


class Cluster:
    """The processes; ``close`` ends them. ``listeners`` are the addresses where clients come in, ``address`` the
    first of them; ``admin`` speaks to the node.
    """

    def __init__(self, text: str, directory: Path, keep_ports: bool = False) -> None:
        self.directory = directory
        self.config = directory / "l7lb.yaml"
        self.log = directory / "run" / "l7lb.log"
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        self.node: subprocess.Popen[bytes] | None = None
        (directory / "run").mkdir(parents=True, exist_ok=True)
        self.config.write_text(place(text, keep_ports), encoding="utf-8")
        loaded = load(self.config)
        self.admin = AdminClient(loaded.settings.admin_socket)
        self.metrics = loaded.settings.metrics
        self.listeners = {listener.name: str(listener.bind[0]) for listener in loaded.snapshot.listeners}
        self.address = next(iter(self.listeners.values()))
        self.ports = {one.name: one.address.port for pool in loaded.snapshot.pools for one in pool.servers}

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the servers and the node, and wait until all answer. Raises Unexpected."""
        for name in self.ports:
            self.start_server(name)
        self.start_node()
        self.until_ready()

    def until_ready(self) -> None:
        """Wait until all that was started answers. Raises Unexpected."""
        for name in self.servers:
            self.until_listening(name)
        wait_for(self.serving, "l7lb to serve")

    def start_server(self, name: str) -> None:
        """Start a server of that name at its port; it speaks TLS where the directory has NAME.pem and NAME.key."""
        files = [self.directory / f"{name}.pem", self.directory / f"{name}.key"]
        tls = [str(file) for file in files] if files[0].exists() else []
        self.servers[name] = self._run("l7lb.demo.webserver", name, str(self.ports[name]), *tls)

    def until_listening(self, name: str) -> None:
        """Wait until that server takes connections."""
        process = self.servers[name]

        def listening() -> bool:
            if process.poll() is not None:
                raise Unexpected(f"the server {name} ended with {process.returncode}: {self.last_lines()}")
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", self.ports[name])) == 0

        wait_for(listening, f"the server {name}")

    def start_node(self) -> None:
        """Start `l7lb serve`."""
        self.node = self._run("l7lb.cli", "serve", "--config", str(self.config))

    def _run(self, module: str, *words: str) -> subprocess.Popen[bytes]:
        python = [sys.executable, "-m"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*python, "l7lb.demo.leash", str(os.getpid()), *python, module, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self, name: str) -> int:
        """Kill a server with -9; returns the number of its process."""
        process = self.servers[name]
        process.kill()
        process.wait()
        return process.pid

    def close(self) -> None:
        """End everything, whatever it takes."""
        try:
            self.end_node()
        except Unexpected:
            pass  # what follows is for that
        for process in self.servers.values():
            process.terminate()
        for process in (*self.servers.values(), *([self.node] if self.node is not None else [])):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end_node(self) -> int:
        """Tell the node to drain and end, and wait for it; returns its exit code. Raises Unexpected."""
        node = self.node
        if node is None:
            return 0
        if node.poll() is None:
            node.terminate()
        try:
            code = node.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Unexpected(f"l7lb did not end within {PATIENCE:g} s: {self.last_lines()}") from None
        wait_for(lambda: not self.alive(), "the end of l7lb's processes", 5.0)
        return code

    # --- to see ---------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `l7lb status --json` prints. Raises AdminError."""
        found: dict[str, Any] = self.admin.get("status")
        return found

    def serving(self) -> dict[str, Any] | None:
        """The status, once the node serves. Raises Unexpected where it has ended."""
        assert self.node is not None
        if self.node.poll() is not None:
            raise Unexpected(f"l7lb ended with {self.node.returncode}: {self.last_lines()}")
        try:
            found = self.status()
        except AdminError:
            return None
        return found if found["state"] == "serving" else None

    def alive(self) -> list[int]:
        """The processes of the node that run, also those whose parent has ended."""
        words = (b"\0l7lb.", os.fsencode(self.directory))
        servers = {process.pid for process in self.servers.values()}  # whose certificates are there
        return [pid for pid in _processes() if pid not in servers and all(word in _command(pid) for word in words)]

    def rows(self, pool: str | None = None) -> list[dict[str, Any]]:
        """What `l7lb servers --json` prints."""
        rows: list[dict[str, Any]] = self.admin.get("servers", pool=pool)
        return rows

    def state(self, pool: str, server: str) -> str:
        """A server's state, as the node sees it."""
        return next(str(row["state"]) for row in self.rows(pool) if row["name"] == server)

    def last_lines(self, count: int = 3) -> str:
        """The end of the log, for an error that has to be explained."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " | ".join(lines[-count:]) or "it said nothing"


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _command(pid: int) -> bytes:
    """A process' command line; that of one that has ended is empty."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
