"""Mailboxes: the stage between router and connection for whatever has one.

    directory's answer -> wish (the directory's server, else persistence and balancer) -> claim at the state process
        -> the server that the mailbox is on

A :class:`Placing` is one way through it. It lasts as long as the session has its server, since a claim is held until
the server's connection is closed; a ticket that has one asks it at each turn: when connecting fails, when its session
wants another server, when it ends.

A claim whose server is down is made anew, and the mailbox moves when its other sessions have ended; one that only could
not connect goes elsewhere where nobody else has the mailbox open. Pools without mailbox persistence claim too, so that
limits, `kick` and `sessions` know their sessions, and are granted what they wish.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from l7lb.core.actions import Action, NeedServer, Release
from l7lb.core.contracts import Choice, Location
from l7lb.core.directory import FAILED, FOUND, MISSING, REFUSED, Answer, Directories, Question, named_server
from l7lb.core.errors import Failure
from l7lb.core.facts import Facts
from l7lb.core.mailbox import MAIL_PROTOCOLS, short_name
from l7lb.core.servers import ServerState
from l7lb.core.snapshot import Address, Listener, Server
from l7lb.persistence.claims import Claims
from l7lb.persistence.mailbox_messages import Claim, Held, Refusal
from l7lb.proxy.tickets import CLAIMING, DONE, HELD, NEW, SECURING, PoolRuntime, Ticket

if TYPE_CHECKING:
    from l7lb.proxy.connection import Connection
    from l7lb.proxy.dispatch import Dispatcher

PLACING = 60.0  # seconds for a directory, and for a claim, whatever happens; both have shorter limits of their own
ROUNDS = 4  # servers that a claim is granted on and that turn out to be down, before it is given up
NOBODY: Final = ServerState("", Server(name="", address=Address()))  # who has a ticket that is not placed yet
MAILBOX: Final = "mailbox"

log = logging.getLogger("l7lb.mailboxes")


class Mailboxes:
    """The stage, in one worker. ``claims`` None: there is no state process, and each session goes where it wishes."""

    def __init__(self, dispatcher: Dispatcher, claims: Claims | None, directories: Directories | None) -> None:
        self.dispatcher = dispatcher
        self.claims = claims
        self.directories = directories

    def concerns(self, facts: Facts, runtime: PoolRuntime) -> bool:
        """Whether facts with a mailbox go this way."""
        return runtime.expire >= 0.0 or facts.protocol in MAIL_PROTOCOLS

    def need(
        self, connection: Connection, need: NeedServer, choice: Choice, runtime: PoolRuntime, now: float
    ) -> list[Action] | None:
        """Place a session's mailbox, then connect."""
        ticket = Ticket(connection, need.facts, choice, runtime, NOBODY, now)
        ticket.fresh = need.fresh
        ticket.careful = need.careful
        ticket.claim = placing = Placing(self, ticket)
        connection.ticket = ticket
        return placing.begin(now)

    def locate(self, connection: Connection, facts: Facts, now: float) -> list[Action] | None:
        """Find and claim a mailbox's server without a connection to it; the answer is ``located``."""
        choice = connection.listener.router.route(facts)
        runtime = self.dispatcher.pools.get(choice.pool) if choice is not None and choice.pool is not None else None
        if choice is None or runtime is None:
            failure = Failure.NO_ROUTE if choice is None or choice.pool is None else Failure.NO_SERVER
            return connection.session.located(Location(facts, choice, failure=failure), now)
        locating = Locating(self, Ticket(connection, facts, choice, runtime, NOBODY, now))
        connection.locating = [*connection.locating, locating]
        return locating.begin(now)

    def forget(self, connection: Connection, facts: Facts) -> None:
        """A located mailbox is wanted no longer."""
        for locating in connection.locating:
            if locating.ticket.facts is facts:
                locating.end()

    def login_failed(self, connection: Connection, client: str) -> None:
        """A server refused a login of that client."""
        failures, window = _free_failures(connection)
        if self.claims is not None and failures:
            self.claims.refused(Refusal(client, failures, window))


class Placing:
    """One session's mailbox on its way to a server, and its claim from then on."""

    __slots__ = ("_cancel", "_failure", "_fixed", "_number", "_policy", "_rounds", "_stage", "ticket")

    def __init__(self, stage: Mailboxes, ticket: Ticket) -> None:
        self.ticket = ticket
        self._stage = stage
        self._number = 0  # of the claim
        self._fixed = ""  # the server that a directory named
        self._policy: Answer | None = None
        self._rounds = 0
        self._failure = Failure.MAILBOX_SERVER  # what to say where the mailbox stays on a server that fails us
        self._cancel: Callable[[], None] | None = None

    # --- the directory --------------------------------------------------------------------------------------------

    def begin(self, now: float) -> list[Action] | None:
        """Ask the route's directories, if it has some."""
        ticket = self.ticket
        ticket.phase = CLAIMING
        ticket.deadline = now + PLACING
        names = ticket.choice.route.directory
        if not names:
            return self._wish(now)
        directories = self._stage.directories
        if directories is None:
            return self._fail(Failure.DIRECTORY, now)
        self._cancel = directories.ask(names, _question(ticket), self._answered)
        return None

    def _answered(self, answer: Answer) -> None:
        self._cancel = None
        self._policy = answer
        self._go(lambda now: self._use(answer, now))

    def _use(self, answer: Answer, now: float) -> list[Action] | None:
        ticket = self.ticket
        if answer.status == FAILED:
            log.info("no directory could say where a mailbox is: %s", answer.why)
            return self._fail(Failure.DIRECTORY, now)
        if answer.status == REFUSED:
            ticket.facts.wait = answer.wait
            return self._fail(Failure.LOGIN_REFUSED, now)
        if answer.status == MISSING and answer.missing != "pool":
            return self._fail(Failure.NO_MAILBOX, now)
        entry = answer.entry
        if answer.status != FOUND or entry is None:
            return self._wish(now)
        ticket.entry = entry
        if entry.mailbox:
            ticket.facts.mailbox = entry.mailbox
        if entry.server:
            config = named_server(entry.server, ticket.pool.config.servers, ticket.facts.protocol)
            if config is None:
                if answer.unknown_server != "pool":
                    log.warning("a directory names %s, which pool %s does not have", entry.server, ticket.pool.name)
                    return self._fail(Failure.MAILBOX_SERVER, now)
            elif self._usable(config.name):
                self._fixed = config.name
            elif answer.server_down != "pool":
                return self._fail(Failure.MAILBOX_SERVER, now)
        return self._wish(now)

    # --- the claim ------------------------------------------------------------------------------------------------

    def _usable(self, name: str) -> bool:
        server = self.ticket.pool.by_name.get(name)
        return server is not None and server.alive_for(self.ticket.facts.protocol)

    def _wish(self, now: float, lost: str = "", down: bool = False) -> list[Action] | None:
        """Claim the mailbox for the server that it would go to; ``lost``: see :class:`Claim`."""
        ticket = self.ticket
        if self._fixed:
            wish = self._fixed
        else:
            server, ticket.sticky = self._stage.dispatcher.find(ticket.runtime, ticket.facts, now, ticket.tried)
            wish = server.name if server is not None else ""
        claims = self._stage.claims
        expire = ticket.runtime.expire
        if claims is None or (expire < 0.0 and not wish):
            return self._take(wish, now) if wish else self._fail(Failure.NO_SERVER, now)
        ticket.phase = CLAIMING
        ticket.deadline = now + PLACING
        if not self._number:
            self._number = claims.number()
        claims.claim(self, self._claim(wish, expire, lost, down))
        return None

    def _claim(self, wish: str, expire: float, lost: str, down: bool) -> Claim:
        ticket = self.ticket
        settings: dict[str, Any] = ticket.connection.listener.config.settings
        held = Held(
            self._number,
            ticket.pool.name,
            ticket.facts.mailbox,
            wish,
            ticket.facts.protocol,
            ticket.facts.source,
            expire,
            settings.get("sessions_per_mailbox", 0),
            settings.get("sessions_per_address", 0),
        )
        failures, window = _free_failures(ticket.connection) if getattr(ticket.facts, "mechanism", "") else (0, 60.0)
        return Claim(held, bool(self._fixed), lost, down, failures, window)

    def granted(self, server: str) -> None:
        """The state process: the mailbox is ours, on that server."""
        self._go(lambda now: self._place(server, now))

    def denied(self, failure: Failure | None) -> None:
        """It is not."""
        self._number = 0
        self._go(lambda now: self._fail(failure if failure is not None else self._failure, now))

    def _place(self, name: str, now: float) -> list[Action] | None:
        ticket = self.ticket
        ticket.runtime = self._stage.dispatcher.pools.get(ticket.pool.name, ticket.runtime)  # a reload may have come
        ticket.pool = ticket.runtime.state
        if self._usable(name):
            return self._take(name, now)
        self._rounds += 1
        if self._rounds > ROUNDS or (self._fixed and self._policy is not None and self._policy.server_down != "pool"):
            return self._fail(Failure.MAILBOX_SERVER, now)
        self._fixed = ""
        server = ticket.pool.by_name.get(name)
        if server is not None and server not in ticket.tried:
            ticket.tried.append(server)
        self._failure = Failure.MAILBOX_SERVER
        return self._wish(now, lost=name, down=True)

    def _take(self, name: str, now: float) -> list[Action] | None:
        """Connect to the mailbox's server."""
        ticket = self.ticket
        ticket.server = ticket.pool.by_name[name]
        ticket.phase = NEW
        ticket.deadline = 0.0
        if ticket.runtime.expire >= 0.0 or self._fixed:
            ticket.sticky = MAILBOX
        return self._stage.dispatcher.proceed(ticket, ticket.fresh, now)

    # --- what comes later -----------------------------------------------------------------------------------------

    def connect_failed(self, failure: Failure, now: float) -> list[Action] | None:
        """Connecting has failed; nothing was sent."""
        ticket = self.ticket
        retries = ticket.pool.config.retries
        if "connect-failure" in retries.when and ticket.attempt < retries.attempts:
            ticket.attempt += 1
            return self.elsewhere(failure, now)
        return self._fail(failure, now)

    def elsewhere(self, failure: Failure, now: float) -> list[Action] | None:
        """The server failed the session, and another may do: that of no directory, and where nobody else has the
        mailbox open. Its connection is closed.
        """
        ticket = self.ticket
        if self._fixed:
            return self._fail(failure, now)
        lost = ticket.server
        ticket.tried.append(lost)
        self._failure = failure
        server, _ = self._stage.dispatcher.find(ticket.runtime, ticket.facts, now, ticket.tried)
        if server is None:
            return self._fail(failure, now)
        ticket.began = now
        return self._wish(now, lost=lost.name, down=not self._usable(lost.name))

    def lost(self, now: float) -> list[Action] | None:
        """The server went down while the ticket waited for a place at it."""
        return self._place(self.ticket.server.name, now)

    def expired(self, now: float) -> list[Action] | None:
        """Neither directory nor state process has answered in time."""
        return self._fail(Failure.DIRECTORY if self._cancel is not None else Failure.NO_STATE, now)

    def dismissed(self, why: str, moving: bool) -> None:
        """The state process: the session must end; the claim is given back when it has."""
        ticket = self.ticket
        connection, now = ticket.connection, monotonic()
        if ticket.phase in (HELD, SECURING):
            connection.dismiss(why, now)
            if connection.ticket is ticket:
                self._stage.dispatcher.release(connection, Release(False), now)
            self.end()
            return
        self._stage.dispatcher.withdraw(ticket)
        self._give_back()
        self._go(lambda later: self._wish(later) if moving else self._fail(Failure.ENDED_HERE, later))

    def end(self) -> None:
        """The session needs its server no longer; its connection is closed."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        self._give_back()

    def _give_back(self) -> None:
        number, self._number = self._number, 0
        if number and self._stage.claims is not None:
            self._stage.claims.end(number)

    def _fail(self, failure: Failure, now: float) -> list[Action]:
        ticket = self.ticket
        self.end()
        ticket.phase = DONE
        connection = ticket.connection
        connection.ticket = None
        return connection.session.failed(failure, ticket.choice, now)

    def _go(self, step: Callable[[float], list[Action] | None]) -> None:
        """Go on, called from the event loop."""
        connection, now = self.ticket.connection, monotonic()
        try:
            actions = step(now)
        except Exception:
            log.exception("connection from %s ended by a fault", connection.client)
            connection.close(reset=True)
            return
        if actions:
            connection.run(actions, now)
        else:
            connection.settle(now)


class Locating(Placing):
    """A mailbox that is found and claimed without a connection."""

    __slots__ = ("_located",)

    def __init__(self, stage: Mailboxes, ticket: Ticket) -> None:
        super().__init__(stage, ticket)
        self._located = False

    def _take(self, name: str, now: float) -> list[Action] | None:
        ticket = self.ticket
        ticket.server = ticket.pool.by_name[name]
        self._located = True
        return self._say(Location(ticket.facts, ticket.choice, ticket.pool, ticket.server, ticket.entry), now)

    def _fail(self, failure: Failure, now: float) -> list[Action]:
        self.end()
        return self._say(Location(self.ticket.facts, self.ticket.choice, failure=failure), now)

    def _say(self, location: Location, now: float) -> list[Action]:
        return self.ticket.connection.session.located(location, now)

    def dismissed(self, why: str, moving: bool) -> None:
        """The mailbox moves: the session that has it in hand ends."""
        if self._located:
            self.ticket.connection.dismiss(why, monotonic())
            self.end()
            return
        self._give_back()
        self._go(lambda now: self._wish(now) if moving else self._fail(Failure.ENDED_HERE, now))

    def end(self) -> None:
        """The mailbox is wanted no longer."""
        super().end()
        connection = self.ticket.connection
        connection.locating = [one for one in connection.locating if one is not self]


def _free_failures(connection: Connection) -> tuple[int, float]:
    """How many failed logins in how many seconds cost an address nothing; 0: any number."""
    settings: dict[str, Any] = connection.listener.config.settings
    return settings.get("failures_per_address", 10), settings.get("failures_window", 60.0)


def _question(ticket: Ticket) -> Question:
    facts, connection = ticket.facts, ticket.connection
    listener: Listener = connection.listener.config
    user = short_name(facts.address, listener.addresses)
    login = getattr(facts, "user", b"")  # a login's own facts have these
    question = Question(facts.address, user, login, facts.protocol, facts.source)
    question.password = getattr(facts, "password", b"")
    question.mechanism = getattr(facts, "mechanism", "")
    question.attempt = getattr(facts, "attempt", 1)
    question.tls = getattr(facts, "tls", connection.peer.tls)
    return question
