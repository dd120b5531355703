"""The keeper and the workers, as the supervisor leads them.

What is wanted is told to the keeper, which starts and ends processes; what is configured is told to the workers over
their own lines. A keeper that is gone is replaced: the new one gets our copies of the sockets, and the workers of the
old one, which nobody can lead any more, are told to drain when the new ones are ready.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import structlog

from l7lb import __version__
from l7lb.config import NodeSettings
from l7lb.control.binds import Binds
from l7lb.control.keeper_client import Event, KeeperClient, KeeperGone, KeeperRefused
from l7lb.control.node import Change, NodeState
from l7lb.control.place import StartProblem
from l7lb.control.systemd import activated
from l7lb.control.worker_links import Link, WorkerLinks
from l7lb.core import messages, snapshot
from l7lb.core.errors import L7lbError
from l7lb.core.messages import ServerHealth
from l7lb.core.snapshot import Snapshot
from l7lb.proxy.counts import Counts
from l7lb.proxy.workers import channel
from l7lb.proxy.workers.children import STATE, WORKER
from l7lb.proxy.workers.requests import PROTOCOL

log = structlog.get_logger("l7lb.supervisor")

READY = 30.0  # seconds that workers may take to be ready
DEATHS = 4  # of workers that never were ready, until a start is given up
CONFIRM = 5.0  # seconds in which workers confirm a configuration, or find a new supervisor
GATHER = 0.01  # seconds in which changes gather before workers hear of them
RECOVER = 1.0  # seconds between two attempts to start a keeper


class Crew:
    """See the module. ``spawn`` runs a task, ``heard`` gets the keeper's news too; ``node`` and ``links`` come late."""

    def __init__(
        self,
        keeper: KeeperClient,
        settings: NodeSettings,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        heard: Callable[[Event], None],
    ) -> None:
        self.keeper = keeper
        self.settings = settings
        self.binds = Binds(activated())
        self.children: dict[int, Event] = {}
        self.generation = 0
        self.counts: Counts | None = None
        self.node: NodeState
        self.links: WorkerLinks
        self.led = False  # whether this supervisor leads: nobody replaces a keeper otherwise
        self._spawn = spawn
        self._heard = heard
        self._watched: KeeperClient | None = None
        self.news = asyncio.Event()
        self._deaths = 0
        self._putting = asyncio.Lock()
        self._pending: list[Change] = []

    # --- the keeper -----------------------------------------------------------------------------------------------

    async def meet(self, renew: bool, keep_code: bool = False) -> tuple[Snapshot | None, bool]:
        """Take the keeper over; returns the snapshot that it holds, and whether workers must be renewed.

        A keeper of another version becomes the installed one first, unless ``keep_code``. Raises StartProblem.
        """
        self._know()
        state = self.keeper.state
        other = bool(state["children"]) and (state["version"] != __version__ or state["protocol"] != PROTOCOL)
        if (renew or other) and not keep_code:
            try:
                await self.keeper.request("upgrade", patience=READY)
            except KeeperRefused as error:
                raise StartProblem(f"the keeper can't become the installed version: {error}") from None
            renew = True
        descriptors = await self.keeper.hello("supervisor")
        self._know()
        self._map(descriptors[0])
        return self._held(descriptors[1:]), renew

    def _know(self) -> None:
        self.keeper.on_event = self._event
        self.children = {child["pid"]: child for child in self.keeper.state["children"]}
        if self._watched is not self.keeper:
            self._watched = self.keeper
            self._spawn(self._watch(self.keeper))

    def _map(self, descriptor: int) -> None:
        if self.counts is not None:
            self.counts.close()
        self.counts = Counts(descriptor)
        os.close(descriptor)

    @staticmethod
    def _held(descriptors: list[int]) -> Snapshot | None:
        if not descriptors:
            return None
        try:
            return snapshot.decode(channel.content(descriptors[0], messages.LIMIT))
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("the last configuration can't be read, counts begin anew", error=str(error))
            return None
        finally:
            channel.close_all(descriptors)

    def _event(self, event: Event) -> None:
        name = event["event"]
        if name in ("started", "ready", "leaving"):
            self.children[event["pid"]] = event
        elif name == "ended":
            self.children.pop(event["pid"], None)
            if event["kind"] == WORKER and not event["leaving"]:
                log.warning("a worker has died", worker=event["pid"], index=event["index"], code=event["code"])
                self._deaths += not event["ready"]
        if name == "ready":
            log.info("a worker is ready", worker=event["pid"], index=event["index"])
            if self.led:
                self.dismiss_strangers()
        self.news.set()
        self._heard(event)

    async def _watch(self, keeper: KeeperClient) -> None:
        await keeper.closed.wait()
        keeper.reap()
        while self.led and self.keeper is keeper:
            log.error("the keeper is gone: a new one starts, with new workers; the old ones drain")
            try:
                await self._recover()
            except (L7lbError, OSError) as error:
                log.error("no keeper could be started; the workers go on", error=str(error))
                await asyncio.sleep(RECOVER)

    async def _recover(self) -> None:
        """Start a new keeper with our copies of the sockets."""
        keeper = KeeperClient.start(self.settings, None)
        try:
            channel.close_all(await keeper.hello("supervisor"))
            await self.binds.restore(keeper, self.node.effective().workers)
            try:
                await keeper.request("adopt", pid=self.state_process)
            except KeeperRefused:
                pass  # it has ended as well, and a new one is started
            descriptors = await keeper.hello("supervisor")
        except BaseException:
            keeper.close()
            raise
        self.keeper = keeper
        self._know()
        channel.close_all(descriptors[1:])
        self._map(descriptors[0])
        self.node.counts = self.counts
        for link in self.links.links.values():
            link.configured = False
        await self.settle()

    # --- what is wanted of it -------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Tell the keeper what is wanted."""
        settings, effective = self.settings, self.node.effective()
        await self._put_snapshot()
        await self.keeper.request(
            "settings",
            log_level=settings.log_level,
            log_format=settings.log_format,
            without_supervisor=settings.without_supervisor,
            drain=effective.drain,
            retire=settings.without_supervisor,
            size=effective.tables.size,
            save=str(settings.state / "tables") if settings.state is not None else "",
            directories=bool(effective.directories),
        )
        await self.want(effective.workers)

    async def want(self, count: int) -> None:
        """So many workers."""
        await self.keeper.request("want", count=count, generation=self.generation)
        await self.binds.refresh(self.keeper)

    async def _put_snapshot(self) -> None:
        """Have the keeper hold the snapshot for workers to come."""
        async with self._putting:
            effective = self.node.effective()
            slots = [listener.slot for listener in effective.listeners] + [pool.slot for pool in effective.pools]
            slots += [server.slot for pool in effective.pools for server in pool.servers]
            memory = channel.memory("l7lb-snapshot", snapshot.encode(effective))
            try:
                await self.keeper.request("snapshot", [memory], rows=max(slots, default=0) + 1)
            finally:
                os.close(memory)

    async def until_ready(self) -> None:
        """Wait until one worker of each index is ready and has a line to us. Raises StartProblem."""
        self._deaths = 0
        try:
            async with asyncio.timeout(READY):
                while not self._complete():
                    if self._deaths >= DEATHS:
                        raise StartProblem("the workers end as soon as they start; their lines in the log say why")
                    if self.links.problem:
                        raise StartProblem(f"the workers can't use the configuration: {self.links.problem}")
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            raise StartProblem(f"the workers are not ready after {READY:g} s; their lines in the log say why") from None
        await self.links.all_of({worker["pid"] for worker in self._workers()}, CONFIRM)

    def _complete(self) -> bool:
        workers = self._workers()
        return len(workers) >= self.node.effective().workers and all(worker["ready"] for worker in workers)

    def _workers(self) -> list[Event]:
        """The wanted workers that live."""
        found = [child for child in self.children.values() if child["kind"] == WORKER and not child["leaving"]]
        return [child for child in found if child["generation"] == self.generation]

    @property
    def state_process(self) -> int:
        """Its number, or 0."""
        return next((child["pid"] for child in self.children.values() if child["kind"] == STATE), 0)

    # --- the workers ----------------------------------------------------------------------------------------------

    def joined(self, link: Link) -> None:
        """A worker has said hello."""
        child = self.children.get(link.pid)
        if child is None:
            self.dismiss_strangers()
            return
        self.node.blocks = max(self.node.blocks, child["block"] + 1)
        if link.hello.protocol == messages.PROTOCOL and link.hello.version == __version__:
            link.configured = True
            link.tell(messages.Configure(self.node.effective()), *self.node.health_messages())
        # One of another version leaves as soon as its successor is ready.

    def dismiss_strangers(self) -> None:
        """Workers of a keeper that is gone leave, once there are others."""
        if self._complete():
            for pid, link in self.links.links.items():
                if pid not in self.children:
                    log.info("a worker without a keeper leaves", worker=pid)
                    link.tell(messages.Drain(self.settings.without_supervisor))

    def end_strangers(self, seconds: float) -> list[int]:
        """The node ends: workers of a keeper that is gone have no more time than the others. Returns their numbers."""
        strangers = [link for pid, link in self.links.links.items() if pid not in self.children]
        for link in strangers:
            link.tell(messages.Drain(seconds, patient=False))
        return [link.pid for link in strangers]

    def changed(self, change: Change) -> None:
        """The node's state has changed; workers hear of it in a moment, with what else changes until then."""
        if not self._pending:
            asyncio.get_running_loop().call_later(GATHER, self.tell)
        self._pending.append(change)

    def tell(self) -> None:
        """Tell the workers now what has changed, the snapshot first."""
        pending, self._pending = self._pending, []
        told: list[messages.ToWorker] = []
        if any(change.snapshot for change in pending):
            told.append(messages.Configure(self.node.effective()))
            self._spawn(self._keep_snapshot())
        latest: dict[tuple[str, str], ServerHealth] = {}
        for change in pending:
            latest.update({(one.pool, one.server): one for one in change.health})
        if told or latest:
            self.links.broadcast([*told, *latest.values()])

    async def _keep_snapshot(self) -> None:
        try:
            await self._put_snapshot()
        except KeeperGone:
            pass  # its successor gets it
