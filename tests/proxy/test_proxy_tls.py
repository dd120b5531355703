"""TLS that ends at a listener, in one process: every split, every end, back-pressure, tunnels."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from proxy_scene import GET, connections, quiet
from tls_scene import client_context, dial, tls_config

from l7lb.proxy import counts as columns
from l7lb.testing import Node, Wire

Run = Callable[[Coroutine[Any, Any, None]], None]
BODY = bytes(range(256)) * 4096  # 1 MiB, in which every byte's place shows


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("cut", [0, 1])
def test_request_and_answer(run: Run, tmp_path: Path, version: str, cut: int) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            client = await dial(node, cut=cut, context=client_context(version=version))
            for _ in range(2):
                await client.send(GET)
                head = await client.until(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                await client.read()
            client.close()
            record = await node.record()
            assert record.scheme == "https"
            await quiet(node)

    run(scene())


async def whole(wire: Wire, size: int) -> bytes:
    """So many bytes, gathered without copying what came before again and again."""
    found = bytearray()
    while len(found) < size and (data := await wire.read()):
        found += data
    return bytes(found)


def response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_large_answer_to_a_slow_reader(run: Run, tmp_path: Path, version: str) -> None:
    """The server waits for the client: between them stays what the kernel's buffers and two records hold."""

    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            await node.by_hand({"web1"}, None)
            client = await dial(node, context=client_context(version=version))
            await client.send(GET)
            server = await node.server("web1").accept()
            await server.until(b"\r\n\r\n")
            body = BODY * 24
            loop = asyncio.get_running_loop()
            sending = asyncio.ensure_future(loop.sock_sendall(server.socket, response(body)))
            for _ in range(20):
                await asyncio.sleep(0.02)
            assert not sending.done()
            (connection,) = connections(node)
            assert connection.out is None or len(connection.out) <= 128 * 1024
            head = await client.until(b"\r\n\r\n")
            assert b"200 OK" in head
            assert await whole(client, len(body)) == body
            await sending
            # The connection goes on as before.
            await client.send(GET)
            await server.until(b"\r\n\r\n")
            await server.send(response(b"second"))
            assert (await client.until(b"second")).endswith(b"second")
            client.close()
            await quiet(node)

    run(scene())


@pytest.mark.parametrize("cut", [0, 1000])
def test_a_large_request_with_another_in_its_last_record(run: Run, tmp_path: Path, cut: int) -> None:
    """What stands behind the body is held by OpenSSL, and no event tells of it: it must be found all the same."""

    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            await node.by_hand({"web1"}, None)
            client = await dial(node, cut=cut)
            size = 300_000
            head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
            await client.send(head)
            server = await node.server("web1").accept()
            await server.until(b"\r\n\r\n")
            body = BODY[:size]
            for at in range(0, size - 16_000, 8_000):
                await client.send(body[at : at + 8_000])
            rest = body[(size - 16_000) // 8_000 * 8_000 + (8_000 if (size - 16_000) % 8_000 else 0) :]
            assert len(rest) < 16_384 - len(GET)
            await client.send(rest + GET)
            assert await server.exactly(size) == body
            await server.send(response(b"first"))
            assert (await client.until(b"first")).endswith(b"first")
            second = await server.until(b"\r\n\r\n")
            assert second.startswith(b"GET / HTTP/1.1")
            await server.send(response(b"second"))
            await client.until(b"second")
            client.close()
            await quiet(node)

    run(scene())


def test_a_server_that_reads_slowly(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            await node.by_hand({"web1"}, None)
            client = await dial(node)
            body = BODY * 10
            await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
            server = await node.server("web1").accept()
            await server.until(b"\r\n\r\n")

            async def upload() -> None:
                for at in range(0, len(body), 65_536):
                    await client.send(body[at : at + 65_536])

            sending = asyncio.ensure_future(upload())
            for _ in range(20):
                await asyncio.sleep(0.02)
            assert not sending.done()
            assert await whole(server, len(body)) == body
            await sending
            await server.send(response(b"done"))
            await client.until(b"done")
            client.close()
            await quiet(node)

    run(scene())


def test_the_end_is_told(run: Run, tmp_path: Path) -> None:
    """A body that lasts until the connection closes is only whole with a close_notify behind it."""

    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            await node.by_hand({"web1"}, None)
            for broken in (False, True):
                client = await dial(node)
                await client.send(GET)
                server = await node.server("web1").accept()
                await server.until(b"\r\n\r\n")
                await server.send(b"HTTP/1.1 200 OK\r\n\r\nsome")
                await client.until(b"some")
                if broken:
                    server.reset()
                else:
                    server.close()
                await client.sees_closed()
                assert client.truncated or client._reset if broken else not client.truncated
                client.close()
            await quiet(node)

    run(scene())


def test_an_idle_client_is_told_of_the_end(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        values = tls_config(tmp_path)
        values["listeners"][0]["timeouts"] = {"keep_alive": "100ms"}
        async with Node(values) as node:
            client = await dial(node)
            await client.send(GET)
            await client.until(b"\r\n\r\n")
            await client.sees_closed()
            assert not client.truncated
            client.close()

    run(scene())


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_tunnel(run: Run, tmp_path: Path, who: str) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            await node.by_hand({"web1"}, None)
            client = await dial(node)
            await client.send(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            server = await node.server("web1").accept()
            await server.until(b"\r\n\r\n")
            await server.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            await client.until(b"\r\n\r\n")
            for number in range(20):
                await client.send(b"ping %d" % number)
                await server.expect(b"ping %d" % number)
                await server.send(b"pong %d" % number)
                await client.expect(b"pong %d" % number)
            await client.send(BODY[:100_000])
            assert await server.exactly(100_000) == BODY[:100_000]
            sending = asyncio.ensure_future(server.send(BODY))
            assert await client.exactly(len(BODY)) == BODY
            await sending
            if who == "client":
                await client.close_notify()
                await server.sees_end()
                await server.send(b"last words")
                assert await client.exactly(10) == b"last words"
                server.close()
                await client.sees_closed()
                client.close()
            else:
                server.half_close()
                await client.sees_closed()
                assert not client.truncated
                client.close()
            await quiet(node)

    run(scene())


@pytest.mark.parametrize("end", ["close", "reset", "truncate"])
def test_clients_that_leave_in_the_middle(run: Run, tmp_path: Path, end: str) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            await node.by_hand({"web1"}, None)
            client = await dial(node)
            await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
            server = await node.server("web1").accept()
            await server.until(b"half")
            if end == "close":
                await client.close_notify()
            if end == "reset":
                client.reset()
            else:
                client.close()
            await server.sees_closed()
            assert (await node.record()).ended.startswith("client-closed")
            await quiet(node)

    run(scene())


# --- what is no TLS -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"G", b"OPTIONS * HTTP/1.1\r\n\r\n", b"BREW "])
def test_plain_http(run: Run, tmp_path: Path, first: bytes) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            client = await node.connect()
            await client.send(first)
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b"This port speaks HTTPS" in answer
            client.close()
            await quiet(node)

    run(scene())


@pytest.mark.parametrize("first", [b"\x00" * 100, b"\x80\x2e\x01\x00\x02", b"\x16\x03\x01\xff\xff" + b"x" * 70_000])
def test_garbage(run: Run, tmp_path: Path, first: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            for _ in range(5):
                async with await node.connect() as client:
                    with contextlib.suppress(OSError):  # it may have been refused before all was sent
                        await client.send(first)
                    await client.sees_closed()
            await quiet(node)
            slot = node.snapshot.listeners[0].slot
            assert node.counts.total(slot, columns.opening_failure("tls", "malformed")) == 5

    run(scene())
    assert len([one for one in caplog.records if "refused" in one.getMessage()]) == 1


def test_an_alert_answers_garbage(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path)) as node:
            client = await node.connect()
            await client.send(b"\x00\x01")
            assert await client.rest() == b"\x15\x03\x01\x00\x02\x02\x46"
            client.close()

    run(scene())


def test_a_handshake_that_never_ends(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        values = tls_config(tmp_path)
        values["listeners"][0]["timeouts"] = {"handshake": "200ms"}
        async with Node(values) as node:
            silent = await node.connect()
            half = await node.connect()
            await half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
            await silent.sees_closed()
            await half.sees_closed()
            silent.close()
            half.close()
            slot = node.snapshot.listeners[0].slot
            assert node.counts.total(slot, columns.opening_failure("tls", "timeout")) == 2
            await quiet(node)

    run(scene())


def test_clients_that_refuse_or_lack_something(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        async with Node(tls_config(tmp_path, {"min_version": "1.3"})) as node:
            with pytest.raises(ssl.SSLError):
                await dial(node, context=client_context(version="1.2"))
            with pytest.raises(ssl.SSLCertVerificationError):
                await dial(node, context=client_context("two"))
            slot = node.snapshot.listeners[0].slot
            await node.until(lambda: not node.runtime.connections)
            assert node.counts.total(slot, columns.opening_failure("tls", "unsupported")) == 1
            assert node.counts.total(slot, columns.HANDSHAKES) == 0

    run(scene())
