"""One worker's data path: the current snapshot, and everything that lives on through its changes.

`apply` swaps one snapshot for the next: servers keep their health, counts and idle connections, listeners their
clients, and nothing that is established notices. The same class runs inside a worker process and inside a test.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from time import monotonic

import msgspec

from l7lb.core.contracts import ProtocolSpec, SessionFactory
from l7lb.core.dates import DATES
from l7lb.core.directory import Directories
from l7lb.core.messages import ALL_SESSIONS, ServerHealth, ServerResult, SessionRow, Wanted
from l7lb.core.record import AccessRecord
from l7lb.core.servers import POOLS, PoolState, ServerState
from l7lb.core.snapshot import Limit, Listener, Pool, ServerTls, Snapshot
from l7lb.limits import Gate, Limits
from l7lb.limits.gate import Bound
from l7lb.persistence import Tables, make_stickiness
from l7lb.persistence.claims import Claims
from l7lb.proxy import openssl, tls_opening
from l7lb.proxy.accesslog import AccessLogWriter, timestamp
from l7lb.proxy.counts import Counts
from l7lb.proxy.dispatch import Dispatcher
from l7lb.proxy.listener import Acceptor, Gates, ListenerState
from l7lb.proxy.opening import StageMaker
from l7lb.proxy.proxyheader import proxy_stage
from l7lb.proxy.tickets import PoolRuntime
from l7lb.proxy.timers import Timers
from l7lb.proxy.tls import Dialer
from l7lb.proxy.tls_contexts import Terminator, server_context
from l7lb.routing import Router
from l7lb.routing.balance import make_balancer

log = logging.getLogger("l7lb.runtime")

REFRESH_SECONDS = 0.05  # between looks at the other workers' load
IDLE_SECONDS = 1.0  # between looks at idle server connections


# What a connection may have to go through before its session, in this order: each makes the stage's maker for a
# listener, None for one that does without.
STAGES: tuple[Callable[[Listener], StageMaker | None], ...] = (proxy_stage,)


class Runtime:
    """A worker's data path. ``report`` gets what passive health must know, ``observe`` every access record.

    ``directories`` are asked where mailboxes live; without them nobody is asked. ``claims`` ask the state process which
    server a mailbox is on; without them every session goes where it wishes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocols: Mapping[str, ProtocolSpec],
        counts: Counts,
        tables: Tables,
        report: Callable[[ServerResult], None],
        observe: Callable[[AccessRecord], None] | None = None,
        limits: Limits | None = None,
        directories: Directories | None = None,
        claims: Claims | None = None,
    ) -> None:
        self.loop = loop
        self.snapshot: Snapshot | None = None
        self.drained = asyncio.Event()
        self.timers = Timers(loop)
        self.dispatcher = Dispatcher(loop, counts, self._workers, report, claims, directories)
        self.listeners: dict[str, ListenerState] = {}
        self._protocols = protocols
        self._counts = counts
        self._tables = tables
        self._limits = limits if limits is not None else Limits()
        self._observe = observe
        self._health: dict[tuple[str, str], ServerHealth] = {}
        self._by_bind: dict[str, ListenerState] = {}
        self._acceptors: dict[tuple[str, int], Acceptor] = {}
        self._leaving: list[ListenerState] = []  # listeners that a reload removed, while they have clients
        self._terminators: dict[str, Terminator] = {}
        self._server_contexts: dict[ServerTls, ssl.SSLContext] = {}
        self._log: AccessLogWriter | None = None
        self._draining = False
        DATES.tell(time.time() - monotonic())
        self._timers = [
            loop.call_later(REFRESH_SECONDS, self._refresh),
            loop.call_later(IDLE_SECONDS, self._sweep),
        ]

    # --- configuration ----------------------------------------------------------------------------------------

    def apply(self, snapshot: Snapshot) -> None:
        """Use this snapshot from now on. Raises without any change where a part of it can't be built."""
        factories = {listener.name: self._factory(listener) for listener in snapshot.listeners}
        terminators = self._make_terminators(snapshot)
        server_contexts = self._make_server_contexts(snapshot)
        stages = {listener.name: self._stages(listener, terminators) for listener in snapshot.listeners}
        routers = {listener.name: self._router(listener) for listener in snapshot.listeners}
        pools = {pool.name: self._pool(pool) for pool in snapshot.pools}
        gates = {listener.name: self._gates(listener) for listener in snapshot.listeners}
        log = self._open_log(snapshot)
        # Nothing can fail from here on.
        self._terminators = terminators
        self._server_contexts = server_contexts
        if log is not self._log:
            if self._log is not None:
                self._log.close()
            self._log = log
        record = self._recorder()
        before = self.listeners
        self.listeners = {}
        for config in snapshot.listeners:
            state = before.pop(config.name, None)
            if state is None or state.config.protocol != config.protocol or state.config.slot != config.slot:
                if state is not None:
                    self._leave(state)
                state = ListenerState(
                    config,
                    routers[config.name],
                    factories[config.name],
                    stages[config.name],
                    self.timers,
                    self._counts,
                    record,
                    gates[config.name],
                    self._upgrade(config, terminators),
                )
            else:
                name = config.name
                state.update(
                    config,
                    routers[name],
                    factories[name],
                    stages[name],
                    record,
                    gates[name],
                    self._upgrade(config, terminators),
                )
            self.listeners[config.name] = state
        for state in before.values():
            self._leave(state)
        self._by_bind = {str(address): self.listeners[one.name] for one in snapshot.listeners for address in one.bind}
        self._replace_pools(pools)
        self.snapshot = snapshot
        self._start_acceptors()

    def _factory(self, listener: Listener) -> SessionFactory:
        return self._protocols[listener.protocol].sessions(listener)

    def _stages(self, listener: Listener, terminators: dict[str, Terminator]) -> tuple[StageMaker, ...]:
        stages = [maker for make in STAGES if (maker := make(listener)) is not None]
        terminator = terminators.get(listener.name)
        if terminator is not None and terminator.config.mode == "implicit":
            stages.append(tls_opening.maker(terminator, listener.protocol))
        return tuple(stages)

    def _upgrade(self, listener: Listener, terminators: dict[str, Terminator]) -> StageMaker | None:
        """The handshake of clients that ask for it, where the listener offers TLS that way."""
        terminator = terminators.get(listener.name)
        if terminator is None or terminator.config.mode != "starttls":
            return None
        return tls_opening.maker(terminator, listener.protocol)

    def _make_terminators(self, snapshot: Snapshot) -> dict[str, Terminator]:
        """The listeners' TLS contexts; those that stay the same are kept. Raises ssl.SSLError."""
        found: dict[str, Terminator] = {}
        for listener in snapshot.listeners:
            if listener.tls is not None:
                old = self._terminators.get(listener.name)
                found[listener.name] = (
                    old if old is not None and old.config == listener.tls else Terminator(listener.tls)
                )
        if found and not self._terminators and not openssl.available():
            log.warning("session tickets are each worker's own and OCSP is not stapled: %s", openssl.PROBLEM)
        return found

    def _make_server_contexts(self, snapshot: Snapshot) -> dict[ServerTls, ssl.SSLContext]:
        """A context for each way to speak TLS to servers. Raises ssl.SSLError."""
        wanted = {server.tls for pool in snapshot.pools for server in pool.servers if server.tls is not None}
        return {tls: self._server_contexts.get(tls) or server_context(tls) for tls in wanted}

    def _dial(self, state: ServerState) -> None:
        """Have a server spoken to as its configuration says."""
        tls = state.config.tls
        if tls is None:
            state.dialer = None
        elif not isinstance(state.dialer, Dialer) or state.dialer.context is not self._server_contexts[tls]:
            state.dialer = Dialer(self._server_contexts[tls], tls.server_name)
            state.learned.clear()

    def _gates(self, listener: Listener) -> Gates:
        early = [one for one in listener.limits if one.of == "connections" and one.key.kind in ("source", "listener")]
        late = [one for one in listener.limits if one not in early]
        rules = {route.number: gate for route in listener.routes if (gate := self._gate(route.limits)) is not None}
        return self._gate(early), self._gate(late), rules or None

    def _gate(self, limits: Sequence[Limit]) -> Gate | None:
        now = monotonic()
        return Gate([Bound(one, self._limits.buckets(one, now)) for one in limits]) if limits else None

    def _router(self, listener: Listener) -> Router:
        """The listener's rules, compiled; those that stay the same are not compiled again, since many take long."""
        old = self.listeners.get(listener.name)
        if old is not None and msgspec.structs.replace(old.config, tls=listener.tls) == listener:
            return old.router
        return Router(listener)

    def _pool(self, pool: Pool) -> PoolRuntime:
        """The pool's new form, with the states of the servers that stay."""
        old = self.dispatcher.pools.get(pool.name)
        servers = []
        for config in pool.servers:
            known = old.state.by_name.get(config.name) if old is not None else None
            if (
                known is None
                or (old is not None and old.state.http2 is not (pool.http_version == "2"))
                or known.config.address != config.address
                or known.slot != config.slot
            ):
                known = ServerState(pool.name, config)
                self._judge(known)
            servers.append(known)
        same = old is not None and old.state.config == pool
        if same and old is not None:
            return old
        state = PoolState(pool, servers)
        # Until the swap the states must not show the new configuration, so it is set in _replace_pools.
        return PoolRuntime(state, make_balancer(state), make_stickiness(pool, self._tables))

    def _replace_pools(self, pools: dict[str, PoolRuntime]) -> None:
        before = self.dispatcher.pools
        self.dispatcher.pools = pools
        POOLS.clear()
        POOLS.update((name, runtime.state) for name, runtime in pools.items())
        kept: set[int] = set()
        now = monotonic()
        for runtime in pools.values():
            for state, config in zip(runtime.state.servers, runtime.state.config.servers, strict=True):
                if state.config.tls != config.tls:
                    self.dispatcher.close_idle(state)  # what was opened under other rules
                state.config = config
                self._dial(state)
                kept.add(id(state))
            runtime.limited = [state for state in runtime.state.servers if state.config.max_connections]
            old = before.get(runtime.state.name)
            if old is not None and old is not runtime:
                for ticket in old.queue:
                    ticket.runtime = runtime
                    if runtime.state.by_name.get(ticket.server.name) is not ticket.server:
                        ticket.pinned = False  # the server that it waited for is no more
                runtime.queue = old.queue
            runtime.judged()
            runtime.balancer.changed(now)
        for old in before.values():
            for state in old.state.servers:
                if id(state) not in kept:
                    self.dispatcher.close_idle(state)

    def _open_log(self, snapshot: Snapshot) -> AccessLogWriter | None:
        config = snapshot.access_log
        if config is None:
            return None
        if self._log is not None and self._log.config == config:
            return self._log
        return AccessLogWriter(self.loop, config)

    def _recorder(self) -> Callable[[AccessRecord], None] | None:
        log, observe = self._log, self._observe
        if observe is None:
            return None if log is None else log.write
        if log is None:
            return observe

        def both(record: AccessRecord) -> None:
            log.write(record)
            observe(record)

        return both

    def _leave(self, state: ListenerState) -> None:
        """A listener is no longer configured: its clients may finish."""
        state.publish()
        self._leaving = [one for one in self._leaving if one.connections]
        if state.connections:
            self._leaving.append(state)
            now = monotonic()
            for connection in list(state.connections):
                connection.drain(now, patient=True)

    def _workers(self) -> int:
        """How many blocks of the counts may be written; workers that leave have one beside their successors."""
        return max(self._counts.blocks, self.snapshot.workers if self.snapshot is not None else 1)

    # --- sockets ----------------------------------------------------------------------------------------------

    def accept_from(self, bind: str, sock: socket.socket) -> None:
        """Accept from a listening socket of that address, as long as the snapshot has a listener for it."""
        key = (bind, sock.fileno())
        if key not in self._acceptors:
            self._acceptors[key] = Acceptor(
                self.loop, sock, lambda: self._by_bind.get(bind), self.dispatcher, self._counts, self._workers
            )
        self._start_acceptors()

    def stop_accepting(self, bind: str, sock: socket.socket) -> None:
        """Leave a listening socket to others. It is not closed."""
        acceptor = self._acceptors.pop((bind, sock.fileno()), None)
        if acceptor is not None:
            acceptor.stop()

    def _start_acceptors(self) -> None:
        for (bind, _), acceptor in self._acceptors.items():
            if bind in self._by_bind and not self._draining:
                acceptor.start()
            else:
                acceptor.stop()

    # --- what changes by the second ---------------------------------------------------------------------------

    def server_health(self, verdict: ServerHealth) -> None:
        """The supervisor's verdict on a server, now or before its pool is known."""
        self._health[verdict.pool, verdict.server] = verdict
        runtime = self.dispatcher.pools.get(verdict.pool)
        state = runtime.state.by_name.get(verdict.server) if runtime is not None else None
        if runtime is None or state is None:
            return
        self._judge(state)
        if not state.alive:
            self.dispatcher.close_idle(state)
        now = monotonic()
        runtime.judged()
        runtime.balancer.changed(now)
        self.dispatcher.places.serve(runtime, now)

    def _judge(self, state: ServerState) -> None:
        verdict = self._health.get((state.pool, state.name))
        if verdict is not None:
            state.healthy = verdict.healthy
            state.ejected = verdict.ejected
            state.down = frozenset(verdict.down)
            state.offers.update(verdict.offers)
            state.up_since = verdict.since

    def publish(self) -> None:
        """Bring the shared counts up to date; done many times a second anyway."""
        for state in (*self.listeners.values(), *self._leaving):
            state.publish()
        self.dispatcher.places.publish()

    def _refresh(self) -> None:
        self.publish()
        self.dispatcher.places.refresh_all()
        self._timers[0] = self.loop.call_later(REFRESH_SECONDS, self._refresh)

    def _sweep(self) -> None:
        now = monotonic()
        for runtime in self.dispatcher.pools.values():
            for server in runtime.state.servers:
                if server.idle or server.kept:
                    self.dispatcher.close_idle(server, now - runtime.state.config.timeouts.idle)
        DATES.tell(time.time() - now)  # the wall clock may have been set
        self._timers[1] = self.loop.call_later(IDLE_SECONDS, self._sweep)
        self._check_drained()

    # --- to see -----------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """Open client connections."""
        return sum(len(state.connections) for state in (*self.listeners.values(), *self._leaving))

    def sessions(self, limit: int, wanted: Wanted = ALL_SESSIONS) -> list[SessionRow]:
        """What is in progress, so many at most; idle keep-alive connections are not listed."""
        rows: list[SessionRow] = []
        offset = time.time() - monotonic()
        network = ip_network(wanted.network) if wanted.network else None
        for state in (*self.listeners.values(), *self._leaving):
            if wanted.protocol and state.config.protocol != wanted.protocol:
                continue
            for connection in state.carriers():
                ticket = connection.ticket
                if ticket is None or (network is not None and not _inside(connection.peer.client, network)):
                    continue
                about = connection.session.describe()
                mailbox = about.get("mailbox") or ticket.facts.mailbox.decode("utf-8", "backslashreplace")
                if wanted.mailboxes and mailbox not in wanted.mailboxes:
                    continue
                if len(rows) >= limit:
                    return rows
                rows.append(
                    SessionRow(
                        protocol=state.config.protocol,
                        client=connection.client,
                        listener=state.name,
                        pool=ticket.pool.name,
                        server=ticket.server.name,
                        since=timestamp(connection.since + offset),
                        mailbox=mailbox,
                        detail=about.get("detail", ""),
                    )
                )
        return rows

    # --- the end ----------------------------------------------------------------------------------------------

    def drain(self, patient: bool = False) -> None:
        """Accept nothing more, end idle connections, let the others finish; ``drained`` is set when all have.

        ``patient``, where a successor serves already: an idle connection gets a few seconds for a request that is on
        its way, whose answer closes it. May be called again, less patient.
        """
        self._draining = True
        self._start_acceptors()
        now = monotonic()
        for state in (*self.listeners.values(), *self._leaving):
            for connection in list(state.connections):
                connection.drain(now, patient)
        self._check_drained()

    def _check_drained(self) -> None:
        if self._draining and not self.connections:
            self.drained.set()

    def reopen_logs(self) -> None:
        """Open the access log again by its name."""
        if self._log is not None:
            self._log.reopen()

    def close(self) -> None:
        """End everything at once."""
        for acceptor in self._acceptors.values():
            acceptor.stop()
        self._acceptors.clear()
        for state in (*self.listeners.values(), *self._leaving):
            for connection in list(state.connections):
                connection.close(reset=True)
        self.publish()
        POOLS.clear()
        self.dispatcher.close()
        self.timers.close()
        for timer in self._timers:
            timer.cancel()
        if self._log is not None:
            self._log.close()


def _inside(client: str, network: IPv4Network | IPv6Network) -> bool:
    try:
        return ip_address(client.partition("%")[0]) in network
    except ValueError:
        return False  # a unix socket's client
