"""Clients and servers that misbehave at any moment, over real sockets."""

from __future__ import annotations

import asyncio
import random
import re

import pytest
from proxy_scene import GET, LARGE, config, connections, count, descriptors, flood, quiet, shutdown, states, upgraded

from l7lb.core.actions import Action, Side
from l7lb.core.contracts import Assignment, Session
from l7lb.proxy.connection import FLUSH_SECONDS, FLUSHING
from l7lb.proxy.endpoint import HIGH_WATER
from l7lb.proxy.relay import PIPE_BYTES
from l7lb.testing import Answer, Node, Wire

HERE = b"GET /here HTTP/1.1\r\nHost: a\r\n\r\n"
UPLOAD = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % LARGE


def scene(run, play, conf=None, *, by_hand: bool = True) -> None:
    async def perform() -> None:
        async with Node(conf or config(timeouts={"response_header": "60s"})) as node:
            if by_hand:
                await node.by_hand(None, None)
            await play(node)

    run(perform())


# --- clients that don't read


def test_requests_whose_answers_nobody_reads_do_not_fill_the_memory(run) -> None:
    async def play(node: Node) -> None:
        total = 10_000
        async with await node.connect() as client:
            await client.send(HERE)
            head = await client.until(b"\r\n\r\n")
            size = len(head) + len(await client.exactly(1000))
            sending = asyncio.ensure_future(client.send(HERE * total))
            await node.until(lambda: connections(node) and connections(node)[0].postponed is not None)
            for _ in range(50):
                await asyncio.sleep(0)
            (connection,) = connections(node)
            assert len(connection.out) < HIGH_WATER + 100_000
            assert len(node.records) < total
            assert connection.armed
            for _ in range(total):
                answer = await client.exactly(size)
                assert answer.startswith(head[:20])
                assert answer.endswith(b"x" * 1000)
            await sending
        await quiet(node)
        assert len(node.records) == total + 1
        assert {record.ended for record in node.records} == {"ok"}

    scene(run, play)


@pytest.mark.parametrize("end", ["time", "reset"])
def test_who_never_reads_is_ended(run, end: str) -> None:
    async def play(node: Node) -> None:
        client = await node.connect()
        sending = asyncio.ensure_future(flood_requests(client))
        await node.until(lambda: connections(node) and connections(node)[0].postponed is not None)
        (connection,) = connections(node)
        if end == "time":
            connection.due(connection.progress + FLUSH_SECONDS + 1)
        else:
            client.reset()
        await quiet(node)
        assert node.records[-1].ended.startswith("client-closed")
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        client.close()

    async def flood_requests(client) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(client.socket, HERE * 100_000)
        except OSError:
            pass

    scene(run, play)


def test_a_last_answer_that_nobody_reads_has_its_time(run) -> None:
    async def play(node: Node) -> None:
        client = await node.connect()
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        server = await node.accept_any()
        await server.until(b"\r\n\r\n")
        size = 8_000_000
        sending = asyncio.ensure_future(
            server.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n"
            )
        )
        await node.until(lambda: connections(node) and connections(node)[0].out is not None)
        (connection,) = connections(node)
        for _ in range(50):
            await asyncio.sleep(0)
        assert connection.phase == FLUSHING or connection.congested
        # What the client does not take, it loses when its time is over, whatever the phase.
        for _ in range(3):
            connection.due(connection.progress + 1000)
        await quiet(node)
        await sending
        client.close()

    scene(run, play)


def test_a_last_answer_is_flushed_to_a_client_that_takes_its_time(run) -> None:
    async def play(node: Node) -> None:
        body = b"y" * 60_000
        async with await node.connect() as client:
            await client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            server = await node.accept_any()
            await server.until(b"\r\n\r\n")
            await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n" + body)
            await client.until(b"\r\n\r\n")
            assert await client.rest() == body
        await quiet(node)

    scene(run, play)


# --- uploads


def test_an_early_answer_reaches_a_client_that_uploads(run) -> None:
    async def play(node: Node) -> None:
        client = await node.connect()
        await client.send(UPLOAD)
        server = await node.accept_any()
        await server.until(b"\r\n\r\n")
        sending = asyncio.ensure_future(flood(client, 3_000_000))
        await server.exactly(100_000)
        await server.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        server.close()  # with bytes unread: a reset follows the answer
        await client.expect_lines("HTTP/1.1 413 Too Large", "...", "Connection: close", "...", "")
        await client.expect(b"no")
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        client.close()
        await quiet(node)
        assert (node.records[-1].status, node.records[-1].ended) == (413, "ok")

    scene(run, play)


def test_a_server_that_dies_inside_an_upload(run) -> None:
    async def play(node: Node) -> None:
        client = await node.connect()
        await client.send(UPLOAD)
        server = await node.accept_any()
        await server.until(b"\r\n\r\n")
        sending = asyncio.ensure_future(flood(client, 2_000_000))
        await server.exactly(100_000)
        server.reset()
        await client.expect_lines("HTTP/1.1 502 *", "...", "Connection: close", "")
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        client.close()
        await quiet(node)
        assert node.records[-1].ended == "server-closed@response-header"

    scene(run, play)


@pytest.mark.parametrize("size", [200_000, LARGE])
def test_a_client_that_half_closes_inside_an_upload_is_told(run, size: int) -> None:
    async def play(node: Node) -> None:
        client = await node.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        server = await node.accept_any()
        await server.until(b"\r\n\r\n")
        await client.send(b"x" * 100_000)
        await server.exactly(100_000)
        client.half_close()
        await client.expect_lines("HTTP/1.1 400 *", "...", "Connection: close", "")
        await server.sees_closed()
        await quiet(node)
        client.close()
        assert node.records[-1].status == 400
        assert node.records[-1].ended == "client-closed@request-body"
        assert states(node)["web1"].failures == 0

    scene(run, play)


@pytest.mark.parametrize("data", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_a_reset_behind_a_part_of_a_head_is_seen_at_once(run, data: bytes) -> None:
    async def play(node: Node) -> None:
        client = await node.connect()
        await node.until(lambda: connections(node) and connections(node)[0].reading)
        client.socket.send(data)  # both before the loop looks again: uvloop tells of them once
        client.reset()
        await quiet(node)  # well before the time for a head is over
        assert node.records[-1].ended == "client-closed@request-header"

    scene(run, play)


def test_a_reset_behind_a_part_of_a_body_is_seen_at_once(run) -> None:
    async def play(node: Node) -> None:
        client = await node.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        server = await node.accept_any()
        await server.until(b"\r\n\r\n")
        client.socket.send(b"x" * 10)
        client.reset()
        await server.sees_closed()
        await quiet(node)
        assert node.records[-1].ended == "client-closed@request-body"

    scene(run, play)


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_client_that_goes_inside_an_upload(run, end: str) -> None:
    async def play(node: Node) -> None:
        client = await node.connect()
        await client.send(UPLOAD)
        server = await node.accept_any()
        await server.until(b"\r\n\r\n")
        await client.send(b"x" * 100_000)
        await server.exactly(100_000)
        getattr(client, end)()
        await server.sees_closed()
        await quiet(node)
        client.close()
        assert node.records[-1].ended == "client-closed@request-body"
        assert states(node)["web1"].failures == 0

    scene(run, play)


def test_a_whole_upload_to_a_slow_server_and_the_next_request(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            sending = asyncio.ensure_future(client.send(UPLOAD + b"z" * LARGE + GET))
            server = await node.accept_any()
            await server.until(b"\r\n\r\n")
            assert await count(server) == LARGE
            await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await server.expect_lines("GET / HTTP/1.1", "...", "")
            await server.send(b"HTTP/1.1 204 X\r\n\r\n")
            await client.expect_lines("HTTP/1.1 200 OK", "...", "", "HTTP/1.1 204 X", "...", "")
            await sending
        await quiet(node)

    scene(run, play)


# --- downloads


@pytest.mark.parametrize("framing", [f"Content-Length: {LARGE}", "X-Until: close"])
def test_a_large_download_to_a_slow_reader(run, framing: str) -> None:
    async def play(node: Node) -> None:
        async with await Wire.connect(node.address(), receive_buffer=65_536) as client:
            await client.send(GET)
            server = await node.accept_any()
            await server.until(b"\r\n\r\n")
            await server.send(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing.encode())
            sending = asyncio.ensure_future(flood(server))
            await client.until(b"\r\n\r\n")
            await node.until(lambda: connections(node)[0].pump_out and connections(node)[0].pump_out.waiting)
            assert connections(node)[0].pump_out._held <= PIPE_BYTES
            if "Until" in framing:
                sending.add_done_callback(lambda _: server.close())
                assert await count(client, LARGE + 1) == LARGE
            else:
                assert await count(client) == LARGE
            await sending
        await quiet(node)
        assert node.records[-1].ended == "ok"

    scene(run, play)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_server_that_goes_inside_its_answer_cuts_the_client_off(run, how: str) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(GET)
            server = await node.accept_any()
            await server.until(b"\r\n\r\n")
            await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE + b"x" * 200_000)
            await client.until(b"\r\n\r\n")
            getattr(server, how)()
            await client.sees_closed()
            assert client._reset
        await quiet(node)
        assert node.records[-1].ended == "server-closed-inside@response-body"

    scene(run, play)


# --- kept connections to servers


@pytest.mark.parametrize("unasked", [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"x", b""])
def test_what_an_idle_server_says_unasked_reaches_nobody(run, unasked: bytes) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(GET)
            server = await node.accept_any()
            await server.until(b"\r\n\r\n")
            await server.send(b"HTTP/1.1 204 X\r\n\r\n")
            await client.until(b"\r\n\r\n")
            await node.until(lambda: states(node)["web1"].idle)
            if unasked:
                await server.send(unasked)
            else:
                shutdown(server)
            await node.until(lambda: not states(node)["web1"].idle)
            await server.sees_closed()
            await client.send(GET)
            again = await node.accept_any()
            await again.until(b"\r\n\r\n")
            await again.send(b"HTTP/1.1 204 Y\r\n\r\n")
            await client.expect_lines("HTTP/1.1 204 Y", "...", "")
        await quiet(node)

    scene(run, play)


def test_a_second_answer_to_one_request_is_thrown_away(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(GET + GET)
            server = await node.accept_any()
            await server.until(b"\r\n\r\n")
            await server.send(b"HTTP/1.1 204 X\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            again = await node.accept_any()
            await again.until(b"\r\n\r\n")
            await again.send(b"HTTP/1.1 204 Y\r\n\r\n")
            await client.expect_lines("HTTP/1.1 204 X", "...", "", "HTTP/1.1 204 Y", "...", "")
        await quiet(node)

    scene(run, play)


# --- tunnels


@pytest.mark.parametrize("first", ["client", "server"])
def test_each_half_of_a_tunnel_ends_by_itself(run, first: str) -> None:
    async def play(node: Node) -> None:
        client, server = await upgraded(node)
        one, other = (client, server) if first == "client" else (server, client)
        await one.send(b"last words")
        shutdown(one)
        await other.expect(b"last words")
        await other.sees_end()
        # So much that the writer has to wait: the half-closed side must still get it all.
        sending = asyncio.ensure_future(flood(other))
        await asyncio.sleep(0.05)
        assert await count(one) == LARGE
        await sending
        shutdown(other)
        await one.sees_end()
        await quiet(node)
        client.close()
        server.close()
        assert (node.records[-1].status, node.records[-1].ended) == (101, "ok")

    scene(run, play)


def test_bytes_behind_the_switch_belong_to_the_tunnel(run) -> None:
    async def play(node: Node) -> None:
        client = await node.connect()
        await client.send(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nGET /not HTTP/1.1\r\n\r\n"
        )
        server = await node.accept_any()
        await server.until(b"\r\n\r\n")
        await server.send(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nHTTP/1.1 not parsed")
        await client.until(b"\r\n\r\n")
        await client.expect(b"HTTP/1.1 not parsed")
        await server.expect(b"GET /not HTTP/1.1\r\n\r\n")
        client.close()
        server.close()
        await quiet(node)

    scene(run, play)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_tunnel(run, who: str) -> None:
    async def play(node: Node) -> None:
        client, server = await upgraded(node)
        one, other = (client, server) if who == "client" else (server, client)
        sending = asyncio.ensure_future(flood(other))
        await one.read()
        one.reset()
        await other.sees_closed()
        await sending
        await quiet(node)
        other.close()

    scene(run, play)


# --- storms


def test_a_storm_of_aborts_leaves_nothing_behind(run) -> None:
    """Clients and servers end at any moment of splices, tunnels and answers; descriptors, places and records add up."""

    async def play(node: Node) -> None:
        chance = random.Random(7)
        before = descriptors()
        for _ in range(60):
            kind = chance.choice(["upload", "download", "tunnel", "request"])
            if kind == "tunnel":
                client, server = await upgraded(node)
            else:
                client = await node.connect()
                await client.send(UPLOAD if kind == "upload" else GET)
                server = await node.accept_any()
                await server.until(b"\r\n\r\n")
                if kind == "download":
                    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
                    await client.until(b"\r\n\r\n")
            floods = [asyncio.ensure_future(flood(wire, 3_000_000)) for wire in (client, server)
                      if kind == "tunnel" or (kind == "upload") is (wire is client)]  # fmt: skip
            for _ in range(chance.randrange(20)):
                await asyncio.sleep(0)
            for wire in chance.sample([client, server], 2):
                getattr(wire, chance.choice(["close", "reset"]))()
                if chance.random() < 0.5:
                    await asyncio.sleep(0)
            for task in floods:
                task.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
        await quiet(node)
        for server in node.servers.values():
            server.close_connections()
        node.runtime.dispatcher.close()
        await node.until(lambda: descriptors() <= before)
        assert len(node.records) == 60

    scene(run, play)


def test_slow_peers_piece_by_piece(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(GET, cut=1)
            server = await node.accept_any()
            await server.until(b"\r\n\r\n")
            await server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", cut=1)
            await client.until(b"\r\n\r\n")
            assert b"".join(re.findall(rb"\r\n([abc])\r\n", b"\r\n" + await client.until(b"\r\n0\r\n\r\n"))) == b"abc"
        await quiet(node)

    scene(run, play)


def test_a_fault_as_a_server_is_reached_leaves_nobody_waiting(run, caplog) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(HERE)
            await client.until(b"x" * 1000)
            (victim,) = connections(node)
            real = victim.session

            class Broken(Session):
                def received(self, side: Side, data: bytes, now: float) -> list[Action]:
                    return real.received(side, data, now)

                def connected(self, assignment: Assignment, now: float) -> list[Action]:
                    raise RuntimeError("a bug")

            victim.session = Broken()
            await client.send(GET)
            await client.sees_closed()
        await quiet(node)
        assert "ended by a fault" in caplog.text

    scene(run, play)


def test_a_fault_ends_one_connection_and_no_other(run, caplog) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client, await node.connect() as other:
            await other.send(HERE)
            await other.until(b"x" * 1000)
            await client.send(HERE)
            await client.until(b"x" * 1000)
            victim = next(c for c in connections(node) if c.client.endswith(f":{client.socket.getsockname()[1]}"))

            class Broken(Session):
                def received(self, side: Side, data: bytes, now: float) -> list[Action]:
                    raise RuntimeError("a bug")

            victim.session = Broken()
            await client.send(HERE)
            await client.sees_closed()
            await other.send(HERE)
            await other.until(b"x" * 1000)
        await quiet(node)
        assert "ended by a fault" in caplog.text

    scene(run, play)


def test_the_request_counts_are_right(run) -> None:
    async def play(node: Node) -> None:
        node.server("web1").answer = Answer(status=404)
        async with await node.connect() as client:
            await client.send(GET * 3 + HERE)
            for _ in range(3):
                await client.expect_lines("HTTP/1.1 404 *", "...", "")
            await client.until(b"x" * 1000)
        await quiet(node)
        node.runtime.publish()
        slot = node.snapshot.listeners[0].slot
        from l7lb.proxy import counts as columns

        assert node.counts.total(slot, columns.REQUESTS) == 4
        assert node.counts.total(slot, columns.STATUS_4XX) == 3
        assert node.counts.total(slot, columns.ACTIVE) == 0
        web1 = states(node)["web1"].slot
        assert node.counts.total(web1, columns.REUSED) == 2
        for row, records in ((slot, node.records), (web1, node.records[:3])):
            buckets = [node.counts.total(row, columns.HISTOGRAM + bucket) for bucket in range(len(columns.BUCKETS) + 1)]
            assert sum(buckets) == len(records)
            took = sum(record.total_ms for record in records)
            assert node.counts.total(row, columns.DURATION) == pytest.approx(took * 1000, abs=10)

    scene(run, play, by_hand=False)
