"""From facts to a server's connection: the one module that knows the order.

    rate limits -> router -> rate limits of the rule -> (mailboxes) -> persistence -> balancer
        -> connection limit and queue -> idle connection or a new one

Each step is given facts and states and knows nothing of the others. A :class:`Ticket` is one request's way through
them; it is the session's assignment once a connection is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from errno import EINPROGRESS
from time import monotonic
from typing import TYPE_CHECKING

from l7lb.core.actions import Action, NeedServer, Release
from l7lb.core.contracts import Choice, Peer
from l7lb.core.directory import Directories
from l7lb.core.errors import Failure
from l7lb.core.facts import Facts
from l7lb.core.messages import ServerResult
from l7lb.core.servers import ServerState
from l7lb.core.snapshot import Redirect
from l7lb.limits import Gate
from l7lb.persistence.claims import Claims
from l7lb.proxy import counts as columns
from l7lb.proxy.counts import COLUMNS, ROWS, Counts
from l7lb.proxy.endpoint import Sender
from l7lb.proxy.mailboxes import Mailboxes
from l7lb.proxy.queueing import Places
from l7lb.proxy.tickets import CLAIMING, CONNECTING, DONE, HELD, NEW, QUEUED, SECURING, PoolRuntime, Ticket
from l7lb.proxy.upstream import ServerConnection, open_connection, refusal

if TYPE_CHECKING:
    from l7lb.proxy.connection import Connection
    from l7lb.proxy.listener import ListenerState

LOG_SECONDS = 1.0

log = logging.getLogger("l7lb.dispatch")


class Dispatcher:
    """A worker's way from requests to servers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        counts: Counts,
        workers: Callable[[], int],
        report: Callable[[ServerResult], None],
        claims: Claims | None = None,
        directories: Directories | None = None,
    ) -> None:
        self.loop = loop
        self.pools: dict[str, PoolRuntime] = {}
        self.sender = Sender(loop)
        self.places = Places(self, counts, workers)
        self.mailboxes = Mailboxes(self, claims, directories)
        self._cells = counts.cells
        self._base = counts.base
        self._report = report
        self._logged: dict[str, float] = {}

    def refuses(self, listener: ListenerState, peer: Peer, now: float) -> bool:
        """Whether a limit of connections refuses this client."""
        gate = listener.connection_gate
        if gate is None:
            return False
        return self._limited(listener, gate, Facts(listener.config.protocol, listener.name, peer.client), now)

    # --- a request asks ---------------------------------------------------------------------------------------

    def need(self, connection: Connection, need: NeedServer, now: float) -> list[Action] | None:
        """Find a server for what a session needs; None while it has to wait."""
        facts = need.facts
        previous = connection.ticket
        if need.again is not None and previous is not None:
            return self._retry(previous, need, now)
        listener = connection.listener
        if listener.gate is not None and self._limited(listener, listener.gate, facts, now):
            return connection.session.failed(Failure.RATE_LIMITED, None, now)
        choice = listener.router.route(facts)
        if choice is None:
            return connection.session.failed(Failure.NO_ROUTE, None, now)
        if listener.rule_gates is not None:
            gate = listener.rule_gates.get(choice.route.number)
            if gate is not None and self._limited(listener, gate, facts, now):
                return connection.session.failed(Failure.RATE_LIMITED, choice, now)
        if choice.pool is None:
            action = choice.route.action
            if isinstance(action, Redirect):
                choice.location = listener.template(action.location)(facts, choice.captures)
            return connection.session.answered(choice, now)
        if choice.rewrites:
            self._rewrite(listener, choice, facts)
        runtime = self.pools.get(choice.pool)
        if runtime is None:
            return connection.session.failed(Failure.NO_SERVER, choice, now)
        if facts.mailbox and self.mailboxes.concerns(facts, runtime):
            return self.mailboxes.need(connection, need, choice, runtime, now)
        ticket = self._pick(connection, facts, choice, runtime, now)
        if ticket is None:
            return connection.session.failed(Failure.NO_SERVER, choice, now)
        connection.ticket = ticket
        ticket.careful = need.careful
        ticket.fresh = need.fresh
        return self.proceed(ticket, need.fresh, now)

    def _limited(self, listener: ListenerState, gate: Gate, facts: Facts, now: float) -> bool:
        """Whether a rate limit refuses these facts; then they say how long."""
        wait = gate.wait(facts, now)
        if not wait:
            return False
        facts.wait = wait
        refused = gate.refused
        assert refused is not None
        self._cells[self._base + refused.slot * COLUMNS + columns.REFUSED] += 1
        self._log(refused.name, f"listener {listener.name}: {facts.source} is over the limit {refused.name}", now)
        return True

    def _rewrite(self, listener: ListenerState, choice: Choice, facts: Facts) -> None:
        rewrite = choice.route.rewrite
        assert rewrite is not None
        if rewrite.path:
            choice.path = listener.template(rewrite.path)(facts, choice.captures)
        if rewrite.host:
            choice.host = listener.template(rewrite.host, host=True)(facts, choice.captures)

    def _pick(
        self, connection: Connection, facts: Facts, choice: Choice, runtime: PoolRuntime, now: float
    ) -> Ticket | None:
        if runtime.limited:
            self.places.refresh(runtime.limited)
        server, key = self.find(runtime, facts, now, [])
        if server is None:
            return None
        ticket = Ticket(connection, facts, choice, runtime, server, now)
        ticket.sticky = key
        return ticket

    def find(
        self, runtime: PoolRuntime, facts: Facts, now: float, tried: list[ServerState]
    ) -> tuple[ServerState | None, str]:
        """The server that the first persistence key with one that can be used names, and that key's kind.

        Without such a key the balancer chooses, and None means that no server is open.
        """
        sticky = runtime.stickiness
        tried = runtime.unfit(facts, tried)
        if sticky is not None:
            lost = [server.name for server in tried]
            found = sticky.find(facts, now, lost)
            while found is not None:
                server = runtime.state.by_name.get(found[0])
                if server is not None and server.alive_for(facts.protocol):
                    return server, found[1]
                self._log_lost(runtime, found[0], now)
                lost.append(found[0])
                found = sticky.find(facts, now, lost)
        return runtime.balancer.choose(facts, now, tried), ""

    def _retry(self, ticket: Ticket, need: NeedServer, now: float) -> list[Action] | None:
        """The session gave its server up and wants another, or a new connection to the same one."""
        failure = need.again
        assert failure is not None
        stale = need.fresh
        gave_up = ticket.server
        self._drop(ticket, None if stale else failure)
        if ticket.claim is not None and not stale:
            self._count(gave_up, columns.RETRIES)
            ticket.attempt += 1
            return ticket.claim.elsewhere(failure, now)
        if not stale:
            ticket.tried.append(gave_up)
            server, ticket.sticky = self.find(ticket.runtime, ticket.facts, now, ticket.tried)
            if server is None:
                # All others were tried or are down: the first may have recovered.
                server = ticket.runtime.balancer.choose(ticket.facts, now, ticket.runtime.unfit(ticket.facts, []))
            if server is None:
                return self._failed(ticket, failure, now)
            ticket.server = server
        self._count(gave_up, columns.RETRIES)
        ticket.attempt += 1
        ticket.began = now
        return self.proceed(ticket, need.fresh, now)

    def proceed(self, ticket: Ticket, fresh: bool, now: float) -> list[Action] | None:
        """Take a place at the ticket's server and connect, or wait for one."""
        if not self.places.take(ticket):
            return None if self.places.wait(ticket) else self._failed(ticket, Failure.QUEUE_FULL, now)
        ticket.phase = NEW  # from here on it holds a place, to be given back
        ticket.runtime.balancer.taken(ticket.server)
        ticket.queue_time = now - ticket.began
        return self._connect(ticket, fresh, now)

    # --- connections ------------------------------------------------------------------------------------------

    def _connect(self, ticket: Ticket, fresh: bool, now: float) -> list[Action] | None:
        server = ticket.server
        idle = server.idle
        fresh = fresh or ticket.fresh
        protocol = ticket.facts.protocol
        announce = server.send_proxy
        if not announce and ticket.pool.announces:
            announce = ticket.pool.announces.get(protocol, "")
        if announce and not fresh:
            idle = ticket.connection.carrier.take_kept(server)
        while idle and not fresh:
            upstream = idle.pop()
            assert isinstance(upstream, ServerConnection)
            if (ticket.careful or now - upstream.idle_since > 1.0) and upstream.readable_now():
                upstream.close()  # it closed while nobody looked
                continue
            ticket.reused = True
            ticket.connect_time = 0.0
            server.tally.reused += 1
            return self._hold(ticket, upstream, now)
        ticket.reused = False
        try:
            upstream, code = open_connection(self.loop, self.sender, server, protocol)
        except OSError as problem:
            self._log("descriptors", f"no connection to {server.pool}/{server.name}: {problem.strerror}", now)
            self._give_back(ticket, None, -1.0)
            return self._failed(ticket, Failure.CONNECTION_LIMIT, now)
        ticket.upstream = upstream
        ticket.began = now
        upstream.announce = announce
        if code == 0 and not upstream.tls_first:
            upstream.read_more(True)
            return self._connected(ticket, upstream, now)
        if code not in (0, EINPROGRESS):
            return self._connect_failed(ticket, refusal(code), now)
        ticket.phase = CONNECTING
        ticket.deadline = now + ticket.pool.config.timeouts.connect
        upstream.ticket = ticket
        upstream.write_more(True)
        return None

    def connect_ended(self, ticket: Ticket, code: int) -> None:
        """A connection is established, or refused with that errno."""
        now = monotonic()
        upstream = ticket.upstream
        assert upstream is not None
        upstream.ticket = None
        try:
            if code:
                actions = self._connect_failed(ticket, refusal(code), now)
            else:
                upstream.read_more(True)
                actions = self._connected(ticket, upstream, now)
        except Exception:
            log.exception("connection from %s ended by a fault", ticket.connection.client)
            ticket.connection.close(reset=True)
            return
        if actions:
            ticket.connection.run(actions, now)
        else:
            ticket.connection.settle(now)

    def handshake_ended(self, ticket: Ticket, problem: str) -> None:
        """The TLS handshake with a server is over; ``problem`` says why it failed, if it did."""
        now = monotonic()
        upstream = ticket.upstream
        assert upstream is not None
        if ticket.server.learned:
            ticket.server.learned.pop(ticket.facts.protocol, None)
        if ticket.phase == SECURING:
            self._secured(ticket, upstream, problem, now)
            return
        if problem:
            self.tls_failed(ticket.server, problem, now)
            upstream.ticket = None
            actions = self._connect_failed(ticket, Failure.CONNECT_TLS, now)
            if actions:
                ticket.connection.run(actions, now)
            else:
                ticket.connection.settle(now)
            return
        self._count_handshake(ticket, upstream)
        self.connect_ended(ticket, 0)

    def _count_handshake(self, ticket: Ticket, upstream: ServerConnection) -> None:
        tls, server = upstream.tls, ticket.server
        assert tls is not None
        self._count(server, columns.RESUMED if tls.inner.session_reused else columns.HANDSHAKES)
        config = server.config.tls
        if config is not None and config.mode == "auto":
            server.learned[ticket.facts.protocol] = "starttls" if ticket.phase == SECURING else "implicit"

    def secure(self, connection: Connection, now: float) -> None:
        """The session's server has agreed to TLS: begin the handshake. Until it is done the server is not read."""
        ticket, upstream = connection.ticket, connection.upstream
        if ticket is None or upstream is None or upstream.tls is not None or not ticket.server_tls:
            raise RuntimeError("StartServerTls without a server that could be asked")
        upstream.send_queued()
        connection.upstream = None
        upstream.read_more(False)
        upstream.ticket = ticket
        ticket.phase = SECURING
        ticket.deadline = now + ticket.pool.config.timeouts.connect
        if ticket.server.dialer is None:
            self.handshake_ended(ticket, "its configuration no longer has TLS")
        elif upstream.out is not None or upstream.broken:
            self.handshake_ended(ticket, "it agreed to TLS before it was asked")
        else:
            upstream.start_tls(ticket)

    def _secured(self, ticket: Ticket, upstream: ServerConnection, problem: str, now: float) -> None:
        """The handshake that a session asked for is over."""
        connection = ticket.connection
        try:
            if problem:
                self.tls_failed(ticket.server, problem, now)
                actions = self._give_up(ticket, Failure.CONNECT_TLS, now)
            else:
                self._count_handshake(ticket, upstream)
                upstream.ticket = None
                connection.upstream = upstream
                ticket.phase = HELD
                ticket.deadline = 0.0
                ticket.server_tls = "done"
                upstream.read_more(True)
                actions = connection.session.server_secured(now)
        except Exception:
            log.exception("connection from %s ended by a fault", connection.client)
            connection.close(reset=True)
            return
        connection.run(actions, now)

    def _give_up(self, ticket: Ticket, failure: Failure, now: float) -> list[Action]:
        """The server failed between its first word and its session's first question: the session decides."""
        self._count(ticket.server, columns.CONNECT_ERRORS)
        self._drop(ticket, failure)
        return self._failed(ticket, failure, now)

    def tls_failed(self, server: ServerState, problem: str, now: float) -> None:
        """TLS with a server has failed, in the handshake or behind it: say why in the log."""
        self._log(f"tls {server.pool}/{server.name}", f"{server.pool}/{server.name}: TLS: {problem}", now)

    def _connected(self, ticket: Ticket, upstream: ServerConnection, now: float) -> list[Action]:
        ticket.connect_time = now - ticket.began
        server = ticket.server
        self._count(server, columns.CONNECTIONS)
        if upstream.announce:
            upstream.client = ticket.connection.carrier
            upstream.send(ticket.connection.proxy_header(upstream.announce))
            upstream.announce = ""
        return self._hold(ticket, upstream, now)

    def _hold(self, ticket: Ticket, upstream: ServerConnection, now: float) -> list[Action]:
        ticket.phase = HELD
        ticket.deadline = 0.0
        ticket.upstream = upstream
        connection = ticket.connection
        upstream.owner = connection
        connection.upstream = upstream
        ticket.kept = upstream.memory
        ticket.server_tls = (
            "done" if upstream.tls is not None else "starttls" if ticket.server.dialer is not None else ""
        )
        sticky = ticket.runtime.stickiness
        if sticky is not None:
            ticket.learns = sticky.learns
            if not ticket.sticky or sticky.remembers:
                ticket.set_cookie = sticky.chosen(ticket.facts, ticket.server.name, now)
            if ticket.sticky:
                ticket.server.tally.sticky += 1
        return connection.session.connected(ticket, now)

    def _connect_failed(self, ticket: Ticket, failure: Failure, now: float) -> list[Action] | None:
        server = ticket.server
        self._count(server, columns.CONNECT_ERRORS)
        self._drop(ticket, failure)
        if ticket.claim is not None:
            return ticket.claim.connect_failed(failure, now)
        retries = ticket.pool.config.retries
        if "connect-failure" in retries.when and ticket.attempt < retries.attempts:
            # Nothing was sent: any request may go to another server.
            ticket.tried.append(server)
            other, ticket.sticky = self.find(ticket.runtime, ticket.facts, now, ticket.tried)
            if other is not None:
                self._count(server, columns.RETRIES)
                ticket.attempt += 1
                ticket.server = other
                ticket.began = now
                return self.proceed(ticket, False, now)
        return self._failed(ticket, failure, now)

    def _failed(self, ticket: Ticket, failure: Failure, now: float) -> list[Action]:
        """There is no server for this ticket: tell its session."""
        ticket.connection.ticket = None
        if ticket.claim is not None:
            ticket.claim.end()
        return ticket.connection.session.failed(failure, ticket.choice, now)

    def learn(self, connection: Connection, set_cookies: list[bytes], now: float) -> None:
        """The server's answer set these cookies."""
        ticket = connection.ticket
        if ticket is not None and ticket.runtime.stickiness is not None:
            ticket.runtime.stickiness.answered(set_cookies, ticket.server.name, now)

    def issued(self, connection: Connection, sessions: list[bytes], now: float) -> None:
        """The server issued these TLS sessions."""
        ticket = connection.ticket
        if ticket is not None and ticket.runtime.stickiness is not None:
            ticket.runtime.stickiness.issued(sessions, ticket.server.name, now)

    # --- the end ----------------------------------------------------------------------------------------------

    def release(self, connection: Connection, release: Release, now: float) -> None:
        """The session is done with its server, or gives up waiting for one."""
        ticket = connection.ticket
        if ticket is None:
            return
        connection.ticket = None
        if ticket.claim is not None and not release.reusable:
            self.withdraw(ticket, release)
            ticket.claim.end()
            return
        if ticket.phase == QUEUED:
            self.places.leave(ticket)
            ticket.phase = DONE
            return
        upstream = ticket.upstream
        if ticket.phase != HELD or upstream is None or not release.reusable:
            self._drop(ticket, release.failure, release.latency, release.abort)
            return
        connection.upstream = None
        upstream.owner = None
        upstream.memory = ticket.kept
        server = ticket.server
        pool = ticket.pool
        shelf = server.idle if upstream.client is None else server.kept
        if (
            server.alive
            and upstream.out is None
            and len(shelf) < pool.idle_connections
            and (self.pools.get(pool.name) is ticket.runtime or self._configured(server))
        ):
            upstream.shelve(now)
        else:
            upstream.close()
        self._give_back(ticket, release.failure, release.latency)
        if ticket.claim is not None:
            ticket.claim.end()

    def withdraw(self, ticket: Ticket, release: Release | None = None) -> None:
        """Take a ticket from its server or its queue; its session is not told."""
        if ticket.phase == QUEUED:
            self.places.leave(ticket)
            ticket.phase = DONE
        elif release is None:
            self._drop(ticket, None)
        else:
            self._drop(ticket, release.failure, release.latency, release.abort)

    def _configured(self, server: ServerState) -> bool:
        """Whether a server is still one of its pool's."""
        current = self.pools.get(server.pool)
        return current is not None and current.state.by_name.get(server.name) is server

    def _drop(self, ticket: Ticket, failure: Failure | None, latency: float = -1.0, abort: bool = False) -> None:
        """Close the ticket's connection, if any, and give its place back."""
        upstream = ticket.upstream
        held = ticket.phase in (NEW, CONNECTING, HELD, SECURING)
        if upstream is not None:
            ticket.connection.upstream = None
            upstream.close(reset=abort)
            ticket.upstream = None
        if held:
            self._give_back(ticket, failure, latency)

    def _give_back(self, ticket: Ticket, failure: Failure | None, latency: float) -> None:
        server = ticket.server
        ticket.phase = DONE
        self.places.give_back(ticket)
        ticket.runtime.balancer.released(server, latency)
        if failure is None:
            if server.failures and latency >= 0:
                server.failures = 0
                self._report(ServerResult(server.pool, server.name, ""))
        else:
            if server.learned:
                server.learned.pop(ticket.facts.protocol, None)
            self._count(server, columns.RESPONSE_ERRORS)
            if ticket.pool.config.outliers is not None:
                server.failures += 1
                self._report(ServerResult(server.pool, server.name, failure.label))
        if self.places.waiting:
            # A reload may have put a new balancer in charge of the queue.
            runtime = self.pools.get(ticket.pool.name, ticket.runtime)
            self.loop.call_soon(self.places.serve, runtime, monotonic())

    def expired(self, ticket: Ticket, now: float) -> list[Action] | None:
        """The ticket's deadline has come while it waited in the queue or for its connection."""
        if ticket.phase == QUEUED:
            self.places.leave(ticket)
            ticket.phase = DONE
            return self._failed(ticket, Failure.QUEUE_TIMEOUT, now)
        if ticket.phase == CLAIMING and ticket.claim is not None:
            return ticket.claim.expired(now)
        if ticket.phase == SECURING:
            return self._give_up(ticket, Failure.CONNECT_TIMEOUT, now)
        upstream = ticket.upstream
        if upstream is not None and upstream.tls_first == "greeting":
            upstream.tls_first = "implicit"  # it waits for the client to begin
            ticket.deadline = ticket.began + ticket.pool.config.timeouts.connect
            upstream.start_tls(ticket)
            return None
        return self._connect_failed(ticket, Failure.CONNECT_TIMEOUT, now)

    def close(self) -> None:
        """Close all idle connections."""
        self.places.close()
        for runtime in self.pools.values():
            for server in runtime.state.servers:
                self.close_idle(server)

    def close_idle(self, server: ServerState, before: float = float("inf")) -> None:
        """Close a server's idle connections that have had no work since ``before``."""
        while server.idle:
            upstream = server.idle[0]
            assert isinstance(upstream, ServerConnection)
            if upstream.idle_since >= before:
                break
            server.idle.pop(0)
            upstream.close()
        for kept in list(server.kept):
            assert isinstance(kept, ServerConnection)
            if kept.idle_since < before:
                kept.retire()

    def _count(self, server: ServerState, column: int) -> None:
        self._cells[self._base + server.slot * COLUMNS + column] += 1

    def _log_lost(self, runtime: PoolRuntime, server: str, now: float) -> None:
        self._log(
            f"{runtime.state.name}/{server}",
            f"{runtime.state.name}/{server} is not available: its sticky users go to other servers",
            now,
        )

    def _log(self, key: str, text: str, now: float) -> None:
        """Log at most once a second for each key, since what is said here may happen for every request."""
        if now - self._logged.get(key, -LOG_SECONDS) >= LOG_SECONDS:
            if len(self._logged) > ROWS:
                self._logged.clear()
            self._logged[key] = now
            log.warning("%s", text)
