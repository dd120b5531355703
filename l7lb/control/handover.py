"""SIGUSR2: a new supervisor takes the node over, from the code that is installed now.

    old supervisor        keeper                          new supervisor
    start-supervisor -->  starts it ------------------->  reads the configuration, imports everything
                          <---- candidate, take-over ---  (or ends with an error: the old one goes on)
    <------------- yield
    ends its services
    yield ------------->  grants the role ------------->  opens admin.sock and node.sock, has the keeper become
                                                          the new code, starts new workers beside the old ones
    <------ supervises ------------------ started ------  serves
    waits, forwards
    signals, exits with
    the new one's status

The old process stays because somebody is its parent: systemd, a container, a shell. When the new one fails before it
serves, the old one takes the node back. A later SIGUSR2 adds no further process: a supervisor that was itself started
like this ends when its successor serves, and the first one waits for that.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import structlog

from l7lb.control.keeper_client import Event, KeeperClient, process_ended
from l7lb.core.errors import L7lbError
from l7lb.proxy.workers.children import SUPERVISOR

if TYPE_CHECKING:
    from l7lb.control.supervisor import Supervisor

log = structlog.get_logger("l7lb.supervisor")

AGAIN = 0.5  # seconds between two attempts to find the keeper again
WORD = 1.0  # seconds in which the keeper says how a supervisor ended


class Handover:
    """See the module. ``replaces``: this supervisor was started by SIGUSR2 itself."""

    def __init__(self, supervisor: Supervisor, replaces: bool) -> None:
        self.supervisor = supervisor
        self.replaces = replaces
        self.pid = 0  # the new supervisor
        self._yielded = False
        self._served = False
        self._end_later = False  # a signal came while nobody had the node
        self._status: int | None = None  # what the new one exits with, as far as the keeper knows
        self._news = asyncio.Event()

    @property
    def waiting(self) -> bool:
        """Whether the node is no longer ours."""
        return self._yielded

    async def start(self) -> None:
        """SIGUSR2."""
        if self.pid or self.supervisor.state != "serving":
            log.warning("no new supervisor is started now", state=self.supervisor.state, new=self.pid)
            return
        try:
            reply, _ = await self.supervisor.crew.keeper.request("start-supervisor")
        except L7lbError as error:
            log.error("no new supervisor could be started, this one goes on", error=str(error))
            return
        self.pid = int(reply["pid"])
        log.info("a new supervisor starts", new=self.pid)

    def forward(self, number: int) -> bool:
        """Pass a signal on to the new supervisor, if there is one to take it; returns whether."""
        if self.supervisor.state == "yielding" and not self._served:
            self._end_later |= number in (signal.SIGTERM, signal.SIGINT)
            return True
        if self.pid and (self._served or number in (signal.SIGTERM, signal.SIGINT)):
            self._kill(number)
        return self._served

    def _kill(self, number: int) -> None:
        try:
            os.kill(self.pid, signal.SIGTERM if number == signal.SIGINT else number)
        except OSError:
            pass  # it has just ended, and its status is ours

    def event(self, event: Event) -> None:
        """News from the keeper."""
        name = event["event"]
        if name == "yield" and self.supervisor.state == "serving":
            self.pid = event["pid"]
            self.supervisor.spawn(self._yield())
        elif name == "supervises" and self._yielded:
            self.pid = event["pid"]
            if not self._served:
                self._served = True
                self.supervisor.spawn(self._wait())
        elif name == "ending":
            self._status = int(event["status"])
        elif name == "ended" and event["kind"] == SUPERVISOR and event["pid"] == self.pid:
            self._failed(event["code"])
        self._news.set()

    def _failed(self, code: int | None) -> None:
        if self._served:
            self._status = code
        elif self._yielded:
            log.error("the new supervisor has failed, this one takes the node back", code=code)
            self.supervisor.spawn(self._take_back())
        else:
            log.error("the new supervisor could not start: its line above says why; this one goes on", code=code)
            self.pid = 0

    async def _yield(self) -> None:
        supervisor = self.supervisor
        log.info("the node goes to a new supervisor", new=self.pid)
        await supervisor.release()
        self._yielded = True
        try:
            await supervisor.crew.keeper.request("yield")
        except L7lbError as error:  # the keeper has died in this moment: nobody supervises, so nobody must wait here
            log.error("the node can't be handed over", error=str(error))
            supervisor.end(1)

    async def _take_back(self) -> None:
        self._yielded = False
        self.pid = 0
        try:
            await self.supervisor.take_back()
        except (L7lbError, OSError) as error:
            log.error("this supervisor can't take the node back", error=str(error))
            self.supervisor.end(1)
        if self._end_later:
            self.supervisor.terminate()

    async def _wait(self) -> None:
        """Until the node's last supervisor has ended."""
        log.info("the new supervisor serves", new=self.pid)
        if self.replaces:
            self.supervisor.end(0)
            return
        self.supervisor.crew.binds.drop()
        if self._end_later:
            self._kill(signal.SIGTERM)
        self.supervisor.spawn(self._stay_in_touch())
        while True:
            pid = self.pid
            await process_ended(pid, None)
            if self.pid == pid and self._status is None:
                self._news.clear()
                try:
                    async with asyncio.timeout(WORD):
                        await self._news.wait()
                except TimeoutError:
                    pass
            if self.pid == pid:
                break
        status = 1 if self._status is None else self._status
        self.supervisor.end(128 - status if status < 0 else status)

    async def _stay_in_touch(self) -> None:
        """Hear of the node's supervisors, also from another keeper than before."""
        while True:
            keeper = self.supervisor.crew.keeper
            await keeper.closed.wait()
            keeper.reap()
            found: KeeperClient | None = None
            while found is None:
                await asyncio.sleep(AGAIN)
                try:
                    found = await KeeperClient.connect(self.supervisor.place.keeper)
                    if found is not None:
                        await found.hello("waiter")
                except (L7lbError, OSError):
                    found = None
            found.on_event = self.event
            self.supervisor.crew.keeper = found
            self.pid = int(found.state["supervisor"]) or self.pid
