"""How a supervisor comes to life, or doesn't."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from node_process import NodeProcess, get, wait_for

from l7lb.config import load
from l7lb.control import launch
from l7lb.control.place import Place, StartProblem
from l7lb.proxy.workers.privileges import User

CONFIG = """\
listeners: [{name: web, protocol: http, bind: ["unix:run/web.sock"], routes: [{respond: {status: 200}}]}]
admin: {socket: run/admin.sock}
access_log: {path: logs/access.log}
state: state
"""


@pytest.fixture
def loaded(tmp_path: Path):
    path = tmp_path / "l7lb.yaml"
    path.write_text(CONFIG)
    return load(path)


def test_missing_directories_are_made(loaded, tmp_path: Path) -> None:
    place = Place(loaded.settings)
    place.prepare(loaded.settings, loaded.snapshot, None)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"run", "logs", "state"}
    place.prepare(loaded.settings, loaded.snapshot, None)


def test_a_directory_that_cannot_be_made_is_named(loaded, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(StartProblem, match="run"):
        Place(loaded.settings).prepare(loaded.settings, loaded.snapshot, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_strangers_directory_is_not_given_to_the_user(loaded, tmp_path: Path) -> None:
    user = User(65534, 65534)
    place = Place(loaded.settings)
    place.prepare(loaded.settings, loaded.snapshot, None)
    (tmp_path / "logs" / "another.log").write_text("of another program")
    place.prepare(loaded.settings, loaded.snapshot, user)
    assert (tmp_path / "run").stat().st_uid == 65534
    assert (tmp_path / "logs").stat().st_uid == 0
    assert (tmp_path / "logs" / "another.log").stat().st_uid == 0
    assert tmp_path.stat().st_uid == 0


def test_a_place_is_locked_once(loaded) -> None:
    first, second = Place(loaded.settings), Place(loaded.settings)
    first.prepare(loaded.settings, loaded.snapshot, None)
    first.lock()
    with pytest.raises(StartProblem, match=f"process {os.getpid()} runs this node already"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_a_user_is_ignored_in_one_line_without_root(tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / "l7lb.yaml"
    path.write_text(CONFIG + "user: nobody\n")
    settings = load(path).settings
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    launch.logs.configure("info", "text")
    assert launch._user(settings) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "user: nobody is ignored: only root can become another user" in line


@pytest.mark.scenario
def test_workers_that_cannot_start_are_a_plain_error(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, starts=False, extra="access_log: {path: run/access.log}") as node:
        (tmp_path / "run" / "access.log").mkdir(parents=True)
        assert node.start(wait=False).wait(60) == 1
        assert "the workers can't use the configuration: IsADirectoryError" in node.output()
        wait_for(lambda: not node.members(), "the end of all")


@pytest.mark.scenario
def test_a_signal_during_the_start_ends_it_cleanly(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, starts=False) as node:
        process = node.start(wait=False)
        wait_for(lambda: len(node.members()) > 1 or process.poll() is not None, "the keeper")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        wait_for(lambda: not node.members(), "the end of all")


@pytest.mark.scenario
def test_a_kill_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, starts=False) as node:
        process = node.start(wait=False)
        wait_for(lambda: len(node.members()) > 1 or process.poll() is not None, "the keeper")
        process.kill()
        process.wait()
        if len(node.members()) <= 1:  # otherwise the node had been begun, and goes on
            wait_for(lambda: not node.members(), "the end of the keeper")
        node.start()  # in a group of its own: the first one ends with its last process
        assert get(("127.0.0.1", node.port)).endswith(b"hello\n")


@pytest.mark.scenario
def test_a_metrics_port_in_use_is_a_plain_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, NodeProcess(tmp_path, starts=False) as node:
        port = other.getsockname()[1]
        text = node.file.read_text().replace("run/admin.sock", f'run/admin.sock, metrics: "127.0.0.1:{port}"')
        node.file.write_text(text)
        assert node.start(wait=False).wait(30) == 1
        assert f"admin.metrics: 127.0.0.1:{port}: Address already in use" in node.output()
        assert "Traceback" not in node.output()
        wait_for(lambda: not node.members(), "the end of all")
