"""A reload: in place, whole or not at all."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest
from node_process import HangingServer, Load, NodeProcess, free_port, get, wait_for

from l7lb.control.client import AdminError

pytestmark = pytest.mark.scenario


def test_hang_up_reloads_in_place(node: NodeProcess) -> None:
    before = node.serving()
    with Load(node.port) as load:
        load.more()
        node.write(body="changed\\n")
        node.signal(signal.SIGHUP)
        wait_for(lambda: get(("127.0.0.1", node.port)).endswith(b"changed\n"), "the new answer")
        load.more()
    assert load.failures == []
    assert node.workers() == node.workers(before)


def test_a_wrong_configuration_is_refused_with_all_errors(node: NodeProcess) -> None:
    node.write(extra="nonsense: 1\ntypo: 2")
    with pytest.raises(AdminError) as refusal:
        node.admin.post("reload")
    assert sum("nonsense" in line or "typo" in line for line in refusal.value.details) == 2
    assert {"nonsense", "typo"} <= set(node.output().replace(":", " ").split())
    assert node.serving()["reload"]["ok"] is False
    node.signal(signal.SIGHUP)
    assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
    node.write(extra="", body="mended\\n")
    node.admin.post("reload")
    assert get(("127.0.0.1", node.port)).endswith(b"mended\n")
    assert node.serving()["reload"]["ok"] is True


def test_listeners_come_and_go_without_touching_others(tmp_path: Path) -> None:
    server = HangingServer()
    with (
        NodeProcess(tmp_path, server=server.address) as node,
        socket.create_connection(("127.0.0.1", node.port)) as sock,
    ):
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: server.connections, "the request at the server")
        more, path = free_port(), tmp_path / "run" / "more.sock"
        node.write(binds=f'"127.0.0.1:{node.port}", "127.0.0.1:{more}", "unix:{path}"')
        node.admin.post("reload")
        for address in (("127.0.0.1", more), str(path), ("127.0.0.1", node.port)):
            assert get(address).endswith(b"hello\n")
        node.write(binds=f'"127.0.0.1:{more}"')
        node.admin.post("reload")
        with pytest.raises(ConnectionRefusedError):
            get(("127.0.0.1", node.port))
        assert not path.exists()
        assert get(("127.0.0.1", more)).endswith(b"hello\n")
        server.answer()
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
    server.close()


def test_an_address_in_use_refuses_the_whole_reload(node: NodeProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other_port, more = other.getsockname()[1], free_port()
        node.write(binds=f'"127.0.0.1:{node.port}", "127.0.0.1:{more}", "127.0.0.1:{other_port}"', body="changed\\n")
        with pytest.raises(AdminError) as refusal:
            node.admin.post("reload")
        (line,) = refusal.value.details
        assert f"listeners.web.bind: 127.0.0.1:{other_port}: another process listens there" in line
        assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
        with pytest.raises(ConnectionRefusedError):
            get(("127.0.0.1", more))


def test_what_workers_cannot_use_is_taken_back(node: NodeProcess) -> None:
    (node.directory / "run" / "directory").mkdir()
    more = free_port()
    node.write(
        extra="access_log: {path: run/directory}",
        binds=f'"127.0.0.1:{node.port}", "127.0.0.1:{more}"',
        body="changed\\n",
    )
    with pytest.raises(AdminError) as refusal:
        node.admin.post("reload")
    assert "the workers can't use it: IsADirectoryError" in refusal.value.details[0]
    assert get(("127.0.0.1", node.port)).endswith(b"hello\n")
    with pytest.raises(ConnectionRefusedError):
        get(("127.0.0.1", more))
    node.write(extra="", body="mended\\n")
    node.admin.post("reload")
    assert get(("127.0.0.1", more)).endswith(b"mended\n")


def test_an_address_in_use_is_a_plain_error_at_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        in_use = f'"127.0.0.1:{other.getsockname()[1]}"'
        with NodeProcess(tmp_path, starts=False, binds=in_use) as node:
            assert node.start(wait=False).wait(30) == 1
            assert "another process listens there" in node.output()
            assert "Traceback" not in node.output()
            wait_for(lambda: not node.members(), "the end of all")


def test_the_number_of_workers_follows_the_configuration(node: NodeProcess) -> None:
    before = node.workers()
    with Load(node.port) as load:
        load.more()
        node.write(workers=4)
        node.admin.post("reload")
        wait_for(lambda: sorted(node.workers()) == [0, 1, 2, 3], "four workers")
        load.more()
        node.write(workers=1)
        node.admin.post("reload")
        wait_for(lambda: len(node.serving()["workers"]) == 1, "one worker")
        load.more(200)
    assert load.failures == []
    assert node.workers() == {0: before[0]}


def test_established_connections_outlive_many_reloads(tmp_path: Path) -> None:
    server = HangingServer()
    with (
        NodeProcess(tmp_path, server=server.address) as node,
        socket.create_connection(("127.0.0.1", node.port)) as sock,
    ):
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: server.connections, "the request at the server")
        with Load(node.port) as load:
            for number in range(20):
                node.write(body=f"{number}\\n")
                node.admin.post("reload")
            load.more()
        assert load.failures == []
        assert get(("127.0.0.1", node.port)).endswith(b"19\n")
        server.answer()
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
    server.close()


def test_what_an_operator_sees(tmp_path: Path) -> None:
    server = HangingServer()
    with (
        NodeProcess(tmp_path, server=server.address) as node,
        socket.create_connection(("127.0.0.1", node.port)) as sock,
    ):
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: server.connections, "the request at the server")
        (row,) = wait_for(lambda: node.admin.get("sessions"), "a session")
        assert (row["protocol"], row["pool"], row["server"]) == ("http", "slow", "one")
        status = node.serving()
        assert sum(worker["connections"] for worker in status["workers"]) == 1
        (listener,) = status["listeners"]
        assert (listener["name"], listener["protocol"]) == ("web", "http")
        assert listener["bind"] == [f"127.0.0.1:{node.port}"]
        server.answer()
    server.close()
