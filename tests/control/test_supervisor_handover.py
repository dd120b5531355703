"""SIGUSR2: new code takes the node over, and no client notices."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from node_process import HangingServer, Load, NodeProcess, alive, get, wait_for

import l7lb

pytestmark = pytest.mark.scenario


def hand_over(node: NodeProcess) -> dict:
    """Send the signal and wait until another supervisor serves with other workers."""
    before = node.serving()
    node.signal(signal.SIGUSR2)
    wait_for(
        lambda: (s := node.status()) and s["supervisor"] != before["supervisor"] and s["state"] == "serving",
        "another supervisor",
    )
    for pid in node.workers(before).values():
        wait_for(lambda pid=pid: not alive(pid), "the end of an old worker")
    return node.serving()


def test_a_new_supervisor_takes_over_under_load(node: NodeProcess) -> None:
    first = node.serving()
    with Load(node.port) as load:
        load.more()
        second = hand_over(node)
        load.more()
        third = hand_over(node)
        load.more()
    assert load.failures == []
    supervisors = [status["supervisor"]["pid"] for status in (first, second, third)]
    assert len(set(supervisors)) == 3
    assert supervisors[0] == node.process.pid
    wait_for(lambda: not alive(supervisors[1]), "the end of the second: only the first one waits")
    assert {status["keeper"]["pid"] for status in (first, second, third)} == {first["keeper"]["pid"]}
    assert {os.getpgid(pid) for pid in node.members()} == {node.groups[0]}
    node.write(body="changed\\n")
    node.signal(signal.SIGHUP)  # goes on to the one that serves
    wait_for(lambda: get(("127.0.0.1", node.port)).endswith(b"changed\n"), "the reload")
    node.signal(signal.SIGTERM)
    assert node.wait() == 0
    wait_for(lambda: not node.members(), "the end of all")


def test_a_request_on_an_idle_connection_is_still_answered(node: NodeProcess) -> None:
    before = node.serving()
    asked = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
    with socket.create_connection(("127.0.0.1", node.port), timeout=5) as client:
        client.sendall(asked)
        assert client.recv(65536).endswith(b"hello\n")
        node.signal(signal.SIGUSR2)
        wait_for(
            lambda: (s := node.status()) and s["supervisor"] != before["supervisor"] and s["state"] == "serving",
            "another supervisor",
        )
        client.sendall(asked)
        answer = client.recv(65536)
        assert answer.endswith(b"hello\n")
        assert b"Connection: close" in answer
        assert client.recv(1) == b""


def test_the_first_process_answers_for_the_last(node: NodeProcess) -> None:
    second = hand_over(node)
    os.kill(second["supervisor"]["pid"], signal.SIGKILL)
    assert node.wait() == 128 + signal.SIGKILL
    assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
    node.start(group=node.groups[0])
    assert node.workers() == node.workers(second)


def test_a_new_supervisor_that_cannot_start_changes_nothing(node: NodeProcess) -> None:
    before = node.serving()
    node.write(extra="nonsense: 1")
    node.signal(signal.SIGUSR2)
    node.logged("the new supervisor could not start")
    assert "nonsense" in node.output()
    assert node.serving()["supervisor"] == before["supervisor"]
    node.write(extra="")
    hand_over(node)


def test_a_new_supervisor_that_fails_late_gives_the_node_back(node: NodeProcess) -> None:
    before = node.serving()
    with socket.create_server(("127.0.0.1", 0)) as other, Load(node.port) as load:
        node.write(extra="", binds=f'"127.0.0.1:{node.port}", "127.0.0.1:{other.getsockname()[1]}"')
        node.signal(signal.SIGUSR2)
        node.logged("takes the node back")
        wait_for(
            lambda: (s := node.status()) and s["state"] == "serving" and s["supervisor"]["pid"], "the old supervisor"
        )
        load.more()
    assert load.failures == []
    assert node.serving()["supervisor"]["pid"] == before["supervisor"]["pid"]
    node.write(binds=f'"127.0.0.1:{node.port}"', body="changed\\n")
    node.admin.post("reload")
    assert get(("127.0.0.1", node.port)).endswith(b"changed\n")


def test_long_work_of_an_old_worker_is_finished(tmp_path: Path) -> None:
    server = HangingServer()
    with (
        NodeProcess(tmp_path, server=server.address) as node,
        socket.create_connection(("127.0.0.1", node.port)) as sock,
    ):
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: server.connections, "the request at the server")
        before = node.workers()
        node.signal(signal.SIGUSR2)
        wait_for(
            lambda: (s := node.status()) and s["state"] == "serving" and s["supervisor"]["pid"] != node.process.pid,
            "another",
        )
        wait_for(lambda: not set(before.values()) & set(node.workers().values()), "other workers")
        server.answer()
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        for pid in before.values():
            wait_for(lambda pid=pid: not alive(pid), "the end of an old worker")
    server.close()


@pytest.fixture
def copied_package(tmp_path: Path) -> Path:
    """The package at a place of its own, where a test can install another version."""
    package = tmp_path / "installed" / "l7lb"
    shutil.copytree(Path(l7lb.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def install(package: Path, version: str) -> None:
    path = package / "__init__.py"
    path.write_text(path.read_text().replace(l7lb.__version__, version))


@pytest.mark.parametrize("how", ["signal", "restart"])
def test_another_version_replaces_keeper_and_workers(tmp_path: Path, copied_package: Path, how: str) -> None:
    node = NodeProcess(tmp_path / "node")
    node.environment["PYTHONPATH"] = str(copied_package.parent)
    with node:
        before = node.serving()
        assert before["version"] == l7lb.__version__
        install(copied_package, "99.1")
        with Load(node.port) as load:
            load.more()
            if how == "signal":
                after = hand_over(node)
            else:
                node.signal(signal.SIGKILL)
                node.wait()
                node.start(group=node.groups[0])
                after = node.serving()
                for pid in node.workers(before).values():
                    wait_for(lambda pid=pid: not alive(pid), "the end of an old worker")
            load.more()
        assert load.failures == []
        assert after["version"] == "99.1"
        assert not set(node.workers(after).values()) & set(node.workers(before).values())
        assert after["keeper"] == before["keeper"]  # the same process with new code


@pytest.mark.parametrize("broken", ["keeper.py", "worker.py"])
def test_a_broken_version_changes_nothing(tmp_path: Path, copied_package: Path, broken: str) -> None:
    node = NodeProcess(tmp_path / "node")
    node.environment["PYTHONPATH"] = str(copied_package.parent)
    with node:
        before = node.serving()
        (copied_package / "proxy" / "workers" / broken).write_text("this is no Python\n")
        node.signal(signal.SIGUSR2)
        node.logged("takes the node back")
        wait_for(lambda: (s := node.status()) and s["state"] == "serving", "the old supervisor")
        assert node.serving()["supervisor"]["pid"] == before["supervisor"]["pid"]
        assert node.workers() == node.workers(before)
        assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
