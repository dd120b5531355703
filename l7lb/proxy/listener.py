"""Listening: accepting in batches, pausing when the process or the listener is at its limit, and what a listener's
connections share.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

from l7lb.core.actions import Finished, OpenStream, Refused
from l7lb.core.contracts import Handshake, Peer, SessionFactory
from l7lb.core.errors import Failure
from l7lb.core.record import AccessRecord
from l7lb.core.snapshot import Listener
from l7lb.core.tally import Tally, bucket_of
from l7lb.limits import Gate
from l7lb.proxy import counts as columns
from l7lb.proxy.connection import Connection
from l7lb.proxy.counts import Counts
from l7lb.proxy.dispatch import Dispatcher
from l7lb.proxy.opening import Failures, Opening, OpeningFailed, StageMaker
from l7lb.proxy.securing import Upgrade, dismiss
from l7lb.proxy.streams import Stream
from l7lb.proxy.tickets import Ticket
from l7lb.proxy.timers import Timers
from l7lb.routing import Router
from l7lb.routing.templates import Template, compile_template

BATCH = 32  # connections accepted before others get their turn
PAUSE_SECONDS = 0.1
LEAST_RESERVED = 8  # descriptors kept for connections to servers: a tenth, within these bounds
MOST_RESERVED = 512
COMPLAIN_SECONDS = 5.0

# The limits of a listener's connections, those of its requests or logins, and those of its rules by their numbers.
Gates = tuple[Gate | None, Gate | None, dict[int, Gate] | None]

log = logging.getLogger("l7lb.listener")


class ListenerState:
    """A listener of the current snapshot: its rules, its way to make sessions, its counts."""

    __slots__ = (
        "cells",
        "config",
        "connection_gate",
        "connections",
        "counts",
        "factory",
        "failures",
        "gate",
        "name",
        "record",
        "router",
        "row",
        "rule_gates",
        "stages",
        "tally",
        "templates",
        "timers",
        "upgrade",
    )

    def __init__(
        self,
        config: Listener,
        router: Router,
        factory: SessionFactory,
        stages: tuple[StageMaker, ...],
        timers: Timers,
        counts: Counts,
        record: Callable[[AccessRecord], None] | None,
        gates: Gates,
        upgrade: StageMaker | None = None,
    ) -> None:
        self.name = config.name
        self.config = config
        self.connection_gate, self.gate, self.rule_gates = gates
        self.router = router
        self.factory = factory
        self.stages = stages
        self.upgrade = upgrade  # the handshake of clients that ask for TLS in their protocol's words
        self.failures = Failures(self)
        self.timers = timers
        self.counts = counts
        self.cells = counts.cells
        self.tally = Tally()
        self.row = counts.row(config.slot)
        self.record = record
        self.connections: set[Connection] = set()
        self.templates: dict[tuple[str, bool], Template] = {}

    def template(self, text: str, host: bool = False) -> Template:
        """A template of the rules, compiled once; ``host``: it makes a host."""
        known = self.templates.get((text, host))
        if known is None:
            known = self.templates[text, host] = compile_template(text, host=host)
        return known

    def update(
        self,
        config: Listener,
        router: Router,
        factory: SessionFactory,
        stages: tuple[StageMaker, ...],
        record: Callable[[AccessRecord], None] | None,
        gates: Gates,
        upgrade: StageMaker | None = None,
    ) -> None:
        """Take over a new snapshot's form; its connections stay, and their next requests follow the new rules."""
        self.config = config
        self.connection_gate, self.gate, self.rule_gates = gates
        self.router = router
        self.factory = factory
        self.stages = stages
        self.upgrade = upgrade
        self.record = record
        self.templates = {}

    def carriers(self) -> Iterator[Connection]:
        """What may hold a server: its connections, and the streams of those that have some."""
        for connection in self.connections:
            yield connection
            if connection.streams:
                yield from connection.streams.values()

    def opened(self, connection: Connection) -> None:
        """A connection was accepted."""
        self.connections.add(connection)
        self.cells[self.row + columns.ACTIVE] = len(self.connections)
        self.cells[self.row + columns.CONNECTIONS] += 1

    def begin_stream(self, connection: Connection, action: OpenStream, now: float) -> None:
        """A client's connection has a new stream."""
        Stream(connection, action.number, action.session, action.flow, now).run(action.actions, now)

    def secure(self, connection: Connection, now: float) -> None:
        """A client's connection goes over to TLS, as its session asks for."""
        if connection.tls is not None:
            raise RuntimeError("StartTls where TLS is there already")
        if self.upgrade is None:
            log.warning("listener %s no longer has the TLS that it offered to %s", self.name, connection.client)
            connection.close()
            return
        Upgrade(connection, now, self.upgrade).begin()

    def dismiss(self, connection: Connection, why: str, now: float) -> None:
        """The node ends this session; ``why`` is text for the client."""
        dismiss(connection, why, now)

    def opening(self, change: int) -> None:
        """So many connections more have no session yet."""
        self.cells[self.row + columns.OPENING] += change

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self.cells[self.row + columns.ACTIVE] = len(self.connections)

    def finished(self, action: Finished, ticket: Ticket | None, handshake: Handshake | None = None) -> None:
        """Count a request, and write its record."""
        status = action.status // 100
        if not 0 < status < 6:
            status = 0
        bucket = bucket_of(action.elapsed)
        self.tally.count(status, bucket, action.received, action.sent, action.elapsed)
        if ticket is not None:
            ticket.server.tally.count(status, bucket, action.received, action.sent, action.elapsed)
        if action.failure is not None:
            self._count_failure(action.failure)
        if self.record is not None:
            record = action.subject.record(action.ended, action.elapsed)
            if handshake is not None:
                record.tls_version = handshake.version
                record.tls_cipher = handshake.cipher
                record.tls_resumed = handshake.resumed
            self.record(record)

    def refused(self, action: Refused, connection: Connection) -> None:
        """Count a client whose first words can't be taken, as one whose opening failed."""
        self.failures.count(action.stage, OpeningFailed(action.reason, action.detail), connection)

    def _count_failure(self, failure: Failure) -> None:
        if failure is Failure.CLIENT_CLOSED:
            column = columns.ABORTED
        elif failure in (Failure.CLIENT_TIMEOUT, Failure.SERVER_TIMEOUT, Failure.SERVER_STALLED):
            column = columns.TIMEOUTS
        else:
            column = columns.REFUSED
        self.cells[self.row + column] += 1

    def publish(self) -> None:
        """Bring the shared counts up to date."""
        if self.tally.requests:
            self.counts.add(self.row, self.tally)


class Acceptor:
    """One listening socket. ``find`` gives the listener that its address has in the current snapshot."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        find: Callable[[], ListenerState | None],
        dispatcher: Dispatcher,
        counts: Counts,
        workers: Callable[[], int],
    ) -> None:
        self.sock = sock
        self._loop = loop
        self._find = find
        self._dispatcher = dispatcher
        self._counts = counts
        self._workers = workers
        self._fd = sock.fileno()
        self._family = int(sock.family)
        self._on = False
        self._pause: asyncio.TimerHandle | None = None
        self._complained = -COMPLAIN_SECONDS
        self._most = 0  # descriptors from this number on are kept for connections to servers
        self._looked = -COMPLAIN_SECONDS
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            # Accepted sockets inherit it: one system call saved for each connection.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = sock.getsockname()
        self._local: str = name[0] if isinstance(name, tuple) else "unix:"
        self._port: int = name[1] if isinstance(name, tuple) else 0

    def start(self) -> None:
        """Accept from now on."""
        if not self._on:
            self._on = True
            self._loop.remove_reader(self._fd)
            self._loop.add_reader(self._fd, self._accept)

    def stop(self) -> None:
        """Accept no more; the socket stays open."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._on:
            self._on = False
            self._loop.remove_reader(self._fd)

    def _wait(self) -> None:
        """Leave what comes in the kernel's queue for a moment."""
        self._loop.remove_reader(self._fd)
        self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._pause = None
        if not self._on:
            return
        try:
            lowest = os.dup(self._fd)
        except OSError:
            lowest = self._most
        else:
            os.close(lowest)
        if lowest >= self._most:
            self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)
        else:
            self._loop.add_reader(self._fd, self._accept)

    def _look(self, now: float) -> None:
        """How many descriptors may be open, and so how many may be clients'."""
        self._looked = now
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        reserve = min(MOST_RESERVED, max(LEAST_RESERVED, limit // 10))
        self._most = limit - reserve if limit != resource.RLIM_INFINITY else 1 << 30

    def _few_left(self, listener: ListenerState, reason: str, now: float) -> None:
        """No descriptors or memory: those who are here go on, those who wait stay in the kernel's queue."""
        if now - self._complained >= COMPLAIN_SECONDS:
            self._complained = now
            log.warning("listener %s pauses: %s", listener.name, reason)
        self._wait()

    def _accept(self) -> None:
        listener = self._find()
        if listener is None:
            self.stop()
            return
        now = monotonic()
        if now - self._looked >= COMPLAIN_SECONDS:
            self._look(now)
        for _ in range(BATCH):
            if self._at_limit(listener):
                self._wait()
                return
            try:
                # What socket.accept() does, less the enumerations it makes for each connection.
                fd, address = self.sock._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # it left while it waited
            except OSError as problem:
                self._few_left(listener, problem.strerror or str(problem), now)
                return
            self._begin(listener, socket.socket(self._family, socket.SOCK_STREAM, 0, fileno=fd), address, now)
            if fd >= self._most:
                # The kernel gives the lowest free number, so nearly all are in use; the rest is for servers.
                self._few_left(listener, "nearly all file descriptors are in use", now)
                return

    def _begin(self, listener: ListenerState, sock: socket.socket, address: Any, now: float) -> None:
        if self._family == socket.AF_UNIX:
            peer = Peer("unix:", 0, "unix:", 0)
        else:
            host = address[0].removeprefix("::ffff:") if address[0][:7] == "::ffff:" else address[0]
            peer = Peer(host, address[1], self._local, self._port)
        if (
            listener.connection_gate is not None
            and listener.config.proxy_protocol is None  # else it is not known yet who that is
            and self._dispatcher.refuses(listener, peer, now)
        ):
            sock.close()
            return
        if listener.stages:
            connection = Connection(listener, self._dispatcher, sock, None, peer, now)
            listener.opened(connection)
            Opening(connection, now).begin()
            return
        session = listener.factory(peer, now)
        connection = Connection(listener, self._dispatcher, sock, session, peer, now)
        listener.opened(connection)
        connection.open(now)

    def _at_limit(self, listener: ListenerState) -> bool:
        limit = listener.config.connections
        own = len(listener.connections)
        if own * 2 < limit and self._workers() <= 2:
            return False
        return self._counts.total(listener.config.slot, columns.ACTIVE, self._workers()) >= limit
