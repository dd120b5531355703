"""What the admin socket and the metrics port share: aiohttp's server behind a guard.

aiohttp has no limit of its own for a client that connects and sends nothing, or one byte a minute. The guard gives
every connection a life of so many seconds and bounds how many there are; who comes beyond that is closed at once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import cast

from aiohttp import web

from l7lb.core.snapshot import Address
from l7lb.core.unixpath import short_path

HEADER = 16 * 1024  # bytes of one line of a request's header


class Guard(asyncio.Protocol):
    """Passes everything on to aiohttp's protocol, and ends the connection when its time is over."""

    def __init__(self, inner: asyncio.Protocol, open_: set[Guard], connections: int, seconds: float) -> None:
        self._inner = inner
        self._open = open_
        self._connections = connections
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        # Not checked by isinstance: uvloop's transports don't derive from asyncio's.
        abort = cast("asyncio.WriteTransport", transport).abort
        self._inner.connection_made(transport)
        self._open.add(self)
        if len(self._open) > self._connections:
            abort()
        else:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, abort)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The client will send nothing more."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._inner.connection_lost(exc)


class HttpServer:
    """An aiohttp application on one listening socket."""

    def __init__(self, app: web.Application, connections: int, seconds: float) -> None:
        self._app = app
        self._connections = connections
        self._seconds = seconds
        self._open: set[Guard] = set()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        """Serve on this socket, which is bound and listens; it is owned from here on."""
        self._runner = web.AppRunner(
            self._app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=5.0,
            max_line_size=HEADER,
            max_field_size=HEADER,
            shutdown_timeout=1.0,
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        open_server = loop.create_unix_server if listening.family == socket.AF_UNIX else loop.create_server
        self._server = await open_server(self._factory(), sock=listening)

    async def stop(self) -> None:
        """Accept nothing more, end what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _factory(self) -> Callable[[], asyncio.Protocol]:
        assert self._runner is not None
        make = self._runner.server
        assert make is not None
        return lambda: Guard(make(), self._open, self._connections, self._seconds)


def listen_unix(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    """A listening socket at ``path``, for the owner alone (mode 0600); what was there before is replaced.

    It gets its mode under another name and is then renamed, so that there is no moment in which others can connect,
    and none without a socket when a new supervisor follows an old one. Returns the socket and its device and inode,
    by which :func:`remove_unix` knows it again. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        temporary.unlink(missing_ok=True)
        with short_path(temporary) as name:
            listening.bind(name)
        temporary.chmod(0o600)
        listening.listen(128)
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} is there and is no socket")
        temporary.replace(path)
    except OSError:
        listening.close()
        temporary.unlink(missing_ok=True)
        raise
    info = path.lstat()
    return listening, (info.st_dev, info.st_ino)


def remove_unix(path: Path, identity: tuple[int, int]) -> None:
    """Remove the socket at ``path``, if it is still the one of that device and inode."""
    try:
        info = path.lstat()
        if (info.st_dev, info.st_ino) == identity:
            path.unlink()
    except OSError:
        pass  # it is gone, or the directory is no longer ours: nothing to tidy up


def listen_tcp(address: Address) -> socket.socket:
    """A listening socket on an IP address (or ``*``, both families). Raises OSError."""
    everywhere = address.host in ("", "*")
    six = ":" in address.host or (everywhere and socket.has_ipv6)
    family = socket.AF_INET6 if six else socket.AF_INET
    host = ("::" if six else "0.0.0.0") if everywhere else address.host
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if everywhere else 1)
        listening.bind((host, address.port))
        listening.listen(128)
    except OSError:
        listening.close()
        raise
    return listening
