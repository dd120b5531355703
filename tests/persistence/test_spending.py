"""What rate limits admitted, told between workers by the state process: one limit for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sticky_helpers import running, until

from l7lb.core.snapshot import FactName, Limit
from l7lb.core.snapshot import Tables as TableLimits
from l7lb.limits import Limits
from l7lb.limits.buckets import Buckets
from l7lb.persistence import spending as spending_module
from l7lb.persistence.link import StateLink
from l7lb.persistence.messages import BadMessage, Debts, Hold, Spent, check_debts, check_spent
from l7lb.persistence.spending import Heard, StateSpending, WorkerSpending
from l7lb.persistence.state import StateProcess
from l7lb.persistence.tables import Tables

pytestmark = pytest.mark.asyncio

ANNA = b"anna"
LIMIT = Limit(name="web", of="requests", key=FactName("source"), rate=0.01, burst=1000.0)


class Worker:
    """A worker's limit and its link."""

    def __init__(self, path: Path) -> None:
        self.limits = Limits()
        self.buckets: Buckets = self.limits.buckets(LIMIT, time.monotonic())
        self.link = StateLink(Tables(TableLimits()), path, self.limits)
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.link.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None

    def spend(self, count: int, key: bytes = ANNA) -> None:
        for _ in range(count):
            assert self.buckets.take(key, time.monotonic()) == 0.0

    def owes(self, debt: float, key: bytes = ANNA) -> bool:
        return abs(self.buckets.debt(key, time.monotonic()) - debt) < 0.5


class Workers:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: list[Worker] = []

    def __call__(self) -> Worker:
        worker = Worker(self.path)
        self.all.append(worker)
        worker.start()
        return worker


@pytest_asyncio.fixture
async def workers(socket_path: Path) -> AsyncIterator[Workers]:
    made = Workers(socket_path)
    yield made
    for worker in made.all:
        await worker.stop()


def known(state: StateProcess, debt: float, key: bytes = ANNA) -> bool:
    buckets = state.spending.limits.get("web")
    return buckets is not None and abs(buckets.debt(key, time.monotonic()) - debt) < 0.5


async def test_what_one_admits_the_others_count(state: StateProcess, workers: Workers) -> None:
    one, other = workers(), workers()
    await until(lambda: len(state.workers) == 2 and all(worker.holds for worker in state.workers))
    one.spend(10)
    other.spend(5)
    await until(lambda: one.owes(15) and other.owes(15))
    one.spend(1)
    await until(lambda: other.owes(16))
    await asyncio.sleep(0.05)
    assert one.owes(16)
    assert other.owes(16)
    assert known(state, 16)


async def test_what_was_admitted_before_there_was_a_state_process_is_told(socket_path: Path, workers: Workers) -> None:
    one, other = workers(), workers()
    one.spend(10)
    async with running(socket_path):
        await until(lambda: other.owes(10))
        assert one.owes(10)


async def test_a_dead_worker_s_share_is_neither_lost_nor_doubled(state: StateProcess, workers: Workers) -> None:
    one, other = workers(), workers()
    one.spend(10)
    await until(lambda: other.owes(10) and known(state, 10))
    await one.stop()
    successor = workers()
    await until(lambda: successor.owes(10))
    successor.spend(3)
    await until(lambda: other.owes(13))
    await asyncio.sleep(0.05)
    assert other.owes(13)
    assert successor.owes(13)
    assert known(state, 13)


async def test_a_new_state_process_learns_and_nothing_is_doubled(socket_path: Path, workers: Workers) -> None:
    one, other = workers(), workers()
    async with running(socket_path) as state:
        await until(lambda: len(state.workers) == 2)
        one.spend(10)
        await until(lambda: other.owes(10))
    one.spend(5)  # while there is none
    other.spend(2)
    async with running(socket_path) as state:
        await until(lambda: one.owes(17) and other.owes(17) and known(state, 17))
        await asyncio.sleep(0.05)
        assert one.owes(17)
        assert other.owes(17)
        late = workers()
        await until(lambda: late.owes(17))


async def test_another_rate_is_told(state: StateProcess, workers: Workers) -> None:
    one = workers()
    await until(lambda: "web" in state.spending.limits)
    one.buckets.change(50.0, 70.0, 500, time.monotonic())
    one.limits._woken()
    await until(lambda: state.spending.limits["web"].rate == 50.0)
    assert state.spending.limits["web"].burst == 70.0


async def test_many_keys_are_told_in_pieces(state: StateProcess, workers: Workers) -> None:
    one, other = workers(), workers()
    await until(lambda: len(state.workers) == 2 and all(worker.holds for worker in state.workers))
    for number in range(5000):
        one.spend(1, b"%d" % number)
    await until(lambda: len(other.buckets) == 5000)
    late = workers()
    await until(lambda: len(late.buckets) == 5000)


async def test_a_reader_that_is_behind_is_taught(
    state: StateProcess, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = workers(), workers()
    await until(lambda: len(state.workers) == 2 and all(worker.holds for worker in state.workers))
    monkeypatch.setattr("l7lb.persistence.exchange.BUFFER", -1)  # nothing can be posted
    one.spend(10)
    await until(lambda: other.owes(10))


async def test_unconfirmed_messages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spending_module, "UNCONFIRMED", 4)
    limits = Limits()
    buckets = limits.buckets(LIMIT, time.monotonic())
    worker = WorkerSpending(limits, 1)

    for _ in range(10):
        buckets.take(ANNA, time.monotonic())
        assert len(worker._gather()) == 1
    assert len(worker._unconfirmed) == 4
    assert worker.lost == 6


async def test_a_repeated_message_adds_nothing_and_its_like_of_another_origin_does() -> None:
    state = StateSpending()
    state.hold(Hold("web", 0.01, 100.0, 100))
    news: list[Spent] = []
    for message in (
        Spent(1, 1, [("web", ANNA, 2)]),
        Spent(1, 1, [("web", ANNA, 2)]),
        Spent(2, 1, [("web", ANNA, 3)]),
        Spent(1, 3, [("web", ANNA, 1)]),
        Spent(1, 2, [("web", ANNA, 9)]),
    ):
        state.spent(message, news.append)
    assert [(message.origin, message.number) for message in news] == [(1, 1), (2, 1), (1, 3)]
    assert round(state.limits["web"].debt(ANNA, time.monotonic())) == 6


async def test_numbers_of_many_origins_are_bounded() -> None:
    heard = Heard()
    assert all(heard.new(origin, 1) for origin in range(5000))
    assert len(heard._numbers) == spending_module.ORIGINS


async def test_limits_that_nobody_has_are_forgotten_when_nothing_is_owed() -> None:
    state = StateSpending()
    state.hold(Hold("web", 100.0, 5.0, 100))
    state.spent(Spent(1, 1, [("web", ANNA, 1)]), lambda _: None)
    state.tick(time.monotonic(), set())
    assert "web" in state.limits
    state.tick(time.monotonic() + 1.0, {"web"})
    assert "web" in state.limits
    state.tick(time.monotonic() + 1.0, set())
    assert not state.limits


@pytest.mark.parametrize(
    "message",
    [
        Spent(1, 1, [("web", b"", 1)]),
        Spent(1, 1, [("web", b"x" * 256, 1)]),
        Spent(1, 1, [("", ANNA, 1)]),
        Spent(1, 1, [("web", ANNA, 0)]),
        Spent(1, 1, [("web", ANNA, 1 << 40)]),
        Spent(1, 1, [("web", ANNA, 1)] * 257),
    ],
)
async def test_impossible_spendings_are_refused(message: Spent) -> None:
    with pytest.raises(BadMessage):
        check_spent(message)


@pytest.mark.parametrize(
    "message", [Debts("", [(ANNA, 1.0)]), Debts("web", [(b"", 1.0)]), Debts("web", [(ANNA, float("nan"))])]
)
async def test_impossible_debts_are_refused(message: Debts) -> None:
    with pytest.raises(BadMessage):
        check_debts(message)


@pytest.mark.parametrize("hold", [Hold("web", 0.0, 1.0, 1), Hold("web", 1.0, 0.0, 1), Hold("web", -1.0, 1.0, 0)])
async def test_impossible_limits_are_refused(hold: Hold) -> None:
    state = StateSpending()
    with pytest.raises(BadMessage):
        state.hold(hold)
    state.hold(Hold("web", 1.0, 1.0, 1))
    with pytest.raises(BadMessage):
        state.hold(hold)
