"""The supervisor: `l7lb serve`. It holds the configuration and decides; traffic flows without it.

Life. :mod:`l7lb.control.launch` loads the configuration, connects to the keeper that lives or starts one, and gives up
privileges if the configuration names a user. Then :meth:`Supervisor.begin` joins the parts: what is known of the node
(:class:`NodeState`), the keeper and the workers (:class:`Crew`), look-ups, checks, admin API and metrics
(:class:`Services`). It says that it is ready when the workers are.

- A supervisor that finds a living keeper of its own version adopts its workers; a keeper of another version is replaced
  by the installed code, and workers of that code are started before the old ones leave.
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

import structlog

from l7lb.config import Loaded, load
from l7lb.control import logs
from l7lb.control.crew import CONFIRM, Crew
from l7lb.control.handover import Handover
from l7lb.control.keeper_client import KeeperClient, KeeperGone, KeeperRefused, process_ended
from l7lb.control.node import NodeState, rfc3339
from l7lb.control.place import Place
from l7lb.control.services import Services
from l7lb.control.status import describe
from l7lb.control.systemd import Notifier
from l7lb.core import messages
from l7lb.core.contracts import ProtocolSpec
from l7lb.core.errors import ConfigurationError, L7lbError, Problem
from l7lb.core.messages import ALL_SESSIONS, SessionRow, Wanted
from l7lb.proxy.workers.children import WORKER

log = structlog.get_logger("l7lb.supervisor")

ORPHANS = 2.0  # seconds in which workers without a keeper would have found us
ENDING = 20.0  # seconds beyond the drain until the keeper is given up


class Supervisor:
    """See the module; it is the SupervisorView of the admin API."""

    def __init__(
        self, loaded: Loaded, place: Place, keeper: KeeperClient, protocols: Mapping[str, ProtocolSpec], replaces: bool
    ) -> None:
        self.loaded = loaded
        self.place = place
        self.protocols = protocols
        self.notifier = Notifier(inherited=replaces)
        self.handover = Handover(self, replaces)
        self.crew = Crew(keeper, loaded.settings, self.spawn, self.handover.event)
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.state = "starting"
        self.since = rfc3339()
        self.last_reload: dict[str, Any] = {}
        self.node: NodeState
        self.services: Services
        self._beginning: asyncio.Future[None]
        self._opened: list[str] = []  # at the start
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until the node has ended, or goes on with another supervisor; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number, handler in self._handlers().items():
            loop.add_signal_handler(number, handler)
        self._beginning = asyncio.ensure_future(self.begin(renew=self.handover.replaces))
        try:
            await self._beginning
        except asyncio.CancelledError:
            log.info("told to end before it served")
            await self._abandon()
            return 0
        except BaseException:
            await self._abandon()
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
        keeper = self.crew.keeper
        keeper.reap()
        ours = {1, keeper.process.pid if keeper.process is not None else 1}
        for pid in {int(name) for name in os.listdir("/proc") if name.isdigit()} - ours:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue

    async def begin(self, renew: bool, back: bool = False) -> None:
        """Take the node into our hands; ``renew`` starts new workers in any case, ``back``: they were ours before.

        Raises L7lbError.
        """
        crew, settings = self.crew, self.loaded.settings
        held, renew = await crew.meet(renew, keep_code=back)
        state = crew.keeper.state
        if not back:
            crew.generation = int(state["generation"]) + (1 if renew else 0)
        self.node = crew.node = NodeState(self.loaded.snapshot, settings.state, crew.counts)
        if held is not None:
            self.node.adopt(held)
        for warning in self.node.warnings:
            log.warning(warning)
        self.services = Services(self, self.node, settings, self.place, self.protocols, crew.joined, crew.news)
        crew.links = self.services.links
        await self.services.open()
        await crew.binds.adopt(crew.keeper, held or self.loaded.snapshot)
        self._opened = await self._open_binds(fresh=not state["binds"])
        self.node.subscribe(crew.changed)
        await self.services.start()
        await crew.settle()
        await crew.until_ready()
        await crew.binds.close_others(crew.keeper, self.node.effective())
        crew.binds.forget_activated()
        await crew.keeper.request("started")
        crew.led = True
        crew.dismiss_strangers()
        self.state = "serving"
        self._note_reload([])
        self.notifier.ready(self._status_line())
        log.info("serving", node=self.node.effective().node, workers=self.node.effective().workers)

    async def _open_binds(self, fresh: bool) -> list[str]:
        """Open the listeners. Workers whose keeper is gone may listen there: then new sockets are put beside theirs."""
        crew, wanted = self.crew, self.node.effective()
        try:
            return await crew.binds.open(crew.keeper, wanted, wanted.workers)
        except ConfigurationError:
            if not fresh or not await self.services.links.somebody(ORPHANS):
                raise
        log.warning("workers without a keeper still serve: they leave when the new ones are ready")
        return await crew.binds.open(crew.keeper, wanted, wanted.workers, beside=True)

    async def _abandon(self) -> None:
        """The start has failed: leave a node that serves as it was, end one that we have begun."""
        keeper = self.crew.keeper
        if hasattr(self, "services"):
            await self.services.stop()
        try:
            if keeper.process is not None:
                await keeper.request("drain", seconds=0.0, status=1)
                await keeper.ended(ENDING)
            else:
                await self.crew.binds.close(keeper, self._opened)
        except L7lbError:
            pass  # it has ended by itself
        keeper.close()
        self.crew.binds.drop()

    async def release(self) -> None:
        """Let go of the node, for another supervisor."""
        async with self._reloading:
            self.state = "yielding"
            self.crew.led = False
            await self.services.stop()
            self.place.unlock()

    async def take_back(self) -> None:
        """The reverse of ``release``. Raises L7lbError."""
        self.state = "starting"
        self.place.lock()
        self.crew.binds.drop()
        await self.begin(renew=False, back=True)

    # --- what the admin API asks ----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """See SupervisorView."""
        return describe(self)

    async def sessions(self, limit: int, wanted: Wanted = ALL_SESSIONS) -> list[SessionRow]:
        """See SupervisorView."""
        return await self.services.links.sessions(limit, wanted)

    async def in_force(self) -> None:
        """See SupervisorView."""
        self.crew.tell()
        await self.services.links.applied(self.node.effective().version, CONFIRM)

    async def shutdown(self) -> None:
        """See SupervisorView."""
        self.terminate()

    def _status_line(self) -> str:
        effective = self.node.effective()
        return f"{self.state}: {effective.workers} workers, {len(effective.listeners)} listeners"

    def _reopen_logs(self) -> None:
        if self.state == "serving":
            self.services.links.broadcast([messages.ReopenLogs()])
            log.info("log files were opened again")

    # --- reload ---------------------------------------------------------------------------------------------------

    async def _reload_logged(self) -> None:
        try:
            await self.reload()
        except L7lbError:
            pass  # it stands in the log

    async def reload(self) -> list[str]:
        """Read the configuration again and put it into force, or refuse it whole. Raises ConfigurationError."""
        async with self._reloading:
            try:
                if self.state != "serving":
                    text = f"the node is {self.state}"
                    raise ConfigurationError([Problem(str(self.loaded.settings.file), 0, 0, "", text)])
                self.notifier.reloading()
                notes = await self._reload_now()
            except L7lbError as error:
                problems = [str(one) for one in getattr(error, "problems", ())] or [str(error)]
                self._note_reload(problems)
                for problem in problems:
                    log.error("the configuration is refused, the old one stays", problem=problem)
                raise
            finally:
                if self.state == "serving":
                    self.notifier.ready(self._status_line())
            self._note_reload([])
            for note in notes:
                log.warning(note)
            log.info("the configuration was reloaded", snapshot=self.node.effective().version)
            return notes

    def _note_reload(self, problems: list[str]) -> None:
        self.last_reload = {"since": rfc3339(), "time": time.time(), "ok": not problems, "problems": problems}

    async def _reload_now(self) -> list[str]:
        crew, before = self.crew, self.loaded
        loaded = await asyncio.to_thread(load, before.settings.file)
        opened = await crew.binds.open(crew.keeper, loaded.snapshot, loaded.snapshot.workers)
        try:
            notes = await self._put_into_force(loaded)
        except BaseException:
            await self._put_back(before, opened)
            raise
        self.loaded, crew.settings = loaded, loaded.settings
        logs.configure(loaded.settings.log_level, loaded.settings.log_format)
        self._reopen_logs()
        await crew.settle()
        await crew.binds.close_others(crew.keeper, self.node.effective())
        return [*notes, *(str(problem) for problem in loaded.warnings), *self._fixed(before, loaded)]

    async def _put_into_force(self, loaded: Loaded) -> list[str]:
        """Have supervisor and workers use it. Raises L7lbError, perhaps half-way."""
        crew, links = self.crew, self.services.links
        await crew.want(loaded.snapshot.workers)
        await self.services.change(loaded.settings)
        notes = self.node.reload(loaded.snapshot)
        crew.tell()
        notes += await links.applied(self.node.effective().version, CONFIRM)
        if links.problem:
            text = f"the workers can't use it: {links.problem}"
            raise ConfigurationError([Problem(str(loaded.settings.file), 0, 0, "", text)])
        return notes

    async def _put_back(self, before: Loaded, opened: list[str]) -> None:
        crew = self.crew
        self.node.reload(before.snapshot)
        crew.tell()
        await self.services.change(before.settings)
        await crew.want(self.node.effective().workers)
        await crew.binds.close(crew.keeper, opened)

    @staticmethod
    def _fixed(before: Loaded, loaded: Loaded) -> list[str]:
        """What a reload can't change, in words."""
        old, new = before.settings, loaded.settings
        names = {"admin.socket": "admin_socket", "state": "state", "user": "user", "group": "group"}
        changed = [name for name, field in names.items() if getattr(old, field) != getattr(new, field)]
        return [f"{name} has changed: that takes effect when the node is ended and started" for name in changed]

    # --- the end --------------------------------------------------------------------------------------------------

    def terminate(self) -> None:
        """Drain and end; a second call ends at once."""
        if self.state == "draining":
            self.spawn(self._hurry())
        elif not self._beginning.done():
            self._beginning.cancel()
        else:
            self.state = "draining"
            self.spawn(self._drain())

    async def _hurry(self) -> None:
        try:
            await self.crew.keeper.request("drain", seconds=0.0, status=0)
        except L7lbError:
            pass  # it ends already

    async def _drain(self) -> None:
        crew, seconds = self.crew, self.node.effective().drain
        crew.led = False
        log.info("draining", seconds=seconds)
        self.notifier.stopping(f"draining, {seconds:g} s at most")
        crew.binds.drop()
        strangers = crew.end_strangers(seconds)
        try:
            await crew.keeper.request("drain", seconds=seconds, status=0)
        except KeeperRefused as error:
            log.error("the keeper does not drain", error=str(error))
        except KeeperGone:
            pass
        if not await crew.keeper.ended(seconds + ENDING):
            log.error("the keeper does not end; it and its processes are left", keeper=crew.keeper.state["pid"])
        for pid in [*strangers, *(child["pid"] for child in crew.children.values() if child["kind"] == WORKER)]:
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
