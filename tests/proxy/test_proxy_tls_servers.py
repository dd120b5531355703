"""TLS to servers: they are verified, sessions go on, ends are told from truncations, failures have a name."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trustme
from proxy_scene import GET, LARGE, config, count, quiet, states
from tls_scene import authority, dial, issued, tls_config, write, write_ca

from l7lb.core.actions import CLIENT, SERVER, Side
from l7lb.proxy import counts as columns
from l7lb.proxy.connection import Connection
from l7lb.testing import Node, Wire
from l7lb.testing.tls import TlsWire

Run = Callable[[Coroutine[Any, Any, None]], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def server_context(certificate: trustme.LeafCert, clients: str = "", version: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if clients:
        authority(clients).configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    if version == "1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def to_servers(folder: Path, listener: dict[str, Any] | None = None, **tls: Any) -> dict[str, Any]:
    section = {"ca": write_ca(folder), "server_name": "web1.example.com", **tls}
    return config(
        listener,
        servers=[
            {"name": "web1", "address": "127.0.0.1:1", "tls": section},
            {"name": "web2", "address": "127.0.0.1:2"},
        ],
        retries={"attempts": 1},
    )


async def accept(node: Node, context: ssl.SSLContext, name: str = "web1", cut: int = 0) -> TlsWire:
    wire = await node.server(name).accept()
    return await TlsWire.over(wire, context, server_side=True, cut=cut)


@pytest.mark.parametrize("version", ["1.2", ""])
@pytest.mark.parametrize("cut", [0, 1])
def test_requests_and_resumption(run: Run, tmp_path: Path, version: str, cut: int) -> None:
    async def scene() -> None:
        async with Node(to_servers(tmp_path), server_tls=True) as node:
            await node.by_hand({"web1"}, None)
            context = server_context(issued("web1.example.com"), version=version)
            client = await node.connect()
            for number in range(2):
                await client.send(GET)
                server = await accept(node, context, cut=cut)
                for _ in range(2):
                    assert (await server.until(b"\r\n\r\n")).startswith(b"GET / HTTP/1.1")
                    await server.send(OK)
                    await client.until(b"ok")
                    if not _:
                        await client.send(GET)  # over the same connection
                assert server.tls.session_reused is bool(number)
                await node.until(lambda: states(node)["web1"].idle)
                await server.close_notify()
                server.close()
                await node.until(lambda: not states(node)["web1"].idle)
            slot = node.snapshot.pools[0].servers[0].slot
            assert node.counts.total(slot, columns.HANDSHAKES) == 1
            assert node.counts.total(slot, columns.RESUMED) == 1
            client.close()
            await quiet(node)

    run(scene())


@pytest.mark.parametrize(
    ("certificate", "why"),
    [
        (issued("other.example.com"), "Hostname mismatch, certificate is not valid for 'web1.example.com'"),
        (issued("web1.example.com", ca="two"), "unable to get local issuer certificate"),
    ],
    ids=["name", "authority"],
)
@pytest.mark.parametrize("others", [True, False])
def test_a_server_that_is_somebody_else(
    run: Run, tmp_path: Path, certificate: trustme.LeafCert, why: str, others: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The request goes to another server, or is answered 502; the log says why."""

    async def scene() -> None:
        async with Node(to_servers(tmp_path), server_tls=True) as node:
            await node.by_hand({"web1"}, None)
            if not others:
                node.disable("web2")
            client = await node.connect()
            await client.send(GET)
            with pytest.raises(ssl.SSLError):
                await accept(node, server_context(certificate, version="1.2"))
            head = await client.until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 " if others else b"HTTP/1.1 502 ")
            record = await node.record()
            assert (record.server, record.ended) == (("web2", "ok") if others else ("", "connect-tls@connect"))
            client.close()
            await quiet(node)

    run(scene())
    assert f"web/web1: TLS: certificate verify failed: {why}" in caplog.text


def test_a_server_that_misses_our_certificate_says_so_behind_the_handshake(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with Node(to_servers(tmp_path), server_tls=True) as node:
            await node.by_hand({"web1"}, None)
            node.disable("web2")
            client = await node.connect()
            await client.send(GET)
            with pytest.raises(ssl.SSLError):
                await accept(node, server_context(issued("web1.example.com"), clients="one"))
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
            client.close()

    run(scene())
    assert "web/web1: TLS: tlsv13 alert certificate required" in caplog.text


def test_no_verification(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        values = to_servers(tmp_path, verify=False)
        async with Node(values, server_tls=True) as node:
            await node.by_hand({"web1"}, None)
            client = await node.connect()
            await client.send(GET)
            server = await accept(node, server_context(issued("whoever.example", ca="two")))
            await server.until(b"\r\n\r\n")
            await server.send(OK)
            await client.until(b"ok")
            client.close()

    run(scene())


def test_a_certificate_for_the_server(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        values = to_servers(tmp_path, certificate=write(tmp_path, "lb", issued("lb.example")))
        async with Node(values, server_tls=True) as node:
            await node.by_hand({"web1"}, None)
            client = await node.connect()
            await client.send(GET)
            server = await accept(node, server_context(issued("web1.example.com"), clients="one"))
            assert ("commonName", "lb.example") in [
                pair for part in server.tls.getpeercert()["subject"] for pair in part
            ]
            await server.until(b"\r\n\r\n")
            await server.send(OK)
            await client.until(b"ok")
            client.close()

    run(scene())


@pytest.mark.parametrize("behaviour", ["silent", "plain", "closes"])
def test_servers_that_speak_no_tls(run: Run, tmp_path: Path, behaviour: str) -> None:
    async def scene() -> None:
        values = to_servers(tmp_path)
        values["pools"]["web"]["timeouts"] = {"connect": "300ms"}
        async with Node(values, server_tls=True) as node:
            await node.by_hand({"web1"}, None)
            client = await node.connect()
            await client.send(GET)
            server = await node.server("web1").accept()
            if behaviour == "plain":
                await server.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            if behaviour == "closes":
                server.close()
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert (await node.record()).server == "web2"
            client.close()
            await quiet(node)

    run(scene())


@pytest.mark.parametrize("regular", [True, False])
def test_a_body_until_the_end(run: Run, tmp_path: Path, regular: bool) -> None:
    """Without close_notify anybody in between may have cut it: the client must not take it for whole."""

    async def scene() -> None:
        async with Node(to_servers(tmp_path), server_tls=True) as node:
            await node.by_hand({"web1"}, None)
            client = await node.connect()
            await client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
            server = await accept(node, server_context(issued("web1.example.com")))
            await server.until(b"\r\n\r\n")
            await server.send(b"HTTP/1.1 200 OK\r\n\r\nsome")
            await client.until(b"some")
            if regular:
                await server.close_notify()
            server.half_close()
            await client.sees_closed()
            record = await node.record()
            assert record.ended == ("ok" if regular else "server-closed-inside@response-body")
            assert client._reset is not regular
            server.close()
            client.close()
            await quiet(node)

    run(scene())


def waits_for(connection: Connection, side: Side) -> bool:
    """Whether a side doesn't read, and the node holds no more for it than it may."""
    upstream = connection.upstream
    receiver = upstream if side is SERVER else connection
    if upstream is None or receiver is None or connection._blocked()[0] is not side:
        return False
    pump = receiver.pump_out
    assert len(receiver.out or b"") + (len(pump._buffer or b"") + pump._held if pump is not None else 0) <= 1024**2
    return True


@pytest.mark.parametrize("front", [False, True], ids=["plain client", "TLS client"])
def test_large_bodies_both_ways(run: Run, tmp_path: Path, front: bool) -> None:
    """Both sides in TLS or one; the reader is slow, and what waits in between is bounded."""

    async def scene() -> None:
        listener = tls_config(tmp_path)["listeners"][0] if front else None
        async with Node(to_servers(tmp_path, listener), server_tls=True) as node:
            await node.by_hand({"web1"}, None)
            client: Wire = await dial(node) if front else await node.connect()
            await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % LARGE)
            server = await accept(node, server_context(issued("web1.example.com")))
            await server.until(b"\r\n\r\n")

            async def flood(wire: Wire) -> None:
                for at in range(0, LARGE, 50_000):
                    await wire.send(b"x" * min(50_000, LARGE - at))

            (connection,) = node.runtime.listeners["web"].connections
            sending = asyncio.ensure_future(flood(client))
            await node.until(lambda: waits_for(connection, SERVER))
            assert await count(server) == LARGE
            await sending
            await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
            await client.until(b"\r\n\r\n")
            sending = asyncio.ensure_future(flood(server))
            await node.until(lambda: waits_for(connection, CLIENT))
            assert await count(client) == LARGE
            await sending
            client.close()
            await quiet(node)

    run(scene())


def test_an_idle_connection_that_only_talks_of_tls_stays(run: Run, tmp_path: Path) -> None:
    """Session tickets may come late; they are not an answer that nobody asked for."""

    async def scene() -> None:
        async with Node(to_servers(tmp_path), server_tls=True) as node:
            await node.by_hand({"web1"}, None)
            client = await node.connect()
            await client.send(GET)
            server = await accept(node, server_context(issued("web1.example.com")))
            await server.until(b"\r\n\r\n")
            await server.send(OK)
            await client.until(b"ok")
            await node.until(lambda: states(node)["web1"].idle)
            # A record that is split: the event comes, and there is nothing to read yet.
            server.tls.write(b"late")
            data = server._outgoing.read()
            await server.wire.send(data[:3])
            for _ in range(20):
                await asyncio.sleep(0.005)
            assert states(node)["web1"].idle
            await server.wire.send(data[3:])
            await node.until(lambda: not states(node)["web1"].idle)
            client.close()

    run(scene())


def test_a_proxy_header_stands_before_tls(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        values = to_servers(tmp_path)
        values["pools"]["web"]["servers"][0]["send_proxy"] = "v1"
        async with Node(values, server_tls=True) as node:
            await node.by_hand({"web1"}, None)
            client = await node.connect()
            await client.send(GET)
            wire = await node.server("web1").accept()
            assert (await wire.line()).startswith("PROXY TCP4 127.0.0.1 ")
            server = TlsWire(wire, server_context(issued("web1.example.com")), server_side=True)
            server._incoming.write(wire.received)
            await server.shake()
            assert (await server.until(b"\r\n\r\n")).startswith(b"GET / HTTP/1.1")
            await server.send(OK)
            await client.until(b"ok")
            client.close()

    run(scene())
