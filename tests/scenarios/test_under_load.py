"""What a node survives while wrk keeps it busy: reloads, restarts, and deaths of its processes and its servers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from scenario_node import Nginx, Node, Wrk, l7lb, wait_for

pytestmark = [pytest.mark.scenario, pytest.mark.needs("nginx", "wrk"), pytest.mark.timeout(120)]

TEXT = """
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:PORT"]
    routes:
      - match: {{header: {{x-reload: "{number}"}}}}
        respond: {{status: 200, body: "reload {number}\\n"}}
      - pool: web
pools:
  web:
    balance: round-robin
    persistence: {{cookie: {{name: L7LB}}}}
    retries: {{attempts: 2, when: [connect-failure, reset-before-response]}}
    health: {{http: {{path: /health}}, interval: 300ms, timeout: 300ms, rise: 1, fall: 2}}
    servers:
{servers}
"""


def text(servers: list[Nginx], number: int = 0) -> str:
    lines = "".join(f'      - {{name: {one.name}, address: "127.0.0.1:{one.port}"}}\n' for one in servers)
    return TEXT.format(number=number, servers=lines)


@pytest.fixture
def node(tmp_path: Path, servers: list[Nginx]):
    with Node(tmp_path / "node", text(servers)) as node:
        yield node


def test_a_hundred_reloads_and_no_failed_request(node: Node, servers: list[Nginx]) -> None:
    with Wrk(node.url, 12) as wrk:
        workers = node.workers()
        for number in range(100):
            node.write(text=text(servers if number % 2 else servers[:1], number))
            if number % 10 == 5:
                node.signal(signal.SIGHUP)
                wait_for(lambda n=number: reloaded(node, n), f"reload {number}", 10)
            else:
                node.admin.post("reload")
        took_all = wrk.process.poll() is None
        done = wrk.end()
    assert took_all, "the reloads took longer than the load"
    assert done.failed == 0, done
    assert done.requests > 500
    assert node.workers() == workers
    assert reloaded(node, 99)


def reloaded(node: Node, number: int) -> bool:
    import urllib.request

    request = urllib.request.Request(node.url, headers={"x-reload": str(number), "Connection": "close"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read() == f"reload {number}\n".encode()


def test_a_killed_worker_takes_only_its_own_connections_along(node: Node) -> None:
    with Wrk(node.url, 5, 40) as wrk:
        status = wait_for(lambda: full(node, 40), "40 connections")
        victim = max(status["workers"], key=lambda row: row["connections"])
        os.kill(victim["pid"], signal.SIGKILL)
        wait_for(lambda: set(node.workers().values()) - {row["pid"] for row in status["workers"]}, "a successor")
        done = wrk.end()
    assert done.late == done.bad == 0, done
    assert done.lost <= victim["connections"], (done, victim)
    assert done.requests > 500


def full(node: Node, number: int) -> dict | None:
    status = node.status()
    return status if status and sum(row["connections"] for row in status["workers"]) >= number else None


def test_a_killed_supervisor_and_its_successor(node: Node) -> None:
    with Wrk(node.url, 6, 20) as wrk:
        workers = node.workers()
        node.signal(signal.SIGKILL)
        node.wait()
        time.sleep(0.5)  # for a while nobody supervises
        successor = node.start(group=node.groups[0])
        done = wrk.end()
    assert done.failed == 0, done
    assert done.requests > 500
    status = node.serving(successor.pid)
    assert node.workers(status) == workers


def test_a_handover_to_a_new_process(node: Node) -> None:
    with Wrk(node.url, 6, 20) as wrk:
        before = node.serving()["supervisor"]["pid"]
        node.signal(signal.SIGUSR2)
        wait_for(lambda: (node.status() or {}).get("supervisor", {}).get("pid") not in (None, before), "the new one")
        done = wrk.end()
    assert done.failed == 0, done
    assert done.requests > 500


def test_a_killed_server_is_hidden_from_who_may_ask_twice(node: Node, servers: list[Nginx]) -> None:
    with Wrk(node.url, 6, 20) as wrk:
        servers[1].kill()
        wait_for(lambda: node.servers()["web2"]["state"] == "down", "the server to be seen dead")
        servers[1].start()
        wait_for(lambda: node.servers()["web2"]["state"] == "up", "the server to be seen alive")
        done = wrk.end()
    assert done.failed == 0, done
    assert done.requests > 500


def test_a_killed_server_costs_posts_only_what_was_on_it(tmp_path: Path, node: Node, servers: list[Nginx]) -> None:
    script = tmp_path / "post.lua"
    script.write_text('wrk.method = "POST"\nwrk.body = "hello"\n')
    with Wrk(node.url, 4, 20, script) as wrk:
        servers[1].kill()
        done = wrk.end()
    assert done.late == done.lost == 0, done
    assert done.bad <= 20, done  # what was in progress at that moment: one for a connection
    assert done.requests > 500


def test_a_drain_under_load_is_not_noticed(node: Node) -> None:
    with Wrk(node.url, 5, 20) as wrk:
        for name in ("web1", "web2"):
            l7lb(node, "drain", name)
            l7lb(node, "undrain", name)
        done = wrk.end()
    assert done.failed == 0, done


def test_the_end_under_load_finishes_what_was_begun(node: Node) -> None:
    with Wrk(node.url, 5, 20) as wrk:
        node.signal(signal.SIGTERM)
        assert node.wait() == 0
        wrk.process.kill()
    assert not node.members()
