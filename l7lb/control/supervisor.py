"""The supervisor: `l7lb serve`. It holds the configuration and decides; traffic flows without it.

Life. :mod:`l7lb.control.launch` loads the configuration, connects to the keeper that lives or starts one, and gives up
privileges if the configuration names a user. Then :meth:`Supervisor.begin` joins the parts: what is known of the node
(:class:`NodeState`), the workers' lines, health checks, admin API, metrics. It is ready when the workers are.

- A supervisor that finds a living keeper of its own version adopts its workers; a keeper of another version is replaced
  by the installed code, and workers of that code are started before the old ones leave.
- A keeper that is gone is replaced by one that gets our copies of the sockets; the old one's workers leave when there
  are new ones.
- SIGUSR2: see :mod:`l7lb.control.handover`.
- SIGTERM: the keeper drains the workers and ends everything; the supervisor goes last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
import structlog

from l7lb import __version__
from l7lb.config import Loaded, load
from l7lb.control import logs
from l7lb.control.binds import Binds
from l7lb.control.handover import Handover
from l7lb.control.keeper_client import Event, KeeperClient, KeeperGone, KeeperRefused, process_ended
from l7lb.control.node import Change, NodeState, rfc3339
from l7lb.control.place import Place, StartProblem
from l7lb.control.services import Services
from l7lb.control.status import describe
from l7lb.control.systemd import Notifier, activated
from l7lb.control.worker_links import Link
from l7lb.core import messages, snapshot
from l7lb.core.contracts import ProtocolSpec
from l7lb.core.errors import ConfigurationError, L7lbError, Problem
from l7lb.core.messages import ServerHealth, SessionRow
from l7lb.core.snapshot import Snapshot
from l7lb.proxy.counts import Counts
from l7lb.proxy.workers import channel
from l7lb.proxy.workers.children import STATE, WORKER

log = structlog.get_logger("l7lb.supervisor")

PROTOCOL = 1  # of the keeper
READY = 30.0  # seconds that workers may take to be ready
CONFIRM = 5.0  # seconds in which workers confirm a configuration
GATHER = 0.01  # seconds in which changes gather before workers hear of them
ORPHANS = 2.0  # seconds in which workers without a keeper would have found us
ENDING = 20.0  # seconds beyond the drain until the keeper is given up
RECOVER = 1.0  # seconds between two attempts to start a keeper


class Supervisor:
    """See the module; it is the SupervisorView of the admin API."""

    def __init__(
        self, loaded: Loaded, place: Place, keeper: KeeperClient, protocols: Mapping[str, ProtocolSpec], replaces: bool
    ) -> None:
        self.loaded = loaded
        self.place = place
        self.keeper = keeper
        self.protocols = protocols
        self.notifier = Notifier(inherited=replaces)
        self.binds = Binds(activated())
        self.handover = Handover(self, replaces)
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.children: dict[int, Event] = {}
        self.generation = 0
        self.state = "starting"
        self.node: NodeState
        self.services: Services
        self.counts: Counts | None = None
        self.since = rfc3339()
        self.last_reload: dict[str, Any] = {}
        self._beginning: asyncio.Future[None]
        self._watched: KeeperClient | None = None
        self._reloading = asyncio.Lock()
        self._putting = asyncio.Lock()
        self._pending: list[Change] = []
        self._ready = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until the node has ended, or another supervisor for it; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number, handler in self._handlers().items():
            loop.add_signal_handler(number, handler)
        self._beginning = asyncio.ensure_future(self.begin(renew=self.handover.replaces))
        try:
            await self._beginning
        except asyncio.CancelledError:
            log.info("told to end before it served")
            await self.abandon()
            return 0
        except BaseException:
            await self.abandon()
            raise
        self._watchdog()
        return await self.over

    def end(self, code: int) -> None:
        """Exit with that code."""
        if not self.over.done():
            self.over.set_result(code)

    def _handlers(self) -> dict[int, Callable[[], None]]:
        def forwarded(number: int, handler: Callable[[], None]) -> Callable[[], None]:
            return lambda: None if self.handover.forward(number) else handler()

        handlers: dict[int, Callable[[], None]] = {
            signal.SIGTERM: self.terminate,
            signal.SIGINT: self.terminate,
            signal.SIGHUP: lambda: self.spawn(self._reload_logged()),
            signal.SIGUSR1: self._reopen_logs,
            signal.SIGUSR2: lambda: self.spawn(self.handover.start()),
        }
        handlers = {number: forwarded(number, handler) for number, handler in handlers.items()}
        if os.getpid() == 1:
            handlers[signal.SIGCHLD] = self._reap_orphans
        return handlers

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task that is held, and whose fault is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a fault in the supervisor", exc_info=task.exception())

    def _reap_orphans(self) -> None:
        """As process 1 of a container we inherit processes whose parent is gone."""
        self.keeper.reap()
        keeper = self.keeper.process.pid if self.keeper.process is not None else 0
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in (1, keeper):
                try:
                    os.waitpid(int(name), os.WNOHANG)
                except ChildProcessError:
                    continue

    async def begin(self, renew: bool) -> None:
        """Take the node into our hands; ``renew`` starts new workers in any case. Raises L7lbError or OSError."""
        settings, configured = self.loaded.settings, self.loaded.snapshot
        self._know_keeper()
        renew = await self._same_code(renew)
        descriptors = await self.keeper.hello("supervisor")
        self._know_keeper()
        self._map(descriptors[0])
        self.node = NodeState(configured, settings.state, self.counts)
        for child in self.children.values():
            self.node.blocks = max(self.node.blocks, child["block"] + 1)
        adopted = self._adopt(descriptors[1:])
        for warning in self.node.warnings:
            log.warning(warning)
        self.services = Services(self, self.node, settings, self.place, self.protocols, self.joined)
        await self.services.open()
        await self.binds.adopt(self.keeper, adopted or configured)
        fresh = not self.keeper.state["binds"]
        await self._open_binds(fresh)
        self.node.subscribe(self._changed)
        await self.services.start()
        self.generation = int(self.keeper.state["generation"]) + (1 if renew else 0)
        await self._settle()
        await self._until_ready()
        await self.binds.close_others(self.keeper, self.node.effective())
        self.binds.forget_activated()
        await self.keeper.request("started")
        self.state = "serving"
        self.last_reload = {"since": rfc3339(), "time": time.time(), "ok": True, "problems": []}
        self.notifier.ready(self._status_line())
        log.info("serving", node=self.node.effective().node, workers=self.node.effective().workers)

    async def _same_code(self, renew: bool) -> bool:
        """Have a keeper of our code; returns whether the workers must be renewed too."""
        state = self.keeper.state
        adopting = bool(state["children"])
        if renew or (adopting and (state["version"] != __version__ or state["protocol"] != PROTOCOL)):
            try:
                await self.keeper.request("upgrade", patience=READY)
                renew = True
            except KeeperRefused as error:
                raise StartProblem(f"the keeper can't become the installed version: {error}") from None
        return renew

    def _know_keeper(self) -> None:
        self.keeper.on_event = self._event
        self.children = {child["pid"]: child for child in self.keeper.state["children"]}
        if self._watched is not self.keeper:
            self._watched = self.keeper
            self.spawn(self._watch_keeper(self.keeper))

    def _map(self, descriptor: int) -> None:
        if self.counts is not None:
            self.counts.close()
        self.counts = Counts(descriptor)
        os.close(descriptor)

    def _adopt(self, descriptors: list[int]) -> Snapshot | None:
        """Go on with the snapshot that the keeper holds, if it does."""
        if not descriptors:
            return None
        try:
            held = snapshot.decode(channel.content(descriptors[0], messages.LIMIT))
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("the last configuration can't be read, counts begin anew", error=str(error))
            return None
        finally:
            channel.close_all(descriptors)
        self.node.adopt(held)
        return held

    async def _open_binds(self, fresh: bool) -> None:
        """Open the listeners. Workers whose keeper is gone may listen there: then new sockets are put beside theirs."""
        wanted = self.node.effective()
        try:
            await self.binds.open(self.keeper, wanted, wanted.workers)
        except ConfigurationError:
            if not fresh or not await self.services.links.somebody(ORPHANS):
                raise
            log.warning("workers without a keeper still serve: they leave when the new ones are ready")
            await self.binds.open(self.keeper, wanted, wanted.workers, beside=True)

    async def _settle(self) -> None:
        """Tell the keeper what is wanted."""
        settings, effective = self.loaded.settings, self.node.effective()
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
        )
        await self._want(effective.workers)

    async def _want(self, count: int) -> None:
        await self.keeper.request("want", count=count, generation=self.generation)
        await self.binds.refresh(self.keeper)

    async def _until_ready(self) -> None:
        """Wait until one worker of each index is ready. Raises StartProblem."""
        try:
            async with asyncio.timeout(READY):
                while not self._complete():
                    self._ready.clear()
                    await self._ready.wait()
        except TimeoutError:
            raise StartProblem(f"the workers are not ready after {READY:g} s; their lines in the log say why") from None
        await self.services.links.all_of({worker["pid"] for worker in self._workers()}, CONFIRM)

    def _complete(self) -> bool:
        return len(self._workers()) >= self.node.effective().workers and all(w["ready"] for w in self._workers())

    def _workers(self) -> list[Event]:
        """The wanted workers that live."""
        found = [child for child in self.children.values() if child["kind"] == WORKER and not child["leaving"]]
        return [child for child in found if child["generation"] == self.generation]

    async def abandon(self) -> None:
        """The start has failed: leave a node that serves as it was, end one that we have begun."""
        if hasattr(self, "services"):
            await self.services.stop()
        if self.keeper.process is not None and not self.keeper.closed.is_set():
            try:
                await self.keeper.request("drain", seconds=0.0, status=1)
                await self.keeper.ended(ENDING)
            except L7lbError:
                pass  # it has ended by itself
        self.keeper.close()
        self.binds.drop()

    async def release(self) -> None:
        """Let go of the node, for another supervisor."""
        async with self._reloading:
            self.state = "yielding"
            await self.services.stop()
            self.place.unlock()

    async def take_back(self) -> None:
        """The reverse of ``release``. Raises L7lbError or OSError."""
        self.state = "starting"
        self.place.lock()
        self.binds = Binds([])
        await self.keeper.hello("supervisor")
        await self.begin(renew=False)

    # --- the keeper -----------------------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        name = event["event"]
        if name in ("started", "ready"):
            self.children[event["pid"]] = event
            self.node.blocks = max(self.node.blocks, event["block"] + 1)
        elif name == "ended":
            self.children.pop(event["pid"], None)
            if event["kind"] == WORKER and not event["leaving"]:
                log.warning("a worker has died", worker=event["pid"], index=event["index"], code=event["code"])
        if name == "ready":
            log.info("a worker is ready", worker=event["pid"], index=event["index"])
            self._dismiss_strangers()
        self._ready.set()
        self.handover.event(event)

    async def _watch_keeper(self, keeper: KeeperClient) -> None:
        await keeper.closed.wait()
        keeper.reap()
        while self.state == "serving" and self.keeper is keeper:
            log.error("the keeper is gone: a new one starts, with new workers; the old ones drain")
            try:
                await self._recover()
            except (L7lbError, OSError) as error:
                log.error("no keeper could be started; the workers go on", error=str(error))
                await asyncio.sleep(RECOVER)

    async def _recover(self) -> None:
        """Start a new keeper with our copies of the sockets."""
        settings = self.loaded.settings
        state_process = next((child["pid"] for child in self.children.values() if child["kind"] == STATE), 0)
        keeper = KeeperClient.start(self.place.directory, settings.file, None)
        try:
            channel.close_all(await keeper.hello("supervisor"))
            await self.binds.restore(keeper, self.node.effective().workers)
            if state_process:
                try:
                    await keeper.request("adopt", pid=state_process)
                except KeeperRefused:
                    pass  # it has died as well, and a new one is started
            descriptors = await keeper.hello("supervisor")
        except BaseException:
            keeper.close()
            raise
        self.keeper = keeper
        self._know_keeper()
        channel.close_all(descriptors[1:])
        self._map(descriptors[0])
        self.node.counts = self.counts
        for link in self.services.links.links.values():
            link.configured = False
        await self._settle()

    def _dismiss_strangers(self) -> None:
        """Workers of a keeper that is gone leave, now that there are others."""
        if not self._complete():
            return
        for pid, link in self.services.links.links.items():
            if pid not in self.children:
                log.info("a worker without a keeper leaves", worker=pid)
                link.tell(messages.Drain(self.loaded.settings.without_supervisor))

    # --- workers --------------------------------------------------------------------------------------------------

    def joined(self, link: Link) -> None:
        """A worker has said hello."""
        if link.pid not in self.children:
            self._dismiss_strangers()
            return
        if link.hello.protocol != messages.PROTOCOL or link.hello.version != __version__:
            return  # it leaves as soon as its successor is ready
        link.configured = True
        link.tell(messages.Configure(self.node.effective()), *self.node.health_messages())

    def _changed(self, change: Change) -> None:
        if not self._pending:
            asyncio.get_running_loop().call_later(GATHER, self._flush)
        self._pending.append(change)

    def _flush(self) -> None:
        """Tell the workers what has changed since, the snapshot first."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        told: list[messages.ToWorker] = []
        if any(change.snapshot for change in pending):
            told.append(messages.Configure(self.node.effective()))
            self.spawn(self._keep_snapshot())
        latest: dict[tuple[str, str], ServerHealth] = {}
        for change in pending:
            latest.update({(one.pool, one.server): one for one in change.health})
        self.services.links.broadcast([*told, *latest.values()])

    async def _keep_snapshot(self) -> None:
        try:
            await self._put_snapshot()
        except KeeperGone:
            pass  # its successor gets it

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

    def _reopen_logs(self) -> None:
        self.services.links.broadcast([messages.ReopenLogs()])
        log.info("log files were opened again")

    # --- what the admin API asks ----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """See SupervisorView."""
        return describe(self)

    async def sessions(self, limit: int) -> list[SessionRow]:
        """See SupervisorView."""
        return await self.services.links.sessions(limit)

    async def shutdown(self) -> None:
        """See SupervisorView."""
        self.terminate()

    def _status_line(self) -> str:
        effective = self.node.effective()
        return f"{self.state}: {effective.workers} workers, {len(effective.listeners)} listeners"

    # --- reload ---------------------------------------------------------------------------------------------------

    async def _reload_logged(self) -> None:
        try:
            await self.reload()
        except L7lbError:
            pass  # it stands in the log

    async def reload(self) -> list[str]:
        """Read the configuration again and put it into force, or refuse it whole. Raises ConfigurationError."""
        async with self._reloading:
            if self.state != "serving":
                raise ConfigurationError(
                    [Problem(str(self.loaded.settings.file), 0, 0, "", f"the node is {self.state}")]
                )
            self.notifier.reloading()
            try:
                notes = await self._reload_now()
            except L7lbError as error:
                problems = [str(one) for one in getattr(error, "problems", ())] or [str(error)]
                self.last_reload = {"since": rfc3339(), "time": time.time(), "ok": False, "problems": problems}
                for problem in problems:
                    log.error("the configuration is refused, the old one stays", problem=problem)
                raise
            finally:
                self.notifier.ready(self._status_line())
            self.last_reload = {"since": rfc3339(), "time": time.time(), "ok": True, "problems": []}
            for note in notes:
                log.warning(note)
            log.info("the configuration was reloaded", snapshot=self.node.effective().version)
            return notes

    async def _reload_now(self) -> list[str]:
        loaded = await asyncio.to_thread(load, self.loaded.settings.file)
        wanted = loaded.snapshot
        opened = await self.binds.open(self.keeper, wanted, wanted.workers)
        try:
            await self._want(wanted.workers)
            await self.services.change(loaded.settings)
            notes = self.node.reload(wanted)
        except BaseException:
            await self._want(self.node.effective().workers)
            await self.binds.close(self.keeper, opened)
            raise
        notes += [str(problem) for problem in loaded.warnings] + self._fixed(loaded)
        self.loaded = loaded
        logs.configure(loaded.settings.log_level, loaded.settings.log_format)
        self._flush()
        self._reopen_logs()
        await self._settle()
        notes += await self.services.links.applied(self.node.effective().version, CONFIRM)
        await self.binds.close_others(self.keeper, self.node.effective())
        return notes

    def _fixed(self, loaded: Loaded) -> list[str]:
        """What a reload can't change, in words."""
        old, new = self.loaded.settings, loaded.settings
        names = {"admin.socket": "admin_socket", "state": "state", "user": "user", "group": "group"}
        changed = [name for name, field in names.items() if getattr(old, field) != getattr(new, field)]
        return [f"{name} has changed: that takes effect when the node is ended and started" for name in changed]

    # --- the end --------------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """Drain and end; a second call ends at once."""
        if self.state == "draining":
            self.spawn(self._hurry())
        elif self.state == "starting":
            self._beginning.cancel()
        else:
            self.state = "draining"
            self.spawn(self._drain())

    async def _hurry(self) -> None:
        try:
            await self.keeper.request("drain", seconds=0.0, status=0)
        except L7lbError:
            pass  # it ends already

    async def _drain(self) -> None:
        seconds = self.node.effective().drain
        log.info("draining", seconds=seconds)
        self.notifier.stopping(f"draining, {seconds:g} s at most")
        self.binds.drop()
        try:
            await self.keeper.request("drain", seconds=seconds, status=0)
        except KeeperRefused as error:
            log.error("the keeper does not drain", error=str(error))
        except KeeperGone:
            pass
        if not await self.keeper.ended(seconds + ENDING):
            log.error("the keeper does not end; it and what it keeps are left behind", keeper=self.keeper.state["pid"])
        for pid in [child["pid"] for child in self.children.values() if child["kind"] == WORKER]:
            await process_ended(pid, seconds)  # none is left, unless the keeper was killed
        await self.services.stop()
        log.info("ended")
        self.end(0)

    def _watchdog(self) -> None:
        interval = self.notifier.interval()
        if interval > 0:
            if not self.handover.waiting:
                self.notifier.alive()
            asyncio.get_running_loop().call_later(interval, self._watchdog)
