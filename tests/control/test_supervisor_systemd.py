"""What systemd and the service tell one another."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_process import Load, NodeProcess, get, wait_for

from l7lb.control.binds import is_at
from l7lb.control.systemd import Notifier, activated
from l7lb.core.snapshot import Address


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def told(self) -> list[dict[str, str]]:
        """All messages so far."""
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except BlockingIOError:
                return self.messages
            self.messages.append(dict(line.split("=", 1) for line in text.splitlines()))

    def count(self, field: str) -> int:
        return sum(field in message for message in self.told())

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def test_without_systemd_nothing_happens(monkeypatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"):
        monkeypatch.delenv(name, raising=False)
    assert not Notifier().send(READY="1")
    assert Notifier().interval() == 0.0
    assert activated() == []


def test_a_manager_that_does_not_listen_is_no_failure(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not Notifier().send(READY="1")
    monkeypatch.setenv("NOTIFY_SOCKET", "relative")
    assert not Notifier().send(READY="1")


def test_an_abstract_address_is_understood(monkeypatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0l7lb-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@l7lb-test-{os.getpid()}")
        Notifier().reloading()
        fields = dict(line.split("=") for line in sock.recv(1000).decode().splitlines())
    assert fields["RELOADING"] == "1"
    assert int(fields["MONOTONIC_USEC"]) > 0


@pytest.mark.parametrize(
    ("pid", "inherited", "microseconds", "interval"),
    [
        ("own", False, "4000000", 2.0),
        ("", False, "4000000", 2.0),
        ("1", False, "4000000", 0.0),
        ("1", True, "3000000", 1.5),
        ("own", False, "x", 0.0),
    ],
)
def test_the_watchdog_is_contented_in_half_its_time(
    monkeypatch, pid: str, inherited: bool, microseconds: str, interval: float
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert Notifier(inherited).interval() == interval


def test_sockets_are_known_by_their_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert is_at(sock, Address("127.0.0.1", port))
        assert not is_at(sock, Address("127.0.0.1", port + 1))
        assert not is_at(sock, Address("*", port))
        assert not is_at(sock, Address("::1", port))
        assert not is_at(sock, Address(path="/x"))
    with socket.create_server(("0.0.0.0", 0)) as sock:
        port = sock.getsockname()[1]
        assert is_at(sock, Address("*", port))
        assert is_at(sock, Address("", port))
        assert is_at(sock, Address("0.0.0.0", port))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "web.sock"))
        assert is_at(sock, Address(path=str(tmp_path / "web.sock")))
        assert not is_at(sock, Address(path=str(tmp_path / "other.sock")))


@pytest.mark.scenario
def test_the_manager_hears_of_start_reload_handover_and_end(tmp_path: Path, manager: Manager) -> None:
    node = NodeProcess(tmp_path / "node")
    node.environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "200000"}
    with node:
        ready = wait_for(lambda: [message for message in manager.told() if "READY" in message], "READY")[0]
        assert ready["STATUS"] == "serving: 2 workers, 1 listeners"
        wait_for(lambda: manager.count("WATCHDOG") > 2, "the watchdog")
        node.signal(signal.SIGHUP)
        wait_for(lambda: manager.count("RELOADING"), "RELOADING")
        wait_for(lambda: manager.count("READY") == 2, "READY after the reload")
        node.signal(signal.SIGUSR2)
        wait_for(lambda: manager.count("READY") == 3, "READY of the new supervisor")
        node.serving()
        fed = manager.count("WATCHDOG")
        wait_for(lambda: manager.count("WATCHDOG") > fed + 2, "the watchdog")
        node.signal(signal.SIGTERM)
        wait_for(lambda: manager.count("STOPPING"), "STOPPING")
        assert node.wait() == 0


@pytest.mark.scenario
def test_sockets_of_the_manager_are_used_and_kept(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, socket.create_server(("127.0.0.1", 0)) as unwanted:
        port = sock.getsockname()[1]
        node = NodeProcess(tmp_path, binds=f'"127.0.0.1:{port}"')
        code = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
            "os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[3], sys.argv[3:])"
        )
        node.passed = (sock.fileno(), unwanted.fileno())
        node.before = [sys.executable, "-c", code, str(sock.fileno()), str(unwanted.fileno())]
        with node:
            with Load(port) as load:
                load.more()
                node.logged("no listener is configured for a socket that systemd opened")
                before = node.workers()
                node.signal(signal.SIGKILL)  # systemd starts it again with the same sockets
                node.wait()
                node.start(group=node.groups[0])
                load.more()
                assert load.failures == []
                assert node.workers() == before
            os.kill(before[0], signal.SIGKILL)
            assert get(("127.0.0.1", port)).endswith(b"hello\n")
            node.signal(signal.SIGTERM)
            assert node.wait() == 0
        socket.create_connection(("127.0.0.1", port)).close()  # systemd's own copy is open still
