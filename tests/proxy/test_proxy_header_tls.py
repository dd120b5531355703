"""A PROXY header before TLS: in one segment, in pieces, cut off at each stage, in the clear before TLS to servers."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from proxy_scene import GET, connections, descriptors, quiet
from test_proxy_header import FRONT, LISTED, TCP4, told
from test_proxy_opening import cell, ended, failures
from tls_scene import client_context, tls_config

from l7lb.core.proxy_protocol.writing import write_local
from l7lb.proxy import counts as columns
from l7lb.testing import Node, Wire
from l7lb.testing.tls import TlsWire
from l7lb.testing.wire import Ended


def values(folder: Path, **listener: Any) -> dict[str, Any]:
    conf = tls_config(folder)
    conf["listeners"][0].update({**FRONT, **listener})
    return conf


def scene(run, play, conf: dict[str, Any]) -> None:
    async def perform() -> None:
        async with Node(conf) as node:
            await play(node)
            await quiet(node)
            assert cell(node, columns.OPENING) == 0

    run(perform())


def hello() -> bytes:
    """A client's first flight."""
    outgoing = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="example.com")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


class Headed(Wire):
    """A wire whose first bytes have a header before them, in one segment with them."""

    header = b""

    async def send(self, data: bytes, cut: int = 0) -> None:
        data, self.header = self.header + data, b""
        await super().send(data, cut)


async def dial(node: Node, header: bytes, cut: int = 0) -> TlsWire:
    wire = await Headed.connect(node.address(), source=LISTED)
    wire.header = header
    return await TlsWire.over(wire, client_context(), server_hostname="example.com", cut=cut)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("cut", [0, 1, 7, 16, 44, 45, 46, 100])
def test_header_and_handshake_however_they_come(run, tmp_path: Path, version: str, cut: int) -> None:
    async def play(node: Node) -> None:
        client = await dial(node, told(version), cut)
        await client.send(GET)
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        (connection,) = connections(node)
        assert connection.client == "192.0.2.1:56324"
        # What was seen of the handshake here counts, not what was told of another.
        assert connection.peer.handshake.sni == b"example.com"
        assert connection.peer.front.unique_id == (b"number one" if version == "v2" else b"")
        client.close()
        assert (await node.record()).client == "192.0.2.1"
        assert failures(node) == {}

    scene(run, play, values(tmp_path))


def test_a_stranger_has_tls_without_a_header_and_none_with(run, tmp_path: Path) -> None:
    async def play(node: Node) -> None:
        client = await TlsWire.over(await node.connect(), client_context(), server_hostname="example.com")
        await client.send(GET)
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        client.close()
        for header in (TCP4, told(), write_local()):
            async with await node.connect() as wire:
                await wire.send(header + hello())
                await ended(wire)
        assert failures(node) == {("proxy", "refused"): 3}

    scene(run, play, values(tmp_path))


@pytest.mark.parametrize("reset", [False, True])
def test_clients_that_leave_at_every_stage(run, tmp_path: Path, reset: bool) -> None:
    async def play(node: Node) -> None:
        before = descriptors()
        data = told() + hello()
        left = 0
        for cut in (0, 1, 15, 16, 40, len(told()) - 1, len(told()), len(told()) + 1, len(data) - 1, len(data)):
            for _ in range(3):
                client = await node.connect(source=LISTED)
                await client.send(data[:cut])
                await node.until(lambda: connections(node))
                for _ in range(3):
                    await asyncio.sleep(0)
                if reset:
                    client.reset()
                else:
                    client.close()
                await node.until(lambda: not connections(node))
            left += 3 if cut not in (0, len(told())) else 0
        assert descriptors() == before
        assert sum(failures(node).values()) == left
        assert {reason for _, reason in failures(node)} == {"closed"}
        client = await dial(node, TCP4)
        await client.send(GET)
        await client.until(b"\r\n\r\n")
        client.close()

    scene(run, play, values(tmp_path))


def test_a_balancers_checks_are_no_failures(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def play(node: Node) -> None:
        for header in (b"", write_local()):
            async with await node.connect(source=LISTED) as client:
                await client.send(header)
            await node.until(lambda: not node.runtime.connections)
        assert failures(node) == {}
        assert not [record for record in caplog.records if "refused" in record.getMessage()]

    scene(run, play, values(tmp_path))


def test_all_stages_together_have_one_time_limit(run, tmp_path: Path) -> None:
    async def play(node: Node) -> None:
        began = time.monotonic()
        async with await node.connect(source=LISTED) as client:
            await asyncio.sleep(0.3)
            await client.send(TCP4 + hello()[:50])
            await ended(client)
        assert 0.3 < time.monotonic() - began < 0.75
        assert failures(node) == {("tls", "timeout"): 1}

    scene(run, play, values(tmp_path, timeouts={"handshake": "400ms"}))


def test_the_log_names_the_client_that_was_told(run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def play(node: Node) -> None:
        async with await node.connect(source=LISTED) as client:
            await client.send(TCP4 + b"\0\1\2")
            await ended_after_alert(client)
        assert "192.0.2.1:56324: tls malformed" in caplog.text

    scene(run, play, values(tmp_path))


async def ended_after_alert(client: Wire) -> None:
    try:
        await client.rest()
    except Ended:
        pass


def test_drain_and_reload_between_the_stages(run, tmp_path: Path) -> None:
    async def play(node: Node) -> None:
        client = await Headed.connect(node.address(), source=LISTED)
        await client.send(TCP4)
        await node.until(lambda: connections(node) and connections(node)[0].client.startswith("192.0.2.1"))
        await node.reload(values(tmp_path, path_case="exact"))
        secured = await TlsWire.over(client, client_context(), server_hostname="example.com")
        await secured.send(GET)
        await secured.until(b"\r\n\r\n")
        secured.close()
        half = await node.connect(source=LISTED)
        await half.send(TCP4 + hello()[:100])
        await node.until(lambda: cell(node, columns.OPENING) == 1)
        node.runtime.drain()
        await ended(half)
        half.close()

    scene(run, play, values(tmp_path))
