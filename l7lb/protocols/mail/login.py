"""A mail session up to its login, and the tunnel behind it: what IMAP, POP3 and ManageSieve have in common.

Theory of operation. The client talks to the machine until it has said who it is. Then a server is found, the machine
logs in there, and from the server's consent on the bytes go past.

==========  ==========================================  ==============================================================
state       waits for                                   leaves on
==========  ==========================================  ==============================================================
COMMANDS    the client's next command                   login -> ROUTING; AUTHENTICATE -> RESPONSES; STARTTLS ->
                                                        SECURING; goodbye, time, a limit -> CLOSED
RESPONSES   its response to a SASL challenge            the last -> ROUTING; cancelled, malformed -> COMMANDS
SECURING    the handshake with the client               secured -> COMMANDS
ROUTING     a server (directory, claim, queue and       connected -> DIALOGUE; failed -> COMMANDS, with an answer
            connect are the proxy's)
DIALOGUE    what the server says                        its consent -> TUNNEL; its TLS -> SECURED; refused, failed,
                                                        end, time -> COMMANDS, with an answer; a token refused -> EXCUSE
SECURED     the handshake with the server               server_secured -> DIALOGUE; failed -> COMMANDS, with an answer
EXCUSE      the client's word to the error challenge    whatever it is -> COMMANDS, with an answer
TUNNEL      the end of both sides                       both ends, reset, time without a byte -> CLOSED
CLOSED      nothing                                     what still comes is discarded
==========  ==========================================  ==============================================================

What a client sends behind its login waits in ``buffer`` until it is answered: with consent it is what the server gets
first, else it is the next command. Nothing that came before TLS means anything behind it, on either side: bytes in the
buffer when a handshake begins end the connection.

A protocol derives its session from :class:`LoginSession` and says in its own words what
:class:`l7lb.protocols.mail.wording.Wording` has.
"""

from __future__ import annotations

from typing import Final

from l7lb.core.actions import (
    CLIENT,
    SERVER,
    Action,
    LoginFailed,
    NeedServer,
    Release,
    Side,
    StartServerTls,
    StartTls,
    ToServer,
    Tunnel,
)
from l7lb.core.contracts import Assignment, Choice
from l7lb.core.errors import Failure, Owner
from l7lb.core.mailbox import canonical
from l7lb.protocols.mail.base import (
    CLOSED,
    COMMANDS,
    DIALOGUE,
    EXCUSE,
    RESPONSES,
    ROUTING,
    SECURED,
    SECURING,
    TALKING,
    TUNNEL,
    MailSession,
)
from l7lb.protocols.mail.credentials import server_credentials
from l7lb.protocols.mail.dialogue import ACCEPTED, GOES_ON, TLS
from l7lb.protocols.mail.failures import permanent
from l7lb.protocols.mail.lines import LineTooLong, foreign
from l7lb.protocols.mail.origin import Origin
from l7lb.protocols.mail.sasl import INVALID_TOKEN, Exchange, Identity, SaslFault, decoded
from l7lb.protocols.mail.shared import certified_name

READ_AHEAD: Final = 16 * 1024  # bytes taken from a client behind its login
LONGEST_WAIT: Final = 30.0  # seconds that a refusal is held back
SERVER_BYTES: Final = 64 * 1024  # that a server may say before it consents
PATIENCE: Final = 5.0  # seconds that a client which is not logged in gets while this process ends


class LoginSession(MailSession):
    """A client's connection; see the module's head and :class:`l7lb.core.contracts.Session`."""

    __slots__ = ()

    # --- what the proxy tells ---------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        return self.say(self.greeting())

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        if side is SERVER:
            return self._heard(data, now)
        if self.state == CLOSED:
            return []
        self.flow.received += len(data)
        self.buffer += data
        if self.state in TALKING:
            return self.work(now)
        if self.state == SECURING:
            return self.end(Failure.CLIENT_PROTOCOL, now)  # in the clear, behind its request for TLS
        if len(self.buffer) >= READ_AHEAD:
            self.wants_client = False
        return []

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        state, flow = self.state, self.flow
        if state == CLOSED:
            return []
        if state == TUNNEL:
            if not flow.closed_by:
                flow.closed_by = "client" if side is CLIENT else "server"
            if not error:
                return self.close(None, "ok", now)
            return self.cut(Failure.CLIENT_CLOSED if side is CLIENT else Failure.SERVER_CLOSED_INSIDE, now)
        if side is SERVER:
            return self.give_up(Failure.SERVER_CLOSED, now) if state in (DIALOGUE, SECURED) else []
        flow.closed_by = "client"
        if error or state in TALKING or state == SECURING:
            return self.close(Failure.CLIENT_CLOSED, self._ended_at(Failure.CLIENT_CLOSED), now)
        # It may have sent everything that it has to say behind its login, and waits for the answers.
        self.half_closed = True
        self.wants_client = False
        return []

    def half_ended(self, side: Side, now: float) -> None:
        if not self.flow.closed_by:
            self.flow.closed_by = "client" if side is CLIENT else "server"
        self.idle = min(self.idle, self.settings.half_closed)
        self.deadline = now + self.idle

    def secured(self, now: float) -> list[Action]:
        self.state = COMMANDS
        self.spoken = False
        self.deadline = now + self.settings.login
        self.wants_client = True
        return self.end(Failure.SHUTDOWN, now) if self.draining_now else []

    def connected(self, assignment: Assignment, now: float) -> list[Action]:
        self.assignment = self.flow.assignment = assignment
        self.flow.choice = assignment.choice
        self.flow.connected_at = now
        self.server_buffer = bytearray()
        self.wants_server = True
        self.state = DIALOGUE
        credentials = server_credentials(self.facts, assignment)
        if credentials is None:
            return self.give_up(Failure.MAILBOX_SERVER, now)
        if self.origin.hops < 0:
            return self.give_up(Failure.MAILBOX_SERVER, now)  # proxies that lead to one another
        self.dialogue = self.converse(assignment, credentials)
        self.deadline = now + self.settings.greeting
        return []

    def server_secured(self, now: float) -> list[Action]:
        dialogue = self.dialogue
        if self.state != SECURED or dialogue is None:
            return []
        self.state = DIALOGUE
        self.deadline = now + self.settings.answer
        dialogue.outcome = GOES_ON
        data = dialogue.secured()
        return [ToServer(data)] if data else []

    def answered(self, choice: Choice, now: float) -> list[Action]:
        # The configuration's check lets no such rule pass.
        return self.failed(Failure.NO_ROUTE, choice, now)

    def failed(self, failure: Failure, choice: Choice | None, now: float) -> list[Action]:
        if choice is not None:
            self.flow.choice = choice
        if self.state == CLOSED:
            return []
        wait = min(getattr(self.facts, "wait", 0.0), LONGEST_WAIT) if failure is Failure.LOGIN_REFUSED else 0.0
        if wait > 0.0 and self.state == ROUTING:
            self.failure = failure
            self.deadline = now + wait  # whoever refused it wants the client to hear of it then
            return []
        return self.give_up(failure, now)

    def dismissed(self, why: str, now: float) -> list[Action]:
        if self.state == CLOSED:
            return []
        ended = self._ended_at(Failure.ENDED_HERE)
        # Behind the login it is the proxy that sees whether this is the middle of an answer: then it leaves this out.
        said = [] if self.state == SECURING else self.say(self.farewell(Failure.ENDED_HERE, why))
        return [*said, *self.close(Failure.ENDED_HERE, ended, now)]

    def moved(self, side: Side, count: int, now: float) -> list[Action]:
        self.deadline = now + self.idle
        if side is CLIENT:
            self.flow.received += count
        else:
            self.flow.sent += count
        return []

    def expired(self, now: float, blocked: Side | None, progress: float) -> list[Action]:
        state = self.state
        if state == TUNNEL:
            return self.cut(Failure.SERVER_STALLED if blocked is SERVER else Failure.CLIENT_TIMEOUT, now)
        if state in (DIALOGUE, SECURED):
            return self.give_up(Failure.SERVER_TIMEOUT, now)
        if state == ROUTING:
            return self.give_up(self.failure, now)  # a deadline is there alone while a refusal waits
        if state == CLOSED:
            self.deadline = 0.0
            return []
        return self.end(Failure.SHUTDOWN if self.draining_now else Failure.CLIENT_TIMEOUT, now)

    def draining(self, now: float, patient: bool) -> list[Action]:
        self.draining_now = True
        if self.state == SECURING:
            return []
        if self.state not in TALKING:
            return []  # a login goes on, and a session as long as the process may
        if not patient:
            return self.end(Failure.SHUTDOWN, now)
        self.deadline = min(self.deadline, now + PATIENCE)
        return []

    # --- steps of the client's side ---------------------------------------------------------------------------

    def work(self, now: float) -> list[Action]:
        """Carry out what the buffer has, as far as it is complete and the state lets it be listened to."""
        actions: list[Action] = []
        while self.state in TALKING:
            try:
                if not self.spoken and foreign(self.buffer):
                    return [*actions, *self.cut(Failure.CLIENT_PROTOCOL, now)]
                waiting = len(self.buffer)
                more = self.command(now) if self.state == COMMANDS else self._respond(now)
                self.spoken = self.spoken or len(self.buffer) < waiting
            except LineTooLong:
                return [*actions, *self.end(Failure.CLIENT_LIMIT, now)]
            if more is None:
                if self.half_closed:
                    actions += self.close(Failure.CLIENT_CLOSED, self._ended_at(Failure.CLIENT_CLOSED), now)
                break
            actions += more
        return actions

    def begin_tls(self, answer: bytes, now: float) -> list[Action]:
        """The client asks for TLS, which is offered: ``answer`` is the last that it reads in the clear."""
        if self.buffer:
            return self.cut(Failure.CLIENT_PROTOCOL, now)  # what somebody else may have put in (CVE-2011-0411)
        self.state = SECURING
        self.exchange = None
        self.facts = self.make_facts()
        self.origin = Origin(self.peer, self.settings.hops)
        return [*self.say(answer), StartTls()]

    def begin_sasl(self, mechanism: str, initial: bytes | None, now: float) -> list[Action]:
        """AUTHENTICATE with this mechanism, which is offered; ``initial`` is its first response as on the wire, None
        where there is none. ``=`` is an empty one (RFC 4959 section 3).
        """
        self.exchange = Exchange(mechanism, certified_name(self.peer))
        self.state = RESPONSES
        if initial is None:
            return self.say(self.challenge(self.exchange.challenge))
        return self._step(b"" if initial == b"=" else initial, now)

    def login(self, identity: Identity, mechanism: str, now: float) -> list[Action]:
        """This is who the client is: find its server. The answer is :meth:`welcome` or :meth:`refusal`."""
        self.attempts += 1
        facts = self.facts = self.flow.facts = self.make_facts()
        self.flow.choice = self.flow.assignment = None
        facts.user = identity.user
        facts.password = identity.password
        facts.authorization = identity.authorization
        facts.token = identity.token
        facts.mechanism = mechanism
        facts.attempt = self.attempts
        facts.address = facts.mailbox = canonical(identity.authorization or identity.user, self.shared.addresses)
        self.exchange = None
        self.state = ROUTING
        self.deadline = 0.0
        if len(self.buffer) >= READ_AHEAD:
            self.wants_client = False
        return [NeedServer(facts, fresh=True)]

    def _respond(self, now: float) -> list[Action] | None:
        """The client's next line of SASL."""
        line = self.response_line()
        if line is None:
            return None
        if self.state == EXCUSE:
            return self._answer(self.failure, now)
        if line == b"*":
            self.state, self.exchange = COMMANDS, None
            return self.say(self.malformed(b"Authentication cancelled."))
        return self._step(line, now)

    def _step(self, line: bytes, now: float) -> list[Action]:
        exchange = self.exchange
        assert exchange is not None
        try:
            identity = exchange.step(decoded(line))
        except SaslFault as fault:
            self.state, self.exchange = COMMANDS, None
            return self.complain(self.malformed(str(fault).encode()), now)
        if identity is None:
            return self.say(self.challenge(exchange.challenge))
        return self.login(identity, exchange.mechanism, now)

    # --- steps of the server's side ---------------------------------------------------------------------------

    def _heard(self, data: bytes, now: float) -> list[Action]:
        dialogue = self.dialogue
        if self.state != DIALOGUE or dialogue is None:
            # Behind its consent to TLS it says nothing in the clear (CVE-2021-33515 and its kin).
            return self.give_up(Failure.SERVER_PROTOCOL, now) if self.state == SECURED else []
        self.server_buffer += data
        said = dialogue.received(self.server_buffer)
        if len(self.server_buffer) > SERVER_BYTES and dialogue.outcome == GOES_ON:
            dialogue.fail(Failure.SERVER_PROTOCOL)
        actions: list[Action] = [ToServer(said)] if said else []
        outcome = dialogue.outcome
        if outcome == GOES_ON:
            if said:  # else it goes on with what it was asked for: it has no more time for that
                self.deadline = now + self.settings.answer
            return actions
        if outcome == TLS:
            if self.server_buffer:
                return self.give_up(Failure.SERVER_PROTOCOL, now)
            self.state = SECURED
            self.deadline = now + self.settings.answer
            return [*actions, StartServerTls()]
        if outcome == ACCEPTED:
            return [*actions, *self._enter(now)]
        return [*actions, *self.give_up(dialogue.failure, now)]

    def _enter(self, now: float) -> list[Action]:
        """The server has consented: the client hears of it, and what it has sent already goes first."""
        self.flow.logged_in_at = now
        actions = self.say(self.welcome())
        if self.server_buffer:
            actions += self.say(bytes(self.server_buffer))
        if self.buffer:
            actions.append(ToServer(bytes(self.buffer)))
        self.buffer = bytearray()
        self.server_buffer = bytearray()
        self.dialogue = None
        self.facts.password = b""
        self.wants_client = True
        self.state = TUNNEL
        self.deadline = now + self.idle
        return [*actions, Tunnel(self.idle)]

    def give_up(self, failure: Failure, now: float) -> list[Action]:
        """The login has come to nothing: the server's connection is closed, and the client gets its answer."""
        actions: list[Action] = []
        refused = permanent(failure)
        if self.state in (ROUTING, DIALOGUE, SECURED):
            blamed = self.assignment is not None and (self.dialogue is None or self.dialogue.blamed)
            blame = failure if failure.owner is Owner.SERVER and blamed else None
            actions.append(Release(False, blame))
        self.assignment = None
        if refused:
            actions.append(LoginFailed(self.facts.source))
        token = self.facts.token and refused and self._token_by_sasl()
        if token:
            self.state, self.failure = EXCUSE, failure
            self.deadline = now + self.settings.login
            self.wants_client = True
            actions += self.say(self.challenge(INVALID_TOKEN))
            return [*actions, *self.work(now)]
        return [*actions, *self._answer(failure, now), *self.work(now)]

    def _token_by_sasl(self) -> bool:
        return self.facts.mechanism in ("xoauth2", "oauthbearer")

    def _answer(self, failure: Failure, now: float) -> list[Action]:
        """The client is told that its login came to nothing, and may try again."""
        actions = self.say(self.refusal(failure))
        self.state = COMMANDS
        self.dialogue = None
        self.server_buffer = bytearray()
        self.facts.password = b""
        self.wants_client = not self.half_closed
        self.deadline = now + self.settings.login
        if self.attempts >= self.settings.login_attempts:
            return [*actions, *self.end(failure, now)]
        if self.draining_now:
            return [*actions, *self.end(Failure.SHUTDOWN, now)]
        return actions
