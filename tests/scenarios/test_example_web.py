"""examples/web, run by its one command: what its README promises."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from l7lb.config import load
from l7lb.control.client import AdminClient, AdminError
from l7lb.demo.clients import Answer, Browser, Live, Load

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(180)]

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "web"
SHOP, API = "shop.example.com", "api.example.com"
SERVERS = {"web1", "web2", "web3"}


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


class Example:
    """The running example."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        command = [sys.executable, str(EXAMPLE / "run.py"), "--directory", str(directory), "--free-ports"]
        self.process = subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if "^C ends everything" in line:
                break
        assert "l7lb   127.0.0.1:" in self.said, self.log()
        self.config = directory / "l7lb.yaml"
        found = re.findall(r"^  (\w+) +127\S+, process (\d+)$", self.said, re.MULTILINE)
        self.pids = {name: int(pid) for name, pid in found}
        loaded = load(self.config)
        self.address = str(loaded.snapshot.listeners[0].bind[0])
        self.admin = AdminClient(loaded.settings.admin_socket)

    def log(self) -> str:
        return (self.directory / "run" / "l7lb.log").read_text()

    def ask(self, host: str, path: str, **options: Any) -> Answer:
        browser = Browser(self.address, host)
        try:
            return browser.ask(path, **options)
        finally:
            browser.close()

    def state(self, pool: str, server: str) -> str:
        rows: list[dict[str, Any]] = self.admin.get("servers", pool=pool)
        return next(row["state"] for row in rows if row["name"] == server)

    def port(self, server: str) -> str:
        rows: list[dict[str, Any]] = self.admin.get("servers", pool="shop")
        return next(row["address"].rpartition(":")[2] for row in rows if row["name"] == server)

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert not self.left(), self.log()

    def left(self) -> list[str]:
        """Processes that still have to do with it."""
        found = []
        for name in os.listdir("/proc"):
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(self.directory) in command and b"l7lb." in command:
                found.append(name)
        return found


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Example]:
    running = Example(tmp_path_factory.mktemp("web"))
    yield running
    running.end()


def test_routes(example: Example) -> None:
    moved = example.ask("www.example.com", "/shoes?size=9")
    assert (moved.status, moved.headers["Location"]) == (301, "http://shop.example.com/shoes?size=9")
    old = example.ask(SHOP, "/old/shoes")
    assert (old.status, old.headers["Location"]) == (308, "/new/shoes")
    api = example.ask(API, "/v1/orders/7")
    assert api.server in SERVERS
    assert {example.ask(API, "/v1/orders/7").server for _ in range(5)} == {api.server}
    assert api.body.decode().splitlines()[1] == "GET /orders/7"
    assert "x-l7lb-route: api" in api.body.decode().splitlines()
    assert example.ask(SHOP, "/", headers={"Cookie": "beta=yes"}).server == "next1"
    assert example.ask(SHOP, "/admin/users").status == 200  # loopback is the office


def test_a_split(example: Example) -> None:
    seen = Counter(example.ask(SHOP, "/search").server == "next1" for _ in range(200))
    assert 2 <= seen[True] <= 50  # one in ten; beyond these bounds once in millions of runs


def test_explain_agrees(example: Example) -> None:
    question = {"protocol": "http", "url": "http://shop.example.com//ADMIN/x/../users", "source": "192.0.2.7"}
    found = example.admin.post("explain", **question)
    assert [rule["number"] for rule in found["rules"] if rule["matched"]] == [2]
    assert found["outcome"] == "answered here: 403"


def test_uploads_and_streams(example: Example) -> None:
    body = os.urandom(3_000_000)
    browser = Browser(example.address, SHOP)
    browser._connection.request("PUT", "/upload", body=body, headers={"Host": SHOP})
    assert b" got 3000000 bytes" in browser._connection.getresponse().read()
    slow = browser.ask("/slow?lines=5&every=0.01")
    assert slow.body.decode().splitlines() == [f"line {n} of 5 from {slow.server}" for n in range(1, 6)]
    browser.close()


def test_a_user_stays(example: Example) -> None:
    browser = Browser(example.address, SHOP)
    assert len({browser.ask(f"/{number}").server for number in range(20)}) == 1
    assert set(browser.cookies) == {"SHOP"}
    browser.close()


def test_a_killed_server_a_drain_and_a_reload_that_nobody_notices(example: Example) -> None:
    with Load(example.address, [SHOP] * 6 + [API] * 2) as load, Live(example.address) as live:
        wait_for(lambda: live.fault or live.echoes, "the WebSocket")
        assert load.more(100)
        victim = next(name for name in sorted(SERVERS) if name != live.server)
        os.kill(example.pids[victim], signal.SIGKILL)
        wait_for(lambda: example.state("shop", victim) == "down", "the health check")
        assert load.more(100)
        assert {before for before, _ in load.moves} <= {victim}
        assert (load.failures, live.fault) == ([], "")

        again = subprocess.Popen([sys.executable, "-m", "l7lb.demo.webserver", victim, example.port(victim)])
        try:
            wait_for(lambda: example.state("shop", victim) == "up", "its return")
            mark = load.mark()
            example.admin.post("drain", server=f"shop/{live.server}")
            assert live.server not in {example.ask(SHOP, "/").server for _ in range(20)}
            assert load.more(100)
            assert load.since(mark).moves == 0
            example.admin.post("undrain", server=f"shop/{live.server}")

            text = example.config.read_text()
            example.config.write_text(text.replace('"/old/*"', '"/older/*"'))
            example.admin.post("reload")
            assert example.ask(SHOP, "/old/shoes").status == 200
            assert example.ask(SHOP, "/older/shoes").status == 308
            example.config.write_text(text.replace("least-connections", "least-conections"))
            with pytest.raises(AdminError) as refused:
                example.admin.post("reload")
            assert any("least-connections" in line for line in refused.value.details)
            assert example.ask(SHOP, "/older/shoes").status == 308
            example.config.write_text(text)
            example.admin.post("reload")
            echoes = live.echoes
            wait_for(lambda: live.fault or live.echoes > echoes, "the WebSocket")
            assert load.more(100)
            assert (load.failures, live.fault) == ([], "")
            assert load.since(mark).moves == 0
        finally:
            again.terminate()
            again.wait(10)


def test_the_file_works_as_it_stands() -> None:
    loaded = load(EXAMPLE / "l7lb.yaml")
    assert loaded.warnings == []
    assert [str(one.bind[0]) for one in loaded.snapshot.listeners] == ["127.0.0.1:8080"]


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, str(EXAMPLE / "run.py"), "--directory", str(tmp_path / "file")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1
    assert found.stderr.startswith("run.py: ")
    assert len(found.stderr.splitlines()) == 1
