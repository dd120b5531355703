"""Bodies much larger than any buffer, up and down, to readers that are quick, slow, or gone: memory stays what it was."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

import pytest
from scenario_node import Nginx, Node, find, resident, wait_for

pytestmark = [pytest.mark.scenario, pytest.mark.needs("nginx", "curl"), pytest.mark.timeout(180)]

MEGABYTE = 1024 * 1024
SIZES = [pytest.param(256 * MEGABYTE, id="256MB"), pytest.param(1024 * MEGABYTE, id="1GB", marks=pytest.mark.slow)]
GROWTH = 16 * MEGABYTE  # of all processes together, while a body of any size goes through

TEXT = """
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:PORT"]
    routes:
      - match: {{path: "/up"}}
        pool: taker
      - pool: web
pools:
  web:
    servers: [{{name: web1, address: "127.0.0.1:{port}"}}]
  taker:
    timeouts: {{response_header: 120s}}
    servers: [{{name: taker, address: "127.0.0.1:{taker}"}}]
"""


class Taker:
    """A server that reads a request's body, slowly if it is told to, and answers with its digest."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.go = threading.Event()
        self.go.set()
        self.taken = 0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                try:
                    self.take(connection)
                except OSError:
                    continue

    def take(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        left = int(fields[b"content-length"]) - len(body)
        digest = hashlib.sha256(body)
        while left > 0:
            self.go.wait()
            piece = connection.recv(min(left, MEGABYTE))
            assert piece
            digest.update(piece)
            left -= len(piece)
            self.taken += len(piece)
        answer = digest.hexdigest().encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))

    def close(self) -> None:
        self.go.set()
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        self.thread.join(10)


@pytest.fixture
def taker():
    taker = Taker()
    yield taker
    taker.close()


@pytest.fixture
def web(tmp_path: Path):
    with Nginx(tmp_path, "web1") as server:
        yield server


@pytest.fixture
def node(tmp_path: Path, web: Nginx, taker: Taker):
    with Node(tmp_path / "node", TEXT.format(port=web.port, taker=taker.port), workers=1) as node:
        yield node


class Watched:
    """The most memory that the node held while something went on, beyond what it held before."""

    def __init__(self, node: Node) -> None:
        self.pids = node.members()
        self.before = resident(self.pids)
        self.most = self.before
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.most = max(self.most, resident(self.pids))

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self.thread.join()

    @property
    def growth(self) -> int:
        return self.most - self.before


def warm(node: Node) -> None:
    for _ in range(20):
        subprocess.run([find("curl"), "-s", "-o", "/dev/null", node.url], check=True)


@pytest.mark.parametrize("size", SIZES)
def test_down(node: Node, web: Nginx, size: int) -> None:
    digest = web.file("big", size)
    warm(node)
    with Watched(node) as watched:
        with subprocess.Popen([find("curl"), "-s", "-S", f"{node.url}/file/big"], stdout=subprocess.PIPE) as curl:
            assert curl.stdout
            found = hashlib.sha256()
            while piece := curl.stdout.read(MEGABYTE):
                found.update(piece)
        assert curl.returncode == 0
    assert found.hexdigest() == digest
    assert watched.growth < GROWTH


@pytest.mark.parametrize("size", SIZES)
def test_up(node: Node, web: Nginx, taker: Taker, size: int) -> None:
    digest = web.file("big", size)
    warm(node)
    with Watched(node) as watched:
        done = subprocess.run(
            [find("curl"), "-s", "-S", "-T", str(web.folder / "root" / "big"), f"{node.url}/up"], capture_output=True
        )
    assert (done.returncode, done.stdout.decode()) == (0, digest), done.stderr
    assert watched.growth < GROWTH


def test_down_to_a_slow_reader(node: Node, web: Nginx) -> None:
    """Twenty clients stop reading: what they don't take stays with the server, not in the node."""
    web.file("big", 64 * MEGABYTE)
    warm(node)
    clients = []
    with Watched(node) as watched:
        for _ in range(20):
            client = socket.create_connection(("127.0.0.1", node.port), 20)
            client.sendall(b"GET /file/big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            clients.append(client)
        wait_for(lambda: len(node.admin.get("sessions")) >= 20, "20 sessions")
        time.sleep(1.0)  # all buffers are full by now
        assert subprocess.run([find("curl"), "-s", node.url], capture_output=True).stdout == b"web1\n"
        # One goes on reading and gets everything.
        total = 0
        while piece := clients[0].recv(MEGABYTE):
            total += len(piece)
        assert total > 64 * MEGABYTE
    for client in clients:
        client.close()
    assert watched.growth < GROWTH + 20 * MEGABYTE


def test_up_to_a_slow_reader(node: Node, web: Nginx, taker: Taker) -> None:
    digest = web.file("big", 64 * MEGABYTE)
    warm(node)
    taker.go.clear()
    with (
        Watched(node) as watched,
        subprocess.Popen(
            [find("curl"), "-s", "-S", "-T", str(web.folder / "root" / "big"), f"{node.url}/up"], stdout=subprocess.PIPE
        ) as curl,
    ):
        time.sleep(1.0)
        assert taker.taken < 32 * MEGABYTE
        taker.go.set()
        assert curl.stdout
        assert curl.stdout.read().decode() == digest
    assert watched.growth < GROWTH
