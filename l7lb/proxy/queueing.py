"""Servers' connection limits over all workers, and the queues of those that wait for a place.

A place at a server with a limit is taken by counting first and looking then, in cells that all workers see, so that
together they never exceed it. Who finds no place waits in its pool's queue: the oldest goes first, and no newcomer
overtakes. A place that this worker gives back is passed on at once; one that another worker gives back is found by
looking every ``QUEUE_POLL`` seconds while somebody waits.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from l7lb.core.servers import ServerState
from l7lb.proxy import counts as columns
from l7lb.proxy.counts import COLUMNS, Counts
from l7lb.proxy.tickets import DONE, QUEUED, PoolRuntime, Ticket

if TYPE_CHECKING:
    import asyncio

    from l7lb.proxy.dispatch import Dispatcher

QUEUE_POLL = 0.01  # seconds between looks at what the other workers have given back


class Places:
    """The places at this worker's servers, and the shared counts of what is in progress there."""

    __slots__ = ("_base", "_cells", "_counts", "_dispatcher", "_poll", "_workers", "waiting")

    def __init__(self, dispatcher: Dispatcher, counts: Counts, workers: Callable[[], int]) -> None:
        self.waiting = 0  # in all queues
        self._dispatcher = dispatcher
        self._counts = counts
        self._cells = counts.cells
        self._base = counts.base
        self._workers = workers
        self._poll: asyncio.TimerHandle | None = None

    # --- places -----------------------------------------------------------------------------------------------

    def take(self, ticket: Ticket) -> bool:
        """Take a place at the ticket's server; False where there is none, or others wait for it already."""
        server = ticket.server
        if not server.limit:
            server.active += 1
            return True
        return not self._overtakes(ticket) and self._claim(server)

    def _overtakes(self, ticket: Ticket) -> bool:
        """Whether somebody waits already for a place that this newcomer would take."""
        server = ticket.server
        return ticket.phase != QUEUED and any(
            not other.pinned or other.server is server for other in ticket.runtime.queue
        )

    def _claim(self, server: ServerState) -> bool:
        """Take one of a limited server's places: count first and look then, so that workers can't exceed it."""
        cell = self._base + server.slot * COLUMNS
        server.active += 1
        self._cells[cell] = server.active
        self.refresh((server,))
        if server.load <= server.limit:
            return True
        server.active -= 1
        self._cells[cell] = server.active
        return False

    def give_back(self, ticket: Ticket) -> None:
        """Give the ticket's place back. Serving those who wait for one is the caller's part."""
        server = ticket.server
        server.active -= 1
        if server.limit or not server.active:
            # Others wait for this place, or the server may be configured no longer; else `publish` tells soon enough.
            self._cells[self._base + server.slot * COLUMNS] = server.active

    # --- the queue --------------------------------------------------------------------------------------------

    def wait(self, ticket: Ticket) -> bool:
        """Put a ticket into its pool's queue; False where that is full."""
        runtime = ticket.runtime
        config = runtime.state.config
        if len(runtime.queue) >= config.queue:
            ticket.phase = DONE
            return False
        ticket.phase = QUEUED
        ticket.pinned = bool(ticket.sticky)
        ticket.deadline = ticket.began + config.timeouts.queue
        runtime.queue.append(ticket)
        self.waiting += 1
        self._show(runtime)
        self._poll_soon()
        return True

    def leave(self, ticket: Ticket) -> None:
        """Take a ticket out of its queue."""
        ticket.runtime.queue.remove(ticket)
        self.waiting -= 1
        self._show(ticket.runtime)

    def _show(self, runtime: PoolRuntime) -> None:
        self._cells[self._base + runtime.state.config.slot * COLUMNS + columns.WAITING] = len(runtime.queue)

    def serve(self, runtime: PoolRuntime, now: float) -> None:
        """Give free places to those that wait, the oldest first."""
        if not runtime.queue:
            return
        self.refresh(runtime.limited)
        for ticket in list(runtime.queue):
            server: ServerState | None = ticket.server
            key = ticket.sticky
            if not ticket.pinned:
                server, key = runtime.balancer.choose(ticket.facts, now, runtime.unfit(ticket.facts, ticket.tried)), ""
            elif server is not None and not server.alive_for(ticket.facts.protocol):
                server, key = self._dispatcher.find(runtime, ticket.facts, now, ticket.tried)
            if server is None or server.full:
                if not ticket.pinned:
                    return
                continue
            self.leave(ticket)
            if ticket.claim is not None and ticket.pinned and server is not ticket.server:
                ticket.phase = DONE
                actions = ticket.claim.lost(now)
            else:
                ticket.server = server
                ticket.sticky = key
                actions = self._dispatcher.proceed(ticket, False, now)
            if ticket.phase == QUEUED:
                runtime.queue.rotate(1)  # another worker was quicker: its turn stays the first
                return
            if actions:
                ticket.connection.run(actions, now)
            else:
                ticket.connection.settle(now)

    def _look_again(self) -> None:
        self._poll = None
        now = monotonic()
        for runtime in list(self._dispatcher.pools.values()):
            self.serve(runtime, now)
        if self.waiting:
            self._poll_soon()

    def _poll_soon(self) -> None:
        if self._poll is None:
            self._poll = self._dispatcher.loop.call_later(QUEUE_POLL, self._look_again)

    # --- the shared counts ------------------------------------------------------------------------------------

    def refresh(self, servers: list[ServerState] | tuple[ServerState]) -> None:
        """Look at what the other workers have in progress at these servers."""
        workers = self._workers()
        for server in servers:
            server.others = self._counts.total(server.slot, columns.ACTIVE, workers) - server.active

    def refresh_all(self) -> None:
        """The same for all servers, for algorithms that compare load."""
        if self._workers() > 1:
            for runtime in self._dispatcher.pools.values():
                self.refresh(runtime.state.servers)

    def publish(self) -> None:
        """Bring the shared counts up to date."""
        for runtime in self._dispatcher.pools.values():
            for server in runtime.state.servers:
                row = self._base + server.slot * COLUMNS
                if self._cells[row] != server.active:
                    self._cells[row] = server.active
                if server.tally.requests:
                    self._counts.add(row, server.tally)

    def close(self) -> None:
        """Look no more."""
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
