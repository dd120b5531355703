"""A small node for the data path's tests, and what they ask of it again and again."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from l7lb.proxy.connection import Connection
from l7lb.testing import Node, Wire

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = 10_000_000  # more than the kernel's buffers on a whole path take


def config(listener: dict[str, Any] | None = None, **pool: Any) -> dict[str, Any]:
    """One listener, one pool of two servers, and a rule that answers itself."""
    return {
        "listeners": [
            {
                "name": "web",
                "protocol": "http",
                "bind": ["127.0.0.1:0"],
                "routes": [
                    {"match": {"path": "/here"}, "respond": {"status": 200, "body": "x" * 1000}},
                    {"pool": "web"},
                ],
                **(listener or {}),
            }
        ],
        "pools": {
            "web": {
                "balance": "first",
                "servers": [{"name": "web1", "address": "127.0.0.1:1"}, {"name": "web2", "address": "127.0.0.1:2"}],
                **pool,
            }
        },
    }


def limited(count: int = 1, servers: int = 1, **pool: Any) -> dict[str, Any]:
    """Servers that take so many requests at a time."""
    return config(
        servers=[
            {"name": f"web{number}", "address": f"127.0.0.1:{number}", "max_connections": count}
            for number in range(1, servers + 1)
        ],
        **pool,
    )


def connections(node: Node) -> list[Connection]:
    """The clients' connections inside the node."""
    return list(node.runtime.listeners["web"].connections)


def states(node: Node) -> dict[str, Any]:
    """The servers' states inside the node, by their name."""
    return node.runtime.dispatcher.pools["web"].state.by_name


def waiting(node: Node) -> int:
    """How many requests are queued."""
    return node.runtime.dispatcher.places.waiting


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def quiet(node: Node) -> None:
    """Wait until every client's connection is gone, then hold the node to what must be true of an idle one."""
    await node.until(lambda: not node.runtime.connections)
    await node.until(lambda: all(state.active == 0 for state in states(node).values()))
    assert waiting(node) == 0
    for runtime in node.runtime.dispatcher.pools.values():
        assert not runtime.queue


async def upgraded(node: Node) -> tuple[Wire, Wire]:
    """A tunnel: the client's end and the server's."""
    client = await node.connect()
    await client.send(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    server = await node.accept_any()
    await server.until(b"\r\n\r\n")
    await server.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await client.until(b"\r\n\r\n")
    return client, server


async def flood(wire: Wire, size: int = LARGE) -> None:
    """Send until it is all sent or the other side is gone."""
    try:
        await asyncio.get_running_loop().sock_sendall(wire.socket, b"x" * size)
    except (OSError, asyncio.CancelledError):
        pass


async def count(wire: Wire, limit: int = LARGE) -> int:
    """Read so many bytes, or to the end, without keeping them; how many came."""
    total = 0
    while total < limit and (data := await wire.read()):
        total += len(data)
    return total


def shutdown(wire: Wire) -> None:
    """Send nothing more."""
    wire.socket.shutdown(socket.SHUT_WR)
