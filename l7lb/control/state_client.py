"""A question to the node's state process, and its answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from l7lb.control.operator import Refused
from l7lb.core.unixpath import short_path
from l7lb.persistence.exchange import receive
from l7lb.persistence.mailbox_messages import AskMailboxes, ToldMailboxes
from l7lb.persistence.messages import LIMIT, Ask, BadMessage, Told, frame, from_state

PATIENCE = 10.0  # seconds for an answer


async def ask_tables(path: Path, ask: Ask, patience: float = PATIENCE) -> Told:
    """The answer to a question about tables, which may be a problem. Raises Refused where there is none."""
    told = await _within(path, ask, patience)
    if not isinstance(told, Told):
        raise Refused("the state process does not answer: another answer than was asked for")
    return told


async def ask_mailboxes(path: Path, ask: AskMailboxes, patience: float = PATIENCE) -> ToldMailboxes:
    """The answer to a question about mailboxes. Raises Refused where there is none, or with the problem that it has."""
    told = await _within(path, ask, patience)
    if not isinstance(told, ToldMailboxes):
        raise Refused("the state process does not answer: another answer than was asked for")
    if told.problem:
        raise Refused(told.problem)
    return told


async def _within(path: Path, ask: Ask | AskMailboxes, patience: float) -> object:
    try:
        async with asyncio.timeout(patience):
            return await _exchange(path, ask)
    except (OSError, EOFError, TimeoutError, BadMessage, msgspec.MsgspecError) as error:
        raise Refused(f"the state process does not answer: {str(error) or type(error).__name__}") from None


async def _exchange(path: Path, ask: Ask | AskMailboxes) -> object:
    with short_path(path) as short:
        reader, writer = await asyncio.open_unix_connection(short, limit=LIMIT)
    try:
        writer.write(frame(ask))
        return from_state.decode(await receive(reader))
    finally:
        writer.transport.abort()
