"""PROXY headers on the way in: who must send one, who must not, and that not one byte too many is taken."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import pytest
from proxy_scene import GET, config, connections, quiet
from test_proxy_opening import cell, ended, failures

from l7lb.core.contracts import Front, Handshake, Peer
from l7lb.core.proxy_protocol import SIGNATURE
from l7lb.core.proxy_protocol.writing import write, write_local
from l7lb.proxy import counts as columns
from l7lb.testing import Node, Wire
from l7lb.testing.http import read_response

LISTED = "127.0.0.2"
TCP4 = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
FRONT = {"proxy_protocol": {"from": [f"{LISTED}/32"]}}


def told(version: str = "v2") -> bytes:
    peer = Peer("192.0.2.1", 56324, "198.51.100.2", 443, tls=True)
    peer.handshake = Handshake(b"www.example.com", b"h2", "TLSv1.3")
    peer.front = Front("", b"number one")
    return write(version, peer)


def scene(run, play, listener=None, **pool) -> None:
    async def perform() -> None:
        async with Node(config({**FRONT, **(listener or {})}, **pool)) as node:
            await play(node)
            await quiet(node)
            assert cell(node, columns.OPENING) == 0

    run(perform())


async def refused(client: Wire, *pieces: bytes) -> None:
    """Send these, and see the end, which may come before the last of them."""
    try:
        await client.send_pieces(list(pieces))
    except OSError:
        return
    await ended(client)


async def answered(client: Wire) -> bytes:
    head = await client.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return head


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_client_is_whom_the_header_tells(run, version: str) -> None:
    async def play(node: Node) -> None:
        async with await node.connect(source=LISTED) as client:
            await client.send(told(version) + GET)
            await answered(client)
            (connection,) = connections(node)
            assert connection.client == "192.0.2.1:56324"
            assert connection.peer.local == "198.51.100.2"
            assert connection.peer.front.address == LISTED
        assert (await node.record()).client == "192.0.2.1"
        seen = node.server("web1").requests[0].headers
        assert seen["X-Forwarded-For"] == "192.0.2.1"
        assert seen["X-Forwarded-Proto"] == ("https" if version == "v2" else "http")

    scene(run, play)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_any_split_of_header_and_request_is_the_same(run, version: str) -> None:
    async def play(node: Node) -> None:
        header = told(version)
        data = header + GET
        for cut in range(1, len(header) + 3, 3):
            async with await node.connect(source=LISTED) as client:
                await client.send_pieces([data[:cut], data[cut:]])
                await answered(client)
        async with await node.connect(source=LISTED) as client:
            await client.send(data, cut=1)
            await answered(client)
        assert {record.client for record in node.records} == {"192.0.2.1"}
        assert failures(node) == {}

    scene(run, play)


def test_the_header_is_told_once_and_holds_for_the_whole_connection(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect(source=LISTED) as client:
            await client.send(TCP4 + GET * 3)
            for _ in range(3):
                assert (await read_response(client)).status == 200
            await client.send(TCP4 + GET)
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")

    scene(run, play)


def test_local_and_unknown_keep_the_connections_own_addresses(run) -> None:
    async def play(node: Node) -> None:
        for header in (write_local(), b"PROXY UNKNOWN\r\n"):
            async with await node.connect(source=LISTED) as client:
                await client.send(header + GET)
                await answered(client)
        assert [record.client for record in node.records] == [LISTED, LISTED]

    scene(run, play)


def test_routing_limits_and_persistence_go_by_the_told_address(run) -> None:
    async def play(node: Node) -> None:
        async def server(source: str) -> str:
            async with await node.connect(source=LISTED) as client:
                await client.send(TCP4.replace(b"192.0.2.1", source.encode()) + GET)
                await answered(client)
            return node.records[-1].server

        first = [await server(f"198.51.100.{number}") for number in range(1, 9)]
        assert set(first) == {"web1", "web2"}
        assert [await server(f"198.51.100.{number}") for number in range(1, 9)] == first

    scene(run, play, {"routes": [{"pool": "web"}]}, balance="round-robin", persistence={"source": {"expire": "1h"}})


def test_a_rule_for_networks_sees_the_told_address(run) -> None:
    async def play(node: Node) -> None:
        for source, status in ((b"10.1.2.3", b"403"), (b"192.0.2.1", b"200")):
            async with await node.connect(source=LISTED) as client:
                await client.send(TCP4.replace(b"192.0.2.1", source) + GET)
                assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)

    rules = [{"match": {"source": "10.0.0.0/8"}, "respond": {"status": 403}}, {"pool": "web"}]
    scene(run, play, {"routes": rules})


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (GET, "malformed"),
        (b"\x16\x03\x01", "malformed"),
        (TCP4.replace(b"192.0", b"192.00") + GET, "malformed"),
        (told()[:-1] + b"\xff", "malformed"),
        (SIGNATURE + b"\x21\x11\xff\xff", "malformed"),
        (b"", "timeout"),
        (TCP4[:20], "timeout"),
        (told()[:20], "timeout"),
    ],
)
def test_a_listed_peer_without_a_good_header_is_refused_in_time(run, sent: bytes, reason: str) -> None:
    async def play(node: Node) -> None:
        began = time.monotonic()
        async with await node.connect(source=LISTED) as client:
            await client.send(sent)
            await ended(client)
        assert time.monotonic() - began < 2
        assert failures(node) == {("proxy", reason): 1}
        assert not node.records

    scene(run, play, {"timeouts": {"handshake": "200ms"}})


def test_half_a_header_costs_no_processor_time(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect(source=LISTED) as listed, await node.connect() as stranger:
            await listed.send(told()[:40])
            await stranger.send(b"PROX")
            await node.until(lambda: cell(node, columns.OPENING) == 2)
            before = time.process_time()
            await node.until(lambda: len(node.records) or failures(node).get(("proxy", "timeout")) == 2)
            assert time.process_time() - before < 0.2

    scene(run, play, {"timeouts": {"handshake": "600ms"}})


@pytest.mark.parametrize("header", [TCP4, b"PROXY UNKNOWN\r\n", told(), write_local()])
def test_a_header_of_a_stranger_is_refused_at_every_split(run, header: bytes, caplog) -> None:
    async def play(node: Node) -> None:
        for cut in range(1, 14):
            async with await node.connect() as client:
                await refused(client, header[:cut], header[cut:] + GET)
        assert failures(node) == {("proxy", "refused"): 13}
        assert not node.records
        assert "it is not listed" in caplog.text

    caplog.set_level(logging.WARNING, "l7lb.opening")
    scene(run, play)


@pytest.mark.parametrize("method", [b"GET", b"P", b"PR", b"PRO", b"PROX", b"PROXY", b"PROPFIND", b"PUT"])
def test_strangers_without_a_header_are_served_at_every_split(run, method: bytes) -> None:
    async def play(node: Node) -> None:
        request = method + b" / HTTP/1.1\r\nHost: a\r\n\r\n"
        for cut in range(1, 10):
            async with await node.connect() as client:
                if method == b"PROXY":
                    await refused(client, request[:cut], request[cut:])
                else:
                    await client.send_pieces([request[:cut], request[cut:]])
                    assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        for request in (b"\r\n" + GET, b"\r\n\r\n" + GET):
            async with await node.connect() as client:
                await client.send(request, cut=1)
                await answered(client)
        assert {record.client for record in node.records} == {"127.0.0.1"}

    scene(run, play)


def test_a_stranger_who_leaves_in_doubt_is_let_go(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(b"PRO")
            client.socket.shutdown(socket.SHUT_WR)
            await node.until(lambda: not connections(node))

    scene(run, play)


def test_over_a_unix_socket(run, tmp_path: Path) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(told(), cut=1)
            await client.send(GET)
            await answered(client)
        assert (await node.record()).client == "192.0.2.1"

    bind = {"bind": [f"unix:{tmp_path}/web.sock"]}
    scene(run, play, {**bind, "proxy_protocol": {"from": ["unix:"]}})

    async def strange(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(TCP4 + GET)
            await ended(client)
        assert failures(node) == {("proxy", "refused"): 1}
        async with await node.connect() as client:
            await client.send(b"P")
            await client.send(b"UT / HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.until(b"\r\n\r\n")

    scene(run, strange, bind)


def test_a_reload_changes_who_is_listed_for_the_next_connections(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect(source=LISTED) as before:
            await before.send(TCP4[:9])
            await node.until(lambda: cell(node, columns.OPENING) == 1)
            await node.reload(config())
            assert node.runtime.listeners["web"].stages == ()
            await before.send(TCP4[9:] + GET)
            await answered(before)
            async with await node.connect(source=LISTED) as after:
                await after.send(TCP4 + GET)
                assert (await after.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
            await node.reload(config(FRONT))
            async with await node.connect(source=LISTED) as after:
                await after.send(TCP4 + GET)
                await answered(after)

    scene(run, play)


# --- protocols that pass connections through


def passing(protocol: str, **listener) -> dict:
    servers = [{"name": "bank1", "address": "127.0.0.1:1"}]
    one = {"name": "web", "protocol": protocol, "bind": ["127.0.0.1:0"], "routes": [{"pool": "web"}], **listener}
    return {"listeners": [one], "pools": {"web": {"servers": servers}}}


def passed(run, play, protocol: str, **listener) -> None:
    async def perform() -> None:
        async with Node(passing(protocol, **FRONT, **listener)) as node:
            await node.by_hand(None, None)
            await play(node)
            await node.until(lambda: not node.runtime.connections)
            assert cell(node, columns.OPENING) == 0

    run(perform())


def test_tcp_gets_what_stands_behind_the_header(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect(source=LISTED) as client:
            await client.send(TCP4 + b"hello")
            async with await node.accept_any() as server:
                await server.expect(b"hello")
                await server.send(b"and good-bye")
                await client.expect(b"and good-bye")
        assert (await node.record()).client == "192.0.2.1"

    passed(run, play, "tcp")


@pytest.mark.parametrize("protocol", ["tcp", "tls-passthrough"])
@pytest.mark.parametrize("header", [TCP4, told()])
def test_a_stranger_is_refused_whatever_the_protocol(run, protocol: str, header: bytes) -> None:
    async def play(node: Node) -> None:
        for cut in (1, 6, 12, len(header)):
            async with await node.connect() as client:
                await refused(client, header[:cut], header[cut:] + b"hello")
        assert failures(node) == {("proxy", "refused"): 4}

    passed(run, play, protocol)


def test_a_stranger_who_waits_for_the_servers_first_word_gets_it(run) -> None:
    async def play(node: Node) -> None:
        began = time.monotonic()
        async with await node.connect() as client, await node.accept_any() as server:
            await server.send(b"220 hello\r\n")
            await client.expect(b"220 hello\r\n")
            assert time.monotonic() - began < 2
            await client.send(b"QUIT\r\n")
            await server.expect(b"QUIT\r\n")
        assert (await node.record()).client == "127.0.0.1"

    passed(run, play, "tcp")
