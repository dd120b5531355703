"""Bulk between sockets: by splice, by copying, towards slow readers, until ends and resets."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable

import pytest

from l7lb.core.actions import Side
from l7lb.proxy import relay
from l7lb.proxy.endpoint import HIGH_WATER, Endpoint, Sender
from l7lb.proxy.relay import COPY_BYTES, Pump

CLIENT, SERVER = Side.CLIENT, Side.SERVER
pytestmark = pytest.mark.skipif(
    not str(relay.__file__).endswith(".py"), reason="compiled: an endpoint of the test's can't stand in for one"
)


class End(Endpoint):
    """An endpoint that does what a connection does with its pumps, and keeps what it reads itself."""

    def __init__(self, sender: Sender, sock: socket.socket) -> None:
        super().__init__(asyncio.get_running_loop(), sender, sock)
        self.got = b""
        self.breaks = 0

    def on_readable(self) -> None:
        if self.pump_in is not None:
            self.pump_in.readable()
            return
        self.got += self.sock.recv(65536)

    def on_writable(self) -> None:
        if self.flush() and self.pump_out is not None:
            self.pump_out.writable()

    def on_broken(self) -> None:
        self.breaks += 1


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


class Bench:
    """``peer`` - source : pump : destination - ``reader``, with the test at both far ends."""

    def __init__(
        self, pair: Callable[[], tuple[socket.socket, socket.socket]], count: int, side: Side = SERVER
    ) -> None:
        sender = Sender(asyncio.get_running_loop())
        self.peer, near = pair()
        self.reader, far = pair()
        self.source, self.destination = End(sender, near), End(sender, far)
        self.moved: list[int] = []
        self.over: list[tuple[Side, bool]] = []
        self.pump = Pump(
            side,
            self.source,
            self.destination,
            count,
            lambda _, moved: self.moved.append(moved),
            lambda _, ended, error: self.over.append((ended, error)),
        )
        for sock in (self.peer, self.reader):
            sock.setblocking(False)

    def close(self) -> None:
        self.pump.detach()
        self.source.leave()
        self.destination.leave()
        self.peer.close()
        self.reader.close()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)

    async def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.reader, 1 << 20), 5)
            if not part:
                break
            data += part
        return data

    async def send(self, data: bytes) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.peer, data), 5)


PAIRS = pytest.mark.parametrize("pair", [tcp_pair, socket.socketpair], ids=["tcp", "unix"])
BULK = pytest.mark.parametrize("bulk", [True, False], ids=["splice", "copy"])


def scene(run, pair, count: int, play, side: Side = SERVER) -> None:
    async def perform() -> None:
        bench = Bench(pair, count, side)
        try:
            await play(bench)
        finally:
            bench.close()

    run(perform())


@PAIRS
@BULK
def test_exactly_so_many_bytes(run, pair, bulk: bool) -> None:
    data = os.urandom(3_000_000)

    async def play(bench: Bench) -> None:
        bench.pump.start(bulk)
        sending = asyncio.ensure_future(bench.send(data + b"behind"))
        assert await bench.read(len(data)) == data
        await sending
        await bench.until(lambda: bench.source.got == b"behind")
        assert sum(bench.moved) == len(data)
        assert bench.pump.remaining == 0
        assert bench.source.pump_in is bench.destination.pump_out is None
        assert not bench.over

    scene(run, pair, len(data), play)


@PAIRS
@BULK
def test_until_the_end(run, pair, bulk: bool) -> None:
    async def play(bench: Bench) -> None:
        bench.pump.start(bulk)
        await bench.send(b"abc")
        assert await bench.read(3) == b"abc"
        bench.peer.shutdown(socket.SHUT_WR)
        await bench.until(lambda: bench.over)
        assert bench.over == [(SERVER, False)]
        assert bench.pump.ended
        assert sum(bench.moved) == 3

    scene(run, pair, -1, play)


@BULK
def test_a_slow_reader_costs_a_pipe_and_no_more(run, bulk: bool) -> None:
    size = 20_000_000

    async def play(bench: Bench) -> None:
        bench.pump.start(bulk)
        sending = asyncio.ensure_future(bench.send(b"x" * size))
        await bench.until(lambda: bench.pump.waiting)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not bench.source.reading
        assert bench.destination.writing
        assert not sending.done()
        assert bench.destination.progress > 0
        assert len(await bench.read(size)) == size
        await sending

    scene(run, tcp_pair, size, play)


@BULK
def test_a_reset_of_the_source(run, bulk: bool) -> None:
    async def play(bench: Bench) -> None:
        bench.pump.start(bulk)
        bench.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        bench.peer.close()
        await bench.until(lambda: bench.over)
        assert bench.over == [(SERVER, True)]

    scene(run, tcp_pair, -1, play)


@BULK
def test_a_reset_of_the_destination(run, bulk: bool) -> None:
    async def play(bench: Bench) -> None:
        bench.pump.start(bulk)
        bench.reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        bench.reader.close()
        while not bench.over:
            await bench.send(b"x" * 1000)
            await asyncio.sleep(0)
        assert bench.over == [(SERVER, True)]
        assert bench.source.pump_in is None

    scene(run, tcp_pair, -1, play, side=CLIENT)


def test_a_copy_that_turns_out_to_be_bulk_is_spliced(run) -> None:
    async def play(bench: Bench) -> None:
        bench.source.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * COPY_BYTES)
        await bench.send(b"x" * (2 * COPY_BYTES))
        await asyncio.sleep(0.01)
        bench.pump.start(False)
        assert bench.pump._pipe is None
        await bench.until(lambda: sum(bench.moved) == 2 * COPY_BYTES)
        assert bench.pump._pipe is not None

    scene(run, tcp_pair, -1, play)


@pytest.mark.parametrize("behind", [b"", b"GET / HTTP/1.1\r\nHost: smuggled\r\n\r\n"])
def test_without_descriptors_it_copies_and_still_not_one_byte_too_many(run, monkeypatch, behind: bytes) -> None:
    def none(_flags: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(relay.os, "pipe2", none)
    data = b"x" * (COPY_BYTES * 2 + 10)

    async def play(bench: Bench) -> None:
        bench.pump.start(True)
        sending = asyncio.ensure_future(bench.send(data + behind))
        assert await bench.read(len(data)) == data
        await sending
        await bench.until(lambda: bench.source.got == behind)
        with pytest.raises(BlockingIOError):
            bench.reader.recv(1)

    scene(run, tcp_pair, len(data), play, side=CLIENT)


@pytest.mark.parametrize("bulk", [True, False])
def test_what_waits_already_goes_first(run, bulk: bool) -> None:
    first = b"a" * 10_000_000

    async def play(bench: Bench) -> None:
        bench.destination.send(first)
        bench.destination.send_queued()
        assert bench.destination.out is not None
        await bench.send(b"b" * 100)
        bench.pump.start(bulk)
        assert not bench.source.reading
        assert await bench.read(len(first) + 100) == first + b"b" * 100

    scene(run, tcp_pair, 100, play)


def test_stopping_a_pump_frees_its_pipe(run) -> None:
    async def play(bench: Bench) -> None:
        before = len(os.listdir("/proc/self/fd"))
        bench.pump.start(True)
        sending = asyncio.ensure_future(bench.send(b"x" * 20_000_000))
        await bench.until(lambda: bench.pump.waiting)
        bench.pump.detach()
        bench.pump.detach()
        assert not bench.pump.waiting
        assert len(os.listdir("/proc/self/fd")) == before
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    scene(run, tcp_pair, -1, play)


# --- the endpoint itself


def test_what_is_sent_in_one_turn_leaves_at_its_end(run) -> None:
    async def play(bench: Bench) -> None:
        bench.destination.send(b"a")
        bench.destination.send(b"b")
        with pytest.raises(BlockingIOError):
            bench.reader.recv(1)
        assert await bench.read(2) == b"ab"
        bench.destination.send_queued()  # nothing

    scene(run, tcp_pair, -1, play)


def test_what_the_socket_does_not_take_waits(run) -> None:
    data = os.urandom(8_000_000)

    async def play(bench: Bench) -> None:
        end = bench.destination
        end.send(data)
        end.send_queued()
        assert end.congested
        assert end.writing
        assert len(end.out) >= HIGH_WATER
        end.send(b"more")
        assert await bench.read(len(data) + 4) == data + b"more"
        await bench.until(lambda: end.out is None)
        assert not end.congested
        assert not end.writing
        assert end.progress > 0

    scene(run, tcp_pair, -1, play)


def test_a_broken_socket_is_told_once_for_each_write(run) -> None:
    async def play(bench: Bench) -> None:
        end = bench.destination
        end.send(b"x" * 8_000_000)
        end.send_queued()
        bench.reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        bench.reader.close()
        await bench.until(lambda: end.breaks)
        assert end.broken
        assert end.out is None
        assert not end.writing
        end.send(b"x")
        end.send_queued()
        assert end.breaks == 2

    scene(run, tcp_pair, -1, play)


def test_leaving_with_a_reset(run) -> None:
    async def play(bench: Bench) -> None:
        bench.destination.send(b"never sent")
        bench.destination.leave(reset=True)
        with pytest.raises(ConnectionResetError):
            await bench.read(1)

    scene(run, tcp_pair, -1, play)
