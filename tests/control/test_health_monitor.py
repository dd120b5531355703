from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from aiohttp import web

from l7lb.control.health import HealthMonitor, Turns
from l7lb.control.node import NodeState
from l7lb.control.operator import Operator
from l7lb.control.probes import ProbeUnavailable
from l7lb.core.errors import ProbeFailed
from l7lb.core.finding import Finding
from l7lb.core.snapshot import Address, Health

pytestmark = pytest.mark.asyncio
Make = Callable[..., Any]


class Script:
    """A probe that answers as the test says, and counts."""

    def __init__(self) -> None:
        self.answers: dict[int, BaseException | str] = {}
        self.asked: dict[int, int] = {}
        self.running = 0
        self.most = 0
        self.hold: asyncio.Event | None = None
        self._more = asyncio.Condition()

    async def __call__(self, address: Address, settings: dict[str, Any], timeout: float) -> str:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with self._more:
                self.asked[address.port] = self.asked.get(address.port, 0) + 1
                self._more.notify_all()
            if self.hold is not None:
                await self.hold.wait()
            await asyncio.sleep(0)
            answer = self.answers.get(address.port, "connected")
            if isinstance(answer, BaseException):
                raise answer
            return answer
        finally:
            self.running -= 1

    async def until(self, port: int, times: int) -> None:
        async with self._more, asyncio.timeout(10):
            await self._more.wait_for(lambda: self.asked.get(port, 0) >= times)


@asynccontextmanager
async def monitoring(node: NodeState, script: Script, **settings: Any) -> AsyncIterator[HealthMonitor]:
    monitor = HealthMonitor(node, {}, rng=random.Random(1), choose=lambda health: script, **settings)
    await monitor.start()
    try:
        yield monitor
    finally:
        await monitor.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def fast(**settings: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": "tcp", "interval": 0.01, "timeout": 1.0, "rise": 2, "fall": 3}
    return {"health": Health(**(fields | settings))}


def why(node: NodeState, name: str) -> str:
    return next(row.why for row in Operator(node).rows() if row.name == name)


async def test_a_server_falls_and_rises_and_each_is_logged_once(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", "web2", **fast())))
    script = Script()
    with structlog.testing.capture_logs() as logs:
        async with monitoring(node, script):
            await until(lambda: node.verdict("web", "web1") is not None)
            script.answers[9001] = ProbeFailed("connect refused")
            await until(lambda: not node.healthy("web", "web1"))
            assert why(node, "web1") == "connect refused (3 of 3 checks)"
            times = script.asked[9001]
            await script.until(9001, times + 5)
            script.answers[9001] = "connected"
            await until(lambda: node.healthy("web", "web1"))
            assert why(node, "web1").startswith("connected in ")
    events = [(entry["event"], entry["log_level"]) for entry in logs]
    assert events[0] == ("web/web1 is down: connect refused (3 of 3 checks)", "warning")
    assert events[1][0].startswith("web/web1 is up: connected in ")
    assert len(events) == 2
    assert logs[0]["open_servers"] == 1


async def test_the_first_check_comes_at_once_and_decides_alone(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **fast(interval=3600.0))))
    script = Script()
    script.answers[9001] = ProbeFailed("connect refused")
    with structlog.testing.capture_logs() as logs:
        async with monitoring(node, script):
            await until(lambda: not node.healthy("web", "web1"))
    assert why(node, "web1") == "connect refused (first check)"
    assert [entry["event"] for entry in logs] == [
        "web/web1 is down: connect refused (first check)",
        "pool web has no server left",
    ]


async def test_a_check_without_an_answer_ends_with_its_time(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **fast(timeout=0.02))))
    script = Script()
    script.hold = asyncio.Event()
    async with monitoring(node, script) as monitor:
        await until(lambda: not node.healthy("web", "web1"))
        assert why(node, "web1").startswith("no answer within 20 ms")
        assert monitor.counts["web"].bad >= 1


async def test_a_check_that_cannot_be_made_changes_nothing_and_warns_once(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", "web2", **fast())))
    script = Script()
    script.answers = dict.fromkeys((9001, 9002), ProbeUnavailable("not checked: no rights"))
    with structlog.testing.capture_logs() as logs:
        async with monitoring(node, script) as monitor:
            await script.until(9001, 3)
            await script.until(9002, 3)
            assert monitor.counts["web"].unavailable >= 4
    assert node.healthy("web", "web1")
    assert why(node, "web1") == "not checked: no rights"
    assert [entry["event"] for entry in logs] == ["pool web: not checked: no rights"]


async def test_a_broken_probe_is_a_bad_check_and_not_the_end(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **fast())))
    script = Script()
    script.answers[9001] = ZeroDivisionError("x")
    with structlog.testing.capture_logs():
        async with monitoring(node, script):
            await script.until(9001, 3)
            assert why(node, "web1").startswith("the check is broken: ZeroDivisionError")
            script.answers[9001] = "connected"
            await until(lambda: node.healthy("web", "web1"))


async def test_a_reload_keeps_unchanged_servers_and_starts_and_ends_others(
    make_pool: Make, make_snapshot: Make, make_server: Make
) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", "web2", **fast(interval=3600.0))))
    script = Script()
    async with monitoring(node, script):
        await script.until(9002, 1)
        node.reload(
            make_snapshot(make_pool("web", "web1", make_server("web3", "127.0.0.1:9003"), **fast(interval=3600.0)))
        )
        await script.until(9003, 1)
        assert script.asked == {9001: 1, 9002: 1, 9003: 1}
        # Other settings: the task is new, what was known is kept.
        node.set_health("web", "web1", False, "connect refused")
        node.reload(make_snapshot(make_pool("web", "web1", **fast(interval=3000.0))))
        await script.until(9001, 2)
        await until(lambda: "1 of 2 good checks" in why(node, "web1"))
        assert not node.healthy("web", "web1")
        # No more checks: no more tasks, and nobody is down.
        node.reload(make_snapshot(make_pool("web", "web1")))
        assert node.healthy("web", "web1")


async def test_so_many_checks_at_a_time_and_no_more(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", *(f"web{number}" for number in range(50)), **fast())))
    script = Script()
    script.hold = asyncio.Event()
    async with monitoring(node, script, concurrency=7):
        await until(lambda: script.running == 7)
        script.hold.set()
        await script.until(9050, 2)
        assert script.most == 7


async def test_after_the_first_the_checks_are_spread(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", *(f"web{number}" for number in range(40)), **fast(interval=0.2))))
    second: list[float] = []
    began = time.monotonic()

    class Noting(Script):
        async def __call__(self, address: Address, settings: dict[str, Any], timeout: float) -> str:
            words = await super().__call__(address, settings, timeout)
            if self.asked[address.port] == 2:
                second.append(time.monotonic() - began)
            return words

    async with monitoring(node, Noting()):
        await until(lambda: len(second) == 40)
    assert max(second) - min(second) > 0.08


async def test_durations_are_counted(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **fast())))
    script = Script()
    async with monitoring(node, script) as monitor:
        await script.until(9001, 4)
    counts = monitor.counts["web"]
    assert counts.good >= 3
    assert sum(counts.buckets) == counts.good + counts.bad
    assert counts.seconds > 0


async def test_a_real_server_goes_and_comes_back(make_pool: Make, make_snapshot: Make, make_server: Make) -> None:
    status = 200

    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"127.0.0.1:{runner.addresses[0][1]}"
    settings = {"path": "/health", "expect": [[200, 299]]}
    health = fast(kind="http", settings=settings, fall=2, interval=0.02)
    node = NodeState(make_snapshot(make_pool("web", make_server("web1", address), **health)))
    monitor = HealthMonitor(node, {})
    await monitor.start()
    try:
        await until(lambda: node.verdict("web", "web1") is not None)
        assert why(node, "web1").startswith("status 200 in ")
        status = 503
        await until(lambda: not node.healthy("web", "web1"))
        assert why(node, "web1") == "status 503, expected 200-299 (2 of 2 checks)"
        status = 204
        await until(lambda: node.healthy("web", "web1"))
    finally:
        await monitor.stop()
        await runner.cleanup()


async def test_a_thousand_first_checks_are_no_storm() -> None:
    turns = Turns(concurrency=20, young=3)
    running = most = 0
    leave = asyncio.Event()

    async def check() -> None:
        nonlocal running, most
        async with turns.turn():
            running += 1
            most = max(most, running)
            await leave.wait()
            running -= 1

    tasks = [asyncio.create_task(check()) for _ in range(50)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert running == 3  # the others wait until these have grown old
    await until(lambda: running == 20)
    leave.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    assert most == 20
    async with turns.turn(), turns.turn(), turns.turn():
        assert running == 0


async def test_a_turn_that_is_given_up_is_given_back() -> None:
    turns = Turns(concurrency=1, young=1)
    async with turns.turn():
        waiting = asyncio.create_task(turns.turn().__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(5), turns.turn():
        pass


async def test_a_check_that_ended_late_because_we_could_not_run_says_nothing(
    make_pool: Make, make_snapshot: Make
) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **fast(timeout=0.05, interval=3600.0))))

    class Stopped(Script):
        async def __call__(self, address: Address, settings: dict[str, Any], timeout: float) -> str:
            time.sleep(0.3)  # as if the whole process had been stopped
            await asyncio.sleep(3600)
            return "never"

    async with monitoring(node, Stopped()) as monitor:
        await until(lambda: monitor.counts["web"].unavailable == 1)
        assert node.verdict("web", "web1") is None


async def test_each_protocol_of_a_server_is_checked_by_itself(
    make_pool: Make, make_snapshot: Make, make_server: Make
) -> None:
    ports = {"imap4": 9001, "pop3": 9002, "lmtp": 9003}
    mail = make_pool("mail", make_server("mx1", "127.0.0.1:9001", ports=ports), **fast(scope="protocol", rise=1))
    node = NodeState(make_snapshot(mail))
    script = Script()
    told = []
    node.subscribe(lambda change: told.extend(change.health))
    with structlog.testing.capture_logs() as logs:
        async with monitoring(node, script):
            await until(lambda: all(script.asked.get(port) for port in ports.values()))
            script.answers[9002] = ProbeFailed("connect refused")
            await until(lambda: node.down("mail", "mx1") == ("pop3",))
            row = Operator(node).rows()[0]
            assert (row.state, row.why) == ("up", "pop3 is down: connect refused (3 of 3 checks)")
            assert {name: one.state for name, one in row.protocols.items()} == {
                "imap4": "up", "pop3": "down", "lmtp": "up",
            }  # fmt: skip
            assert told[-1].down == ("pop3",)
            assert told[-1].healthy
            assert not node.is_open("mail", mail.servers[0], "pop3")
            assert node.is_open("mail", mail.servers[0], "imap4")
            for port in (9001, 9003):
                script.answers[port] = ProbeFailed("connect refused")
            await until(lambda: not node.healthy("mail", "mx1"))
            assert why(node, "mx1") == "connect refused (3 of 3 checks)"
            for port in (9001, 9002, 9003):
                script.answers[port] = "greets"
            await until(lambda: node.healthy("mail", "mx1") and not node.down("mail", "mx1"))
            assert why(node, "mx1") == "imap4, pop3, lmtp: all answer"
    events = [entry["event"] for entry in logs]
    assert events[:2] == [
        "mail/mx1 (pop3) is down: connect refused (3 of 3 checks)",
        "pool mail has no server left for pop3",
    ]
    assert sum(event.startswith("mail/mx1 (pop3) is up: greets") for event in events) == 1


async def test_a_protocol_takes_its_server_out_where_the_scope_is_the_server(
    make_pool: Make, make_snapshot: Make, make_server: Make
) -> None:
    server = make_server("mx1", "127.0.0.1:9001", ports={"imap4": 9001, "pop3": 9002})
    node = NodeState(make_snapshot(make_pool("mail", server, **fast())))
    script = Script()
    script.answers[9002] = ProbeFailed("connect refused")
    async with monitoring(node, script):
        await until(lambda: not node.healthy("mail", "mx1"))
        assert node.down("mail", "mx1") == ()
        assert why(node, "mx1").startswith("pop3 is down: connect refused")


async def test_what_checks_find_of_a_servers_extensions_is_told_to_workers(
    make_pool: Make, make_snapshot: Make
) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **fast())))
    told: list[Any] = []
    node.subscribe(lambda change: told.extend(change.health))
    script = Script()
    script.answers[9001] = Finding("220", ("SIZE 1000", "DSN"))
    async with monitoring(node, script):
        await until(lambda: bool(told) and list(told[-1].offers.values()) == [("SIZE 1000", "DSN")])
        script.answers[9001] = Finding("220", ("SIZE 1000",))
        await until(lambda: list(told[-1].offers.values()) == [("SIZE 1000",)])
        count = len(told)
        await script.until(9001, script.asked[9001] + 3)
        assert len(told) == count
