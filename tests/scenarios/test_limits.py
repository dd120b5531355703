"""Rate limits under wrk, with two workers of a real node: one limit for both, within the bound of docs/limits.md."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from scenario_node import Nginx, Node, Wrk, l7lb, wait_for

pytestmark = [pytest.mark.scenario, pytest.mark.needs("nginx", "wrk"), pytest.mark.timeout(120)]

TEXT = """
state: state
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:PORT"]
    limit: {{key: source, rate: {rate}, burst: {burst}}}
    routes: [{{pool: web}}]
pools:
  web:
    persistence: source
    servers:
{servers}
"""
RATE, BURST, WORKERS = 500, 200, 2


def text(servers: list[Nginx], rate: str = f"{RATE}/s", burst: int = BURST) -> str:
    lines = "".join(f'      - {{name: {one.name}, address: "127.0.0.1:{one.port}"}}\n' for one in servers)
    return TEXT.format(rate=rate, burst=burst, servers=lines)


@pytest.fixture
def servers(tmp_path: Path):
    with Nginx(tmp_path, "web1") as one, Nginx(tmp_path, "web2") as two:
        yield [one, two]


@pytest.fixture
def node(tmp_path: Path, servers: list[Nginx]):
    with Node(tmp_path / "node", text(servers), workers=WORKERS) as node:
        yield node


def load(node: Node, seconds: int) -> tuple[int, int, float]:
    """How many wrk got an answer of a server for, how many it was refused, and the seconds that it took."""
    began = time.monotonic()
    with Wrk(node.url, seconds, 32) as wrk:
        done = wrk.end()
    assert not done.lost
    return done.requests - done.bad, done.bad, time.monotonic() - began


@pytest.mark.serial
def test_two_workers_share_one_limit(node: Node) -> None:
    """At most a burst for each worker at once, and the rate; and not less than the rate either."""
    admitted, refused, took = load(node, 4)
    assert refused > admitted
    assert 4 * RATE * 0.9 <= admitted <= WORKERS * BURST + RATE * (took + 0.02)
    # Both took part, and what each admitted above its share was paid back: at the end the average is the rate's.
    again, _, took = load(node, 2)
    assert again <= BURST + RATE * (took + 0.05)


@pytest.mark.serial
def test_a_worker_that_dies_takes_nothing_with_it(node: Node, servers: list[Nginx]) -> None:
    node.write(text=text(servers, rate="1/h"))
    l7lb(node, "reload")
    admitted, _, _ = load(node, 1)
    assert BURST <= admitted <= WORKERS * BURST
    before = node.workers()
    victim = next(iter(before.values()))
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: victim not in node.workers().values() and len(node.workers()) == WORKERS, "a successor", 20)
    wait_for(lambda: all(one["ready"] for one in (node.status() or {})["workers"]), "it accepts", 20)
    assert load(node, 1)[0] == 0


@pytest.mark.needs("curl")
def test_streams_of_http_2_are_refused_as_requests_are(node: Node, servers: list[Nginx]) -> None:
    node.write(text=text(servers, rate="6/m", burst=2))
    l7lb(node, "reload")
    words = ["curl", "-s", "--http2-prior-knowledge", "-i", node.url]
    # The worker that did not serve the first hears of it within milliseconds, and has no more than a burst of its own.
    asked = 2 * WORKERS + 1
    answers = [subprocess.run(words, capture_output=True, text=True, timeout=30).stdout for _ in range(asked)]
    statuses = [answer.split()[:2] for answer in answers]
    assert statuses[:2] == [["HTTP/2", "200"]] * 2
    assert statuses[-1] == ["HTTP/2", "429"]
    after = re.search(r"(?m)^retry-after: (\d+)", answers[-1].lower())
    assert after
    assert 10 <= int(after[1]) <= 10 * 2 * WORKERS
    assert "web/requests-source  127.0.0.1" in l7lb(node, "limits")


def test_a_reload_keeps_what_is_owed_and_the_new_rate_counts(node: Node, servers: list[Nginx]) -> None:
    node.write(text=text(servers, rate="1/h"))
    l7lb(node, "reload")
    load(node, 1)
    node.write(text=text(servers, rate="2/h"))
    l7lb(node, "reload")
    assert load(node, 1)[0] == 0
    node.write(text=text(servers, rate="100000/s", burst=100000))
    l7lb(node, "reload")
    admitted, refused, _ = load(node, 1)
    assert admitted > 0
    assert refused == 0


def test_a_pin_holds_in_all_workers_and_over_a_restart(node: Node, servers: list[Nginx], tmp_path: Path) -> None:
    load(node, 1)
    assert "web/source" in l7lb(node, "table", "list")
    (line,) = [line for line in l7lb(node, "table", "find", "web", "127.0.0.1").splitlines() if "127.0.0.1" in line]
    other = "web2" if "web1" in line else "web1"
    assert f"pinned to web/{other}" in l7lb(node, "table", "pin", "web", "127.0.0.1", other)
    served = node.servers()[other]["requests"]
    load(node, 1)
    wait_for(lambda: node.servers()[other]["requests"] > served, "requests at the pinned server", 5)
    node.signal(signal.SIGTERM)
    node.wait()
    node.start()
    node.serving()
    wait_for(lambda: "pinned" in l7lb(node, "table", "find", "web", "127.0.0.1"), "the pin", 10)
    assert "is deleted" in l7lb(node, "table", "delete", "web", "127.0.0.1")
    assert "no such entry" in l7lb(node, "table", "find", "web", "127.0.0.1")
