from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from l7lb.control.node import NodeState
from l7lb.control.operator import Operator
from l7lb.control.outliers import GROWTH, Outliers, allowed
from l7lb.core.messages import ServerResult
from l7lb.core.snapshot import Address, Pool, Server, Snapshot
from l7lb.core.snapshot import Outliers as Settings

Make = Callable[..., Any]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def configured(number: int, share: float = 0.5, errors: int = 3, backup: int = 0) -> Snapshot:
    servers = tuple(
        Server(name=f"s{place}", address=Address(host="127.0.0.1", port=9000 + place), backup=place < backup)
        for place in range(number)
    )
    pool = Pool(name="web", servers=servers, outliers=Settings(errors, 10.0, share))
    return Snapshot(node="lb1", version=0, listeners=(), pools=(pool,))


def setup(number: int, share: float = 0.5, errors: int = 3) -> tuple[NodeState, Outliers, Clock]:
    clock = Clock()
    node = NodeState(configured(number, share, errors), clock=clock)
    return node, Outliers(node), clock


def fail(outliers: Outliers, name: str, times: int = 1) -> None:
    for _ in range(times):
        outliers.result(ServerResult("web", name, "connect-refused"))


def out(node: NodeState) -> list[str]:
    servers = node.effective().pools[0].servers
    return [server.name for server in servers if node.ejection("web", server.name)]


def seconds(node: NodeState, name: str) -> float:
    ejection = node.ejection("web", name)
    assert ejection is not None
    return ejection.until - node.clock()


def test_so_many_errors_in_a_row_eject() -> None:
    node, outliers, _ = setup(4)
    fail(outliers, "s0", 2)
    assert out(node) == []
    fail(outliers, "s0")
    assert out(node) == ["s0"]
    assert seconds(node, "s0") == 10.0
    assert outliers.ejections == {"web": 1}
    assert node.ejection("web", "s0").why == "ejected after 3 errors"


def test_a_good_answer_begins_anew() -> None:
    node, outliers, _ = setup(4)
    fail(outliers, "s0", 2)
    outliers.result(ServerResult("web", "s0", ""))
    fail(outliers, "s0", 2)
    assert out(node) == []


def test_who_is_out_comes_back_when_its_time_is_over() -> None:
    node, outliers, clock = setup(4)
    fail(outliers, "s0", 3)
    assert outliers.next_time() == 1010.0
    clock.now = 1009.9
    outliers.expire(clock.now)
    assert out(node) == ["s0"]
    clock.now = 1010.0
    outliers.expire(clock.now)
    assert out(node) == []
    assert outliers.next_time() == float("inf")


def test_the_time_grows_and_is_bounded_and_forgotten() -> None:
    node, outliers, clock = setup(4)
    found = []
    for _ in range(GROWTH + 2):
        fail(outliers, "s0", 3)
        found.append(seconds(node, "s0"))
        clock.now += found[-1]
        outliers.expire(clock.now)
    assert found == [10.0 * min(time, GROWTH) for time in range(1, GROWTH + 3)]
    clock.now += 10.0 * GROWTH + 1
    fail(outliers, "s0", 3)
    assert seconds(node, "s0") == 10.0


@pytest.mark.parametrize(
    ("number", "share", "most"), [(4, 0.5, 2), (2, 0.5, 1), (3, 0.1, 1), (10, 0.25, 2), (4, 0.0, 0), (4, 1.0, 4)]
)
def test_how_many_may_be_out(number: int, share: float, most: int) -> None:
    assert allowed(configured(number, share).pools[0]) == most
    node, outliers, _ = setup(number, share)
    for place in range(number):
        fail(outliers, f"s{place}", 3)
    assert len(out(node)) == min(most, number - 1)


def test_the_last_open_server_is_never_ejected_and_it_is_said_once() -> None:
    node, outliers, _ = setup(2)
    Operator(node).drain("s1")
    with structlog.testing.capture_logs() as logs:
        fail(outliers, "s0", 10)
    assert out(node) == []
    assert [entry["event"] for entry in logs] == ["web/s0 is not ejected after 3 errors: no other one is open"]


def test_who_is_out_comes_back_when_the_others_go() -> None:
    node, outliers, clock = setup(2)
    fail(outliers, "s0", 3)
    node.set_health("web", "s1", False, "connect refused")
    outliers.expire(clock.now)
    assert out(node) == []


def test_a_smaller_pool_keeps_fewer_out() -> None:
    node, outliers, clock = setup(6)
    for place in range(3):
        fail(outliers, f"s{place}", 3)
        clock.now += 1
    node.reload(configured(4))
    outliers.expire(clock.now)
    assert out(node) == ["s1", "s2"]


def test_pools_without_outliers_and_unknown_servers_are_ignored(make_pool: Make, make_snapshot: Make) -> None:
    outliers = Outliers(NodeState(make_snapshot(make_pool("web", "web1", "web2"))))
    for pool, server in (("web", "web1"), ("gone", "web1"), ("web", "gone")):
        for _ in range(9):
            outliers.result(ServerResult(pool, server, "connect-refused"))
    outliers.expire(0.0)
    assert outliers.ejections == {}


actions = st.lists(
    st.one_of(
        st.tuples(st.just("fail"), st.integers(0, 6)),
        st.tuples(st.just("good"), st.integers(0, 6)),
        st.tuples(st.just("drain"), st.integers(0, 6)),
        st.tuples(st.just("enable"), st.integers(0, 6)),
        st.tuples(st.just("down"), st.integers(0, 6)),
        st.tuples(st.just("up"), st.integers(0, 6)),
        st.tuples(st.just("wait"), st.integers(1, 30)),
        st.tuples(st.just("reload"), st.integers(1, 7)),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 7), st.sampled_from([0.0, 0.1, 0.34, 0.5, 1.0]), actions)
def test_never_too_many_are_out_and_never_the_last(number: int, share: float, steps: list[tuple[str, int]]) -> None:
    node, outliers, clock = setup(number, share, errors=1)
    operator = Operator(node)
    with structlog.testing.capture_logs():
        for what, value in steps:
            name = f"s{value}"
            known = node.server("web", name) is not None
            if what == "fail":
                fail(outliers, name)
            elif what == "good":
                outliers.result(ServerResult("web", name, ""))
            elif what == "drain" and known:
                operator.drain(name)
            elif what == "enable" and known:
                operator.enable(name)
            elif what in ("down", "up"):
                node.set_health("web", name, what == "up", "x")
            elif what == "wait":
                clock.now += value
            elif what == "reload":
                node.reload(configured(value, share, errors=1))
            outliers.expire(clock.now)
            pool = node.effective().pools[0]
            gone = out(node)
            assert len(gone) <= allowed(pool)
            if gone:
                assert any(node.is_open("web", server) for server in pool.servers)
            assert all(seconds(node, name) <= 10.0 * GROWTH for name in gone)


@pytest.mark.asyncio
async def test_the_task_puts_them_back_by_itself(make_pool: Make, make_snapshot: Make) -> None:
    made = make_pool("web", "web1", "web2", outliers=Settings(1, 0.05, 0.5))
    node = NodeState(make_snapshot(made))
    outliers = Outliers(node)
    await outliers.start()
    try:
        outliers.result(ServerResult("web", "web1", "connect-refused"))
        assert node.ejection("web", "web1") is not None
        async with asyncio.timeout(5):
            while node.ejection("web", "web1") is not None:
                await asyncio.sleep(0.005)
        outliers.result(ServerResult("web", "web1", "connect-refused"))
        node.set_health("web", "web2", False, "connect refused")
        async with asyncio.timeout(5):
            while node.ejection("web", "web1") is not None:
                await asyncio.sleep(0.005)
    finally:
        await outliers.stop()
