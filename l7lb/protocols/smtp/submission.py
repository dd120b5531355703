"""Submission (RFC 6409): whoever sends must log in first, and the login's mailbox decides the server.

That one server takes all messages of the connection, after it has taken the login: by the client's own credentials or
what a directory says, since nobody else can judge them. The states are those of
:mod:`l7lb.protocols.mail.esmtp_session`; when the server is lost between messages, so is the client's connection (421).
"""

from __future__ import annotations

from functools import partial

from l7lb.core.actions import LoginFailed
from l7lb.core.contracts import Peer
from l7lb.core.errors import Failure
from l7lb.core.mailbox import canonical
from l7lb.protocols.mail import esmtp_leg
from l7lb.protocols.mail.esmtp import Command, Fault
from l7lb.protocols.mail.esmtp_leg import Leg
from l7lb.protocols.mail.esmtp_parameters import fitting
from l7lb.protocols.mail.esmtp_replies import Reply, speaks_for
from l7lb.protocols.mail.esmtp_session import COMMAND, LOGIN, WAITING
from l7lb.protocols.mail.esmtp_shared import EsmtpShared
from l7lb.protocols.mail.esmtp_transaction import UNFIT, Recipient, Transaction
from l7lb.protocols.mail.facts import MailFacts
from l7lb.protocols.mail.sasl import INVALID_TOKEN, Exchange, Identity, SaslFault, decoded, encoded
from l7lb.protocols.mail.shared import certified_name
from l7lb.protocols.smtp.machine import SmtpMachine

REFUSED = b"535 5.7.8 The credentials are not accepted"


class SubmissionMachine(SmtpMachine):
    """A client's connection; see the module's head."""

    __slots__ = ("_attempts", "_exchange", "_excuse", "_server", "_server_open")

    def __init__(self, shared: EsmtpShared, peer: Peer, now: float) -> None:
        super().__init__(shared, peer, now)
        self._attempts = 0
        self._exchange: Exchange | None = None
        self._excuse = False  # the client has one word more about its refused token
        self._server: Leg | None = None  # that has taken the login
        self._server_open = False  # a transaction is in progress there

    # --- AUTH (RFC 4954) ------------------------------------------------------------------------------------------

    def keywords(self) -> list[bytes]:
        offered = self.shared.offered(self.peer)
        return [b"AUTH " + " ".join(offered).upper().encode()] if offered else []

    def mail_command(self, command: Command, now: float) -> None:
        if command.verb == b"AUTH":
            self._auth(command.argument, now)
        elif self._server is None and command.verb in (b"MAIL", b"RCPT", b"DATA", b"BDAT"):
            if command.verb == b"BDAT":
                super().mail_command(command, now)  # its bytes are skipped
            else:
                raise Fault(b"530 5.7.0 Log in first")
        else:
            super().mail_command(command, now)

    def _auth(self, argument: bytes, now: float) -> None:
        name, _, initial = argument.partition(b" ")
        mechanism = name.lower().decode("latin-1")
        if self._server is not None:
            raise Fault(b"503 5.5.1 You are logged in already")
        if not self.hello:
            raise Fault(b"503 5.5.1 Say EHLO first")
        offered = self.shared.offered(self.peer)
        if not offered:
            raise Fault(b"538 5.7.11 Log in over TLS: say STARTTLS first")
        if mechanism not in offered:
            raise Fault(b"504 5.5.4 That mechanism is not offered")
        self._exchange = Exchange(mechanism, certified_name(self.peer))
        self.state = LOGIN
        initial = initial.strip()
        if initial:
            self._respond(b"" if initial == b"=" else initial, now)
        else:
            self._challenge(self._exchange.challenge, now)

    def _challenge(self, data: bytes, now: float) -> None:
        self.say(b"334 " + encoded(data), now)

    def response(self, line: bytes, now: float) -> None:
        if self._excuse:
            self._excuse = False
            self._refused(now)
        elif line == b"*":
            self.state = COMMAND
            self.refuse(b"501 5.7.0 The login was cancelled", now)
        else:
            self._respond(line, now)

    def _respond(self, line: bytes, now: float) -> None:
        exchange = self._exchange
        assert exchange is not None
        try:
            identity = exchange.step(decoded(line))
        except SaslFault:
            self.state = COMMAND
            self.refuse(b"501 5.5.2 That is no response of this mechanism", now)
            return
        if identity is None:
            self._challenge(exchange.challenge, now)
        else:
            self._log_in(identity, exchange.mechanism, now)

    def _log_in(self, identity: Identity, mechanism: str, now: float) -> None:
        self._attempts += 1
        facts = self.flow.facts = self.facts()
        facts.user, facts.password = identity.user, identity.password
        facts.authorization, facts.token = identity.authorization, identity.token
        facts.mechanism = mechanism
        facts.attempt = self._attempts
        facts.address = facts.mailbox = canonical(identity.authorization or identity.user, self.shared.addresses)
        self.state = WAITING
        self.open_leg(facts, True, partial(self._judged, self.next_leg, facts), now)

    def _judged(self, number: int, facts: MailFacts, answer: Reply, now: float) -> None:
        leg = self.legs.get(number)
        if leg is not None and leg.state == esmtp_leg.READY:
            self._server = leg
            self.login_until = 0.0
            self.state = COMMAND
            self.say(b"235 2.7.0 You are logged in", now)
            return
        lost = leg.lost if leg is not None else None
        if lost is Failure.LOGIN_REFUSED:
            self.do(LoginFailed(facts.source))
        if lost not in (Failure.LOGIN_REFUSED, Failure.NO_MAILBOX, Failure.NO_ROUTE):
            self.state = COMMAND
            self.say(b"454 4.7.0 The login can't be judged now, try again later", now)
        elif facts.token:
            self._excuse = True
            self.state = LOGIN
            self._challenge(INVALID_TOKEN, now)
        else:
            self._refused(now)

    def _refused(self, now: float) -> None:
        self.state = COMMAND
        if self._attempts >= self.shared.settings.login_attempts:
            self.leave(REFUSED, Failure.LOGIN_REFUSED, now)
        else:
            self.say(REFUSED, now)

    # --- mail -----------------------------------------------------------------------------------------------------

    def mail(self, argument: bytes, now: float) -> None:
        transaction, server = self.new_transaction(argument), self._server
        assert server is not None
        text = fitting(transaction.parameters, server.offer)
        if text is None:
            raise Fault(UNFIT)
        self.state = WAITING
        server.ask(b"MAIL FROM:" + transaction.sender + text + b"\r\n", partial(self._begun, transaction), now)

    def _begun(self, transaction: Transaction, answer: Reply, now: float) -> None:
        if answer.kind == 2:
            self.transaction = transaction
            self._server_open = True
        elif answer.kind == 3:
            answer = speaks_for(Failure.SERVER_PROTOCOL)
        self.reply(answer)
        self.state = COMMAND

    def route(self, recipient: Recipient, now: float) -> None:
        server = self._server
        if server is None or server.state == esmtp_leg.GONE:
            self.answer_rcpt(speaks_for(Failure.SERVER_CLOSED), recipient, now)
        else:
            self.add(server, recipient, now)

    def drop(self, leg: Leg, failure: Failure | None, now: float) -> None:
        if failure is not None:
            leg.abort(failure, now)
        elif leg.state == esmtp_leg.MESSAGE:
            leg.state = esmtp_leg.READY

    def leave_leg(self, leg: Leg, now: float) -> None:
        leg.accepted = 0
        leg.early = None
        if self._server_open and leg is self._server:
            self._server_open = False
            if leg.state == esmtp_leg.MESSAGE:
                leg.state = esmtp_leg.READY
            if leg.state == esmtp_leg.READY:
                leg.ask(b"RSET\r\n", _nothing, now)

    def over(self, now: float) -> None:
        self._server_open = False  # the server's transaction is over by its own reply
        super().over(now)

    def leg_gone(self, leg: Leg, now: float) -> None:
        super().leg_gone(leg, now)
        if leg is self._server:
            self._server_open = False
            self.leaves(Failure.SERVER_CLOSED)


def _nothing(answer: Reply, now: float) -> None:
    """A reply of no consequence."""
