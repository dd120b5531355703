"""One end of a connection, byte for byte, for tests: nothing is parsed, hidden or answered by itself.

A :class:`Wire` reads only what the test asks for, so a client that never reads is one whose test doesn't ask. Every
wait has an end (``patience``); when it comes, or something else than expected does, :class:`Unexpected` is raised and
carries the whole transcript, both directions, in the order it happened.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
import socket
import struct
from collections.abc import Awaitable
from typing import Self, TypeVar

from l7lb.core.snapshot import Address

PATIENCE = 5.0  # seconds that one wait may take
READ_SIZE = 65536
SHOWN = 2000  # bytes of one transcript entry that a failure shows
TURNS = 3  # of the loop between two pieces: enough for an in-process node to be told of and read the first

Result = TypeVar("Result")


class Unexpected(AssertionError):
    """What came is not what the test said would."""


class Ended(Unexpected):
    """The other side ended the connection while more was expected; ``reset`` tells how."""

    def __init__(self, text: str, reset: bool) -> None:
        super().__init__(text)
        self.reset = reset


class Transcript:
    """What several wires said, in order."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, str, bytes]] = []

    def add(self, name: str, sign: str, data: bytes = b"") -> None:
        """Note an event; bytes that follow bytes of the same kind are joined."""
        if self._entries and data and self._entries[-1][:2] == (name, sign):
            data = self._entries.pop()[2] + data
        self._entries.append((name, sign, data))

    def __str__(self) -> str:
        lines = []
        for name, sign, data in self._entries:
            shown = data[:SHOWN].split(b"\n") if data else [b""]
            lines += [f"  {name}{sign} {repr(line)[2:-1]}".rstrip() for line in shown if line or not data]
            if len(data) > SHOWN:
                lines.append(f"  {name}{sign} ... {len(data)} bytes in all")
        return "\n".join(lines) or "  (nothing happened)"


class Wire:
    """A connected socket in a test's hands. Made by :meth:`connect` and by ``ScriptedServer.accept``."""

    def __init__(
        self,
        sock: socket.socket,
        name: str = "client",
        patience: float = PATIENCE,
        transcript: Transcript | None = None,
    ) -> None:
        self.socket = sock
        self.name = name
        self.patience = patience
        self.transcript = transcript if transcript is not None else Transcript()
        self.received = b""  # read from the socket and not yet asked for
        self._ended = False
        self._reset = False
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what a test sends in pieces leaves in pieces
        # uvloop may still know this descriptor's number from a connection that was reset.
        self._loop.remove_reader(sock)

    @classmethod
    async def connect(
        cls,
        address: Address,
        *,
        source: str = "",
        name: str = "client",
        patience: float = PATIENCE,
        transcript: Transcript | None = None,
        receive_buffer: int = 0,
    ) -> Wire:
        """Open a connection; ``source`` is the local address to use, ``receive_buffer`` limits what the kernel takes.

        Raises OSError where the other side refuses.
        """
        family = socket.AF_UNIX if address.path else socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source:
                sock.bind((source, 0))
            target = address.path or (address.host, address.port)
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, target), patience)
        except BaseException:
            sock.close()
            raise
        wire = cls(sock, name, patience, transcript)
        wire.transcript.add(name, " connects")
        return wire

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    # --- sending ----------------------------------------------------------------------------------------------

    async def send(self, data: bytes, cut: int = 0) -> None:
        """Send bytes as they are; ``cut`` makes pieces of so many bytes, each of which the node reads by itself."""
        pieces = [data[at : at + cut] for at in range(0, len(data), cut)] if cut else [data]
        await self.send_pieces(pieces)

    async def send_pieces(self, pieces: list[bytes]) -> None:
        """Send each piece as a segment of its own."""
        for number, piece in enumerate(pieces):
            if number:
                for _ in range(TURNS):
                    await asyncio.sleep(0)
            self.transcript.add(self.name, ">", piece)
            await self._wait(self._loop.sock_sendall(self.socket, piece), "the other side reads")

    async def send_lines(self, *lines: str) -> None:
        """Send lines, each with CRLF behind it; ``""`` is the empty one."""
        await self.send(b"".join(line.encode("latin-1") + b"\r\n" for line in lines))

    def half_close(self) -> None:
        """Send nothing more, but go on reading."""
        self.transcript.add(self.name, " half-closes")
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close; does nothing a second time."""
        if self.socket.fileno() >= 0:
            self.transcript.add(self.name, " closes")
            self._loop.remove_reader(self.socket)
            self._loop.remove_writer(self.socket)
            self.socket.close()

    def reset(self) -> None:
        """End the connection with a reset, as a process does that dies with unread input."""
        if self.socket.fileno() >= 0:
            self.transcript.add(self.name, " resets")
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._loop.remove_reader(self.socket)
            self._loop.remove_writer(self.socket)
            self.socket.close()

    # --- receiving --------------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """Whatever has come or comes next; ``b""`` at the end of the stream. Raises Ended for a reset."""
        if not self.received and not self._ended:
            await self._more("any byte")
        if self._reset and not self.received:
            raise self._end("any byte")
        data, self.received = self.received, b""
        return data

    async def exactly(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        while len(self.received) < count:
            await self._more_or_fail(f"{count} bytes")
        data, self.received = self.received[:count], self.received[count:]
        return data

    async def until(self, end: bytes) -> bytes:
        """Everything up to and with ``end``."""
        start = 0
        while (at := self.received.find(end, start)) < 0:
            start = max(0, len(self.received) - len(end) + 1)
            await self._more_or_fail(repr(end))
        data, self.received = self.received[: at + len(end)], self.received[at + len(end) :]
        return data

    async def line(self) -> str:
        """The next line, without its CRLF."""
        return (await self.until(b"\r\n"))[:-2].decode("latin-1")

    async def rest(self) -> bytes:
        """Everything up to the end of the stream; a reset raises Ended."""
        while not self._ended:
            await self._more("the end")
        if self._reset:
            raise self._end("the end")
        data, self.received = self.received, b""
        return data

    async def expect(self, data: bytes) -> None:
        """Exactly these bytes come next."""
        while len(self.received) < len(data):
            if not data.startswith(self.received):
                break
            await self._more_or_fail(repr(data))
        if not self.received.startswith(data):
            raise self._unexpected(repr(data))
        self.received = self.received[len(data) :]

    async def expect_lines(self, *patterns: str) -> None:
        """The next lines match: ``*`` stands for any run of characters, the line ``...`` for any number of lines."""
        skipping = False
        for pattern in patterns:
            if pattern == "...":
                skipping = True
                continue
            await self._expect_line(pattern, skipping)
            skipping = False

    async def sees_end(self) -> None:
        """The other side ends the stream in order, with nothing unexpected before."""
        while not self._ended and not self.received:
            await self._more("the end of the stream")
        if self.received or self._reset:
            raise self._unexpected("the end of the stream")

    async def sees_reset(self) -> None:
        """The other side resets the connection."""
        while not self._ended and not self.received:
            await self._more("a reset")
        if self.received or not self._reset:
            raise self._unexpected("a reset")

    async def sees_closed(self) -> None:
        """The connection ends either way; what comes before it is thrown away."""
        while not self._ended:
            self.received = b""
            await self._more("the end of the connection")
        self.received = b""

    # --- inside -----------------------------------------------------------------------------------------------

    async def _expect_line(self, pattern: str, skipping: bool) -> None:
        match = re.compile(fnmatch.translate(pattern.replace("[", "[[]").replace("?", "[?]")))
        while True:
            try:
                line = await self.line()
            except Ended as ended:
                raise Ended(f"the line {pattern!r} did not come: {ended}", ended.reset) from None
            if match.match(line):
                return
            if not skipping:
                raise Unexpected(f"{self.name} expected {pattern!r} and got {line!r}\n{self.transcript}")

    async def _more(self, what: str) -> None:
        try:
            data = await self._wait(self._loop.sock_recv(self.socket, READ_SIZE), what)
        except ConnectionError:
            self.transcript.add(self.name, " sees reset")
            self._ended = self._reset = True
            return
        if data:
            self.transcript.add(self.name, "<", data)
            self.received += data
        else:
            self.transcript.add(self.name, " sees end")
            self._ended = True

    async def _more_or_fail(self, what: str) -> None:
        if not self._ended:
            await self._more(what)
        if self._ended:
            raise self._end(what)

    def _end(self, what: str) -> Ended:
        how = "reset" if self._reset else "ended"
        left = f", after {self.received[:SHOWN]!r}" if self.received else ""
        return Ended(f"{self.name} expected {what}, but the stream was {how}{left}\n{self.transcript}", self._reset)

    def _unexpected(self, what: str) -> Unexpected:
        got = repr(self.received[:SHOWN]) if self.received else "a reset" if self._reset else "the end of the stream"
        return Unexpected(f"{self.name} expected {what} and got {got}\n{self.transcript}")

    async def _wait(self, awaitable: Awaitable[Result], what: str) -> Result:
        try:
            return await asyncio.wait_for(awaitable, self.patience)
        except TimeoutError:
            unread = self.received[:SHOWN]
            raise Unexpected(
                f"{self.name} waited {self.patience:g} s for {what}; unread: {unread!r}\n{self.transcript}"
            ) from None
