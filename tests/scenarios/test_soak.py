"""What only shows with time or numbers: leaks, ten thousand clients, and an hour of bad luck in some minutes."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import time
from pathlib import Path

import pytest
from scenario_node import Nginx, Node, Wrk, resident, wait_for

pytestmark = [pytest.mark.scenario, pytest.mark.needs("nginx", "wrk"), pytest.mark.timeout(1200)]

TEXT = """
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:PORT"]
    timeouts: {{keep_alive: 600s}}
    limits: {{connections: 15000}}
    routes:
      - pool: web
pools:
  web:
    balance: {balance}
    persistence: {{cookie: {{name: L7LB}}}}
    retries: {{attempts: 2, when: [connect-failure, reset-before-response]}}
    timeouts: {{idle: 1s}}
    health: {{http: {{path: /health}}, interval: 300ms, timeout: 300ms, rise: 1, fall: 2}}
    servers:
      - {{name: web1, address: "127.0.0.1:{web1}"}}
      - {{name: web2, address: "127.0.0.1:{web2}"}}
"""


@pytest.fixture
def node(tmp_path: Path, servers: list[Nginx]):
    with Node(tmp_path / "node", text(servers)) as node:
        yield node


def text(servers: list[Nginx], balance: str = "round-robin") -> str:
    return TEXT.format(balance=balance, web1=servers[0].port, web2=servers[1].port)


def descriptors(pids: set[int]) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def load(node: Node, tmp_path: Path, seconds: int) -> None:
    """Every kind of client in turn."""
    script = tmp_path / "post.lua"
    script.write_text('wrk.method = "POST"\nwrk.body = string.rep("x", 20000)\n')
    for words in ((), (None, "Connection: close"), (script,)):
        with Wrk(node.url, seconds, 30, *words) as wrk:
            done = wrk.end()
        assert done.failed == 0, done


def test_nothing_leaks(node: Node, tmp_path: Path) -> None:
    load(node, tmp_path, 1)
    workers = set(node.workers().values())
    wait_for(lambda: quiet(node), "idle connections to end")
    files, memory = descriptors(workers), resident(workers)
    load(node, tmp_path, 2)
    for client in range(200):  # clients that leave in the middle
        with socket.create_connection(("127.0.0.1", node.port), 5) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[: 5 + client % 25])
    wait_for(lambda: quiet(node), "idle connections to end")
    wait_for(lambda: descriptors(workers) <= files, "descriptors to be given back")
    assert resident(workers) - memory < 4 * 1024 * 1024
    assert set(node.workers().values()) == workers


def quiet(node: Node) -> bool:
    status = node.status()
    return bool(status) and not any(row["connections"] for row in status["workers"])


@pytest.mark.slow
def test_ten_thousand_clients_through_reloads(node: Node, servers: list[Nginx]) -> None:
    count = 10_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 500:
        pytest.skip(f"{count} clients need more than {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = []
    try:
        for _ in range(count):
            clients.append(socket.create_connection(("127.0.0.1", node.port), 20))
            ask(clients[-1])
        workers = node.workers()
        for number in range(20):
            node.write(text=text(servers, ("round-robin", "least-connections")[number % 2]))
            node.admin.post("reload")
        for client in clients:
            ask(client)
        assert node.workers() == workers
    finally:
        for client in clients:
            client.close()


def ask(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    data = b""
    while b"\r\n\r\nweb" not in data:
        piece = client.recv(4096)
        assert piece, data
        data += piece
    assert data.startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_bad_luck(node: Node, servers: list[Nginx], tmp_path: Path) -> None:
    """Processes die and come back at random, for minutes: what fails is what was on them, and the node is whole at the end."""
    chance = random.Random(7)
    seconds = int(os.environ.get("L7LB_SOAK_SECONDS", "120"))
    deaths = 0
    with Wrk(node.url, seconds, 30) as wrk:
        while wrk.process.poll() is None:
            time.sleep(chance.uniform(0.2, 2.0))
            what = chance.choice(("worker", "server", "supervisor", "reload", "handover"))
            if what == "worker":
                os.kill(chance.choice(list(node.workers().values())), signal.SIGKILL)
                deaths += 1
            elif what == "server":
                server = chance.choice(servers)
                server.kill()
                time.sleep(0.7)
                server.start()
                wait_for(lambda name=server.name: node.servers()[name]["state"] == "up", f"{server.name} to be up")
            elif what == "supervisor":
                os.kill(node.serving()["supervisor"]["pid"], signal.SIGKILL)
                node.wait()
                node.start(group=node.groups[0])
            elif what == "reload":
                node.write(text=text(servers, chance.choice(("round-robin", "least-connections", "random-of-two"))))
                node.admin.post("reload")
            else:
                before = node.serving()["supervisor"]["pid"]
                os.kill(before, signal.SIGUSR2)
                wait_for(lambda b=before: node.serving()["supervisor"]["pid"] != b, "another supervisor")
        done = wrk.end()
    assert done.bad == done.late == 0, done
    assert done.lost <= deaths * 30, (done, deaths)
    assert len(node.workers()) == 2
    load(node, tmp_path, 1)
