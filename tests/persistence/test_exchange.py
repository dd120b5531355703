"""Messages and their frames."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from l7lb.persistence import exchange
from l7lb.persistence.exchange import LEAST, Pace, receive, together
from l7lb.persistence.messages import (
    CHUNK,
    LIMIT,
    NAME_LIMIT,
    BadMessage,
    Changes,
    Follow,
    FromState,
    FromWorker,
    Join,
    Leave,
    Refused,
    Seen,
    Taught,
    Welcome,
    check_changes,
    chunks,
    frame,
    from_state,
    from_worker,
)
from l7lb.persistence.table import KEY_LIMIT, Delta

CHANGES = Changes("web/source", 7, [(b"\x00key", "web1", -5, 1), (b"k", "", 1 << 51, (1 << 32) - 1)])


@pytest.mark.parametrize("message", [Join(1, 2, 3), Follow("t", 1.5, 10, -1), Leave("t"), CHANGES, Taught("t", 9)])
def test_a_workers_messages_come_through(message: FromWorker) -> None:
    data = frame(message)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert from_worker.decode(data[4:]) == message


@pytest.mark.parametrize("message", [Welcome(1, 2), Refused("no"), CHANGES, Taught("t", 9), Seen("t", 3)])
def test_a_state_processs_messages_come_through(message: FromState) -> None:
    assert from_state.decode(frame(message)[4:]) == message


def test_each_side_refuses_what_the_other_never_says() -> None:
    with pytest.raises(msgspec.ValidationError):
        from_worker.decode(frame(Welcome(1, 2))[4:])
    with pytest.raises(msgspec.ValidationError):
        from_state.decode(frame(Join(1, 2, 3))[4:])


def test_the_largest_message_fits() -> None:
    delta = (b"k" * KEY_LIMIT, "s" * NAME_LIMIT, 1 << 60, (1 << 32) - 1)
    assert len(frame(Changes("t" * NAME_LIMIT, 1 << 60, [delta] * CHUNK))) < LIMIT


def test_a_larger_one_is_not_sent() -> None:
    with pytest.raises(ValueError, match="bytes"):
        frame(Refused("x" * LIMIT))


def test_changes_are_cut_into_messages() -> None:
    deltas: list[Delta] = [(b"%d" % number, "s", number, 1) for number in range(2 * CHUNK + 1)]
    assert [len(some) for some in chunks(deltas)] == [CHUNK, CHUNK, 1]
    assert list(chunks([])) == []


@pytest.mark.parametrize(
    "deltas",
    [
        [(b"k", "s", 1, 1)] * (CHUNK + 1),
        [(b"", "s", 1, 1)],
        [(b"k" * (KEY_LIMIT + 1), "s", 1, 1)],
        [(b"k", "s" * (NAME_LIMIT + 1), 1, 1)],
        [(b"k", "s", 1, 0)],
        [(b"k", "s", 1, 1 << 32)],
    ],
)
def test_impossible_changes_are_refused(deltas: list[Delta]) -> None:
    with pytest.raises(BadMessage):
        check_changes(Changes("t", 1, deltas))


def stream(data: bytes, end: bool = False) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=LIMIT)
    reader.feed_data(data)
    if end:
        reader.feed_eof()
    return reader


@pytest.mark.asyncio
async def test_messages_are_received_one_after_the_other() -> None:
    reader = stream(frame(Leave("a")) + frame(Leave("b")), end=True)
    assert from_worker.decode(await receive(reader)) == Leave("a")
    assert from_worker.decode(await receive(reader)) == Leave("b")
    with pytest.raises(EOFError):
        await receive(reader)


@pytest.mark.asyncio
async def test_a_message_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadMessage, match="bytes"):
        await receive(stream((LIMIT + 1).to_bytes(4, "big")))


@pytest.mark.asyncio
@pytest.mark.parametrize("length", [1, 4, 5, 8])
async def test_half_a_message_is_the_end(length: int) -> None:
    with pytest.raises(EOFError):
        await receive(stream(frame(Leave("table"))[:length], end=True))


@pytest.mark.asyncio
async def test_a_message_that_stops_inside_runs_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "STALL", 0.01)
    with pytest.raises(TimeoutError):
        await receive(stream(frame(Leave("table"))[:6]))


@pytest.mark.asyncio
async def test_together_ends_with_the_first() -> None:
    ended: list[str] = []

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waited")

    async def fail() -> None:
        raise EOFError

    async def finish() -> None:
        ended.append("finished")

    with pytest.raises(EOFError):
        await together(wait_for_ever(), fail())
    await together(finish(), wait_for_ever())
    assert sorted(ended) == ["finished", "waited", "waited"]


@pytest.mark.asyncio
async def test_few_changes_leave_at_once_and_many_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        waited.append(round(seconds, 6))
        now += seconds

    monkeypatch.setattr(exchange.time, "monotonic", lambda: now)
    monkeypatch.setattr(exchange.asyncio, "sleep", sleep)
    pace = Pace(0.010)
    await pace.gather()
    assert waited == []
    for _ in range(6):
        await pace.gather()
    assert waited == [LEAST, 0.002, 0.004, 0.008, 0.010, 0.010]
    now += 0.010
    await pace.gather()
    now += 0.0004
    await pace.gather()
    assert waited[6:] == [0.0006]
