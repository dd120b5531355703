"""What comes before a session: stages that wait, fail, are ended from outside, and leave the socket clean."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import pytest
from proxy_scene import GET, config, connections, descriptors, quiet

from l7lb.core.contracts import Front, Peer
from l7lb.proxy import counts as columns
from l7lb.proxy import runtime
from l7lb.proxy.connection import OPENING
from l7lb.proxy.endpoint import DONT_WAIT
from l7lb.proxy.opening import DONE, READ, WRITE, Opening, OpeningFailed, Stage
from l7lb.testing import Node, Wire
from l7lb.testing.wire import Ended

SHORT = config({"timeouts": {"handshake": "200ms"}})


class Word(Stage):
    """Takes a line, one byte at a time: an address, or what it should do instead."""

    __slots__ = ("line",)

    name = "proxy"

    def __init__(self) -> None:
        self.line = b""

    def step(self, opening: Opening) -> int:
        while not self.line.endswith(b"\n"):
            try:
                data = opening.sock.recv(1, DONT_WAIT)
            except BlockingIOError:
                return READ
            if not data:
                raise OpeningFailed("closed", "it left")
            self.line += data
            opening.heard = True
        word = self.line.strip().decode()
        if word == "fault":
            raise RuntimeError("a fault")
        if word == "last words":
            raise OpeningFailed("refused", "it asked for it", b"go away\n")
        if word == "write":
            self.line = b"192.0.2.9\n"
            return WRITE
        opening.peer.client = word
        opening.peer.front = Front("127.0.0.1")
        return DONE


class Patient(Word):
    """Goes on without a client that says nothing."""

    __slots__ = ()

    name = "tls"

    def patience(self) -> float:
        return 0.1

    def silent(self, opening: Opening) -> int:
        opening.peer.client = "192.0.2.200"
        return DONE


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have listeners go through these."""

    def use(*makers: Callable[[Peer], Stage | None]) -> None:
        monkeypatch.setattr(runtime, "STAGES", tuple(lambda listener, maker=maker: maker for maker in makers))

    use(lambda peer: Word())
    return use


def scene(run, play, conf=None) -> None:
    async def perform() -> None:
        async with Node(conf or config()) as node:
            await play(node)
            await quiet(node)
            assert cell(node, columns.OPENING) == 0

    run(perform())


def cell(node: Node, column: int) -> int:
    listener = node.runtime.listeners["web"]
    return listener.cells[listener.row + column]


def failures(node: Node) -> dict[tuple[str, str], int]:
    """How often each stage failed for which reason, where it did."""
    return {
        (stage, reason): number
        for stage in columns.STAGES
        for reason in columns.REASONS
        if (number := cell(node, columns.opening_failure(stage, reason)))
    }


async def ended(wire: Wire) -> None:
    """Wait for the end, whichever way it comes."""
    try:
        assert await wire.read() == b""
    except Ended:
        pass


@pytest.mark.usefixtures("stages")
def test_a_session_begins_with_the_peer_that_the_stages_found(run) -> None:
    async def play(node: Node) -> None:
        for cut in range(11):
            async with await node.connect() as client:
                data = b"192.0.2.1\n" + GET
                await client.send_pieces([piece for piece in (data[:cut], data[cut:]) if piece])
                assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert {record.client for record in node.records} == {"192.0.2.1"}
        assert failures(node) == {}
        async with await node.connect() as client:
            await client.send(b"2001:db8::1\n" + GET)
            await client.until(b"\r\n\r\n")
            assert connections(node)[-1].client.startswith("[2001:db8::1]:")

    scene(run, play)


def test_stages_come_in_their_order_and_only_where_they_apply(run, stages) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(b"192.0.2.1\n")
            await client.send(b"write\n" + GET)
            await client.until(b"\r\n\r\n")
        assert (await node.record()).client == "192.0.2.9"
        async with await node.connect() as client:
            await client.send(b"192.0.2.2\n" + GET)
            await client.until(b"\r\n\r\n")
        assert (await node.record(1)).client == "192.0.2.2"

    stages(lambda peer: None, lambda peer: Word(), lambda peer: Word() if peer.client == "192.0.2.1" else None)
    scene(run, play)


def test_a_stage_may_go_on_without_a_silent_client(run, stages) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await node.until(lambda: connections(node) and connections(node)[0].phase != OPENING)
            await client.send(GET)
            await client.until(b"\r\n\r\n")
        assert (await node.record()).client == "192.0.2.200"

    stages(lambda peer: Patient())
    scene(run, play)


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize("sent", [b"", b"192.0", b"192.0.2.1"])
def test_an_opening_has_a_time_limit(run, sent: bytes) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(sent)
            await node.until(lambda: cell(node, columns.OPENING) == 1)
            await ended(client)
        assert failures(node) == {("proxy", "timeout"): 1}
        assert not node.records

    scene(run, play, SHORT)


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_is_let_go(run, reset: bool) -> None:
    async def play(node: Node) -> None:
        before = descriptors()
        for _ in range(20):
            client = await node.connect()
            await client.send(b"19")
            await node.until(lambda: connections(node))
            if reset:
                client.reset()
            else:
                client.close()
            await node.until(lambda: not connections(node))
        assert descriptors() == before
        assert failures(node) == {("proxy", "closed"): 20}
        # The numbers of these descriptors are used again.
        async with await node.connect() as client:
            await client.send(b"192.0.2.1\n" + GET)
            await client.until(b"\r\n\r\n")

    scene(run, play)


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize("reset", [False, True])
def test_who_leaves_without_a_word_did_no_wrong(run, reset: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def play(node: Node) -> None:
        for _ in range(3):
            client = await node.connect()
            await node.until(lambda: connections(node))
            if reset:
                client.reset()
            else:
                client.close()
            await node.until(lambda: not connections(node))
        assert failures(node) == {}
        assert not caplog.records

    caplog.set_level(logging.WARNING, "l7lb.opening")
    scene(run, play)


@pytest.mark.usefixtures("stages")
def test_last_words_reach_a_client_that_still_sends(run) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client:
            await client.send(b"last words\n" + b"x" * 5000)
            assert await client.until(b"\n") == b"go away\n"
            await ended(client)
        assert failures(node) == {("proxy", "refused"): 1}

    scene(run, play)


@pytest.mark.usefixtures("stages")
def test_a_fault_ends_one_connection(run, caplog: pytest.LogCaptureFixture) -> None:
    async def play(node: Node) -> None:
        async with await node.connect() as client, await node.connect() as other:
            await other.send(b"192")
            await client.send(b"fault\n")
            await ended(client)
            await other.send(b".0.2.1\n" + GET)
            await other.until(b"\r\n\r\n")
        assert "a fault" in caplog.text

    scene(run, play)


@pytest.mark.usefixtures("stages")
def test_one_line_a_second_tells_of_failures(run, caplog: pytest.LogCaptureFixture) -> None:
    async def play(node: Node) -> None:
        for _ in range(5):
            client = await node.connect()
            await client.send(b"1")
            client.close()
        await node.until(lambda: failures(node) == {("proxy", "closed"): 5})
        assert len(caplog.records) == 1
        await node.until(lambda: len(caplog.records) == 2)
        assert "(and 3 more within a second)" in caplog.records[1].getMessage()

    caplog.set_level(logging.WARNING, "l7lb.opening")
    scene(run, play)


@pytest.mark.usefixtures("stages")
def test_openings_count_against_the_limit_and_a_reload_leaves_them(run) -> None:
    async def play(node: Node) -> None:
        first, second, third = [await node.connect() for _ in range(3)]
        await node.until(lambda: cell(node, columns.OPENING) == 2)
        await third.send(b"192.0.2.3\n" + GET)
        await node.reload(config({"limits": {"connections": 2}, "path_case": "exact"}))
        await first.send(b"192.0.2.1\n" + GET)
        await first.until(b"\r\n\r\n")
        assert cell(node, columns.ACTIVE) == 2
        first.close()
        await third.until(b"\r\n\r\n")
        second.close()
        third.close()

    scene(run, play, config({"limits": {"connections": 2}}))


@pytest.mark.usefixtures("stages")
def test_a_drain_closes_them_and_a_patient_one_waits(run) -> None:
    async def play(node: Node) -> None:
        first, second = await node.connect(), await node.connect()
        await node.until(lambda: cell(node, columns.OPENING) == 2)
        node.runtime.drain(patient=True)
        await first.send(b"192.0.2.1\n" + GET)
        assert b"Connection: close" in await first.until(b"\r\n\r\n")
        node.runtime.drain()
        await ended(second)
        first.close()
        second.close()
        assert failures(node) == {}

    scene(run, play)


def test_a_listener_without_stages_makes_its_session_at_once(run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(node: Node) -> None:
        monkeypatch.setattr("l7lb.proxy.listener.Opening", None)
        assert node.runtime.listeners["web"].stages == ()
        async with await node.connect() as client:
            await client.send(GET)
            await client.until(b"\r\n\r\n")

    scene(run, play)


def test_many_idle_openings_are_bounded_and_end(run, stages) -> None:
    async def play(node: Node) -> None:
        host, port = node.address().host, node.address().port
        clients = [socket.create_connection((host, port)) for _ in range(100)]
        await node.until(lambda: cell(node, columns.OPENING) == 50)
        assert len(connections(node)) == 50
        await node.until(lambda: failures(node) == {("proxy", "timeout"): 100})
        for client in clients:
            client.close()

    scene(run, play, config({"timeouts": {"handshake": "300ms"}, "limits": {"connections": 50}}))
