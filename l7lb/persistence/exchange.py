"""What both ends of the exchange between workers and state process do: send tables, receive messages, end together.

Nothing queues up here. A sender knows at which sequence number its reader is and reads the table's journal from there
when the socket takes more; a reader that is behind the journal is taught anew. So what a slow reader costs is bounded
by the socket's buffer, and one that takes nothing for ``STALL`` seconds is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from l7lb.persistence.messages import (
    ALL,
    CHUNK,
    LIMIT,
    BadMessage,
    Changes,
    FromState,
    FromWorker,
    Taught,
    chunks,
    frame,
)
from l7lb.persistence.table import Delta, Table

STALL = 10.0  # seconds that the other side may take to read, or to send the rest of a message
BUFFER = 256 * 1024  # bytes waiting in a socket's writer
LEAST = 0.001  # seconds in which changes gather while they are few


class Pace:
    """How long changes gather before they leave, ``longest`` seconds at most.

    After a quiet time not at all, since a user's next connection may be another worker's; longer the more often they
    come, since each batch has its cost.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._pause = LEAST
        self._left = -longest

    async def gather(self) -> None:
        """Wait, once there is a change, until it may leave."""
        since = time.monotonic() - self._left
        if since >= self._longest:
            self._pause = LEAST
        else:
            await asyncio.sleep(max(0.0, self._pause - since))
            self._pause = min(self._pause * 2, self._longest)
        self._left = time.monotonic()


class Sender:
    """Tells one reader what changes in tables; ``wants`` says which of the journal's changes are for it."""

    def __init__(self, writer: asyncio.StreamWriter, wants: Callable[[Delta], bool]) -> None:
        writer.transport.set_write_buffer_limits(high=BUFFER)
        self._writer = writer
        self._wants = wants

    async def send(self, message: FromWorker | FromState) -> None:
        """Raises TimeoutError where the other side doesn't read."""
        self._writer.write(frame(message))
        async with asyncio.timeout(STALL):
            await self._writer.drain()

    def post(self, message: FromWorker | FromState) -> bool:
        """Send it without waiting; False where the other side is behind or gone, and it was left out."""
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > BUFFER:
            return False
        self._writer.write(frame(message))
        return True

    def write(self, message: FromWorker | FromState) -> None:
        """Send it without waiting, however much waits before it."""
        if not self._writer.transport.is_closing():
            self._writer.write(frame(message))

    def give_up(self) -> None:
        """End the connection: what it should have heard can't be told."""
        if not self._writer.transport.is_closing():
            self._writer.transport.abort()

    async def teach(self, table: Table) -> int:
        """Tell the whole table; returns the sequence number that this reaches."""
        reaches = table.sequence
        for index in range(table.parts):
            for some in chunks(table.part(index)):
                await self.send(Changes(table.name, ALL, some))
                await asyncio.sleep(0)  # others have work too, also while the socket takes everything
            if not index % 64:
                await asyncio.sleep(0)
        await self.send(Taught(table.name, reaches))
        return reaches

    async def changes(self, table: Table, position: int) -> int:
        """Tell what changed since; returns the number that this reaches, or ``ALL`` where it can't be told."""
        while position != table.sequence:
            found = table.since(position, CHUNK)
            if found is None:
                return ALL
            deltas, position = found
            deltas = [delta for delta in deltas if self._wants(delta)]
            if deltas:
                await self.send(Changes(table.name, position, deltas))
            await asyncio.sleep(0)
        return position


async def receive(reader: asyncio.StreamReader) -> bytes:
    """The next message's body, which must be complete in time once it has begun.

    Raises EOFError (asyncio.IncompleteReadError is one) at the end, TimeoutError, BadMessage or OSError.
    """
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > LIMIT:
        raise BadMessage(f"a message of {length} bytes")
    async with asyncio.timeout(STALL):
        return await reader.readexactly(length)


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Run until the first ends or fails, then end the others; raises what the first raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
