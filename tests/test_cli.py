"""The commands, as an operator types them: against a node's admin socket, and against files."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import structlog
from click.testing import CliRunner, Result

from l7lb.cli import cli
from l7lb.config import load
from l7lb.control.admin import AdminServer
from l7lb.control.node import NodeState
from l7lb.core.errors import ConfigurationError, Problem
from l7lb.core.messages import ALL_SESSIONS, SessionRow, Wanted

CONFIGURATION = """\
node: lb1
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:0"]
    routes:
      - match: {host: "api.example.org"}
        pool: api
      - match: {path: "/old/*"}
        redirect: {location: "/new/{path.1}", status: 308}
      - pool: web
pools:
  web:
    health: {tcp: {}}
    servers:
      - {name: web1, address: "127.0.0.1:9001"}
      - {name: web2, address: "127.0.0.1:9002", weight: 2}
  api:
    servers:
      - {name: api1, address: "127.0.0.1:9003"}
      - {name: web1, address: "127.0.0.1:9004"}
"""


class Supervisor:
    """What the commands see of a supervisor."""

    def __init__(self) -> None:
        self.refusal: ConfigurationError | None = None

    def status(self) -> dict[str, Any]:
        return {
            "node": "lb1",
            "version": "0.1.0",
            "state": "serving",
            "supervisor": {"pid": 100},
            "workers": [{"pid": 101, "index": 0, "connections": 2, "snapshot": 1}],
            "listeners": [{"name": "web", "protocol": "http", "bind": ["127.0.0.1:8080"]}],
            "reload": {"time": 0.0, "ok": True, "problems": []},
        }

    async def sessions(self, limit: int, wanted: Wanted = ALL_SESSIONS) -> list[SessionRow]:
        row = SessionRow("http", "192.0.2.7:40000", "web", "web", "web1", "2026-01-01T00:00:00Z")
        return [row] * min(limit, 3)

    async def reload(self) -> list[str]:
        if self.refusal is not None:
            raise self.refusal
        return ["web/web2 stays removed by operator since 2026-01-01T00:00:00Z"]

    async def in_force(self) -> None:
        """There are no workers to wait for."""

    async def shutdown(self) -> None:
        raise AssertionError


class Node:
    """A node's admin socket, served by a thread, and commands that talk to it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "l7lb.yaml"
        self.file.write_text(CONFIGURATION)
        self.loaded = load(self.file)
        self.supervisor = Supervisor()
        self.state = NodeState(self.loaded.snapshot, directory / "state", wall=lambda: "2026-01-01T00:00:00Z")
        self.loop = asyncio.new_event_loop()
        self.server = AdminServer(self.loaded.settings.admin_socket, self.state, self.supervisor)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.server.start(), self.loop).result(10)
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(cli, [*words, "--admin", str(self.loaded.settings.admin_socket)])

    def good(self, *words: str) -> str:
        result = self.run(*words)
        assert result.exit_code == 0, result.output
        return result.stdout

    def refused(self, *words: str) -> str:
        result = self.run(*words)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        return result.stderr.strip()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with structlog.testing.capture_logs(), Node(tmp_path) as made:
        yield made


def run(*words: str, **settings: Any) -> Result:
    return CliRunner().invoke(cli, list(words), **settings)


# --- a running node -----------------------------------------------------------------------------------------------


def test_servers_as_a_table(node: Node) -> None:
    assert node.good("servers") == (
        "POOL  SERVER  ADDRESS         STATE  WEIGHT  SESSIONS  WHY\n"
        "web   web1    127.0.0.1:9001  up          1         0  never checked yet\n"
        "web   web2    127.0.0.1:9002  up          2         0  never checked yet\n"
        "api   api1    127.0.0.1:9003  up          1         0\n"
        "api   web1    127.0.0.1:9004  up          1         0\n"
    )
    assert node.good("servers", "api").count("\n") == 3


def test_servers_and_sessions_and_status_as_json(node: Node) -> None:
    rows = json.loads(node.good("servers", "--json"))
    assert {"pool", "name", "address", "state", "weight", "sessions", "why"} <= rows[0].keys()
    (row,) = json.loads(node.good("sessions", "--limit", "1", "--json"))
    assert {"protocol", "client", "pool", "server", "mailbox", "since"} <= row.keys()
    assert json.loads(node.good("status", "--json"))["supervisor"] == {"pid": 100}


def test_the_configuration_names_the_socket(node: Node) -> None:
    assert run("servers", "--config", str(node.file)).exit_code == 0
    assert run("servers", env={"L7LB_CONFIG": str(node.file)}).exit_code == 0
    assert run("servers", env={"L7LB_ADMIN": str(node.loaded.settings.admin_socket)}).exit_code == 0


def test_the_verbs(node: Node) -> None:
    assert node.good("drain", "web2") == "web/web2 drains: it keeps the users it has and gets no new ones\n"
    assert "draining" in node.good("servers")
    assert node.good("undrain", "web2") == "web/web2 takes new users\n"
    assert "is disabled" in node.good("disable", "web/web1")
    node.good("enable", "web/web1")
    assert node.good("weight", "web2", "7") == "web/web2 has weight 7\n"
    assert node.good("weight", "web2", "configured") == "web/web2 has weight 2, as configured\n"
    words = ("--weight", "3", "--max-connections", "5", "--backup", "--send-proxy", "v2")
    added = node.good("add-server", "web", "web9", "10.0.0.9:80", *words)
    assert added == "web/web9 is added at 10.0.0.9:80\n"
    assert node.good("remove-server", "web9").startswith("web/web9 is removed")
    added = node.good("add-server", "web", "mx9", "10.0.0.9", "--port", "imap4=143", "--port", "pop3=110")
    assert added == "web/mx9 is added at 10.0.0.9:143\n"
    assert node.good("remove-server", "mx9").startswith("web/mx9 is removed")
    node.good("remove-server", "web2")
    assert node.good("add-server", "web", "web2") == "web/web2 is back as it is configured\n"


def test_a_refusal_is_one_plain_line(node: Node) -> None:
    assert node.refused("drain", "wbe2") == "l7lb: no server wbe2: did you mean web2?"
    ambiguous = "l7lb: web1 is a server of several pools: say web/web1 or api/web1"
    assert node.refused("drain", "web1") == ambiguous
    assert node.refused("weight", "web2", "65536") == "l7lb: a weight is from 0 to 65535, not 65536"
    assert node.refused("add-server", "web", "web9", "10.0.0.9").startswith("l7lb: ")
    assert node.refused("servers", "wbe") == "l7lb: no pool wbe: did you mean web?"


def test_a_reload_prints_notes_and_a_refused_one_every_problem(node: Node) -> None:
    result = node.run("reload")
    assert (result.exit_code, result.stdout) == (0, "the configuration was reloaded\n")
    assert result.stderr == "web/web2 stays removed by operator since 2026-01-01T00:00:00Z\n"
    problems = [Problem("l7lb.yaml", line, 1, "pools", "is wrong") for line in (3, 4)]
    node.supervisor.refusal = ConfigurationError(problems)
    result = node.run("reload")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "l7lb: the configuration is refused, the old one stays\n"
        "l7lb.yaml:3:1: pools: is wrong\n"
        "l7lb.yaml:4:1: pools: is wrong\n"
    )


def test_top_once(node: Node) -> None:
    assert node.good("top", "--once").splitlines()[0] == "lb1: serving, 1 workers, 2 connections"
    assert node.refused("top") == "l7lb: top needs a terminal; `l7lb top --once` prints one picture"


def test_explain_asks_the_running_node(node: Node) -> None:
    node.good("disable", "web/web1")
    assert "server web2 at 127.0.0.1:9002" in node.good("explain", "http", "GET", "http://example.org/")
    answer = json.loads(node.good("explain", "http", "GET", "http://api.example.org/", "--json"))
    assert (answer["pool"], [rule["matched"] for rule in answer["rules"]]) == ("api", [True])


# --- no node ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["status"], ["drain", "web1"], ["reload"], ["top", "--once"]])
def test_without_a_node_it_asks_whether_one_is_running(tmp_path: Path, words: list[str]) -> None:
    result = run(*words, "--admin", str(tmp_path / "none.sock"))
    assert result.exit_code == 1
    assert result.stderr == (
        f"l7lb: there is no socket at {tmp_path}/none.sock: is l7lb running? `l7lb serve --config FILE` starts it\n"
    )


def test_without_any_configuration_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("status")
    assert result.exit_code == 1
    assert result.stderr == (
        "l7lb: there is no l7lb.yaml here and no /etc/l7lb/l7lb.yaml: say --config FILE, or --admin SOCKET\n"
    )


def test_no_permission(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(connection: object) -> None:
        # Root, who may run the tests, is never refused by the kernel.
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("l7lb.control.client._Connection.connect", refuse)
    assert node.refused("status").startswith(f"l7lb: no permission to use {node.loaded.settings.admin_socket}")


def test_a_broken_configuration_points_to_admin(tmp_path: Path) -> None:
    file = tmp_path / "l7lb.yaml"
    file.write_text("listeners: {")
    result = run("status", "--config", str(file))
    assert result.exit_code == 1
    assert "say --admin SOCKET" in result.stderr
    assert "Traceback" not in result.output


# --- files --------------------------------------------------------------------------------------------------------


def test_check_good(tmp_path: Path) -> None:
    file = tmp_path / "l7lb.yaml"
    file.write_text(CONFIGURATION)
    result = run("check", "--config", str(file))
    assert (result.exit_code, result.stdout) == (0, f"{file}: good: 1 listener, 2 pools, 4 servers\n")


def test_check_prints_every_error_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "l7lb.yaml"
    file.write_text(CONFIGURATION.replace("weight: 2", "wieght: 2").replace("- pool: web", "- pool: wbe"))
    result = run("check", "--config", str(file))
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{file}:") for line in lines)
    assert "weight" in result.stderr
    assert "did you mean" in result.stderr


@pytest.mark.parametrize("kind", ["missing", "directory", "binary"])
def test_check_of_what_is_no_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "l7lb.yaml"
    if kind == "directory":
        file.mkdir()
    elif kind == "binary":
        file.write_bytes(b"\x00\xff\xfe")
    result = run("check", "--config", str(file))
    assert result.exit_code == 1
    assert str(file) in result.stderr
    assert "Traceback" not in result.output


def test_explain_as_configured(tmp_path: Path) -> None:
    file = tmp_path / "l7lb.yaml"
    file.write_text(CONFIGURATION)
    result = run("explain", "--config", str(file), "http", "GET", "http://example.org/old/x", "-H", "x-a: 1")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "listener web: source 127.0.0.1, host example.org, path /old/x, method GET"
    assert "=> answered here: 308, go to /new/x" in result.stdout
    result = run("explain", "--config", str(file), "http", "GET", "http://example.org/x", "--source", "192.0.2.1")
    assert "=> to pool web, server web" in result.stdout


def test_explain_mail_as_configured(tmp_path: Path) -> None:
    file = tmp_path / "l7lb.yaml"
    file.write_text(
        """\
listeners:
  - {name: mx, protocol: smtp, bind: ["127.0.0.1:0"], routes: [{pool: mail}]}
pools:
  mail: {client_address: {smtp: xclient}, servers: [{name: mx1, host: 127.0.0.1, ports: {lmtp: 24, smtp: 25}}]}
"""
    )
    result = run("explain", "--config", str(file), "smtp", "Anna@Example.com")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].endswith("address anna@example.com, mailbox anna@example.com")
    assert "=> to pool mail, server mx1 at 127.0.0.1:25" in result.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["http", "G ET", "/"], "the listener answers this request itself: 400"),
        (["http", "GET", "/", "--listener", "wbe"], "no http listener wbe: did you mean web?"),
        (["http", "GET", "/", "-H", "host: a\x00b"], "the listener answers this request itself: 400"),
    ],
)
def test_explain_refuses_what_the_listener_would(tmp_path: Path, words: list[str], reason: str) -> None:
    file = tmp_path / "l7lb.yaml"
    file.write_text(CONFIGURATION)
    result = run("explain", "--config", str(file), *words)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"l7lb: {reason}")


def test_schema_is_json(tmp_path: Path) -> None:
    schema = json.loads(run("schema").stdout)
    assert "listeners" in schema["properties"]


# --- how it is called ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["dance"],
        ["drain"],
        ["weight", "web1", "-1"],
        ["weight", "web1", "much"],
        ["sessions", "--limit", "0"],
        ["explain", "http", "/"],
        ["explain", "imap4"],
        ["explain", "imap4", "a", "b"],
        ["explain", "gopher", "GET", "/"],
        ["explain", "http", "GET", "/", "-H", "nothing"],
        ["completion", "csh"],
        ["add-server", "web", "web9", "10.0.0.1:80", "--weight", "70000"],
        ["add-server", "web", "web9", "10.0.0.1", "--port", "imap4"],
    ],
)
def test_a_command_that_cannot_be_understood_exits_2(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_every_command_has_help() -> None:
    text = run("--help").stdout
    for name in cli.commands:
        assert f"  {name} " in text
        assert run(name, "--help").exit_code == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_L7LB_COMPLETE" in result.stdout


def complete(line: str) -> list[str]:
    environment = {"_L7LB_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    result = CliRunner().invoke(cli, [], env=environment, prog_name="l7lb")
    return [word.partition(",")[2] for word in result.stdout.split()]


def test_completion_knows_the_nodes_names(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L7LB_ADMIN", str(node.loaded.settings.admin_socket))
    assert complete("l7lb und") == ["undrain"]
    assert complete("l7lb drain a") == ["api/api1", "api/web1"]
    assert complete("l7lb add-server ") == ["api", "web"]
    monkeypatch.setenv("L7LB_ADMIN", "/nonexistent")
    assert complete("l7lb drain a") == []


# --- as a process -------------------------------------------------------------------------------------------------


def process(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "l7lb.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, **settings)


def test_the_program(node: Node) -> None:
    socket = str(node.loaded.settings.admin_socket)
    version = process("--version")
    assert (version.returncode, version.stdout, version.stderr) == (0, "l7lb 0.1.0\n", "")
    found = process("servers", "--admin", socket)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == node.good("servers")
    lost = process("status", "--admin", f"{socket}.none")
    assert (lost.returncode, lost.stdout) == (1, "")
    assert lost.stderr.startswith("l7lb: there is no socket at")


def test_a_reader_that_goes_away_is_no_traceback(node: Node) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "l7lb.cli", "servers", "--admin", str(node.loaded.settings.admin_socket)]
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=30)
    os.close(writing)
    assert "Traceback" not in found.stderr


def test_it_starts_without_what_a_command_does_not_need() -> None:
    heavy = {"aiohttp", "pydantic", "ruamel", "rich", "structlog", "prometheus_client", "dns", "uvloop", "asyncio"}
    code = "import sys, l7lb.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert not heavy & {name.partition(".")[0] for name in found.stdout.split()}


class Terminal:
    """A command on a terminal of its own, 80 columns wide."""

    def __init__(self, *words: str) -> None:
        self.main, side = pty.openpty()
        termios.tcsetwinsize(self.main, (24, 80))
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        command = [sys.executable, "-m", "l7lb.cli", *words]
        self.process = subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment)
        os.close(side)
        self.text = ""

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline, self.text
            try:
                self.text += os.read(self.main, 65_536).decode()
            except OSError:  # the other side has ended
                break

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.main)


def test_a_terminal_gets_colours(node: Node) -> None:
    terminal = Terminal("servers", "--admin", str(node.loaded.settings.admin_socket))
    try:
        terminal.until(lambda: False)
        assert terminal.process.wait(10) == 0
        assert "\x1b[32mup" in terminal.text
    finally:
        terminal.close()


@pytest.mark.parametrize("key", ["q", "Ctrl-C"])
def test_top_ends_with_q_and_with_ctrl_c(node: Node, key: str) -> None:
    terminal = Terminal("top", "--interval", "0.1", "--admin", str(node.loaded.settings.admin_socket))
    try:
        terminal.until(lambda: terminal.text.count("never checked yet") >= 4)
        if key == "q":
            os.write(terminal.main, b"q")
        else:
            terminal.process.send_signal(signal.SIGINT)
        terminal.until(lambda: False)
        assert terminal.process.wait(10) == 0
        assert "Traceback" not in terminal.text
    finally:
        terminal.close()
