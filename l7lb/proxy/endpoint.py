"""A socket in the event loop: read and write interest, and what could not be written yet.

Raw non-blocking sockets under add_reader and add_writer, not transports: a third cheaper, and back-pressure is plain
to see. Reads and writes carry MSG_DONTWAIT, which saves making each accepted socket non-blocking.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from l7lb.proxy.relay import Pump
    from l7lb.proxy.tls import Tls

# Plain numbers and names that the compiler puts in place.
DONT_WAIT: Final = int(socket.MSG_DONTWAIT)
SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
monotonic: Final = time.monotonic
HIGH_WATER: Final = 64 * 1024  # bytes waiting to be written at which the other side is no longer read


class Sender:
    """Writes at the end of a turn of the loop what was to be sent during it.

    Each write to a peer that sleeps wakes it, which costs more than the write; written one after the other, most meet
    a peer that is awake. Under load that is a fifth of a request's whole cost, and all that was sent to one socket in a
    turn leaves with one call.
    """

    __slots__ = ("_loop", "_scheduled", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Endpoint] = []
        self._scheduled = False

    def add(self, endpoint: Endpoint) -> None:
        """Have the endpoint's queued bytes written soon."""
        self._waiting.append(endpoint)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.run)

    def run(self) -> None:
        """Write everything."""
        self._scheduled = False
        waiting, self._waiting = self._waiting, []
        for endpoint in waiting:
            endpoint.send_queued()


class Endpoint:
    """One side of a connection. Subclasses handle what is read; ``broken`` says that writing failed."""

    __slots__ = (
        "armed",
        "broken",
        "entered",
        "fd",
        "loop",
        "out",
        "progress",
        "pump_in",
        "pump_out",
        "queued",
        "reading",
        "sender",
        "sock",
        "tls",
        "was_reset",
        "writing",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sender: Sender, sock: socket.socket) -> None:
        self.loop = loop
        self.sender = sender
        self.queued: bytes | None = None  # to be written at the end of this turn of the loop
        self.sock = sock
        self.fd = sock.fileno()
        self.tls: Tls | None = None  # what is read and written goes through it, where it is there
        self.out: bytearray | None = None
        self.entered = False
        self.reading = False
        self.writing = False
        self.broken = False
        self.was_reset = False  # what is still to be read ends in a reset, though it will look like a regular end
        self.armed = 0
        self.progress = 0.0  # when the peer last took something that had to wait
        self.pump_in: Pump | None = None  # takes what is read here
        self.pump_out: Pump | None = None  # writes here

    def read_more(self, wanted: bool) -> None:
        """Read on, or stop reading, so that the kernel's buffer fills and the peer waits."""
        if wanted is not self.reading:
            self.reading = wanted
            if wanted:
                self._enter()
                self.loop.add_reader(self.fd, self.on_readable)
                if self.tls is not None:
                    self.look_again()
            else:
                self.loop.remove_reader(self.fd)

    def _enter(self) -> None:
        """Before the loop first sees this descriptor, any handle that it still keeps for the number must go: after a
        reset uvloop leaves a closed one in its table, and every later use of the number would fail.
        """
        if not self.entered:
            self.entered = True
            self.loop.remove_reader(self.fd)

    def write_more(self, wanted: bool) -> None:
        """Be told when there is room to write."""
        if wanted is not self.writing:
            self.writing = wanted
            if wanted:
                self._enter()
                self.loop.add_writer(self.fd, self.on_writable)
            else:
                self.loop.remove_writer(self.fd)

    def receive(self, limit: int) -> bytes | None:
        """What came through TLS, b"" at its end; None where nothing did. Raises OSError."""
        tls = self.tls
        assert tls is not None
        data = tls.receive(limit)
        if tls.read_blocked or tls.write_blocked:
            tls.write_blocked = False
            self.write_more(True)  # to be called when there is room, and to go on where it stopped
        elif data is None:
            self.look_for_reset()  # behind a record without data, or a part of one
        elif len(data) == limit:
            self.look_again()
        return data

    def look_again(self) -> None:
        """Where TLS holds bytes that were not read, no event will tell of them: read them soon."""
        if self.tls is not None and self.tls.pending():
            self.loop.call_soon(self._read_held)

    def _read_held(self) -> None:
        if self.reading and self.tls is not None and self.tls.pending():
            self.on_readable()

    def write_now(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the socket takes; returns how much that is, 0 where it must wait. Raises OSError."""
        tls = self.tls
        if tls is not None:
            count = tls.send(data)
            if tls.write_blocked:
                self.write_more(False)  # until something was read
            return count
        try:
            return self.sock.send(data, SEND_FLAGS)
        except BlockingIOError:
            return 0

    def resume_reading(self) -> bool:
        """There is room to write: whether that was what a read through TLS waited for, which then goes on."""
        tls = self.tls
        if tls is None or not tls.read_blocked:
            return False
        tls.read_blocked = False
        self.write_more(self.out is not None or (self.pump_out is not None and self.pump_out.waiting))
        self.on_readable()
        return True

    def end_writing(self) -> None:
        """Tell the peer that nothing more will come, and go on reading."""
        try:
            if self.tls is not None:
                self.tls.close_notify()
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the other half will notice

    def look_for_reset(self) -> None:
        """Where bytes and a reset come at once, uvloop tells of them once and never again. This sees the reset behind
        the bytes that were just read, and has the rest told anew; for those whom nothing else would end soon.
        """
        if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.renew()

    def renew(self) -> None:
        """The connection was reset: enter the loop again, to be told of what is left to read."""
        self.was_reset = True
        if self.reading:
            self.read_more(False)
            self.read_more(True)

    def send(self, data: bytes) -> None:
        """Write at the end of this turn what the socket takes, and the rest when it can."""
        if self.out is not None:
            self.out += data
        elif self.queued is None:
            self.queued = data
            self.sender.add(self)
        else:
            self.queued += data

    def send_queued(self) -> None:
        """Write now what was to be written at the end of this turn."""
        data = self.queued
        if data is None:
            return
        self.queued = None
        try:
            count = self.sock.send(data, SEND_FLAGS) if self.tls is None else self.write_now(data)
        except BlockingIOError:
            count = 0
        except OSError:
            self.broken = True
            self.on_broken()
            return
        if count < len(data):
            self.progress = monotonic()
            self.out = bytearray(memoryview(data)[count:])
            self.write_more(True)

    def flush(self) -> bool:
        """Write what waits; True when nothing is left."""
        out = self.out
        if out is None:
            return True
        try:
            count = self.sock.send(out, SEND_FLAGS) if self.tls is None else self.write_now(out)
        except BlockingIOError:
            return False
        except OSError:
            self.broken = True
            self.out = None
            self.write_more(False)
            self.on_broken()
            return False
        if not count:
            return False
        self.progress = monotonic()
        if count == len(out):
            self.out = None
            self.write_more(False)
            return True
        del out[:count]
        return False

    @property
    def congested(self) -> bool:
        """Whether so much waits to be written that the other side should pause."""
        return self.out is not None and len(self.out) >= HIGH_WATER

    def leave(self, reset: bool = False) -> None:
        """Leave the loop and close, with a reset where the peer must not take this for a regular end."""
        self.read_more(False)
        self.write_more(False)
        tls = self.tls
        if tls is not None:
            if not reset and self.out is None and self.queued is None:
                tls.close_notify()
            tls.dispose()
            self.tls = None
        self.out = None
        self.queued = None
        if reset:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            except OSError:
                pass  # the connection is gone already
        self.sock.close()

    def on_readable(self) -> None:
        """The socket has something to read, an end or an error."""
        raise NotImplementedError

    def on_broken(self) -> None:
        """Writing failed; most often the peer reset the connection."""

    def on_writable(self) -> None:
        """The socket takes more."""
        raise NotImplementedError
