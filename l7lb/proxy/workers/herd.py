"""What the keeper keeps: the listening sockets, the workers, and who accepts from which socket.

Theory of operation. Everything is declared and nothing is sequenced: an event (a process ended, a worker is ready, the
supervisor wants another number) changes a field, and :meth:`Herd.advance` then brings the world nearer to what is
wanted, as often as it is called. So a crash in the middle of anything needs no recovery of its own.

- Each IP bind has one socket for each worker that there ever was; socket ``k`` belongs to the worker of index ``k``.
- While that worker is missing or not ready, a ready sibling accepts from its socket: no share of the clients waits.
- A socket is never closed while its bind is configured, since the kernel would reset what waits in its queue; the
  sockets of workers that were configured away stay with their siblings.
- Unix sockets and those that systemd handed over are single, and all ready workers accept from them.
- A new generation (new code) is started beside the old one. An old worker leaves when its successor is ready.
- The directory process is one of each generation, while there are directories; an old one ends when the last worker
  that it answers has left it.
- A worker writes its own block of the counts, which nobody else gets before it has ended; its gauges are zeroed then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from l7lb.proxy.counts import ROWS, Counts
from l7lb.proxy.workers import channel, listening
from l7lb.proxy.workers.children import (
    DIRECTORIES,
    STATE,
    WORKER,
    Child,
    Pauses,
    free_block,
    program,
    spawn,
    start_worker,
)

log = logging.getLogger("l7lb.keeper")

GRACE = 2.0  # seconds beyond its time before a process is killed
STARTING = 60.0  # seconds that a worker may take until it is ready
SAVING = 10.0  # seconds that the state process may take to end
AGAIN = 0.2  # seconds until a packet is tried again that a worker had no room for


@dataclass
class Bind:
    """An address that is listened at. ``shared``: all workers accept from one socket."""

    key: str
    host: str
    port: int
    path: str
    backlog: int
    shared: bool
    sockets: list[socket.socket]

    def describe(self) -> dict[str, Any]:
        """Without the sockets, as JSON."""
        names = ("key", "host", "port", "path", "backlog", "shared")
        return {name: getattr(self, name) for name in names}

    @property
    def real_port(self) -> int:
        """The port, also where the configuration says 0: any free one."""
        return 0 if self.path else int(self.sockets[0].getsockname()[1])

    def grow(self, count: int) -> None:
        """Have a socket for each of so many workers. Raises BindProblem."""
        while not self.shared and len(self.sockets) < count:
            self.sockets.append(listening.another(self.sockets[0], self.backlog))

    def close(self, unlink: bool) -> None:
        """Close the sockets, and remove a unix socket's file if it was ours."""
        for sock in self.sockets:
            sock.close()
        if self.path and unlink:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


@dataclass
class Wanted:
    """What the supervisor asked for. Seconds: ``drain`` at the end of the node, ``retire`` for a replaced worker."""

    count: int = 0
    generation: int = 0
    rows: int = ROWS
    drain: float = 30.0
    retire: float = 3600.0
    options: list[str] = field(default_factory=list)  # of a worker's command line
    state: list[str] | None = None  # of the state process's command line
    directories: list[str] | None = None  # of the directory process's command line; None: there are no directories


class Herd:
    """See the module. The callbacks hear of each child: that it was started, is to leave, has ended."""

    def __init__(
        self,
        counts: int,
        started: Callable[[Child], None],
        leaving: Callable[[Child], None],
        ended: Callable[[Child, int | None], None],
    ) -> None:
        self.counts = counts
        self.snapshot = -1  # a memfd
        self.binds: dict[str, Bind] = {}
        self.children: list[Child] = []
        self.wanted = Wanted()
        self.ending = False
        self.pauses = Pauses()
        self._started = started
        self._leaving = leaving
        self._ended = ended
        self._cells = Counts(counts)

    @property
    def workers(self) -> list[Child]:
        """All workers, those that leave too."""
        return [child for child in self.children if child.kind == WORKER]

    def of_kind(self, kind: str) -> Iterator[Child]:
        """The children of a kind that are not to end."""
        return (child for child in self.children if child.kind == kind and not child.leaving)

    # --- events ---------------------------------------------------------------------------------------------------

    def add(self, child: Child) -> None:
        """A child was started."""
        self.children.append(child)
        self._count_blocks()
        self._started(child)

    def remove(self, child: Child, now: float) -> None:
        """A child has ended: its sockets go to a sibling at the next ``advance``, its gauges to zero."""
        self.children.remove(child)
        code = child.reap()
        if child.kind == WORKER:
            self._serve()
            self._cells.clear_gauges(child.block, self.wanted.rows)
            self._count_blocks()
        self._ended(child, code)
        if child.kind in (WORKER, STATE, DIRECTORIES) and not child.leaving:
            pause = self.pauses.ended(child, now)
            end = "has ended" if code is None else f"ended with {code}" if code >= 0 else f"was ended by signal {-code}"
            log.warning("%s %d (%d) %s; a new one starts in %.1f s", child.kind, child.index, child.pid, end, pause)

    def _count_blocks(self) -> None:
        """Workers add up the blocks of all that live: one that leaves has a block beside its successor's."""
        self._cells.blocks = max((child.block + 1 for child in self.workers), default=0)

    def let_go(self, child: Child, kill_at: float, told: bool = False) -> None:
        """A child is to leave until then (monotonic seconds)."""
        child.kill_at, child.told = kill_at, told
        self._leaving(child)

    def end(self, seconds: float, now: float) -> None:
        """Drain all workers within so many seconds, then end the state process and the directory process."""
        self.ending = True
        for child in self.workers:
            limit = now + seconds
            self.let_go(child, min(child.kill_at, limit) if child.leaving else limit)
        self._serve()
        for key in list(self.binds):
            self.close(key)

    # --- binds ----------------------------------------------------------------------------------------------------

    def open(self, bind: Bind) -> None:
        """Begin to listen; workers accept once they are ready."""
        self.binds[bind.key] = bind

    def close(self, key: str) -> None:
        """Stop to listen."""
        bind = self.binds.pop(key)
        self._serve()
        bind.close(unlink=not bind.shared or bool(bind.path))

    # --- bringing the world nearer to what is wanted ------------------------------------------------------------------

    def advance(self, now: float) -> float | None:
        """Do what is due; returns the seconds until something else may be, None for never."""
        self._retire(now)
        blocked = self._serve()
        blocked |= self._tell(now)
        times = [None if self.ending else self._start(now)]
        times.append(self._kill(now))
        if blocked:
            times.append(now + AGAIN)
        due = [moment for moment in times if moment is not None]
        return max(0.0, min(due) - now) if due else None

    def _current(self) -> dict[int, Child]:
        """The workers of the wanted generation by their index."""
        return {child.index: child for child in self.of_kind(WORKER) if child.generation == self.wanted.generation}

    def _retire(self, now: float) -> None:
        """Let the workers go that have a successor, or that are too many."""
        current = self._current()
        replaced = any(child.ready and child.index < self.wanted.count for child in current.values())
        for child in list(self.of_kind(WORKER)):
            extra = child.index >= self.wanted.count
            old = child.generation != self.wanted.generation
            successor = current.get(child.index)
            if (extra and replaced) or (old and successor is not None and successor.ready):
                self.let_go(child, now + self.wanted.retire)
        for child in list(self.of_kind(DIRECTORIES)):
            if self.wanted.directories is None or child.generation != self.wanted.generation:
                self.let_go(child, now + self.wanted.retire)
        if self.ending and not self.workers:
            for kind in (STATE, DIRECTORIES):
                for child in self.of_kind(kind):
                    self.let_go(child, now + SAVING)

    def _share(self) -> dict[int, dict[str, frozenset[int]]]:
        """By process: the sockets' numbers that it should accept from, for each bind."""
        able = sorted((child for child in self.of_kind(WORKER) if child.ready), key=lambda child: child.generation)
        shares: dict[int, dict[str, set[int]]] = {child.pid: {key: set() for key in self.binds} for child in able}
        if not able:
            return {}
        newest = [child for child in able if child.generation == able[-1].generation]
        owner = {child.index: child for child in able}
        for key, bind in self.binds.items():
            for slot in range(len(bind.sockets)):
                if bind.shared:
                    for child in able:
                        shares[child.pid][key].add(slot)
                else:
                    child = owner.get(slot) or newest[slot % len(newest)]
                    shares[child.pid][key].add(slot)
        return {pid: {key: frozenset(slots) for key, slots in share.items() if slots} for pid, share in shares.items()}

    def _serve(self) -> bool:
        """Tell the workers what to accept from, those that get more first. Returns whether one had no room."""
        shares = self._share()
        changes = []
        for child in self.workers:
            share = shares.get(child.pid, {})
            for key in share.keys() | child.served.keys():
                wanted, served = share.get(key, frozenset()), child.served.get(key, frozenset())
                if wanted != served:
                    changes.append((not wanted - served, child.pid, child, key, wanted))
        blocked = False
        for _, _, child, key, wanted in sorted(changes, key=lambda change: change[:2]):
            new = sorted(wanted - child.served.get(key, frozenset()))
            descriptors = [self.binds[key].sockets[slot].fileno() for slot in new]
            packet = {"op": "serve", "bind": key, "slots": sorted(wanted), "new": new}
            if self._send(child, packet, descriptors):
                child.served[key] = wanted
                if not wanted:
                    del child.served[key]
            else:
                blocked = True
        return blocked

    def _tell(self, now: float) -> bool:
        """Tell those that leave. Returns whether one had no room."""
        blocked = False
        for child in self.children:
            if child.leaving and not child.told:
                if child.kind == WORKER:
                    packet = {"op": "drain", "seconds": max(0.0, child.kill_at - now), "patient": not self.ending}
                    child.told = self._send(child, packet)
                    blocked |= not child.told
                else:
                    child.signal(signal.SIGTERM)
                    child.told = True
        return blocked

    def _kill(self, now: float) -> float | None:
        """Kill those whose time is over; returns when the next one's is."""
        times = []
        for child in self.children:
            limit = child.kill_at + GRACE
            if not child.leaving:
                if child.kind != WORKER or child.ready:
                    continue
                limit = child.started + STARTING
            if now >= limit:
                log.warning("%s %d (%d) is killed: its time is over", child.kind, child.index, child.pid)
                child.signal(signal.SIGKILL)
                child.started, child.kill_at = now, now if child.leaving else 0.0
                limit = now + GRACE
            times.append(limit)
        return min(times, default=None)

    def _start(self, now: float) -> float | None:
        """Start what is missing; returns when the next one may be started."""
        times = []
        if self.wanted.state is not None and not any(self.of_kind(STATE)):
            times.append(self._start_one(STATE, 0, now))
        if self.wanted.directories is not None and not any(self.of_kind(DIRECTORIES)):
            times.append(self._start_one(DIRECTORIES, 0, now))
        current = self._current()
        missing = [index for index in range(self.wanted.count) if index not in current]
        times.extend(self._start_one(WORKER, index, now) for index in missing)
        due = [moment for moment in times if moment is not None]
        return min(due, default=None)

    def _start_one(self, kind: str, index: int, now: float) -> float | None:
        until = self.pauses.until(kind, index)
        if until > now:
            return until
        block = free_block(self.children) if kind == WORKER else 0
        if block is None:
            return None  # all are taken by workers that leave; the next end of one comes here again
        try:
            if kind != WORKER:
                options = self.wanted.state if kind == STATE else self.wanted.directories
                pid = spawn(program("l7lb.app", kind, *(options or [])))
                self.add(Child(kind, pid, generation=self.wanted.generation, started=now))
                return None
            child = start_worker(self.wanted.options, index, block, self.wanted.generation, now)
        except OSError as error:
            log.error("%s %d can't be started: %s", kind, index, error)
            return now + self.pauses.ended(Child(kind, 0, index, started=now), now) + AGAIN
        descriptors = [self.counts] + ([self.snapshot] if self.snapshot >= 0 else [])
        self._send(child, {"op": "start"}, descriptors)
        self.add(child)
        return None

    @staticmethod
    def _send(child: Child, packet: channel.Packet, descriptors: list[int] | None = None) -> bool:
        """Whether the packet is on its way, or needs none since the worker is gone."""
        if child.control is None:
            return True
        try:
            channel.send(child.control, packet, descriptors or ())
        except BlockingIOError:
            return False
        except channel.BrokenChannel:
            return True
        return True
