"""Rate limits in the data path: what is refused, how, what is counted, and what a reload changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from l7lb.core.actions import Action, Close, NeedServer, Side, ToClient
from l7lb.core.contracts import Choice, Peer, ProtocolSpec, Session
from l7lb.core.errors import Failure
from l7lb.core.facts import Facts
from l7lb.core.snapshot import Address, FactName, Limit, Listener, Route, Snapshot, ToPool
from l7lb.proxy import counts as columns
from l7lb.testing import Node
from l7lb.testing.wire import Unexpected

pytestmark = pytest.mark.asyncio


def configuration(limit: object = None, rule_limit: object = None, **more: object) -> dict[str, Any]:
    routes: list[dict[str, object]] = [{"match": {"path": "/api*"}, "pool": "web"}, {"pool": "web"}]
    if rule_limit is not None:
        routes[0]["limit"] = rule_limit
    listener = {"name": "web", "protocol": "http", "bind": ["127.0.0.1:0"], "routes": routes, **more}
    if limit is not None:
        listener["limit"] = limit
    return {"listeners": [listener], "pools": {"web": {"servers": [{"name": "web1", "address": "127.0.0.1:1"}]}}}


async def statuses(node: Node, count: int, path: str = "/", **more: Any) -> list[int]:
    return [(await node.get(path, **more)).status for _ in range(count)]


async def test_over_the_limit_is_429_with_retry_after() -> None:
    async with Node(configuration({"key": "source", "rate": "6/m", "burst": 2})) as node:
        assert await statuses(node, 2) == [200, 200]
        answer = await node.get("/")
        assert answer.status == 429
        assert answer.headers.get("retry-after") == "10"
        assert "rate limit" in answer.text
        record = await node.record(2)
        assert (record.status, record.ended, record.server) == (429, "rate-limited@queue", "")
        assert await statuses(node, 1, source="127.0.0.7") == [200]


async def test_a_connection_goes_on_behind_a_429() -> None:
    async with Node(configuration({"key": "listener", "rate": "6/h", "burst": 1})) as node, node.browser() as browser:
        assert [(await browser.get("/")).status for _ in range(3)] == [200, 429, 429]
        assert node.runtime.connections == 1


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [
        ({"header": "x-key"}, {"headers": {"X-Key": "a"}}, {"headers": {"X-Key": "b"}}),
        ({"cookie": "id"}, {"headers": {"Cookie": "id=a"}}, {"headers": {"Cookie": "id=b"}}),
        ("host", {"headers": {"Host": "a.example"}}, {"headers": {"Host": "b.example"}}),
        ("path", {"path": "/a"}, {"path": "/b"}),
        ({"query": "q"}, {"path": "/?q=a"}, {"path": "/?q=b"}),
        ("url", {"path": "/a?q=a"}, {"path": "/a?q=b"}),
        ("source", {"source": "127.0.0.5"}, {"source": "127.0.0.6"}),
    ],
)
async def test_any_fact_is_a_key(key: object, one: dict[str, Any], other: dict[str, Any]) -> None:
    async with Node(configuration({"key": key, "rate": "1/h", "burst": 1})) as node:
        assert await statuses(node, 2, **one) == [200, 429]
        assert await statuses(node, 2, **other) == [200, 429]


async def test_who_does_not_have_the_fact_is_not_limited() -> None:
    async with Node(configuration({"key": {"header": "x-key"}, "rate": "1/h", "burst": 1})) as node:
        assert await statuses(node, 3) == [200, 200, 200]


async def test_neighbours_share_a_prefix() -> None:
    async with Node(configuration({"key": "source", "rate": "1/h", "burst": 1, "prefix4": 24})) as node:
        assert await statuses(node, 1, source="127.0.0.5") == [200]
        assert await statuses(node, 1, source="127.0.0.6") == [429]
        assert await statuses(node, 1, source="127.0.1.6") == [200]


async def test_of_several_limits_all_must_agree_and_a_refusal_costs_nothing() -> None:
    limits = [{"key": "source", "rate": "1/h", "burst": 2}, {"key": "listener", "rate": "1/h", "burst": 3}]
    async with Node(configuration(limits)) as node:
        assert await statuses(node, 4, source="127.0.0.5") == [200, 200, 429, 429]
        assert await statuses(node, 2, source="127.0.0.6") == [200, 429]


async def test_a_rule_has_limits_of_its_own() -> None:
    async with Node(configuration(rule_limit={"key": "source", "rate": "1/h", "burst": 1})) as node:
        assert await statuses(node, 2, "/api/x") == [200, 429]
        assert await statuses(node, 3, "/") == [200, 200, 200]
        assert (await node.record(1)).route == 1


async def test_refusals_are_counted_by_limit_and_told_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    async with Node(configuration({"key": "source", "rate": "1/h", "burst": 1, "name": "slow"})) as node:
        await statuses(node, 5)
        limit = node.snapshot.listeners[0].limits[0]
        assert limit.name == "web/slow"
        assert node.counts.total(limit.slot, columns.REFUSED) == 4
        lines = [record.getMessage() for record in caplog.records if "over the limit" in record.getMessage()]
        assert lines == ["listener web: 127.0.0.1 is over the limit web/slow"]


async def test_a_reload_keeps_what_is_owed_and_a_changed_rate_counts_at_once() -> None:
    limit = {"key": "source", "rate": "1/h", "burst": 3}
    async with Node(configuration(limit)) as node:
        assert await statuses(node, 4) == [200, 200, 200, 429]
        await node.reload(configuration(limit, forwarded={"trust": ["192.0.2.1"]}))
        assert await statuses(node, 1) == [429]
        await node.reload(configuration({**limit, "burst": 5}))
        assert await statuses(node, 3) == [200, 200, 429]
        await node.reload(configuration({**limit, "burst": 5, "rate": "1000/s"}))
        await asyncio.sleep(0.01)
        assert await statuses(node, 1) == [200]
        await node.reload(configuration())
        assert await statuses(node, 9) == [200] * 9


async def test_connections_over_the_limit_are_closed() -> None:
    limit = {"key": "source", "rate": "1/h", "burst": 2, "of": "connections"}
    async with Node(configuration(limit)) as node, node.browser() as browser:
        assert [(await browser.get("/")).status for _ in range(5)] == [200] * 5
        assert await statuses(node, 1) == [200]
        with pytest.raises((Unexpected, OSError)):
            await node.get("/")
        assert await statuses(node, 1, source="127.0.0.9") == [200]
        assert node.counts.total(node.snapshot.listeners[0].limits[0].slot, columns.REFUSED) == 1


async def test_behind_a_proxy_connections_are_counted_by_the_address_that_it_told() -> None:
    limit = {"key": "source", "rate": "1/h", "burst": 1, "of": "connections"}
    async with Node(configuration(limit, proxy_protocol={"from": ["127.0.0.0/8"]})) as node:
        answers = []
        for source in (b"192.0.2.7", b"192.0.2.7", b"192.0.2.8"):
            async with await node.connect() as wire:
                header = b"PROXY TCP4 " + source + b" 192.0.2.1 1000 80\r\n"
                await wire.send(header + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                try:
                    await wire.until(b"HTTP/1.1 200")
                    answers.append(200)
                except (Unexpected, OSError):
                    answers.append(0)
        assert answers == [200, 0, 200]


# --- a protocol whose sessions log in ---------------------------------------------------------------------------------


class Login(Session):
    """Each line is a login of that name; what is refused is said in the protocol's own words."""

    def __init__(self, peer: Peer, now: float) -> None:
        super().__init__()
        self.peer = peer

    def start(self, now: float) -> list[Action]:
        return [ToClient(b"hello\n")]

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        facts = Facts("login", "mail", self.peer.client)
        facts.host = data.strip()
        return [NeedServer(facts)]

    def failed(self, failure: Failure, choice: Choice | None, now: float) -> list[Action]:
        return [ToClient(f"-ERR {failure.label}\n".encode())]

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        return [Close()]

    def describe(self) -> dict[str, str]:
        return {}


async def test_logins_are_limited_in_the_protocol_s_own_words() -> None:
    limit = Limit(name="mail/logins-source", of="logins", key=FactName("source"), rate=0.01, burst=2.0)
    route = Route(number=1, where="", match=None, action=ToPool("none"))
    listener = Listener(
        name="mail", protocol="login", bind=(Address("127.0.0.1", 0),), routes=(route,), limits=(limit,)
    )
    snapshot = Snapshot(node="test", version=0, listeners=(listener,), pools=())
    spec = ProtocolSpec(name="login", sessions=lambda _: Login, probe="")
    async with Node(snapshot, protocols={"login": spec}) as node, await node.connect() as wire:
        await wire.expect(b"hello\n")
        for answer in (b"no-server", b"no-server", b"rate-limited", b"rate-limited"):
            await wire.send(b"anna\n")
            await wire.expect(b"-ERR " + answer + b"\n")
