"""What the control plane's tests share: small snapshots, a clock that is moved by hand, counts, a real node."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from node_process import NodeProcess

from l7lb.core.messages import ALL_SESSIONS, SessionRow, Wanted
from l7lb.core.snapshot import Address, Listener, Pool, Route, Server, Snapshot, ToPool
from l7lb.proxy import counts as columns
from l7lb.proxy.counts import Counts


class Clock:
    """Monotonic seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    """A node in processes of its own."""
    with NodeProcess(tmp_path) as running:
        yield running


@pytest.fixture
def counts() -> Iterator[Counts]:
    descriptor = columns.create()
    found = Counts(descriptor)
    os.close(descriptor)
    yield found
    found.close()


def server(name: str, address: str = "127.0.0.1:9000", **settings: Any) -> Server:
    host, _, port = address.rpartition(":")
    return Server(name=name, address=Address(host=host, port=int(port)), **settings)


def pool(name: str, *servers: Server | str, **settings: Any) -> Pool:
    made = tuple(
        one if isinstance(one, Server) else server(one, f"127.0.0.1:{9001 + number}")
        for number, one in enumerate(servers)
    )
    return Pool(name=name, servers=made, **settings)


def snapshot(*pools: Pool, **settings: Any) -> Snapshot:
    web = Listener(
        name="web",
        protocol="http",
        bind=(Address(host="127.0.0.1", port=8080),),
        routes=(Route(number=1, where="test:1", match=None, action=ToPool(pools[0].name)),) if pools else (),
    )
    fields: dict[str, Any] = {"node": "lb1", "version": 0, "listeners": (web,), "pools": pools}
    return Snapshot(**(fields | settings))


@pytest.fixture
def make_server() -> Callable[..., Server]:
    return server


@pytest.fixture
def make_pool() -> Callable[..., Pool]:
    return pool


@pytest.fixture
def make_snapshot() -> Callable[..., Snapshot]:
    return snapshot


class FakeSupervisor:
    """What the admin API and the metrics see of a supervisor."""

    def __init__(self) -> None:
        self.state = "serving"
        self.reloads: list[BaseException | list[str]] = []
        self.ended = False
        self.rows = [
            SessionRow(
                protocol="http",
                client="192.0.2.7:40000",
                listener="web",
                pool="web",
                server="web1",
                since="2026-01-01T00:00:00Z",
                detail="GET /",
            )
        ]

    def status(self) -> dict[str, Any]:
        return {
            "node": "lb1",
            "version": "0.1.0",
            "state": self.state,
            "supervisor": {"pid": os.getpid(), "since": "2026-01-01T00:00:00Z"},
            "keeper": {"pid": 0},
            "workers": [{"pid": os.getpid(), "index": 0, "connections": 3, "snapshot": 1}],
            "listeners": [{"name": "web", "protocol": "http", "bind": ["127.0.0.1:8080"]}],
            "reload": {"time": 1767225600.0, "ok": True, "problems": []},
        }

    async def sessions(self, limit: int, wanted: Wanted = ALL_SESSIONS) -> list[SessionRow]:
        return self.rows[:limit]

    async def reload(self) -> list[str]:
        result = self.reloads.pop(0) if self.reloads else []
        if isinstance(result, BaseException):
            raise result
        return result

    async def in_force(self) -> None:
        """There are no workers to wait for."""

    async def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def supervisor() -> FakeSupervisor:
    return FakeSupervisor()
