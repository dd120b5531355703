"""A client that speaks HTTP/2 with prior knowledge over a real socket, for the data path's tests."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived, StreamEnded, StreamReset

from l7lb.testing import Node, Wire

PATIENCE = 10.0


class Http2Client:
    """``bodies``, ``statuses`` and ``resets`` are by the stream's number; ``reads`` False: what comes stays unread."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.bodies: dict[int, bytearray] = defaultdict(bytearray)
        self.statuses: dict[int, int] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.goaway: int | None = None
        self.gives_window = True

    @classmethod
    async def connect(cls, node: Node, **settings: int) -> Http2Client:
        """Connected, and past the exchange of settings."""
        client = cls(await node.connect())
        if settings:
            client.h2.local_settings.update({int(name.removeprefix("s")): value for name, value in settings.items()})
        client.h2.initiate_connection()
        await client.flush()
        return client

    async def flush(self) -> None:
        """Send what there is to send."""
        data = self.h2.data_to_send()
        if data:
            await self.wire.send(data)

    async def request(
        self, path: str = "/", method: str = "GET", end: bool = True, headers: tuple[tuple[str, str], ...] = ()
    ) -> int:
        """Ask for something; returns the stream's number."""
        number = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path), *headers]
        self.h2.send_headers(number, head, end_stream=end)
        await self.flush()
        return number

    async def until(self, *numbers: int) -> None:
        """Read until these streams have ended."""
        async with asyncio.timeout(PATIENCE):
            while not self.ended.issuperset(numbers) and self.goaway is None:
                if not await self.step():
                    return

    async def step(self) -> bool:
        """Read once; False at the end."""
        data = await self.wire.read()
        if not data:
            return False
        for event in self.h2.receive_data(data):
            self._event(event)
        await self.flush()
        return True

    async def to_end(self) -> None:
        """Read until the node closes."""
        async with asyncio.timeout(PATIENCE):
            while await self.step():
                pass

    def _event(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            assert event.headers is not None
            self.headers[event.stream_id] = {str(name): str(value) for name, value in event.headers}
            self.statuses[event.stream_id] = int(self.headers[event.stream_id][":status"])
        elif isinstance(event, DataReceived):
            self.bodies[event.stream_id] += event.data
            if self.gives_window:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, StreamReset):
            self.resets[event.stream_id] = int(event.error_code)
            self.ended.add(event.stream_id)
        elif isinstance(event, ConnectionTerminated):
            self.goaway = int(event.error_code)

    async def get(self, path: str = "/", headers: tuple[tuple[str, str], ...] = ()) -> int:
        """A whole exchange; returns its status."""
        number = await self.request(path, headers=headers)
        await self.until(number)
        return self.statuses[number]

    def close(self) -> None:
        """Leave."""
        self.wire.reset()
