"""Streams of HTTP/2 connections inside a node: servers, limits and back-pressure are each stream's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from h2_client import Http2Client
from proxy_scene import config, connections, limited, quiet, states

from l7lb.testing import Node
from l7lb.testing.http import Answer

Run = Callable[[Coroutine[Any, Any, None]], None]
BIG = 3_000_000


def test_many_streams_over_one_connection(run: Run) -> None:
    async def main() -> None:
        async with Node(config()) as node:
            client = await Http2Client.connect(node)
            numbers = [await client.request(f"/{index}") for index in range(100)]
            await client.until(*numbers)
            assert [client.statuses[number] for number in numbers] == [200] * 100
            assert {record.version for record in node.records} == {"2"}
            assert len(node.records) == 100
            assert len(connections(node)) == 1
            assert connections(node)[0].streams == {}
            assert 1 <= len(states(node)["web1"].idle) <= 64
            client.close()
            await quiet(node)

    run(main())


def test_rules_answers_and_sticky_cookies(run: Run) -> None:
    async def main() -> None:
        async with Node(config(persistence=[{"cookie": {"name": "SRV"}}], balance="round-robin")) as node:
            client = await Http2Client.connect(node)
            assert await client.get("/here") == 200
            first = await client.request("/")
            await client.until(first)
            cookie = client.headers[first]["set-cookie"].partition(";")[0]
            for _ in range(4):
                assert await client.get("/", headers=(("cookie", "a=b"), ("cookie", cookie))) == 200
            assert len({record.server for record in node.records if record.server}) == 1
            assert [record.sticky for record in node.records][-1] == "cookie"
            client.close()
            await quiet(node)

    run(main())


def test_a_connection_limit_and_its_queue_count_streams(run: Run) -> None:
    async def main() -> None:
        async with Node(limited(1)) as node:
            await node.by_hand({"web/web1"}, None)
            client = await Http2Client.connect(node)
            numbers = [await client.request() for _ in range(3)]
            wire = await node.accept_any()
            for _ in numbers:
                await wire.until(b"\r\n\r\n")
                assert states(node)["web1"].active == 1
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await client.until(*numbers)
            assert list(client.statuses.values()) == [200] * 3
            client.close()
            await quiet(node)

    run(main())


def test_a_failed_server_is_replaced(run: Run) -> None:
    async def main() -> None:
        async with Node(config(retries={"attempts": 1, "when": ["connect-failure"]})) as node:
            node.server("web1").refuse()
            client = await Http2Client.connect(node)
            assert await client.get() == 200
            assert node.records[-1].server == "web2"
            assert node.records[-1].retries == 1
            node.server("web2").refuse()
            client.close()
            await quiet(node)

    run(main())


def test_a_reset_stream_gives_its_server_back(run: Run) -> None:
    async def main() -> None:
        async with Node(config()) as node:
            await node.by_hand({"web/web1"}, None)
            client = await Http2Client.connect(node)
            number = await client.request()
            wire = await node.accept_any()
            await wire.until(b"\r\n\r\n")
            client.h2.reset_stream(number, 8)
            await client.flush()
            assert await wire.read() == b""
            assert await client.get("/here") == 200
            assert [record.ended for record in node.records] == ["client-closed@response-header", "ok"]
            client.close()
            await quiet(node)

    run(main())


def test_a_client_that_reads_nothing_holds_its_servers_and_little_memory(run: Run) -> None:
    async def main() -> None:
        async with Node(config()) as node:
            for server in ("web1", "web2"):
                node.server(server).answer = Answer(body=b"x" * BIG)
            client = await Http2Client.connect(node)
            client.gives_window = False
            numbers = [await client.request() for _ in range(4)]
            while sum(len(body) for body in client.bodies.values()) < 65535:
                await client.step()
            inside = connections(node)[0]
            await node.until(
                lambda: (
                    len(inside.streams or ()) == 4
                    and all(
                        stream.upstream is not None and not stream.upstream.reading
                        for stream in inside.streams.values()
                    )
                )
            )
            assert all(stream.flow.waiting < 400_000 for stream in inside.streams.values())
            # A stream beside them goes on as soon as the connection's window allows.
            client.gives_window = True
            for number in numbers:
                client.h2.increment_flow_control_window(BIG, number)
            client.h2.increment_flow_control_window(4 * BIG)
            await client.flush()
            await client.until(*numbers)
            assert [len(client.bodies[number]) for number in numbers] == [BIG] * 4
            client.close()
            await quiet(node)

    run(main())


def test_a_server_that_reads_nothing_stops_its_stream_only(run: Run) -> None:
    async def main() -> None:
        async with Node(config()) as node:
            await node.by_hand({"web/web1"}, None)
            client = await Http2Client.connect(node)
            number = await client.request(method="POST", end=False)
            wire = await node.accept_any()
            sent = 0
            idle = 0
            while idle < 20:
                size = min(client.h2.local_flow_control_window(number), 16384)
                if size:
                    client.h2.send_data(number, b"x" * size)
                    await client.flush()
                    sent += size
                    idle = 0
                else:
                    idle += 1
                    # The answer to a ping shows that what was sent is dealt with.
                    client.h2.ping(b"12345678")
                    await client.flush()
                    await client.step()
            assert 65536 < sent < 20_000_000
            assert await client.get("/here") == 200
            received = 0
            client.h2.end_stream(number)
            reader = asyncio.create_task(client.until(number))
            await client.flush()
            while received < sent:
                received += len(await wire.read())
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await reader
            assert client.statuses[number] == 200
            client.close()
            await quiet(node)

    run(main())


def test_draining_tells_the_client_and_waits_for_its_streams(run: Run) -> None:
    async def main() -> None:
        async with Node(config()) as node:
            await node.by_hand({"web/web1"}, None)
            client = await Http2Client.connect(node)
            number = await client.request()
            wire = await node.accept_any()
            await wire.until(b"\r\n\r\n")
            node.runtime.drain()
            while client.goaway is None:
                await client.step()
            assert client.goaway == 0
            assert not node.runtime.drained.is_set()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            data = b""
            while more := await client.wire.read():
                data += more
            assert data.endswith(b"ok")
            assert number == 1
            await node.until(node.runtime.drained.is_set)
            client.close()

    run(main())


def test_a_request_that_goes_on_after_its_answer(run: Run) -> None:
    async def main() -> None:
        async with Node(config()) as node:
            client = await Http2Client.connect(node)
            number = await client.request("/here", method="POST", end=False)
            await client.until(number)
            assert (client.statuses[number], len(client.bodies[number])) == (200, 1000)
            while number not in client.resets:
                await client.step()
            assert client.resets[number] == 0
            assert await client.get("/here") == 200
            client.close()
            await quiet(node)

    run(main())


def test_sessions_show_streams(run: Run) -> None:
    async def main() -> None:
        async with Node(config()) as node:
            await node.by_hand({"web/web1"}, None)
            client = await Http2Client.connect(node)
            await client.request("/long")
            await client.request("/longer")
            await node.accept_any()
            await node.until(lambda: all("queue" not in row.detail for row in node.runtime.sessions(10)))
            assert [row.detail for row in node.runtime.sessions(10)] == [
                "GET a/long (response-header)",
                "GET a/longer (response-header)",
            ]
            client.close()
            await quiet(node)

    run(main())


def test_http1_and_other_prefaces(run: Run) -> None:
    async def main() -> None:
        async with Node(config({"http2": {"prior_knowledge": False}})) as node:
            wire = await node.connect()
            await wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert (await wire.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 505 ")
            wire.close()
        async with Node(config()) as node:
            wire = await node.connect()
            await wire.send(b"GET /here HTTP/1.1\r\nHost: a\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            await wire.until(b"HTTP/1.1 505 ")
            wire.close()

    run(main())
