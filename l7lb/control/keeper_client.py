"""The supervisor's side of the line to the keeper: requests with their replies, and news."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from l7lb.config import NodeSettings
from l7lb.core.errors import L7lbError
from l7lb.core.unixpath import short_path
from l7lb.proxy.workers import channel
from l7lb.proxy.workers.children import environment, program
from l7lb.proxy.workers.privileges import User

SECONDS = 15.0  # for a reply
FULL = 0.02  # seconds until a packet is tried again that had no room

Event = dict[str, Any]


class KeeperRefused(L7lbError):
    """The keeper can't do what it was asked; the text says why. ``reply`` is all it said."""

    def __init__(self, text: str, reply: channel.Packet | None = None) -> None:
        super().__init__(text)
        self.reply = reply or {}


class KeeperGone(L7lbError):
    """There is no keeper at the other end."""


class KeeperClient:
    """One connection. ``closed`` is set when the keeper is gone; ``on_event`` gets the news until then."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self.process = process  # where it is our child
        self.closed = asyncio.Event()
        self.on_event: Callable[[Event], None] | None = None
        self.state: channel.Packet = {}  # its answer to hello
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[tuple[channel.Packet, list[int]]]] = {}
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    @classmethod
    async def connect(cls, path: Path) -> KeeperClient | None:
        """To the keeper that lives; None where there is none. Raises OSError for other reasons."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with short_path(path) as short:
                sock.connect(short)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        except OSError:
            sock.close()
            raise
        return cls(sock)

    @classmethod
    def start(cls, settings: NodeSettings, user: User | None) -> KeeperClient:
        """A new keeper, our child. Raises OSError."""
        ours, theirs = channel.pair()
        directory = settings.admin_socket.parent
        options = ["--directory", str(directory), "--config", str(settings.file), "--peer", str(theirs.fileno())]
        options += ["--log-level", settings.log_level, "--log-format", settings.log_format]
        if user is not None:
            options += ["--user", str(user)]
        command = program("l7lb.proxy.workers.keeper", *options)
        with theirs:
            try:
                process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), env=environment())
            except OSError:
                ours.close()
                raise
        return cls(ours, process)

    async def hello(self, role: str) -> list[int]:
        """Take a role; ``state`` is what there is. Returns the counts' descriptor and perhaps the snapshot's."""
        self.state, descriptors = await self.request("hello", role=role)
        return descriptors

    async def request(
        self, op: str, descriptors: Sequence[int] = (), patience: float = SECONDS, **fields: object
    ) -> tuple[channel.Packet, list[int]]:
        """Ask; returns the reply and the descriptors beside it. Raises KeeperRefused or KeeperGone."""
        self._number += 1
        number = self._number
        future: asyncio.Future[tuple[channel.Packet, list[int]]] = self._loop.create_future()
        self._waiting[number] = future
        try:
            async with asyncio.timeout(patience):
                await self._send({"id": number, "op": op, **fields}, descriptors)
                packet, received = await future
        except TimeoutError:
            raise KeeperGone(f"the keeper did not answer {op} within {patience:g} s") from None
        finally:
            del self._waiting[number]
        if "error" in packet:
            channel.close_all(received)
            raise KeeperRefused(str(packet["error"]), packet)
        return packet, received

    async def _send(self, packet: channel.Packet, descriptors: Sequence[int]) -> None:
        while not self.closed.is_set():
            try:
                channel.send(self._sock, packet, descriptors)
                return
            except BlockingIOError:
                await asyncio.sleep(FULL)
            except channel.BrokenChannel:
                self.close()
        raise KeeperGone("the keeper is gone")

    def _readable(self) -> None:
        try:
            packet, descriptors = channel.receive(self._sock)
        except BlockingIOError:
            return
        except channel.BrokenChannel:
            self.close()
            return
        future = self._waiting.get(packet.get("id", 0))
        if future is not None and not future.done():
            future.set_result((packet, descriptors))
            return
        channel.close_all(descriptors)
        if "event" in packet and self.on_event is not None:
            self.on_event(packet)

    def close(self) -> None:
        """End the connection; the keeper goes on without us."""
        if self.closed.is_set():
            return
        self.closed.set()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(KeeperGone("the keeper is gone"))

    async def ended(self, seconds: float) -> bool:
        """Wait until the keeper's process is gone; returns whether it is."""
        ended = await process_ended(int(self.state["pid"]), seconds)
        self.reap()
        return ended

    def reap(self) -> None:
        """Take note of the end of a keeper that is our child."""
        if self.process is not None:
            self.process.poll()


async def process_ended(pid: int, seconds: float | None) -> bool:
    """Wait until a process, which needn't be our child, is gone; returns whether it is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return True
