"""`user:` in the configuration: one small process keeps privileges, the rest drop them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_process import NodeProcess, free_port, get, wait_for

from l7lb.control.client import AdminError

pytestmark = pytest.mark.scenario

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="l7lb-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def users(pid: int) -> set[int]:
    """The real, effective, saved and file system user of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return {int(word) for word in line.split()[1:]}
    raise AssertionError(pid)


def capabilities(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line.split()[1] for line in lines if line.startswith(("CapPrm", "CapEff", "CapInh", "CapAmb"))}


def low_port() -> int:
    """A port below 1024 that nobody uses."""
    for port in range(1023, 600, -1):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("all are in use")


def processes(node: NodeProcess) -> tuple[int, set[int]]:
    status = node.serving()
    others = {status["supervisor"]["pid"], status["state_process"]["pid"]}
    return status["keeper"]["pid"], others | set(node.workers(status).values())


@as_root
def test_only_the_keeper_keeps_privileges_and_opens_ports_for_reloads(place: Path) -> None:
    first, second = low_port(), free_port()
    with NodeProcess(place, extra="user: nobody\nstate: run/state", binds=f'"127.0.0.1:{first}"') as node:
        keeper, others = processes(node)
        assert users(keeper) == {0}
        for pid in others:
            assert users(pid) == {NOBODY.pw_uid}
            assert capabilities(pid) == {"0" * 16}
            assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
        assert get(("127.0.0.1", first)).endswith(b"hello\n")
        third = next(port for port in range(first - 1, 500, -1) if can_bind(port))
        node.write(binds=f'"127.0.0.1:{first}", "127.0.0.1:{second}", "127.0.0.1:{third}", "unix:run/web.sock"')
        node.admin.post("reload")
        for port in (first, second, third):
            assert get(("127.0.0.1", port)).endswith(b"hello\n")
        assert get(str(place / "run" / "web.sock")).endswith(b"hello\n")
        node.signal(signal.SIGTERM)
        assert node.wait() == 0
        assert not node.members()
        assert {path.name for path in (place / "run").iterdir()} <= {"state"}


def can_bind(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@as_root
def test_the_user_survives_restarts_of_supervisor_and_workers(place: Path) -> None:
    with NodeProcess(place, extra="user: nobody", binds=f'"127.0.0.1:{low_port()}"') as node:
        keeper, others = processes(node)
        os.kill(node.workers()[0], signal.SIGKILL)
        wait_for(lambda: len(node.workers()) == 2, "a successor")
        node.signal(signal.SIGUSR2)
        wait_for(
            lambda: (s := node.status()) and s["state"] == "serving" and s["supervisor"]["pid"] != node.process.pid,
            "another",
        )
        wait_for(lambda: not set(node.workers().values()) & others, "other workers")
        again, others = processes(node)
        assert again == keeper
        assert users(keeper) == {0}
        assert all(users(pid) == {NOBODY.pw_uid} for pid in others)
        node.write(binds=node.values["binds"] + f', "127.0.0.1:{low_port()}"')
        node.admin.post("reload")
        node.signal(signal.SIGTERM)
        assert node.wait() == 0


@as_root
def test_what_root_left_in_the_nodes_directory_is_given_to_the_user(place: Path) -> None:
    with NodeProcess(place, extra="access_log: {path: run/access.log}\nstate: run/state") as node:
        assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
        node.signal(signal.SIGTERM)
        assert node.wait() == 0
        node.write(extra="user: nobody\naccess_log: {path: run/access.log}\nstate: run/state")
        node.start()
        assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
        wait_for(lambda: (place / "run" / "access.log").read_text().count("\n") == 2, "two records")


@as_root
def test_an_unknown_user_is_a_plain_error(place: Path) -> None:
    with NodeProcess(place, starts=False, extra="user: nobody-of-that-name") as node:
        assert node.start(wait=False).wait(30) == 1
        assert "nobody-of-that-name" in node.output()
        assert "Traceback" not in node.output()


@as_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_without_the_privilege_a_low_port_is_a_plain_error(place: Path) -> None:
    with NodeProcess(place, starts=False, binds='"127.0.0.1:99"') as node:
        node.before = ["setpriv", "--bounding-set=-net_bind_service"]
        assert node.start(wait=False).wait(30) == 1
        assert "127.0.0.1:99: no permission; a port below 1024 needs root or CAP_NET_BIND_SERVICE" in node.output()
        assert "Traceback" not in node.output()
        with pytest.raises(AdminError):
            node.admin.get("status")
