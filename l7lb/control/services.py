"""What works for a supervisor while it supervises: the workers' lines, look-ups, checks, admin API, metrics.

They start and end together: a supervisor that hands the node over ends them, and starts others if it gets it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from l7lb.config import NodeSettings
from l7lb.control.admin import AdminServer
from l7lb.control.certificates import Certificates
from l7lb.control.directories import NodeDirectories
from l7lb.control.health import HealthMonitor
from l7lb.control.metrics import Metrics
from l7lb.control.node import NodeState, SupervisorView
from l7lb.control.outliers import Outliers
from l7lb.control.place import Place, StartProblem
from l7lb.control.resolver import Resolver
from l7lb.control.sticky import StickyTables
from l7lb.control.worker_links import Link, WorkerLinks
from l7lb.core.contracts import ProtocolSpec
from l7lb.core.errors import ConfigurationError, Problem
from l7lb.core.snapshot import Address
from l7lb.proxy.workers.children import DIRECTORIES_SOCKET, STATE_SOCKET

log = structlog.get_logger("l7lb.supervisor")


class Services:
    """See the module. ``joined`` and ``changed`` are for the workers' lines."""

    def __init__(
        self,
        view: SupervisorView,
        node: NodeState,
        settings: NodeSettings,
        place: Place,
        protocols: Mapping[str, ProtocolSpec],
        joined: Callable[[Link], None],
        changed: asyncio.Event,
    ) -> None:
        self._view = view
        self._node = node
        self._settings = settings
        self.resolver = Resolver(node)
        self.health = HealthMonitor(node, protocols)
        self.outliers = Outliers(node)
        self.certificates = Certificates(node)
        self.links = WorkerLinks(place.node, joined, self.outliers.result, changed)
        self.admin = AdminServer(settings.admin_socket, node, view, lambda: self._settings.move_hook)
        self.metrics: Metrics | None = None

    async def open(self) -> None:
        """Let workers come. Raises StartProblem."""
        try:
            await self.links.start()
        except OSError as error:
            raise StartProblem(f"{self.links.path}: {error.strerror or error}") from None

    async def start(self) -> None:
        """Begin to look up, to check and to answer. Raises StartProblem."""
        await self.resolver.start()
        await self.outliers.start()
        await self.health.start()
        await self.certificates.start()
        try:
            await self.admin.start()
        except OSError as error:
            raise StartProblem(f"admin.socket: {self.admin.path}: {error.strerror or error}") from None
        if self._settings.metrics is not None:
            try:
                self.metrics = await self._start_metrics(self._settings.metrics)
            except OSError as error:
                raise StartProblem(f"admin.metrics: {self._settings.metrics}: {error.strerror or error}") from None

    async def change(self, settings: NodeSettings) -> None:
        """A reload: the metrics may have moved. Raises ConfigurationError, and the old ones stay."""
        if settings.metrics != self._settings.metrics:
            started = None
            if settings.metrics is not None:
                try:
                    started = await self._start_metrics(settings.metrics)
                except OSError as error:
                    text = f"{settings.metrics}: {error.strerror or error}"
                    raise ConfigurationError([Problem(str(settings.file), 0, 0, "admin.metrics", text)]) from None
            if self.metrics is not None:
                await self.metrics.stop()
            self.metrics = started
        self._settings = settings

    async def stop(self) -> None:
        """End all, whatever was started."""
        ends = [self.resolver.stop(), self.health.stop(), self.outliers.stop(), self.admin.stop(), self.links.stop()]
        ends.append(self.certificates.stop())
        if self.metrics is not None:
            ends.append(self.metrics.stop())
        for result in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("a part did not end well", exc_info=result)

    async def _start_metrics(self, address: Address) -> Metrics:
        sticky = StickyTables(self._node, self._settings.admin_socket.parent / STATE_SOCKET)
        directories = NodeDirectories(self._node, self._settings.admin_socket.parent / DIRECTORIES_SOCKET)
        metrics = Metrics(address, self._node, self._view, self.health, self.outliers, sticky, directories)
        await metrics.start()
        return metrics
