"""Clients and servers that are slow, silent or rude: each meets its own limit of time, and the others do not notice.

The node runs inside the test; the times are short so that the test is.
"""

from __future__ import annotations

import asyncio
import time

import pytest
import pytest_asyncio

from l7lb.proxy import counts as columns
from l7lb.testing import Answer, Node, Wire
from l7lb.testing.http import encode_request, read_response

CONFIG = """
listeners:
  - name: web
    protocol: http
    bind: ["127.0.0.1:80"]
    timeouts: {request_header: 300ms, request_body: 300ms, keep_alive: 300ms, tunnel: 300ms}
    limits: {body_bytes: 1GiB}
    routes:
      - pool: web
pools:
  web:
    retries: {attempts: 1, when: [connect-failure, reset-before-response]}
    timeouts: {connect: 300ms, queue: 300ms, response_header: 300ms, response_body: 300ms, idle: 1s}
    servers: [{name: web1, address: "127.0.0.1:1"}]
"""


@pytest_asyncio.fixture
async def node():
    async with Node(CONFIG, patience=5.0) as node:
        yield node
        # Whatever happened, the next one is served.
        node.server("web1").listen()
        node.server("web1").answer = Answer(body=b"fine")
        assert (await node.get("/")).body == b"fine"


async def elapsed(what) -> float:
    began = time.monotonic()
    await what
    return time.monotonic() - began


@pytest.mark.asyncio
async def test_a_header_that_comes_too_slowly(node: Node) -> None:
    async with await node.connect() as wire:

        async def drip() -> None:
            for byte in b"GET / HTTP/1.1\r\nHost: a\r\nX-Endless: " + b"a" * 1000:
                await wire.send(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.ensure_future(drip())
        response = await read_response(wire)
        assert response.status == 408
        await wire.sees_closed()
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
    assert (await node.record()).ended == "client-timeout@request-header"


@pytest.mark.asyncio
async def test_a_header_byte_by_byte_in_time(node: Node) -> None:
    async with await node.connect() as wire:
        await wire.send(encode_request("POST", "/", [("Host", "a")], b"hello"), cut=1)
        assert (await read_response(wire)).status == 200
    assert node.server("web1").requests[-1].body == b"hello"


@pytest.mark.asyncio
async def test_a_client_that_says_nothing(node: Node) -> None:
    async with await node.connect() as wire:
        assert 0.2 < await elapsed(wire.sees_closed()) < 3
    # An idle connection after a request ends at the keep-alive time, without an answer.
    async with await node.connect() as wire:
        await wire.send_lines("GET / HTTP/1.1", "Host: a", "")
        await read_response(wire)
        assert 0.2 < await elapsed(wire.sees_end()) < 3


@pytest.mark.asyncio
async def test_a_body_that_stops(node: Node) -> None:
    async with await node.connect() as wire:
        await wire.send_lines("POST / HTTP/1.1", "Host: a", "Content-Length: 10", "")
        await wire.send(b"hello")
        response = await read_response(wire)
        assert response.status == 408
        await wire.sees_closed()
    record = await node.record()
    assert record.ended == "client-timeout@request-body"


@pytest.mark.asyncio
async def test_a_body_byte_by_byte_has_all_the_time_it_needs(node: Node) -> None:
    """The limit is between two reads, not for the whole."""
    async with await node.connect() as wire:
        await wire.send_lines("POST / HTTP/1.1", "Host: a", "Content-Length: 8", "")
        for _ in range(8):
            await asyncio.sleep(0.08)
            await wire.send(b"x")
        assert (await read_response(wire)).status == 200


@pytest.mark.asyncio
async def test_a_client_that_never_reads(node: Node) -> None:
    size = 64 * 1024 * 1024
    node.server("web1").answer = Answer(body=b"z" * size)
    wire = await Wire.connect(node.address(), receive_buffer=4096)
    await wire.send_lines("GET / HTTP/1.1", "Host: a", "")
    await node.until(lambda: node.records)
    record = node.records[-1]
    assert record.ended == "client-timeout@response-body"
    assert record.sent < size / 2
    await wire.sees_closed()
    wire.close()


@pytest.mark.asyncio
async def test_a_client_that_goes_away(node: Node) -> None:
    await node.by_hand({"web1"}, None)
    async with await node.connect() as wire:
        await wire.send_lines("GET / HTTP/1.1", "Host: a", "")
        upstream = await node.server("web1").accept()
        await upstream.until(b"\r\n\r\n")
        wire.reset()
        await upstream.sees_closed()
    assert (await node.record()).ended == "client-closed@response-header"
    await node.by_hand(set(), None)


@pytest.mark.asyncio
async def test_a_server_that_accepts_and_hangs(node: Node) -> None:
    node.server("web1").hang()
    async with await node.connect() as wire:
        await wire.send_lines("GET / HTTP/1.1", "Host: a", "")
        began = time.monotonic()
        assert (await read_response(wire)).status == 504
        assert 0.2 < time.monotonic() - began < 3
    record = await node.record()
    assert (record.status, record.ended) == (504, "server-timeout@response-header")
    node.server("web1").refuse()


@pytest.mark.asyncio
@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_server_that_stops_inside_its_answer(node: Node, framing: str) -> None:
    await node.by_hand({"web1"}, None)
    async with await node.connect() as wire:
        await wire.send_lines("GET / HTTP/1.1", "Host: a", "")
        upstream = await node.server("web1").accept()
        await upstream.until(b"\r\n\r\n")
        await upstream.send_lines("HTTP/1.1 200 OK", framing, "", "5", "hello")
        await wire.until(b"hello")
        await wire.sees_closed()  # the answer is cut off so that it can't pass for a whole one
        await upstream.sees_closed()
    record = await node.record()
    assert record.ended == "server-stalled@response-body"
    await node.by_hand(set(), None)


@pytest.mark.asyncio
async def test_a_server_that_dies_inside_its_answer(node: Node) -> None:
    await node.by_hand({"web1"}, None)
    async with await node.connect() as wire:
        await wire.send_lines("GET / HTTP/1.1", "Host: a", "")
        upstream = await node.server("web1").accept()
        await upstream.until(b"\r\n\r\n")
        await upstream.send_lines("HTTP/1.1 200 OK", "Content-Length: 100", "", "hello")
        await wire.until(b"hello")
        upstream.reset()
        await wire.sees_closed()
    assert (await node.record()).ended == "server-closed-inside@response-body"
    await node.by_hand(set(), None)


def counted(node: Node, column: int) -> list[int]:
    """A count of each of the pool's servers."""
    return [node.counts.total(server.slot, column) for server in node.snapshot.pools[0].servers]


@pytest.mark.asyncio
async def test_a_server_that_refuses_where_there_is_no_other(node: Node) -> None:
    """It is not asked again: nothing has changed since."""
    node.server("web1").refuse()
    answer = await node.get("/")
    assert answer.status == 503
    assert answer.body == b"503 Service Unavailable: the server refused the connection\n"
    assert (await node.record()).ended == "connect-refused@connect"
    assert counted(node, columns.CONNECT_ERRORS) == [1]
    assert counted(node, columns.RETRIES) == [0]


@pytest.mark.asyncio
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_server_that_refuses_where_there_is_another(method: str) -> None:
    """Nothing was sent, so that any request may go to the other; beyond the attempts it is an error."""
    names = ["web1", "web2", "web3"]
    servers = ", ".join(f"{{name: {name}, address: '127.0.0.1:{number}'}}" for number, name in enumerate(names, 1))
    config = CONFIG.replace(
        'servers: [{name: web1, address: "127.0.0.1:1"}]', f"balance: first\n    servers: [{servers}]"
    )
    async with Node(config) as node:
        node.server("web1").refuse()
        answer = await node.request(method, "/", body=b"hello")
        assert (answer.status, answer.server) == (200, "web2")
        assert node.server("web2").requests[-1].body == b"hello"
        record = await node.record()
        assert (record.status, record.server, record.retries, record.ended) == (200, "web2", 1, "ok")
        assert counted(node, columns.RETRIES) == [1, 0, 0]
        node.server("web2").die()
        await node.until(lambda: not node.runtime.dispatcher.pools["web"].state.by_name["web2"].idle)
        assert (await node.request(method, "/", body=b"hello")).status == 503  # one attempt more, and no third
        assert counted(node, columns.CONNECT_ERRORS) == [2, 1, 0]
        assert counted(node, columns.RETRIES) == [2, 0, 0]


@pytest.mark.asyncio
async def test_an_answer_before_the_end_of_the_request(node: Node) -> None:
    """The server does not want the rest: the client gets the answer and not a reset."""
    await node.by_hand({"web1"}, None)
    async with await node.connect() as wire:
        await wire.send_lines("POST / HTTP/1.1", "Host: a", "Content-Length: 10000000", "")
        await wire.send(b"x" * 1000)
        upstream = await node.server("web1").accept()
        await upstream.until(b"\r\n\r\n")
        await upstream.send_lines("HTTP/1.1 413 Content Too Large", "Content-Length: 2", "Connection: close", "")
        await upstream.send(b"no")
        response = await read_response(wire)
        assert (response.status, response.body) == (413, b"no")
        await wire.sees_closed()
    await node.by_hand(set(), None)


@pytest.mark.asyncio
async def test_a_half_closed_client_gets_its_answer(node: Node) -> None:
    async with await node.connect() as wire:
        await wire.send_lines("GET / HTTP/1.1", "Host: a", "")
        wire.half_close()
        assert (await read_response(wire)).status == 200
        await wire.sees_end()


@pytest.mark.asyncio
async def test_a_silent_tunnel_ends(node: Node) -> None:
    await node.by_hand({"web1"}, None)
    async with await node.connect() as wire:
        await wire.send_lines("GET / HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket", "")
        upstream = await node.server("web1").accept()
        await upstream.until(b"\r\n\r\n")
        await upstream.send_lines("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket", "")
        assert (await read_response(wire)).status == 101
        await wire.send(b"ping")
        await upstream.expect(b"ping")
        await upstream.send(b"pong")
        await wire.expect(b"pong")
        assert await elapsed(wire.sees_closed()) < 3
        await upstream.sees_closed()
    await node.by_hand(set(), None)


@pytest.mark.asyncio
async def test_many_slow_clients_beside_quick_ones(node: Node) -> None:
    slow = [await node.connect() for _ in range(200)]
    for wire in slow:
        await wire.send(b"GET / HT")
    answers = await asyncio.gather(*(node.get("/") for _ in range(50)))
    assert {answer.status for answer in answers} == {200}
    for wire in slow:
        assert (await read_response(wire)).status == 408
        wire.close()
