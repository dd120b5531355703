"""PROXY headers on the way out: what a server is told, and that a connection never tells it of the wrong client."""

from __future__ import annotations

from pathlib import Path

import pytest
from h2_client import Http2Client
from proxy_scene import GET, LARGE, config, connections, count, quiet, states
from test_proxy_header import LISTED, TCP4, told

from l7lb.core.contracts import Peer
from l7lb.core.proxy_protocol.reading import Header, HeaderReader
from l7lb.proxy import counts as columns
from l7lb.proxy.connection import KEPT
from l7lb.testing import Node, Wire
from l7lb.testing.http import read_request, read_response

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"


def sending(version: str = "v2", servers: int = 1, listener: dict | None = None, **pool) -> dict:
    """Servers that want a header."""
    made = [
        {"name": f"web{number}", "address": f"127.0.0.1:{number}", "send_proxy": version}
        for number in range(1, servers + 1)
    ]
    return config(listener, **{"servers": made, "timeouts": {"idle": "60s"}, **pool})


def scene(run, play, conf) -> None:
    async def perform() -> None:
        async with Node(conf) as node:
            await node.by_hand(None, None)
            await play(node)
            await quiet(node)
            for state in states(node).values():
                assert not state.kept

    run(perform())


async def header_of(server: Wire) -> Header:
    """The header that a connection begins with, and not one byte more."""
    reader = HeaderReader(4096)
    while reader.header is None:
        reader.feed(await server.exactly(1))
    return reader.header


async def serve(server: Wire, client: Wire) -> None:
    """Answer the one request that waits there."""
    await read_request(server)
    await server.send(ANSWER)
    assert (await read_response(client)).body == b"ok"


def names(wire: Wire) -> tuple[str, int]:
    return wire.socket.getsockname()[:2]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_server_is_told_who_the_client_is_before_the_request(run, version: str) -> None:
    async def play(node: Node) -> None:
        async with await node.connect(source="127.0.0.9") as client:
            await client.send(POST)
            server = await node.accept_any()
            header = await header_of(server)
            assert (header.source, header.source_port) == names(client)
            assert (header.destination, header.destination_port) == ("127.0.0.1", node.address().port)
            assert header.version == int(version[1])
            assert not header.tls
            assert (await read_request(server)).body == b"hello"
            await server.send(ANSWER)
            assert (await read_response(client)).body == b"ok"

    scene(run, play, sending(version))


def test_what_the_proxy_in_front_told_goes_on(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect(source=LISTED) as client:
            await client.send(told() + GET)
            server = await node.accept_any()
            peer = (await header_of(server)).peer(Peer("", 0, "", 0))
            assert (peer.client, peer.client_port, peer.local, peer.local_port) == (
                *("192.0.2.1", 56324, "198.51.100.2", 443),
            )
            assert peer.front.unique_id == b"number one"
            assert peer.tls
            assert (peer.handshake.sni, peer.handshake.alpn, peer.handshake.version) == (
                *(b"www.example.com", b"h2", "TLSv1.3"),
            )
            await serve(server, client)

    scene(run, play, sending(listener={"proxy_protocol": {"from": [LISTED]}}))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_clients_over_a_unix_socket_have_no_address_to_tell(run, version: str, tmp_path: Path) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(GET)
            server = await node.accept_any()
            assert (await header_of(server)).source == ("" if version == "v1" else "unix:")
            await serve(server, client)

    scene(run, play, sending(version, listener={"bind": [f"unix:{tmp_path}/web.sock"]}))


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0"])
def test_the_address_that_the_client_came_to_is_told_of_a_wildcard_bind(run, bind: str, monkeypatch) -> None:
    """The test's node binds to the loopback interface: the listening socket's name is set to what it would be."""

    async def play(node: Node) -> None:
        for acceptor in node.runtime._acceptors.values():
            acceptor._local = "::" if "::" in bind else "0.0.0.0"
        async with await node.connect() as client:
            await client.send(GET)
            server = await node.accept_any()
            assert (await header_of(server)).destination == client.socket.getpeername()[0]
            await serve(server, client)

    scene(run, play, sending(listener={"bind": [bind]}))


def test_a_connection_serves_its_client_again_and_nobody_else(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as first, await node.connect() as second:
            await first.send(GET)
            server = await node.accept_any()
            assert (await header_of(server)).source_port == names(first)[1]
            for number in range(3):
                if number:
                    await first.send(GET)
                await serve(server, first)
            await second.send(GET)
            other = await node.accept_any()
            assert (await header_of(other)).source_port == names(second)[1]
            await serve(other, second)
            first.close()
            await server.sees_end()
            await second.send(GET)
            await serve(other, second)
            node.runtime.publish()
            assert node.counts.total(states(node)["web1"].slot, columns.REUSED, 1) == 3

    scene(run, play, sending())


def test_a_kept_connection_is_closed_with_its_client_its_time_and_its_server(run) -> None:
    async def play(node: Node) -> None:
        async def asked(client: Wire) -> Wire:
            await client.send(GET)
            server = await node.accept_any()
            await header_of(server)
            await serve(server, client)
            assert len(states(node)["web1"].kept) == 1
            return server

        async with await node.connect() as client:
            server = await asked(client)
            client.reset()
            await server.sees_end()
        async with await node.connect() as client:
            server = await asked(client)
            node.down("web1")
            await server.sees_end()
            node.up("web1")
            # Its server closes it: the next request gets another connection, with a header of its own.
            server = await asked(client)
            server.close()
            await node.until(lambda: not states(node)["web1"].kept)
            server = await asked(client)
            await node.reload(sending(timeouts={"idle": "100ms"}))
            await server.sees_end()
            await asked(client)

    scene(run, play, sending())


def test_kept_connections_are_bounded(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            for number in range(KEPT + 2):
                await client.send(GET.replace(b"Host: a", f"Host: h{number}".encode()))
                server = await node.accept_any()
                await header_of(server)
                await serve(server, client)
            assert len(connections(node)[0].kept) == KEPT
            pools = node.runtime.dispatcher.pools.values()
            assert sum(len(server.kept) for pool in pools for server in pool.state.servers) == KEPT

    rules = [{"match": {"host": f"h{number}"}, "pool": f"pool{number}"} for number in range(KEPT + 2)]
    conf = sending(listener={"routes": [*rules, {"pool": "web"}]})
    for number in range(KEPT + 2):
        server = {"name": f"only{number}", "address": f"127.0.0.1:{number + 10}", "send_proxy": "v1"}
        conf["pools"][f"pool{number}"] = {"servers": [server]}
    scene(run, play, conf)


@pytest.mark.parametrize("idle", [0, 1])
def test_a_pool_that_keeps_fewer_connections_keeps_fewer(run, idle: int) -> None:
    async def play(node: Node) -> None:
        clients = [await node.connect() for _ in range(3)]
        for client in clients:
            await client.send(GET)
            server = await node.accept_any()
            await header_of(server)
            await serve(server, client)
        assert len(states(node)["web1"].kept) == idle
        for client in clients:
            client.close()

    scene(run, play, sending(idle_connections=idle))


def test_a_retry_on_another_server_begins_with_the_header_again(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(GET)
            first = await node.accept_any()
            await header_of(first)
            await read_request(first)
            first.reset()
            second = await node.accept_any()
            assert second.name != first.name
            assert (await header_of(second)).source_port == names(client)[1]
            await serve(second, client)

    retries = {"attempts": 1, "when": ["connect-failure", "reset-before-response"]}
    scene(run, play, sending(servers=2, retries=retries))


def test_a_kept_connection_that_closes_under_a_request_is_replaced_with_a_header_again(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(GET)
            first = await node.accept_any()
            await header_of(first)
            await serve(first, client)
            await client.send(GET)
            await read_request(first)
            first.reset()
            second = await node.accept_any()
            assert (await header_of(second)).source_port == names(client)[1]
            await serve(second, client)

    scene(run, play, sending())


def test_a_large_answer_is_spliced_behind_it(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(GET)
            server = await node.accept_any()
            await header_of(server)
            await read_request(server)
            await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
            sending_all = node.runtime.loop.create_task(server.send(b"x" * LARGE))
            await client.until(b"\r\n\r\n")
            assert await count(client, LARGE) == LARGE
            await sending_all

    scene(run, play, sending())


def test_a_reload_that_begins_or_ends_to_send_headers_mixes_nothing_up(run) -> None:
    async def play(node: Node) -> None:
        async def asked(client: Wire, server: Wire, header: bool) -> None:
            if header:
                await header_of(server)
            assert (await read_request(server)).method == "GET"
            await server.send(ANSWER)
            await read_response(client)

        async with await node.connect() as client, await node.connect() as other:
            await client.send(GET)
            told_once = await node.accept_any()
            await asked(client, told_once, header=True)
            plain = config(servers=[{"name": "web1", "address": "127.0.0.1:1"}])
            await node.reload(plain)
            for one in (client, other):
                await one.send(GET)
                if one is client:
                    shared = await node.accept_any()
                await asked(one, shared, header=False)
            await node.reload(sending())
            await other.send(GET)
            await asked(other, await node.accept_any(), header=True)

    scene(run, play, sending())


def test_a_header_read_from_one_client_is_not_told_of_another(run) -> None:
    async def play(node: Node) -> None:
        seen = []
        for number in range(1, 6):
            async with await node.connect(source=LISTED) as client:
                await client.send(TCP4.replace(b"192.0.2.1", b"192.0.2.%d" % number) + GET)
                server = await node.accept_any()
                seen.append((await header_of(server)).source)
                await serve(server, client)
        assert seen == [f"192.0.2.{number}" for number in range(1, 6)]

    scene(run, play, sending(listener={"proxy_protocol": {"from": [LISTED]}}))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("early", [b"", b"hello"])
def test_a_connection_that_is_passed_through_begins_with_it(run, version: str, early: bytes) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(early)
            async with await node.accept_any() as server:
                assert (await header_of(server)).source_port == names(client)[1]
                if not early:
                    await server.send(b"220 hello\r\n")
                    await client.expect(b"220 hello\r\n")
                    await client.send(b"hello")
                await server.expect(b"hello")
                await server.send(b"good-bye")
                await client.expect(b"good-bye")
        await node.until(lambda: not node.runtime.connections)

    conf = sending(version)
    conf["listeners"] = [{"name": "web", "protocol": "tcp", "bind": ["127.0.0.1:0"], "routes": [{"pool": "web"}]}]
    conf["pools"]["web"] = {"servers": conf["pools"]["web"]["servers"]}
    scene(run, play, conf)


def test_streams_of_one_client_share_its_connections_and_no_others_do(run) -> None:
    async def play(node: Node) -> None:
        async def answer(server: Wire, client: Http2Client, number: int) -> None:
            await read_request(server)
            await server.send(ANSWER)
            await client.until(number)
            assert client.statuses[number] == 200

        client, other = await Http2Client.connect(node), await Http2Client.connect(node)
        number = await client.request()
        server = await node.accept_any()
        assert (await header_of(server)).source_port == names(client.wire)[1]
        await answer(server, client, number)
        assert len(states(node)["web1"].kept) == 1
        number = await other.request()
        second = await node.accept_any()
        assert (await header_of(second)).source_port == names(other.wire)[1]
        await answer(second, other, number)
        await answer(server, client, await client.request())  # the same connection, and no header again
        first, later = await client.request(), await client.request()
        third = await node.accept_any()
        assert (await header_of(third)).source_port == names(client.wire)[1]
        await answer(server, client, first)
        await answer(third, client, later)
        assert len(states(node)["web1"].kept) == 3
        client.close()
        for gone in (server, third):
            await gone.sees_end()
        assert len(states(node)["web1"].kept) == 1
        other.close()

    scene(run, play, sending())
