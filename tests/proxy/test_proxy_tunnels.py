"""TCP and TLS passed through over real sockets: halves, resets, queues, servers that refuse, drains, records."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from l7lb.testing import Node, Wire

pytestmark = pytest.mark.asyncio

CLIENTS: list[Wire] = []


def config(protocol: str = "tcp", listener: dict[str, Any] | None = None, **pool: Any) -> dict[str, Any]:
    """One listener and one pool of two servers."""
    return {
        "listeners": [
            {"name": "in", "protocol": protocol, "bind": ["127.0.0.1:0"], "routes": [{"pool": "bank"}]}
            | (listener or {})
        ],
        "pools": {
            "bank": {
                "balance": "first",
                "servers": [{"name": "bank1", "address": "127.0.0.1:1"}, {"name": "bank2", "address": "127.0.0.1:2"}],
            }
            | pool
        },
    }


@pytest.fixture(autouse=True)
def clients() -> Iterator[list[Wire]]:
    """The clients' connections, closed in the end."""
    CLIENTS.clear()
    yield CLIENTS
    for wire in CLIENTS:
        wire.close()


async def connect(node: Node, listener: str = "in", **how: Any) -> Wire:
    """A client's connection."""
    CLIENTS.append(await node.connect(listener, **how))
    return CLIENTS[-1]


async def refused(node: Node, **how: Any) -> None:
    """A client that is reset, which it may learn of before it knows that it is connected."""
    try:
        client = await connect(node, **how)
    except ConnectionResetError:
        return
    await client.sees_reset()


async def joined(node: Node) -> tuple[Wire, Wire]:
    """A client and its server."""
    await node.by_hand(None, None)
    client = await connect(node)
    return client, await node.accept_any()


async def test_both_ways_and_the_record() -> None:
    async with Node(config()) as node:
        client, server = await joined(node)
        await server.send(b"220 hello\r\n")  # the server may speak first
        await client.expect(b"220 hello\r\n")
        await client.send(b"QUIT\r\n")
        await server.expect(b"QUIT\r\n")
        server.close()
        await client.sees_end()
        client.close()
        record = await node.record()
        assert (record.protocol, record.pool, record.server) == ("tcp", "bank", "bank1")
        assert (record.received, record.sent, record.ended, record.closed_by) == (6, 11, "ok", "server")


async def test_half_a_connection_goes_on() -> None:
    async with Node(config()) as node:
        client, server = await joined(node)
        await client.send(b"all that I say")
        client.half_close()
        await server.expect(b"all that I say")
        await server.sees_end()
        await server.send(b"the answer")
        server.close()
        await client.expect(b"the answer")
        await client.sees_end()
        assert (await node.record()).closed_by == "client"


async def test_a_client_that_has_said_all_before_its_server_is_there() -> None:
    async with Node(config(servers=[{"name": "bank1", "address": "127.0.0.1:1", "max_connections": 1}])) as node:
        first, server = await joined(node)
        second = await connect(node)
        await second.send(b"early")
        second.half_close()
        await node.until(lambda: node.runtime.dispatcher.places.waiting)
        first.close()
        server.close()
        server = await node.accept_any()
        await server.expect(b"early")
        await server.sees_end()
        await server.send(b"late")
        server.close()
        await second.expect(b"late")
        await second.sees_end()
        assert (await node.record(1)).received == 5


async def test_resets_are_passed_on() -> None:
    async with Node(config()) as node:
        client, server = await joined(node)
        await server.send(b"x")
        await client.expect(b"x")
        server.reset()
        await client.sees_reset()
        assert (await node.record()).ended == "server-closed-inside@tunnel"
        client = await connect(node)
        server = await node.accept_any()
        await client.send(b"x")
        await server.expect(b"x")
        client.reset()
        await server.sees_reset()
        assert (await node.record(1)).ended == "client-closed@tunnel"


async def test_a_server_that_refuses_costs_a_try() -> None:
    async with Node(config()) as node:
        node.server("bank1").refuse()
        _, server = await joined(node)
        assert server.name.startswith("bank/bank2")
        node.server("bank2").refuse()
        await refused(node)
        record = await node.record()
        assert (record.ended, record.pool) == ("connect-refused@connect", "bank")


async def test_no_second_server_once_bytes_have_gone() -> None:
    async with Node(config(outliers={"consecutive_errors": 1})) as node:
        client, server = await joined(node)
        await client.send(b"pay 100")
        await server.expect(b"pay 100")
        server.reset()
        await client.sees_reset()
        assert (await node.record()).ended == "server-closed@tunnel"
        assert not any(one.waiting for one in node.servers.values())
        assert node.results[-1].failure == "server-closed"


async def test_a_place_and_the_queue() -> None:
    limited = [{"name": "bank1", "address": "127.0.0.1:1", "max_connections": 1}]
    async with Node(config(servers=limited, queue=1, timeouts={"queue": "200ms"})) as node:
        await joined(node)
        waiting = await connect(node)
        await node.until(lambda: node.runtime.dispatcher.places.waiting)
        await refused(node)
        assert (await node.record()).ended == "queue-full@queue"
        await waiting.sees_reset()
        assert (await node.record(1)).ended == "queue-timeout@queue"


async def test_one_that_leaves_the_queue_takes_no_place() -> None:
    async with Node(config(servers=[{"name": "bank1", "address": "127.0.0.1:1", "max_connections": 1}])) as node:
        await joined(node)
        waiting = await connect(node)
        await node.until(lambda: node.runtime.dispatcher.places.waiting)
        waiting.reset()
        await node.until(lambda: not node.runtime.dispatcher.places.waiting)
        assert (await node.record()).ended == "client-closed@queue"


async def test_silence_ends_a_session() -> None:
    async with Node(config(listener={"timeouts": {"tunnel": "200ms"}})) as node:
        client, server = await joined(node)
        await client.sees_reset()
        await server.sees_reset()
        assert (await node.record()).ended == "client-timeout@tunnel"


async def test_silence_in_half_a_session_ends_it_sooner() -> None:
    async with Node(config(listener={"timeouts": {"half_closed": "200ms"}})) as node:
        client, server = await joined(node)
        client.half_close()
        await server.sees_end()
        for _ in range(5):  # as long as bytes come it goes on
            await server.send(b"x")
            await client.expect(b"x")
            await asyncio.sleep(0.08)
        await client.sees_reset()
        record = await node.record()
        assert (record.ended, record.closed_by, record.sent) == ("client-timeout@tunnel", "client", 5)


async def test_a_draining_process_leaves_sessions_alone() -> None:
    async with Node(config()) as node:
        client, server = await joined(node)
        node.runtime.drain()
        await client.send(b"still here")
        await server.expect(b"still here")
        server.close()
        await client.sees_end()
        client.close()
        await asyncio.wait_for(node.runtime.drained.wait(), 5)


async def test_a_pool_that_is_gone_in_a_reload_keeps_its_sessions() -> None:
    async with Node(config()) as node:
        client, server = await joined(node)
        await node.reload(config(servers=[{"name": "bank3", "address": "127.0.0.1:3"}]))
        await client.send(b"as before")
        await server.expect(b"as before")
        assert [row.server for row in node.runtime.sessions(10)] == ["bank1"]
        assert node.runtime.sessions(10)[0].detail == "tunnel"


async def test_bulk_arrives_whole() -> None:
    size = 8_000_000
    async with Node(config()) as node:
        client, server = await joined(node)
        data = bytes(range(256)) * (size // 256)
        await asyncio.gather(server.send(data), client.expect(data))
        await asyncio.gather(client.send(data), server.expect(data))
        client.close()
        server.close()
        record = await node.record()
        assert (record.received, record.sent) == (size, size)


async def test_rules_by_address() -> None:
    listener = {"routes": [{"match": {"source": "127.0.0.2"}, "pool": "bank"}]}
    async with Node(config(listener=listener)) as node:
        await node.by_hand(None, None)
        await connect(node, source="127.0.0.2")
        await node.accept_any()
        await refused(node, source="127.0.0.3")
        assert (await node.record()).ended == "no-route@queue"


async def test_kept_connections_of_http_are_not_taken() -> None:
    both = config()
    both["listeners"].append({"name": "web", "protocol": "http", "bind": ["127.0.0.1:0"], "routes": [{"pool": "bank"}]})
    async with Node(both) as node:
        assert (await node.get("http://a/", listener="web")).status == 200
        state = node.runtime.dispatcher.pools["bank"].state.by_name["bank1"]
        await node.until(lambda: state.idle)
        await connect(node)
        await node.until(lambda: state.active)
        assert len(state.idle) == 1
