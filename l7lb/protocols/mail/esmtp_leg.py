"""One server of a mail transaction: a stream of the client's connection, with its own dialogue, deadline and fate.

=========  ==============================================  =======================================================
state      waits for                                       leaves on
=========  ==============================================  =======================================================
ROUTING    a server (directory, claim, queue and connect   connected -> OPENING; failed -> GONE
           are the proxy's)
OPENING    the dialogue of :mod:`.esmtp_opening`           ready -> READY; refused, fault, end, time -> GONE
READY      replies to what was asked, in that order        quit -> QUITTING; fault, end, time -> GONE
MESSAGE    the message's end, which the client sends       its last byte -> READY, where its reply is awaited
QUITTING   the reply to QUIT                               reply, end, time -> GONE
GONE       nothing
=========  ==============================================  =======================================================

Whoever asks is called back once: with the server's reply, or with one in its place when the server is lost. A server
that is lost inside a message is reset, so that it can't take a part for the whole; it never sees the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from l7lb.core.actions import (
    SERVER,
    Action,
    Close,
    Finished,
    NeedServer,
    OnStream,
    Release,
    Side,
    StartServerTls,
    ToServer,
)
from l7lb.core.contracts import Assignment, Choice, Session
from l7lb.core.errors import Failure, Owner
from l7lb.protocols.mail.credentials import Credentials, server_credentials
from l7lb.protocols.mail.esmtp_opening import FAILED, GOES_ON, HANDSHAKE_WANTED, REFUSED, Opening
from l7lb.protocols.mail.esmtp_opening import READY as OPEN
from l7lb.protocols.mail.esmtp_replies import BadReply, Reply, ReplyReader, speaks_for
from l7lb.protocols.mail.facts import MailFacts
from l7lb.protocols.mail.record import MailFlow

if TYPE_CHECKING:
    from l7lb.protocols.mail.esmtp_session import EsmtpSession

ROUTING: Final = 0
OPENING: Final = 1
READY: Final = 2
MESSAGE: Final = 3
QUITTING: Final = 4
GONE: Final = 5
PHASES: Final = ("queue", "connect", "command", "message", "quit", "closed")

QUIT_SECONDS: Final = 2.0
LONGEST_WAIT: Final = 30.0  # seconds that a refusal is held back

Done = Callable[[Reply, float], None]


class Leg(Session):
    """A server's dialogue; see the module's head. ``place`` is its pool's and server's names once it is there.

    ``login``: it is logged in to with what the facts say. ``accepted`` counts the recipients that it took.
    """

    __slots__ = (
        "_asked", "_login", "_opening", "_reader", "_ready", "accepted", "assignment", "early", "facts", "flow", "lost",
        "number", "place", "progress", "session", "state", "takes", "waiting",
    )  # fmt: skip

    def __init__(
        self, session: EsmtpSession, number: int, facts: MailFacts, login: bool, ready: Done, now: float
    ) -> None:
        super().__init__()
        self.session = session
        self.number = number
        self.facts = facts
        self.flow = MailFlow(facts, now)
        self.state = ROUTING
        self.place: tuple[str, str] = ("", "")
        self.assignment: Assignment | None = None
        self.accepted = 0
        self.lost: Failure | None = None
        self.early: Reply | None = None  # a refusal that came before the message's end
        self.takes = False  # whether the proxy can take more for the server
        self.waiting = 0  # of a stream's flow: replies never wait here
        self.progress = now
        self._login = login
        self._ready = ready
        self._opening: Opening | None = None
        self._reader = ReplyReader()
        self._asked: deque[tuple[Done, float]] = deque()

    # --- what its session asks for --------------------------------------------------------------------------------

    def begin(self) -> list[Action]:
        """Its first actions."""
        return [NeedServer(self.facts, fresh=True)]

    def ask(self, data: bytes, done: Done, now: float, patience: float = 0.0) -> None:
        """Send a command; ``done`` gets the reply, within ``patience`` seconds (0.0: as long as answers may take)."""
        self.expect(done, now, patience)
        if self.state in (READY, MESSAGE):
            self.send(data)

    def expect(self, done: Done, now: float, patience: float = 0.0) -> None:
        """One reply more is to come. Called at once where the server is lost."""
        if self.state == GONE:
            done(self._in_place(), now)
            return
        limit = now + (patience or self.session.shared.settings.answer)
        self._asked.append((done, limit))
        if len(self._asked) == 1:
            self.deadline = limit

    def send(self, data: bytes) -> None:
        """Bytes for the server."""
        if self.state in (READY, MESSAGE, QUITTING):
            self.session.do(OnStream(self.number, [ToServer(data)]))

    def quit(self, now: float) -> None:
        """Say goodbye: it is needed no longer."""
        if self.state == READY:
            self.state = QUITTING
            self.deadline = now + QUIT_SECONDS
            self.session.do(OnStream(self.number, [ToServer(b"QUIT\r\n")]))
        elif self.state not in (QUITTING, GONE):
            self.abort(None, now)

    def abort(self, failure: Failure | None, now: float) -> None:
        """Give the server up, with a reset where it is inside a message."""
        if self.state != GONE:
            self.session.do(OnStream(self.number, self._over(failure, now)))

    # --- what the proxy tells -------------------------------------------------------------------------------------

    def taking(self, wanted: bool) -> None:
        self.takes = wanted

    def connected(self, assignment: Assignment, now: float) -> list[Action]:
        self.assignment = self.flow.assignment = assignment
        self.flow.choice = assignment.choice
        self.flow.connected_at = now
        self.place = (assignment.pool.name, assignment.server.name)
        self.state = OPENING
        self.deadline = now + self.session.shared.settings.greeting
        told = assignment.pool.config.client_address.get(self.facts.protocol, "none")
        client = self.session.client()
        hello = client.hello if told != "none" and client.hello else self.session.shared.hostname
        self._opening = opening = Opening(self.session.shared.server_hello, hello)
        credentials: Credentials | None = None
        if self._login:
            credentials = server_credentials(self.facts, assignment)
            if credentials is None:
                if told != "xclient" or self.facts.mechanism != "external" or self.facts.authorization:
                    return self._over(Failure.MAILBOX_SERVER, now)
                client.login = self.facts.user  # proved here, by a certificate
        opening.wants(assignment.server_tls == "starttls", client if told == "xclient" else None, credentials)
        return []

    def failed(self, failure: Failure, choice: Choice | None, now: float) -> list[Action]:
        self.flow.choice = choice
        wait = min(getattr(self.facts, "wait", 0.0), LONGEST_WAIT) if failure is Failure.LOGIN_REFUSED else 0.0
        if wait > 0.0:
            self.deadline = now + wait  # whoever refused it wants the client to hear of it then
            return []
        return self._over(failure, now)

    def server_secured(self, now: float) -> list[Action]:
        opening = self._opening
        assert opening is not None
        self.deadline = now + self.session.shared.settings.answer
        return [ToServer(opening.secured())]

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        if side is not SERVER or self.state == GONE:
            return []
        self._reader.feed(data)
        actions: list[Action] = []
        try:
            while self.state != GONE and (reply := self._reader.next()) is not None:
                actions += self._reply(reply, now)
                if self._opening is not None and self._opening.outcome == HANDSHAKE_WANTED:
                    break
        except BadReply:
            return [*actions, *self._over(Failure.SERVER_PROTOCOL, now)]
        return actions

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        if self.state == GONE:
            return []
        failure = None if self.state == QUITTING else Failure.SERVER_CLOSED
        return self._over(failure, now)

    def expired(self, now: float, blocked: Side | None, progress: float) -> list[Action]:
        if self.state in (QUITTING, GONE):
            return self._over(None, now) if self.state == QUITTING else []
        if self.state == ROUTING:
            return self._over(Failure.LOGIN_REFUSED, now)  # a deadline is there alone while a refusal waits
        return self._over(Failure.SERVER_STALLED if blocked is SERVER else Failure.SERVER_TIMEOUT, now)

    def dismissed(self, why: str, now: float) -> list[Action]:
        return self._over(Failure.ENDED_HERE, now)

    def draining(self, now: float, patient: bool) -> list[Action]:
        return []  # its session decides

    def describe(self) -> dict[str, str]:
        mailbox = self.facts.mailbox.decode("utf-8", "backslashreplace")
        return {"mailbox": mailbox, "detail": f"{mailbox} ({PHASES[self.state]})"}

    # --- replies --------------------------------------------------------------------------------------------------

    def _reply(self, reply: Reply, now: float) -> list[Action]:
        if self.state == OPENING:
            return self._opened(reply, now)
        if self.state == QUITTING and not self._asked:
            return self._over(None, now)
        if self._asked:
            done, _ = self._asked.popleft()
            if self.state != QUITTING:
                self.deadline = self._asked[0][1] if self._asked else 0.0
            if not self.flow.logged_in_at:
                self.flow.logged_in_at = now
            self.flow.status = reply.code
            done(reply, now)
            return []
        if self.state == MESSAGE and reply.kind >= 4:
            self.early = _temporary_end(reply)
            return self._over(Failure.SERVER_ERROR, now)
        if reply.code == 421:
            return self._over(Failure.SERVER_CLOSED, now)
        return self._over(Failure.SERVER_PROTOCOL, now)

    def _opened(self, reply: Reply, now: float) -> list[Action]:
        opening = self._opening
        assert opening is not None
        assert self.assignment is not None
        answer = opening.reply(reply)
        self.deadline = now + self.session.shared.settings.answer
        if opening.outcome == GOES_ON:
            return [ToServer(answer)]
        if opening.outcome == HANDSHAKE_WANTED:
            if not self._reader.empty:
                return self._over(Failure.SERVER_PROTOCOL, now)
            self.deadline = 0.0
            return [StartServerTls()]
        if opening.outcome in (REFUSED, FAILED):
            return self._over(opening.failure, now)
        assert opening.outcome == OPEN
        self.session.shared.offers.learn(self.assignment.pool, self.assignment.server, opening.offer)
        self.state = READY
        self.deadline = 0.0
        if self._login:
            self.flow.logged_in_at = now
        self._ready(reply, now)
        return []

    @property
    def offer(self) -> dict[bytes, bytes]:
        """What its server offers."""
        return self._opening.offer if self._opening is not None else {}

    # --- the end --------------------------------------------------------------------------------------------------

    def _in_place(self) -> Reply:
        """What stands for the replies that don't come."""
        return self.early or speaks_for(self.lost or Failure.SERVER_CLOSED)

    def _over(self, failure: Failure | None, now: float) -> list[Action]:
        """The server is lost, or not needed any more: whoever waits for a reply gets one in its place."""
        if self.state == GONE:
            return []
        before, self.state = self.state, GONE
        self.lost = failure
        self.deadline = 0.0
        blame = failure if failure is not None and failure.owner is Owner.SERVER else None
        if before == ROUTING:
            blame = None
        self.flow.received, self.flow.sent = self.session.counted()
        ended = "ok" if failure is None else f"{failure.label}@{PHASES[before]}"
        actions: list[Action] = [
            Finished(
                self.flow, self.flow.status, failure, ended, self.flow.received, self.flow.sent, now - self.flow.began
            ),
            Release(False, blame, self.flow.latency(), abort=before == MESSAGE),
            Close(),
        ]
        asked, self._asked = self._asked, deque()
        if before in (ROUTING, OPENING):
            self._ready(self._in_place(), now)
        for done, _ in asked:
            done(self._in_place(), now)
        self.session.leg_gone(self, now)
        return actions


def _temporary_end(reply: Reply) -> Reply:
    """A reply that a server closes behind: its client's connection stays."""
    return Reply(451, reply.lines) if reply.code == 421 else reply
