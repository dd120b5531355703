"""The frames of :mod:`l7lb.core.messages` between the supervisor and its workers."""

from __future__ import annotations

import asyncio

import msgspec

from l7lb.core.messages import LIMIT, FromWorker, ToWorker

PATIENCE = 10.0  # seconds for the rest of a message that has begun
FROM_WORKER = 64 * 1024 * 1024  # bytes of a worker's message: a list of sessions

to_worker = msgspec.msgpack.Decoder(ToWorker)
from_worker = msgspec.msgpack.Decoder(FromWorker)


class TooLong(Exception):
    """A message beyond its limit."""


def frame(message: ToWorker | FromWorker) -> bytes:
    """The message behind its length."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


async def receive(reader: asyncio.StreamReader, limit: int = LIMIT) -> bytes:
    """The next message's body. Raises EOFError at the end, TimeoutError where the rest doesn't come, TooLong."""
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > limit:
        raise TooLong(f"a message of {length} bytes is more than {limit}")
    async with asyncio.timeout(PATIENCE):
        return await reader.readexactly(length)
