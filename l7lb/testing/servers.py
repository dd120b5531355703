"""Servers for tests: they do what the test says, and can refuse, hang and die like real ones."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Self

from l7lb.core.snapshot import Address
from l7lb.testing.wire import PATIENCE, Transcript, Unexpected, Wire

BACKLOG = 512


class ScriptedServer:
    """Listens on a port of its own; the test accepts each connection and speaks on it byte for byte.

    ::

        async with ScriptedServer("web1") as server:
            wire = await server.accept()
            await wire.expect_lines("GET / HTTP/1.1", "...", "")
            await wire.send_lines("HTTP/1.1 204 No Content", "")

    The port stays this server's own while it refuses: a second, silent socket holds it.
    """

    def __init__(
        self,
        name: str = "server",
        *,
        host: str = "127.0.0.1",
        patience: float = PATIENCE,
        transcript: Transcript | None = None,
    ) -> None:
        self.name = name
        self.patience = patience
        self.transcript = transcript if transcript is not None else Transcript()
        self.connections: list[Wire] = []  # all of them until they are closed together
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._reserved = _bound(family, (host, 0))
        self.address = Address(host=host, port=self._reserved.getsockname()[1])
        self._listening: socket.socket | None = None
        self._waiting: deque[Wire] = deque()
        self._arrived = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        self.listen()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def waiting(self) -> int:
        """Connections that nobody has accepted yet."""
        return len(self._waiting)

    def listen(self) -> None:
        """Take connections; the state after the start."""
        if self._listening is not None:
            return
        self._loop = asyncio.get_running_loop()
        sock = _bound(self._reserved.family, self._reserved.getsockname())
        sock.listen(BACKLOG)
        self._listening = sock
        self._loop.remove_reader(sock)
        self._loop.add_reader(sock, self._readable)

    def refuse(self) -> None:
        """Refuse new connections from now on; those that exist live on."""
        if self._listening is not None and self._loop is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None

    def hang(self) -> None:
        """Let the kernel complete connections, but never look at them, like a server that is stuck."""
        self.listen()
        if self._listening is not None and self._loop is not None:
            self._loop.remove_reader(self._listening)

    def die(self) -> None:
        """Refuse, and reset every connection, as after kill -9."""
        self.refuse()
        for wire in self.connections:
            wire.reset()
        self.connections.clear()
        self._waiting.clear()

    async def accept(self) -> Wire:
        """The next connection."""
        while not self._waiting:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), self.patience)
            except TimeoutError:
                raise Unexpected(
                    f"nobody connected to {self.name} for {self.patience:g} s\n{self.transcript}"
                ) from None
        wire = self._waiting.popleft()
        self.transcript.add(self.name, " accepts")
        return wire

    def close_connections(self) -> None:
        """Close every connection in order, accepted or not."""
        for wire in self.connections:
            wire.close()
        self.connections.clear()
        self._waiting.clear()

    async def close(self) -> None:
        """Close the port and every connection."""
        self.refuse()
        self.close_connections()
        self._reserved.close()

    def _readable(self) -> None:
        assert self._listening is not None
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            wire = Wire(sock, self.name, self.patience, self.transcript)
            self.connections.append(wire)
            self._opened(wire)

    def _opened(self, wire: Wire) -> None:
        self._waiting.append(wire)
        self._arrived.set()


def _bound(family: int, address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)
    return sock
