"""The metrics port: ``/metrics`` for Prometheus, ``/livez`` and ``/readyz`` for whoever keeps nodes in rotation.

``/livez`` answers as long as the supervisor does; ``/readyz`` is 200 from when a worker has applied a snapshot until
the node drains. The port shows names of the configuration and numbers, changes nothing and needs no password: bind it
where only those can reach it who may see that. A text is kept for a second, so that many scrapers cost what one does.
"""

from __future__ import annotations

import asyncio
import time

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from l7lb.control.collector import Collector, gather
from l7lb.control.directories import NodeDirectories
from l7lb.control.health import HealthMonitor
from l7lb.control.http_server import HttpServer, listen_tcp
from l7lb.control.node import NodeState, SupervisorView
from l7lb.control.outliers import Outliers
from l7lb.control.sticky import StickyTables, TableOf
from l7lb.core.errors import L7lbError
from l7lb.core.snapshot import Address

CONNECTIONS = 32
SECONDS = 30.0  # a connection's life
FRESH = 1.0  # seconds for which a text is given out again


class Metrics:
    """See the module. ``address`` is the real one once started, where the port was 0."""

    def __init__(
        self,
        address: Address,
        node: NodeState,
        supervisor: SupervisorView,
        health: HealthMonitor | None = None,
        outliers: Outliers | None = None,
        sticky: StickyTables | None = None,
        directories: NodeDirectories | None = None,
    ) -> None:
        self.address = address
        self._node = node
        self._supervisor = supervisor
        self._health = health
        self._outliers = outliers
        self._sticky = sticky
        self._directories = directories
        self._text = b""
        self._made = -FRESH
        self._lock = asyncio.Lock()
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/livez", self._live)
        app.router.add_get("/readyz", self._ready)
        self._server = HttpServer(app, CONNECTIONS, SECONDS)

    async def start(self) -> None:
        """Open the port and answer. Raises OSError."""
        listening = listen_tcp(self.address)
        self.address = Address(host=self.address.host, port=listening.getsockname()[1])
        await self._server.start(listening)

    async def stop(self) -> None:
        """Answer no more."""
        await self._server.stop()

    async def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        async with self._lock:
            if time.monotonic() - self._made >= FRESH:
                numbers = gather(self._node, self._supervisor.status(), self._health, self._outliers)
                numbers.tables = await self._tables()
                if self._directories is not None:
                    numbers.directories = await self._directories.numbers()
                registry = CollectorRegistry()
                registry.register(Collector(numbers))
                self._text = await asyncio.to_thread(generate_latest, registry)
                self._made = time.monotonic()
            return self._text

    async def _tables(self) -> list[TableOf]:
        """What the state process says of its tables; none where it is just being replaced."""
        try:
            return await self._sticky.tables() if self._sticky is not None else []
        except L7lbError:
            return []

    async def _metrics(self, request: web.Request) -> web.Response:
        return _closing(web.Response(body=await self.text(), headers={"Content-Type": CONTENT_TYPE_LATEST}))

    async def _live(self, request: web.Request) -> web.Response:
        return _closing(web.Response(text="alive\n"))

    async def _ready(self, request: web.Request) -> web.Response:
        state = str(self._supervisor.status().get("state", "starting"))
        ready = state == "serving"
        return _closing(web.Response(text="ready\n" if ready else f"{state}\n", status=200 if ready else 503))


def _closing(response: web.Response) -> web.Response:
    """A connection serves one request: scrapes are rare, and nobody holds one of the few connections."""
    response.force_close()
    return response
