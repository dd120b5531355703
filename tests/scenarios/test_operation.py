"""An operator's day: drains with sticky users, WebSockets through reloads, files that run out, addresses of all kinds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import threading
import time
from pathlib import Path

import aiohttp
import aiohttp.web
import pytest
from scenario_node import Nginx, Node, Wrk, find, free_port, l7lb, wait_for

pytestmark = [pytest.mark.scenario, pytest.mark.needs("nginx", "curl", "wrk"), pytest.mark.timeout(120)]

TEXT = """
access_log: {{path: run/access.log, format: json}}
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:PORT", "[::1]:PORT", "unix:run/web.sock"]
    limits: {{connections: 2000}}
    routes:
      - match: {{path: "/chat"}}
        pool: chat
      - pool: web
pools:
  web:
    balance: round-robin
    persistence: {{cookie: {{name: L7LB}}}}
    retries: {{attempts: 2, when: [connect-failure, reset-before-response, 503]}}
    health: {{http: {{path: /health}}, interval: 200ms, timeout: 200ms, rise: 1, fall: 2}}
    servers:
      - {{name: web1, address: "127.0.0.1:{web1}"}}
      - {{name: web2, address: "127.0.0.1:{web2}"}}
  chat:
    servers: [{{name: chat, address: "127.0.0.1:{chat}"}}]
"""


@pytest.fixture
def servers(tmp_path: Path):
    with Nginx(tmp_path, "web1") as one, Nginx(tmp_path, "web2") as two:
        yield {"web1": one, "web2": two}


@pytest.fixture
def chat() -> int:
    return free_port()


@pytest.fixture
def node(tmp_path: Path, servers: dict[str, Nginx], chat: int):
    text = TEXT.format(web1=servers["web1"].port, web2=servers["web2"].port, chat=chat)
    with Node(tmp_path / "node", text) as node:
        yield node


def curl(node: Node, *words: str, path: str = "/") -> str:
    done = subprocess.run(
        [find("curl"), "--silent", "--show-error", "--max-time", "10", *words, node.url + path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_drained_server_keeps_its_users_and_a_dead_one_gives_them_up(
    node: Node, servers: dict[str, Nginx], tmp_path: Path
) -> None:
    jar = str(tmp_path / "cookies")
    user = ("--cookie", jar, "--cookie-jar", jar)
    mine = curl(node, *user).strip()
    other = {"web1": "web2", "web2": "web1"}[mine]
    assert {curl(node, *user).strip() for _ in range(5)} == {mine}
    l7lb(node, "drain", f"web/{mine}")
    assert node.servers()[mine]["state"] == "draining"
    assert {curl(node, *user).strip() for _ in range(5)} == {mine}
    assert {curl(node).strip() for _ in range(5)} == {other}
    servers[mine].kill()
    wait_for(lambda: curl(node, *user).strip() == other, "the user to be given up")
    records = [json.loads(line) for line in (node.directory / "run" / "access.log").read_text().splitlines()]
    assert {one["sticky"] for one in records if one["server"] == mine and "sticky" in one} == {"cookie"}
    l7lb(node, "undrain", f"web/{mine}")
    servers[mine].start()
    wait_for(lambda: node.servers()[mine]["state"] == "up", "the server to be back")
    # The user has been given to the other server, and stays there.
    assert {curl(node, *user).strip() for _ in range(5)} == {other}


def test_a_server_that_is_tired_is_not_shown_to_the_client(node: Node) -> None:
    """Both answer 503 here, so that the last answer gets through, after it was tried elsewhere."""
    done = curl(node, "--include", path="/error")
    assert done.startswith("HTTP/1.1 503")
    records = [json.loads(line) for line in wait_for(lambda: lines(node), "the record")]
    assert records[-1]["retries"] >= 1


def lines(node: Node) -> list[str]:
    path = node.directory / "run" / "access.log"
    return path.read_text().splitlines() if path.exists() else []


def test_all_kinds_of_addresses(node: Node) -> None:
    assert curl(node) in ("web1\n", "web2\n")
    for words in (
        [f"http://[::1]:{node.port}/"],
        ["--unix-socket", str(node.directory / "run" / "web.sock"), "http://localhost/"],
    ):
        done = subprocess.run([find("curl"), "-sS", "--max-time", "10", *words], capture_output=True, text=True)
        assert done.stdout in ("web1\n", "web2\n"), done


def test_forms_of_answers_by_curl(node: Node, tmp_path: Path) -> None:
    assert curl(node, "--head").startswith("HTTP/1.1 200")
    assert curl(node, "--include", path="/empty").startswith("HTTP/1.1 204")
    assert curl(node, "--include", path="/unchanged").startswith("HTTP/1.1 304")
    assert curl(node, "--http1.0", "--include").startswith("HTTP/1.")
    assert curl(node, "--http2", "--write-out", "%{http_version}", "--output", "/dev/null") == "1.1"
    body = tmp_path / "body"
    body.write_bytes(b"x" * 2_000_000)
    posted = curl(node, "--data-binary", f"@{body}", "--header", "Expect: 100-continue", path="/echo")
    assert posted in ("web1\n", "web2\n")


class Chat:
    """A WebSocket server in a thread: says everything twice."""

    def __init__(self, port: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.port = port
        self.started = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        assert self.started.wait(10)

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self.serve())
        self.loop.close()

    async def serve(self) -> None:
        application = aiohttp.web.Application()
        application.router.add_get("/chat", self.talk)
        runner = aiohttp.web.AppRunner(application)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", self.port).start()
        self.ended = asyncio.Event()
        self.started.set()
        await self.ended.wait()
        await runner.cleanup()

    async def talk(self, request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        socket = aiohttp.web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data * 2)
        return socket

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(10)


def test_a_websocket_lives_through_reloads_and_a_new_supervisor(node: Node, chat: int) -> None:
    server = Chat(chat)

    async def talk() -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(node.url + "/chat") as chat:

            async def says(text: str) -> None:
                await chat.send_str(text)
                assert await chat.receive_str(timeout=10) == text * 2

            await says("hello")
            await says("x" * 300_000)
            for number in range(5):
                node.write(text=node.text.replace("connections: 2000", f"connections: {3000 + number}"))
                await asyncio.to_thread(node.admin.post, "reload")
                await says(f"after reload {number}")
            rows = await asyncio.to_thread(node.admin.get, "sessions")
            assert [row["server"] for row in rows] == ["chat"]
            await asyncio.to_thread(restart_supervisor, node)
            await says("after another supervisor")

    try:
        asyncio.run(talk())
    finally:
        server.close()


def restart_supervisor(node: Node) -> None:
    assert node.process
    node.process.kill()
    node.process.wait()
    node.start(group=node.groups[0])


def test_when_files_run_out_the_established_go_on(tmp_path: Path, servers: dict[str, Nginx], chat: int) -> None:
    text = TEXT.format(web1=servers["web1"].port, web2=servers["web2"].port, chat=chat)
    with Node(tmp_path / "few", text, workers=1) as node, contextlib.ExitStack() as clients:

        def client() -> socket.socket:
            return clients.enter_context(socket.create_connection(("127.0.0.1", node.port), 10))

        (worker,) = node.workers().values()
        # Down to what it has open, and a few more.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = len(os.listdir(f"/proc/{worker}/fd")) + 40
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (allowed, hard))
        established = client()
        cookie = answered(established)
        crowd = [client() for _ in range(120)]
        node.logged("pauses")
        # Nearly no descriptor is left, but who is connected is served, by whichever server the balancer chooses.
        answered(established, cookie)
        answered(established)
        answered(established)
        for one in crowd[:100]:
            one.close()
        # The last in the queue get their turn.
        for one in crowd[100:]:
            answered(one)
        answered(established, cookie)
        for one in crowd:
            one.close()
        with Wrk(node.url, 1, 10) as wrk:
            assert wrk.end().failed == 0


def test_a_crowd_leaves_files_for_the_connections_to_servers(
    tmp_path: Path, servers: dict[str, Nginx], chat: int
) -> None:
    text = TEXT.format(web1=servers["web1"].port, web2=servers["web2"].port, chat=chat)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    node = Node(tmp_path / "few", text, workers=1, starts=False)
    with node, contextlib.ExitStack() as clients:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            node.start()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (worker,) = node.workers().values()
        # Whoever raises its own limit is held to the low one all the same.
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (256, 256))
        established = clients.enter_context(socket.create_connection(("127.0.0.1", node.port), 10))
        for _ in range(400):
            clients.enter_context(socket.create_connection(("127.0.0.1", node.port), 10))
        wait_for(lambda: node.status()["workers"][0]["connections"] > 150, "the crowd to be let in")
        for _ in range(4):  # both servers get one, over connections that have to be opened now
            answered(established)


def answered(client: socket.socket, cookie: str = "") -> str:
    """Send a request and read its answer; returns the cookie that it set, or the given one."""
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + (f"Cookie: {cookie}\r\n" if cookie else "").encode() + b"\r\n")
    data = b""
    while b"\r\n\r\n" not in data or not data.endswith(b"\n"):
        piece = client.recv(65536)
        assert piece, data
        data += piece
    assert data.startswith(b"HTTP/1.1 200"), data
    found = re.search(rb"(?i)set-cookie: (L7LB=[^;]+)", data)
    return found[1].decode() if found else cookie


def test_a_limit_of_connections_makes_others_wait_and_not_fail(
    tmp_path: Path, servers: dict[str, Nginx], chat: int
) -> None:
    text = TEXT.format(web1=servers["web1"].port, web2=servers["web2"].port, chat=chat)
    with Node(tmp_path / "limited", text.replace("connections: 2000", "connections: 10"), workers=1) as node:
        crowd = [socket.create_connection(("127.0.0.1", node.port), 10) for _ in range(10)]
        assert len({answered(client) for client in crowd}) == 2
        late = socket.create_connection(("127.0.0.1", node.port), 10)
        late.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        late.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            assert late.recv(1) == b"", "more were let in than the limit allows"
        crowd.pop().close()
        late.settimeout(10)
        assert late.recv(12) == b"HTTP/1.1 200"
        for client in (late, *crowd):
            client.close()


def test_what_programs_read(node: Node) -> None:
    curl(node)
    time.sleep(0.3)
    status = json.loads(l7lb(node, "status", "--json"))
    assert status["state"] == "serving"
    assert len(status["workers"]) == 2
    rows = json.loads(l7lb(node, "servers", "--json"))
    assert {(row["pool"], row["name"], row["state"]) for row in rows} >= {("web", "web1", "up"), ("web", "web2", "up")}
    records = [json.loads(line) for line in wait_for(lambda: lines(node), "a record")]
    assert records[-1]["status"] == 200
