"""A server that comes back gets its share by and by: through a whole node, with health as the supervisor tells it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from proxy_scene import config

from l7lb.core.messages import ServerHealth
from l7lb.testing import Node

SLOW_START = 60.0  # seconds; no test waits for them


def back_for(node: Node, seconds: float) -> None:
    """The checks have found web2 healthy for so long."""
    since = asyncio.get_running_loop().time() - seconds
    node.runtime.server_health(ServerHealth("web", "web2", healthy=True, ejected=False, since=since))


async def share(node: Node, requests: int = 220) -> float:
    """How many of web1's requests web2 gets."""
    before = len(node.records)
    async with node.browser() as browser:
        for _ in range(requests):
            assert (await browser.get("/")).status == 200
    servers = Counter(record.server for record in node.records[before:])
    return servers["web2"] / servers["web1"]


@pytest.mark.parametrize("balance", ["round-robin", "least-connections"])
def test_a_server_that_comes_back_begins_small_and_grows(run, balance: str) -> None:
    async def play() -> None:
        async with Node(config(balance=balance, slow_start=f"{SLOW_START:g}s")) as node:
            assert await share(node) == pytest.approx(1.0, abs=0.05)  # nobody is new in a pool that just began
            node.down("web2")
            assert await share(node, 20) == 0
            node.up("web2")
            assert await share(node) == pytest.approx(0.1, abs=0.05)
            back_for(node, SLOW_START / 2)
            assert await share(node) == pytest.approx(0.5, abs=0.05)
            back_for(node, SLOW_START + 1)
            assert await share(node) == pytest.approx(1.0, abs=0.05)

    run(play())


def test_without_slow_start_it_gets_all_of_its_share_at_once(run) -> None:
    async def play() -> None:
        async with Node(config(balance="round-robin")) as node:
            node.down("web2")
            node.up("web2")
            assert await share(node) == pytest.approx(1.0, abs=0.05)

    run(play())
