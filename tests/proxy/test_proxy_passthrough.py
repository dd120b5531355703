"""TLS passed through over real sockets: alerts, slow and endless hellos, what servers are told, what is counted."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent / "protocols" / "tls"))

from tls_samples import TLS12, TLS13, alpn, message, real, records, sni, versions

from l7lb.protocols.tls.alerts import alert
from l7lb.proxy import counts as columns
from l7lb.testing import Node, Wire

pytestmark = pytest.mark.asyncio

HELLO = records(message([sni(b"bank.example.com"), alpn(b"h2"), versions(TLS13, TLS12)]))


def config(listener: dict[str, Any] | None = None, server: dict[str, Any] | None = None) -> dict[str, Any]:
    """A listener with a rule by name and one by protocol."""
    routes = [{"match": {"sni": "bank.example.com"}, "pool": "bank"}, {"match": {"alpn": "imap"}, "pool": "bank"}]
    one = {"name": "bank1", "address": "127.0.0.1:1"} | (server or {})
    return {
        "listeners": [
            {"name": "in", "protocol": "tls-passthrough", "bind": ["127.0.0.1:0"], "routes": routes} | (listener or {})
        ],
        "pools": {"bank": {"servers": [one]}},
    }


async def ask(node: Node, data: bytes) -> bytes:
    """What a client gets that sends this, until the end."""
    async with await node.connect() as wire:
        await wire.send(data)
        return await wire.rest()


async def test_the_hello_arrives_as_it_came() -> None:
    async with Node(config()) as node:
        await node.by_hand(None, None)
        for hello in (HELLO, records(message([sni(b"bank.example.com")]), [1, 2, 3]), real("bank.example.com")):
            async with await node.connect() as client:
                await client.send(hello[:9])
                await client.send(hello[9:])
                server = await node.accept_any()
                await server.expect(hello)
                await server.send(b"whatever")
                await client.expect(b"whatever")
                server.close()
                await client.sees_end()
        record = await node.record(2)
        assert (record.protocol, record.sni, record.route) == ("tls-passthrough", "bank.example.com", 1)
        assert record.received > 100
        assert node.records[0].alpn == "h2"


async def test_by_any_of_the_protocols_offered() -> None:
    async with Node(config()) as node:
        await node.by_hand(None, None)
        async with await node.connect() as client:
            await client.send(records(message([alpn(b"h2", b"imap")])))
            (await node.accept_any()).close()
        assert (await node.record()).route == 2


async def test_words_for_a_client_without_a_server() -> None:
    async with Node(config()) as node:
        assert await ask(node, records(message([sni(b"other.example.com")]))) == alert(112)
        assert (await node.record()).ended == "no-route@queue"
        node.down("bank1")
        assert await ask(node, HELLO) == alert(80)
        assert (await node.record(1)).ended == "no-server@queue"
        node.up("bank1")
        node.server("bank1").refuse()
        assert await ask(node, HELLO) == alert(80)
        assert (await node.record(2)).ended == "connect-refused@connect"


async def test_what_is_refused_is_counted_and_told_of_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "l7lb.opening"):
        async with Node(config()) as node:
            for _ in range(20):
                assert await ask(node, b"\x00garbage") == b""
            assert (await ask(node, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
            assert await ask(node, records(message([(21, b"x" * 65_400)]), [16384] * 4)) == alert(40)
            assert await ask(node, b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + bytes(40)) == alert(70)
            row = node.runtime.listeners["in"].row

            def counted(reason: str) -> int:
                return int(node.counts.cells[row + columns.opening_failure("tls", reason)])

            assert (counted("malformed"), counted("refused"), counted("unsupported")) == (21, 1, 1)
            assert {record.ended for record in node.records} == {
                "client-protocol@client-hello",
                "client-limit@client-hello",
            }
    assert 1 <= len([line for line in caplog.messages if "listener in refused" in line]) <= 3


async def test_a_hello_that_never_ends() -> None:
    async with Node(config({"timeouts": {"handshake": "200ms"}})) as node:

        async def drip(wire: Wire) -> None:
            for byte in HELLO:
                await wire.send(bytes([byte]))
                await asyncio.sleep(0.02)

        async with await node.connect() as wire:
            dripping = asyncio.ensure_future(drip(wire))
            assert await wire.rest() == b""
            dripping.cancel()
        assert (await node.record()).ended == "client-timeout@client-hello"
        async with await node.connect() as silent:
            assert await silent.rest() == b""


async def test_a_server_is_told_the_name() -> None:
    async with Node(config(server={"send_proxy": "v2"})) as node:
        await node.by_hand(None, None)
        async with await node.connect() as client:
            await client.send(HELLO)
            server = await node.accept_any()
            head = await server.exactly(16)
            rest = await server.exactly(int.from_bytes(head[14:16], "big"))
            assert b"\x02\x00\x10bank.example.com" in rest
            await server.expect(HELLO)


async def test_a_client_that_connects_and_leaves_leaves_no_record() -> None:
    async with Node(config()) as node:
        async with await node.connect():
            await node.until(lambda: node.runtime.connections)
        await node.until(lambda: not node.runtime.connections)
        assert node.records == []
