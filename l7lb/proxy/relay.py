"""Bulk from one socket to another: by splice through a pipe, or copied where messages are small or TLS is in the way.

The pipe is made when the first bulk flows and holds up to half a megabyte: the kernel moves pages, Python sees
counts. A pump stops reading while its destination does not take more, so a slow reader costs one pipe and no more.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fcntl import fcntl
from time import monotonic

from l7lb.core.actions import CLIENT, SERVER, Side
from l7lb.proxy.endpoint import DONT_WAIT, Endpoint

PIPE_BYTES = 512 * 1024
COPY_BYTES = 64 * 1024
RECORD_BYTES = 16 * 1024  # of a TLS record
RECORDS = 4  # that are read from TLS before they are written
F_SETPIPE_SZ = 1031
FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Pump:
    """One direction. ``remaining`` counts down, -1 until the end of the stream.

    ``moved(side, count)`` is told of progress, ``over(pump, side, error)`` of the source's end or the failure of either
    side; after its count is used up a pump detaches itself and says nothing more than that.
    """

    __slots__ = ("_buffer", "_held", "_pipe", "destination", "ended", "moved", "over", "remaining", "side", "source")

    def __init__(
        self,
        side: Side,
        source: Endpoint,
        destination: Endpoint,
        remaining: int,
        moved: Callable[[Side, int], None],
        over: Callable[[Pump, Side, bool], None],
    ) -> None:
        self.side = side
        self.source = source
        self.destination = destination
        self.remaining = remaining
        self.moved = moved
        self.over = over
        self.ended = False
        self._pipe: tuple[int, int] | None = None
        self._held = 0  # bytes in the pipe
        self._buffer: memoryview | None = None  # copied bytes that wait

    def start(self, bulk: bool) -> None:
        """Take over reading the source and writing the destination, behind what is already waiting to be written."""
        self.source.pump_in = self
        self.destination.pump_out = self
        if bulk:
            self._open()
        self.source.read_more(self.destination.out is None)
        self.source.look_again()

    def detach(self) -> None:
        """Give the sockets back and free the pipe."""
        if self.source.pump_in is self:
            self.source.pump_in = None
        if self.destination.pump_out is self:
            self.destination.pump_out = None
        if self._pipe is not None:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe = None
        self._buffer = None
        self._held = 0
        self.source.look_again()

    def readable(self) -> None:
        """The source has bytes, an end or an error."""
        try:
            if self._pipe is not None:
                limit = PIPE_BYTES if self.remaining < 0 else min(PIPE_BYTES, self.remaining)
                count = os.splice(self.source.fd, self._pipe[1], limit, flags=FLAGS)
                self._held = count
            else:
                # No more than the count: what stands behind a body is the next request, which nobody has judged yet.
                limit = COPY_BYTES if self.remaining < 0 else min(COPY_BYTES, self.remaining)
                if self.source.tls is None:
                    data = self.source.sock.recv(limit, DONT_WAIT)
                else:
                    came = self._decrypted(limit)
                    if came is None:
                        return
                    data = came
                count = len(data)
                if count:
                    self._buffer = memoryview(data)
        except BlockingIOError:
            return
        except OSError:
            self._end(self.side, True)
            return
        if not count:
            tls = self.source.tls
            self._end(self.side, self.source.was_reset or (tls is not None and tls.truncated))
            return
        self.writable()
        if self.source.pump_in is self and self.source.reading:
            self.source.look_for_reset()
        if count == COPY_BYTES and self._pipe is None and self._buffer is None and self.source.pump_in is self:
            self._open()  # full reads: this is bulk

    def _decrypted(self, limit: int) -> bytes | None:
        """What came through TLS: some records in a row where they are full, since then more are likely there."""
        source = self.source
        first = source.receive(min(RECORD_BYTES, limit))
        if first is None or len(first) < RECORD_BYTES:
            return first
        parts = [first]
        left = limit - RECORD_BYTES
        while left and len(parts) < RECORDS:
            more = source.receive(min(RECORD_BYTES, left))
            if not more:
                break  # an end is seen again by the next read
            parts.append(more)
            left -= len(more)
            if len(more) < RECORD_BYTES:
                break
        return b"".join(parts) if len(parts) > 1 else first

    def writable(self) -> None:
        """Move on what is held; read again once nothing is."""
        try:
            if self._held:
                assert self._pipe is not None
                count = os.splice(self._pipe[0], self.destination.fd, self._held, flags=FLAGS)
                self._held -= count
            elif self._buffer is not None:
                count = self.destination.write_now(self._buffer)
                self._buffer = self._buffer[count:] if count < len(self._buffer) else None
            else:
                count = 0
        except BlockingIOError:
            count = 0
        except OSError:
            self._end(SERVER if self.side is CLIENT else CLIENT, True)
            return
        waiting = self._held > 0 or self._buffer is not None
        if waiting or count:
            self.destination.progress = monotonic()
        self.destination.write_more(waiting)
        self.source.read_more(not waiting)
        if count:
            if self.remaining >= 0:
                self.remaining -= count
                if not self.remaining:
                    self.detach()
            self.moved(self.side, count)

    @property
    def waiting(self) -> bool:
        """Whether it holds bytes that the destination does not take."""
        return self._held > 0 or self._buffer is not None

    def _open(self) -> None:
        if self.source.tls is not None or self.destination.tls is not None:
            return  # the kernel would move what is encrypted
        self.source.sock.setblocking(False)  # there is no flag for splice's other end
        self.destination.sock.setblocking(False)
        try:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # no descriptors left: copying still works
        try:
            fcntl(self._pipe[1], F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # the user's share of pipe memory is used up: the kernel's default size serves as well

    def _end(self, side: Side, error: bool) -> None:
        self.ended = True
        self.source.read_more(False)
        self.destination.write_more(False)
        self.detach()
        self.over(self, side, error)
