"""Real processes: what happens when each of them dies, and what the signals do."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from node_process import HangingServer, Load, NodeProcess, alive, get, wait_for

pytestmark = pytest.mark.scenario


def test_all_processes_are_in_one_group_and_end_with_the_node(node: NodeProcess) -> None:
    status = node.serving()
    pids = {status["supervisor"]["pid"], status["keeper"]["pid"], status["state_process"]["pid"]}
    pids |= {row["pid"] for row in status["workers"]}
    assert len(pids) == 5
    assert {os.getpgid(pid) for pid in pids} == {node.groups[0]}
    assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
    node.signal(signal.SIGTERM)
    assert node.wait() == 0
    assert not node.members()
    assert [path.name for path in (node.directory / "run").iterdir()] == []


def test_a_terminals_interrupt_drains_and_nothing_is_killed_by_it(tmp_path: Path) -> None:
    server = HangingServer()
    with (
        NodeProcess(tmp_path, server=server.address) as node,
        socket.create_connection(("127.0.0.1", node.port)) as sock,
    ):
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: server.connections, "the request at the server")
        os.killpg(node.groups[0], signal.SIGINT)
        node.logged("draining")
        server.answer()
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        assert node.wait() == 0
    server.close()


def test_a_killed_worker_loses_its_own_connections_only(node: NodeProcess) -> None:
    workers = node.workers()
    with socket.socket() as waiting:
        os.kill(workers[0], signal.SIGSTOP)
        os.kill(workers[1], signal.SIGSTOP)
        waiting.settimeout(10)
        queue = []
        for _ in range(20):  # they wait in the queues of both
            sock = socket.create_connection(("127.0.0.1", node.port), timeout=10)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            queue.append(sock)
        os.kill(workers[1], signal.SIGCONT)
        os.kill(workers[0], signal.SIGKILL)
        began = time.monotonic()
        for sock in queue:
            assert sock.recv(12) == b"HTTP/1.1 200"
            sock.close()
        assert time.monotonic() - began < 5
    now = wait_for(lambda: (w := node.workers()) and w.get(0) not in (None, workers[0]) and w, "a successor")
    assert now[1] == workers[1]


def test_a_killed_supervisor_is_followed_by_one_with_the_same_workers(node: NodeProcess) -> None:
    before = node.serving()
    with Load(node.port) as load:
        load.more()
        node.signal(signal.SIGKILL)
        node.wait()
        load.more()
        node.start(group=node.groups[0])
        load.more()
        after = node.serving()
    assert load.failures == []
    assert node.workers(after) == node.workers(before)
    assert after["keeper"] == before["keeper"]
    assert after["state_process"] == before["state_process"]
    assert after["supervisor"]["pid"] != before["supervisor"]["pid"]
    node.signal(signal.SIGTERM)
    assert node.wait() == 0
    wait_for(lambda: not node.members(), "the end of all")


def test_workers_are_started_again_without_a_supervisor(node: NodeProcess) -> None:
    workers = node.workers()
    node.signal(signal.SIGKILL)
    node.wait()
    os.kill(workers[0], signal.SIGKILL)
    assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
    wait_for(lambda: len(node.members()) == 4, "a successor")
    for _ in range(10):
        assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
    node.start(group=node.groups[0])
    assert node.workers()[1] == workers[1]


def test_a_killed_keeper_is_replaced_with_its_workers(node: NodeProcess) -> None:
    before = node.serving()
    with Load(node.port) as load:
        load.more()
        os.kill(before["keeper"]["pid"], signal.SIGKILL)
        wait_for(lambda: node.serving()["keeper"] != before["keeper"], "another keeper")
        wait_for(
            lambda: len(node.workers()) == 2 and not set(node.workers().values()) & set(node.workers(before).values()),
            "workers",
        )
        for pid in node.workers(before).values():
            wait_for(lambda pid=pid: not alive(pid), "the end of an old worker")
        load.more()
    assert load.failures == []
    assert node.serving()["state_process"] == before["state_process"]
    node.signal(signal.SIGTERM)
    assert node.wait() == 0
    wait_for(lambda: not node.members(), "the end of all")


def test_keeper_and_supervisor_killed_together(node: NodeProcess) -> None:
    before = node.serving()
    os.kill(before["keeper"]["pid"], signal.SIGKILL)
    node.signal(signal.SIGKILL)
    node.wait()
    wait_for(lambda: not alive(before["keeper"]["pid"]), "the keeper's end")
    assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
    node.start(group=node.groups[0])
    for pid in node.workers(before).values():
        wait_for(lambda pid=pid: not alive(pid), "the end of an old worker")
    assert get(("127.0.0.1", node.port)).endswith(b"hello\n")


def test_a_killed_state_process_is_started_again(node: NodeProcess) -> None:
    before = node.serving()
    os.kill(before["state_process"]["pid"], signal.SIGKILL)
    wait_for(lambda: node.serving()["state_process"]["pid"] not in (0, before["state_process"]["pid"]), "another one")
    assert node.workers() == node.workers(before)


def test_terminated_worker_leaves_and_is_replaced(node: NodeProcess) -> None:
    workers = node.workers()
    with Load(node.port) as load:
        os.kill(workers[0], signal.SIGTERM)
        wait_for(lambda: not alive(workers[0]), "its end")
        wait_for(lambda: node.workers().get(0) not in (None, workers[0]), "a successor")
        load.more()
    assert load.failures == []


def test_drain_has_a_limit(tmp_path: Path) -> None:
    server = HangingServer()
    with NodeProcess(tmp_path, server=server.address, drain="1s") as node:
        with (
            socket.create_connection(("127.0.0.1", node.port)) as sock,
            socket.create_connection(("127.0.0.1", node.port)) as idle,
        ):
            sock.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
            idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(12) == b"HTTP/1.1 200"
            wait_for(lambda: server.connections, "the request at the server")
            began = time.monotonic()
            node.signal(signal.SIGTERM)
            assert node.wait() == 0
            assert 0.9 < time.monotonic() - began < 8
        assert not node.members()
    server.close()


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    server = HangingServer()
    with (
        NodeProcess(tmp_path, server=server.address, drain="10m") as node,
        socket.create_connection(("127.0.0.1", node.port)) as sock,
    ):
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: server.connections, "the request at the server")
        node.signal(signal.SIGTERM)
        node.logged("draining")
        node.signal(signal.SIGTERM)
        assert node.wait() == 0
    server.close()


def test_a_second_node_in_the_same_place_is_refused(node: NodeProcess) -> None:
    first = node.process
    second = node.start(wait=False)
    assert second.wait(30) == 1
    assert f"process {first.pid} runs this node already" in node.output()
    node.process = first
    assert node.serving()["supervisor"]["pid"] == first.pid


def test_what_a_killed_group_leaves_behind_is_no_hindrance(tmp_path: Path) -> None:
    socket_path = tmp_path / "run" / "web.sock"
    with NodeProcess(tmp_path, binds=f'"unix:{socket_path}"') as node:
        assert get(str(socket_path)).endswith(b"hello\n")
        os.killpg(node.groups[0], signal.SIGKILL)
        node.wait()
        wait_for(lambda: not node.members(), "the end of all")
        assert socket_path.exists()
        assert (tmp_path / "run" / "keeper.sock").exists()
        node.start()
        assert get(str(socket_path)).endswith(b"hello\n")


def test_a_long_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 80) / ("e" * 80)
    with NodeProcess(deep, binds='"unix:run/web.sock", "127.0.0.1:0"') as node:
        assert len(str(deep)) > 150
        _, bind = node.serving()["listeners"][0]["bind"]
        host, _, port = bind.partition(":")
        assert get((host, int(port))).endswith(b"hello\n")
        node.signal(signal.SIGTERM)
        assert node.wait() == 0
        assert [path.name for path in (deep / "run").iterdir()] == []


def test_nothing_is_left_open_where_a_loop_ends(tmp_path: Path) -> None:
    """With warnings as errors: a transport that its loop has to close hangs the worker, until it is killed."""
    node = NodeProcess(tmp_path, starts=False, drain="20s")
    node.environment = {"PYTHONWARNINGS": "error"}
    with node:
        node.start()
        node.signal(signal.SIGTERM)
        assert node.wait(15) == 0
        wait_for(lambda: not node.members(), "the end of all")
    assert "transport" not in node.output().lower(), node.output()
