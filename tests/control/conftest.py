"""What the control plane's tests share: small snapshots, a clock that is moved by hand, counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

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
def counts() -> Iterator[Counts]:
    import os

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
