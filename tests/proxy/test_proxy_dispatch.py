"""From a request to a server: limits, the queue, refusals, other tries, what a reload and a drain change."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct

import pytest
from proxy_scene import GET, config, connections, limited, quiet, states, upgraded, waiting

from l7lb.core.servers import ServerState
from l7lb.core.snapshot import Address, Server
from l7lb.proxy.endpoint import Sender
from l7lb.proxy.upstream import open_connection, refusal
from l7lb.testing import Answer, Node, Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def scene(run, conf, play, *, by_hand: bool = True) -> None:
    async def perform() -> None:
        async with Node(conf) as node:
            if by_hand:
                await node.by_hand(None, None)
            await play(node)

    run(perform())


async def ask(node: Node, path: str, client: Wire | None = None) -> Wire:
    client = client or await node.connect()
    await client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return client


async def asked(wire: Wire) -> str:
    """The path that a server's connection was asked for."""
    return (await wire.until(b"\r\n\r\n")).split()[1].decode()


def close(*wires: Wire) -> None:
    for wire in wires:
        wire.close()


# --- limits and the queue


def test_a_full_server_makes_requests_wait_in_their_order(run) -> None:
    async def play(node: Node) -> None:
        clients = [await ask(node, "/0")]
        server = await node.accept_any()
        for number in range(1, 5):
            clients.append(await ask(node, f"/{number}"))
            await node.until(lambda number=number: waiting(node) == number)
        for number in range(5):
            assert await asked(server) == f"/{number}"
            assert states(node)["web1"].active == 1
            await server.send(OK)
        for client in clients:
            await client.until(b"ok")
        close(*clients)
        await quiet(node)
        assert [record.path for record in node.records] == [f"/{number}" for number in range(5)]
        assert node.records[-1].queue_ms > 0

    scene(run, limited(timeouts={"queue": "60s"}), play)


def test_a_newcomer_does_not_overtake_the_queue(run) -> None:
    async def play(node: Node) -> None:
        first, idle = await ask(node, "/first"), await node.connect()
        server = await node.accept_any()
        second = await ask(node, "/second")
        await node.until(lambda: waiting(node) == 1 and len(connections(node)) == 3)
        await asked(server)
        # The answer that frees the place and the newcomer's request come in one turn of the loop.
        server.socket.send(OK)
        idle.socket.send(GET.replace(b"/ ", b"/third "))
        assert await asked(server) == "/second"
        await server.send(OK)
        assert await asked(server) == "/third"
        await server.send(OK)
        await idle.until(b"ok")
        close(first, second, idle)
        await quiet(node)

    scene(run, limited(timeouts={"queue": "60s"}), play)


def test_the_queue_has_a_limit_and_a_time(run) -> None:
    async def play(node: Node) -> None:
        first = await ask(node, "/first")
        await node.accept_any()
        second = await ask(node, "/second")
        await node.until(lambda: waiting(node) == 1)
        third = await ask(node, "/third")
        await third.expect_lines("HTTP/1.1 503 *", "...", "Retry-After: 1", "...", "")
        await second.expect_lines("HTTP/1.1 503 *", "...", "")
        assert [record.ended for record in node.records] == ["queue-full@queue", "queue-timeout@queue"]
        assert waiting(node) == 0
        close(first, second, third)

    scene(run, limited(queue=1, timeouts={"queue": "200ms"}), play)


@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_client_that_leaves_the_queue_leaves_it(run, end: str) -> None:
    async def play(node: Node) -> None:
        first = await ask(node, "/first")
        server = await node.accept_any()
        gone = await node.connect()
        await gone.send(b"PUT /gone HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        await node.until(lambda: waiting(node) == 1)
        last = await ask(node, "/last")
        await node.until(lambda: waiting(node) == 2)
        getattr(gone, end)()
        await node.until(lambda: waiting(node) == 1)
        await asked(server)
        await server.send(OK)
        assert await asked(server) == "/last"
        await server.send(OK)
        await last.until(b"ok")
        close(first, last)
        await quiet(node)

    scene(run, limited(timeouts={"queue": "60s"}), play)


def test_places_are_given_back_whatever_happens(run) -> None:
    async def play(node: Node) -> None:
        servers = [node.server("web1"), node.server("web2")]
        for number in range(30):
            if number % 10 == 0:
                for server in servers:
                    server.refuse() if number % 20 == 0 else server.listen()
            clients = [await ask(node, "/") for _ in range(5)]
            for client in clients[: number % 5]:
                client.reset()
            for client in clients[number % 5 :]:
                await client.until(b"\r\n\r\n")
                client.close()
        await quiet(node)
        assert all(state.load == 0 for state in states(node).values())

    retries = {"attempts": 2, "when": ["connect-failure", "reset-before-response"]}
    scene(run, limited(2, 2, retries=retries), play, by_hand=False)


# --- connecting


def test_a_refusal_is_tried_elsewhere_whatever_the_method(run) -> None:
    async def play(node: Node) -> None:
        node.server("web1").refuse()
        answer = await node.post("/", b"body")
        assert (answer.status, answer.server) == (200, "web2")
        assert node.records[-1].retries == 1
        node.server("web2").die()
        async with await ask(node, "/") as client:
            await client.expect_lines("HTTP/1.1 503 *", "...", "")
        assert (await node.record(1)).ended == "connect-refused@connect"

    scene(run, config(retries={"attempts": 1, "when": ["connect-failure"]}), play, by_hand=False)


def test_a_kept_connection_that_the_server_closed_costs_nothing(run) -> None:
    async def play(node: Node) -> None:
        async with await ask(node, "/1") as client:
            server = await node.accept_any()
            await asked(server)
            await server.send(OK)
            await client.until(b"ok")
            await node.until(lambda: states(node)["web1"].idle)
            # Closed in the very moment in which the next request is sent.
            (upstream,) = states(node)["web1"].idle
            upstream.read_more(False)
            server.reset()
            await ask(node, "/2", client)
            again = await node.accept_any()
            assert await asked(again) == "/2"
            await again.send(OK)
            await client.until(b"ok")
        await quiet(node)
        assert [record.ended for record in node.records] == ["ok", "ok"]

    scene(run, config(retries={"attempts": 1, "when": ["connect-failure"]}), play)


def test_a_server_that_does_not_accept(run) -> None:
    async def play(node: Node) -> None:
        # A listening socket whose queue is full: the kernel drops what asks to connect.
        server = node.server("web1")
        server.refuse()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((server.address.host, server.address.port))
        sock.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex((server.address.host, server.address.port))
        async with await ask(node, "/") as client:
            await client.expect_lines("HTTP/1.1 504 *", "...", "")
        assert (await node.record()).ended == "connect-timeout@connect"
        for each in (sock, *fillers):
            each.close()
        await quiet(node)

    scene(run, limited(timeouts={"connect": "200ms"}, retries={"attempts": 0}), play)


def test_addresses_that_can_not_be_connected_to(run) -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        server = ServerState("web", Server(name="web1", address=Address(path="/x" * 100)))
        connection, code = open_connection(loop, Sender(loop), server, "http")
        assert code != 0
        connection.close()

    run(play())
    assert refusal(110).label == "connect-timeout"
    assert refusal(111).label == "connect-refused"


def lowest_free() -> int:
    """The descriptor that would be opened next: as a limit it lets nothing be opened."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def test_when_descriptors_are_used_up_others_go_on(run) -> None:
    async def play(node: Node) -> None:
        client, server = await upgraded(node)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        late = socket.socket()
        late.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free(), limits[1]))
        try:
            late.connect_ex((node.address().host, node.address().port))
            for _ in range(20):
                await client.send(b"ping")
                await server.expect(b"ping")
            assert len(connections(node)) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await node.until(lambda: len(connections(node)) == 2)  # accepted after the pause
        # The request finds no descriptor for its server.
        wire = Wire(late)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free(), limits[1]))
        try:
            await wire.send(GET)
            await wire.expect_lines("HTTP/1.1 503 *", "...", "")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await wire.send(GET)
        again = await node.accept_any()
        await asked(again)
        await again.send(OK)
        await wire.until(b"ok")
        close(client, server, wire)
        await quiet(node)

    scene(run, config(), play)


def test_a_listener_has_a_limit_of_connections(run) -> None:
    async def play(node: Node) -> None:
        wires = [await node.connect() for _ in range(5)]
        await node.until(lambda: len(connections(node)) == 3)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(connections(node)) == 3
        wires[0].close()
        wires[1].close()
        await ask(node, "/", wires[4])
        await wires[4].until(b"web1\n")
        close(*wires)
        await quiet(node)

    scene(run, config({"limits": {"connections": 3}}), play, by_hand=False)


# --- sticky users


def test_sticky_users_follow_their_server_through_its_states(run) -> None:
    async def play(node: Node) -> None:
        async with node.browser() as browser:
            home = (await browser.get("/")).server
            other = {"web1": "web2", "web2": "web1"}[home]
            node.drain(home)
            assert (await browser.get("/")).server == home
            assert (await node.get("/")).server == other
            node.down(home)
            assert (await browser.get("/")).server == other
            node.up(home)
            node.enable(home)
            assert (await browser.get("/")).server == other  # it has moved
            node.disable(other)
            assert (await browser.get("/")).server == home

    scene(run, config(persistence={"cookie": {"name": "L7LB"}}), play, by_hand=False)


def by_user_then_source(**pool) -> dict:
    """Three servers, and two keys to know a user by."""
    servers = [{"name": f"web{number}", "address": f"127.0.0.1:{number}"} for number in (1, 2, 3)]
    return config(servers=servers, persistence=[{"header": {"name": "X-User"}}, {"source": {}}], **pool)


ANNA = {"X-User": "anna"}


@pytest.mark.parametrize("lost", ["down", "disabled", "refuses"])
def test_when_the_first_keys_server_is_lost_the_next_key_is_asked(run, lost: str) -> None:
    async def play(node: Node) -> None:
        node.down("web1")
        assert (await node.get("/", source="127.0.0.2")).server == "web2"  # the first that is open; known by address
        node.up("web1")
        assert (await node.get("/", headers=ANNA, source="127.0.0.3")).server == "web1"  # known by her header
        node.drain("web2")  # so that the balancer would choose web3
        assert (await node.get("/", headers=ANNA, source="127.0.0.2")).server == "web1"
        if lost == "refuses":
            node.server("web1").die()
        else:
            getattr(node, {"down": "down", "disabled": "disable"}[lost])("web1")
        answer = await node.get("/", headers=ANNA, source="127.0.0.2")
        assert (answer.server, node.records[-1].sticky) == ("web2", "source")
        assert bool(node.records[-1].retries) is (lost == "refuses")

    scene(run, by_user_then_source(), play, by_hand=False)


def test_who_waits_for_a_server_that_dies_goes_where_the_next_key_says(run) -> None:
    async def play(node: Node) -> None:
        node.down("web1")
        assert (await node.get("/", source="127.0.0.2")).server == "web2"
        node.up("web1")
        assert (await node.get("/", headers=ANNA, source="127.0.0.3")).server == "web1"
        node.drain("web2")
        await node.by_hand({"web1"}, None)
        first = await node.connect()
        await first.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-User: anna\r\n\r\n")
        upstream = await node.server("web1").accept()
        second = await node.connect(source="127.0.0.2")
        await second.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-User: anna\r\n\r\n")
        await node.until(lambda: waiting(node) == 1)
        node.down("web1")
        await second.expect_lines("HTTP/1.1 200 *", "...", "")
        assert (node.records[-1].server, node.records[-1].sticky) == ("web2", "source")
        close(first, second, upstream)

    conf = by_user_then_source()
    conf["pools"]["web"]["servers"][0]["max_connections"] = 1
    scene(run, conf, play, by_hand=False)


# --- reloads and ends


def test_a_reload_keeps_what_is_established(run) -> None:
    conf = limited(1, 2, timeouts={"queue": "60s"})

    async def play(node: Node) -> None:
        client, server = await upgraded(node)
        second = await ask(node, "/second")
        busy = await node.accept_any()
        third = await ask(node, "/third")
        await node.until(lambda: waiting(node) == 1)
        before = states(node)
        conf["pools"]["web"]["queue"] = 7
        conf["pools"]["web"]["balance"] = "round-robin"
        await node.reload(conf)
        assert all(states(node)[name] is state for name, state in before.items())
        await client.send(b"still here")
        await server.expect(b"still here")
        assert await asked(busy) == "/second"
        await busy.send(OK)
        assert await asked(busy) == "/third"
        await busy.send(OK)
        await third.until(b"ok")
        close(client, server, second, third)
        await quiet(node)

    scene(run, conf, play)


def test_a_server_that_a_reload_removes_gets_nobody_from_the_queue(run) -> None:
    conf = limited(1, 2, timeouts={"queue": "60s"})

    async def play(node: Node) -> None:
        clients = [await ask(node, f"/{number}") for number in range(2)]
        first, second = await node.server("web1").accept(), await node.server("web2").accept()
        clients.append(await ask(node, "/2"))
        await node.until(lambda: waiting(node) == 1)
        conf["pools"]["web"]["servers"].pop()
        await node.reload(conf)
        await asked(second)
        await second.send(OK)
        await second.sees_end()  # its connection is not kept, and the waiting one does not get it
        assert waiting(node) == 1
        await asked(first)
        await first.send(OK)
        assert await asked(first) == "/2"
        await first.send(OK)
        for client in clients:
            await client.until(b"ok")
        close(*clients)
        await quiet(node)

    scene(run, conf, play)


def test_a_listener_that_a_reload_removes_lets_its_clients_finish(run) -> None:
    both = config()
    both["listeners"].append({**both["listeners"][0], "name": "gone", "bind": ["127.0.0.2:0"]})

    async def play(node: Node) -> None:
        busy = await node.connect("gone")
        await busy.send(GET)
        idle = await node.connect("gone")
        server = await node.accept_any()
        await node.until(lambda: node.runtime.connections == 2)
        await node.reload(config())
        await asked(server)
        for client in (busy, idle):  # what was idle may still ask once
            if client is idle:
                await ask(node, "/", idle)
                assert await asked(server) == "/"
            await server.send(OK)
            await client.expect_lines("HTTP/1.1 200 OK", "...", "Connection: close", "...", "")
            await client.expect(b"ok")
            await client.sees_end()
        close(busy, idle)
        await node.until(lambda: not node.runtime.connections)

    scene(run, both, play)


def test_a_snapshot_that_can_not_be_built_changes_nothing(run) -> None:
    import msgspec

    async def play(node: Node) -> None:
        before = node.runtime.snapshot
        listener = node.snapshot.listeners[0]
        for changes in ({"protocol": "gopher"}, {"settings": {"trust": ["nonsense"]}}):
            broken = msgspec.structs.replace(before, listeners=(msgspec.structs.replace(listener, **changes),))
            with pytest.raises((KeyError, ValueError)):
                node.runtime.apply(broken)
        assert node.runtime.snapshot is before
        assert (await node.get("/")).status == 200

    scene(run, config(), play, by_hand=False)


def test_a_drain_ends_the_idle_and_lets_the_others_finish(run) -> None:
    async def play(node: Node) -> None:
        client, server = await upgraded(node)
        idle = await node.connect()
        busy = await ask(node, "/")
        web = await node.accept_any()
        await node.until(lambda: len(connections(node)) == 3)
        assert len(node.runtime.sessions(100)) == 2
        assert len(node.runtime.sessions(1)) == 1
        node.runtime.drain()
        await idle.sees_end()
        await asked(web)
        await web.send(OK)
        await busy.until(b"ok")
        await busy.sees_end()
        assert not node.runtime.drained.is_set()
        client.close()
        server.close()
        await asyncio.wait_for(node.runtime.drained.wait(), 5)
        close(idle, busy)

    scene(run, config(), play)


def test_close_ends_everything_at_once(run) -> None:
    async def play(node: Node) -> None:
        client, server = await upgraded(node)
        queued = await ask(node, "/queued")
        await node.until(lambda: waiting(node) == 1)
        node.runtime.close()
        await client.sees_closed()
        await server.sees_closed()
        await queued.sees_closed()
        close(client, server, queued)

    scene(run, limited(), play)


def test_outliers_are_reported_and_forgiven(run) -> None:
    async def play(node: Node) -> None:
        node.server("web1").answer = Answer(status=500)
        await node.get("/")
        await node.get("/")
        node.server("web1").answer = Answer(status=200)
        await node.get("/")
        await node.get("/")
        assert [result.failure for result in node.results] == ["server-error", "server-error", ""]

    scene(run, config(outliers={"consecutive_errors": 5}), play, by_hand=False)


def test_a_client_that_resets_while_it_is_accepted(run) -> None:
    async def play(node: Node) -> None:
        address = (node.address().host, node.address().port)
        for _ in range(50):
            with socket.create_connection(address) as sock:
                sock.sendall(GET)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0)
        await quiet(node)
        assert (await node.get("/")).status == 200

    scene(run, config(), play, by_hand=False)
