"""Mail transactions (RFC 5321 section 3.3) between a client and one or several servers.

MAIL is answered here, since nobody knows yet which server gets it; the first RCPT looks for a server, which then gets
both, so that what it has against the sender is the answer to RCPT. For each further recipient the proxy is asked where
its mailbox is: on a server that the transaction has, or elsewhere, which is the protocol's to decide
(:meth:`Transactions.elsewhere`).

The commit rule: the client's reply to a message is the servers' reply. A server lost before the end of the message has
not taken it; one lost behind it, before its reply, may have: both are 451, so that the client sends it again. That may
store it twice (RFC 1047), and never loses it. A client lost inside a message has its servers reset before the end.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from l7lb.core.actions import Action, Forget, Locate, Side
from l7lb.core.contracts import Location, Peer
from l7lb.core.errors import Failure
from l7lb.core.mailbox import canonical
from l7lb.protocols.mail import esmtp_leg
from l7lb.protocols.mail.esmtp import Command, Fault, parse_path
from l7lb.protocols.mail.esmtp_commands import Commands
from l7lb.protocols.mail.esmtp_data import END, LONE, DataScanner
from l7lb.protocols.mail.esmtp_leg import Leg
from l7lb.protocols.mail.esmtp_parameters import fitting, mail_parameters, rcpt_parameters
from l7lb.protocols.mail.esmtp_replies import Reply, reply, speaks_for
from l7lb.protocols.mail.esmtp_session import COMMAND, MESSAGE, WAITING
from l7lb.protocols.mail.esmtp_shared import RECIPIENTS, EsmtpShared
from l7lb.protocols.mail.facts import MailFacts

LOCATING: Final = 90.0  # seconds for the answer where a mailbox is; whoever gives it has shorter limits of its own
LOST: Final = b"451 4.4.2 The connection to the server was lost, try again later"
UNFIT: Final = b"451 4.3.5 The server can't take this now, try again later"


class Recipient:
    """One RCPT: its text for the server, its facts, and the server that took it."""

    __slots__ = ("facts", "leg", "parameters", "path")

    def __init__(self, path: bytes, parameters: dict[bytes, bytes], facts: MailFacts) -> None:
        self.path = path
        self.parameters = parameters
        self.facts = facts
        self.leg: Leg | None = None


class Transaction:
    """One message. ``recipients`` are those that servers have taken, in their order."""

    __slots__ = ("broken", "chunked", "located", "parameters", "pending", "recipients", "sender", "utf8")

    def __init__(self, sender: bytes, parameters: dict[bytes, bytes]) -> None:
        self.sender = sender
        self.parameters = parameters
        self.utf8 = b"SMTPUTF8" in parameters
        self.recipients: list[Recipient] = []
        self.pending: Recipient | None = None  # the one that is asked about
        self.located: list[MailFacts] = []  # claimed beside the legs' own
        self.chunked = False  # BDAT has begun
        self.broken: Reply | None = None  # why no more of the message is taken


class Transactions(Commands):
    """Adds MAIL, RCPT, DATA and RSET; see the module's head."""

    __slots__ = ("_scanner", "replies", "transaction")

    def __init__(self, shared: EsmtpShared, peer: Peer, now: float) -> None:
        super().__init__(shared, peer, now)
        self.transaction: Transaction | None = None
        self._scanner = DataScanner()
        self.replies = 0  # of servers that are awaited

    # --- what a protocol decides ----------------------------------------------------------------------------------

    def elsewhere(self, recipient: Recipient, now: float) -> None:
        """The recipient's mailbox is on a server that the transaction does not have."""
        raise NotImplementedError

    def delivered(self, now: float) -> None:
        """The message has ended: tell the client the servers' replies as they come, and then :meth:`over`."""
        raise NotImplementedError

    def none_accepted(self) -> bytes:
        """The answer to a message without recipients."""
        raise NotImplementedError

    def leave_leg(self, leg: Leg, now: float) -> None:
        """The transaction needs this server no longer."""
        leg.quit(now)

    # --- commands -------------------------------------------------------------------------------------------------

    def idle(self) -> bool:
        return self.transaction is None

    def mail_command(self, command: Command, now: float) -> None:
        verb = command.verb
        if verb == b"MAIL":
            self.mail(command.argument, now)
        elif verb == b"RCPT":
            self._rcpt(command.argument, now)
        elif verb == b"DATA":
            self._data(command.argument, now)
        elif verb == b"RSET":
            if command.argument:
                raise Fault(b"501 5.5.4 RSET has no argument")
            self.rset(now)
        else:
            raise Fault(b"500 5.5.1 That command is not known here")

    def mail(self, argument: bytes, now: float) -> None:
        """MAIL: begin a transaction."""
        transaction = self.new_transaction(argument)
        self.transaction = transaction
        self.say(b"250 2.1.0 OK", now)

    def new_transaction(self, argument: bytes) -> Transaction:
        """The transaction that MAIL begins. Raises Fault."""
        if not self.hello:
            raise Fault(b"503 5.5.1 Say " + self.shared.server_hello + b" first")
        if self.transaction is not None:
            raise Fault(b"503 5.5.1 A transaction is in progress")
        path, parameters = parse_path(argument, b"FROM:")
        mail_parameters(parameters, self.offer, logged_in=self.shared.logs_in)
        if path.utf8 and b"SMTPUTF8" not in parameters:
            raise Fault(b"553 5.6.7 This address needs SMTPUTF8")
        return Transaction(path.text, parameters)

    def rset(self, now: float) -> None:
        """RSET: give the transaction up."""
        self.forget(now)
        self.say(b"250 2.0.0 OK", now)

    def forget(self, now: float) -> None:
        transaction, self.transaction = self.transaction, None
        if transaction is None:
            return
        for facts in transaction.located:
            self.do(Forget(facts))
        if transaction.pending is not None:
            self.do(Forget(transaction.pending.facts))
        for leg in list(self.legs.values()):
            self.leave_leg(leg, now)

    # --- recipients -----------------------------------------------------------------------------------------------

    def _rcpt(self, argument: bytes, now: float) -> None:
        transaction = self.transaction
        if transaction is None:
            raise Fault(b"503 5.5.1 Say MAIL first")
        if transaction.chunked:
            raise Fault(b"503 5.5.1 The message has begun")
        path, parameters = parse_path(argument, b"TO:")
        rcpt_parameters(parameters, self.offer)
        if path.utf8 and not transaction.utf8:
            raise Fault(b"553 5.6.7 This address needs SMTPUTF8")
        if len(transaction.recipients) >= RECIPIENTS:
            raise Fault(b"452 4.5.3 Too many recipients, send to the others separately")
        facts = self.facts()
        facts.user = path.mailbox
        facts.address = facts.mailbox = canonical(path.mailbox, self.shared.addresses)
        recipient = transaction.pending = Recipient(path.text, parameters, facts)
        self.state = WAITING
        self.route(recipient, now)

    def route(self, recipient: Recipient, now: float) -> None:
        """Find the server of a recipient."""
        legs = self.live_legs()
        if not legs:
            self.begin_leg(recipient, now)
        elif any(leg.facts.mailbox == recipient.facts.mailbox for leg in legs):
            self.add(next(leg for leg in legs if leg.facts.mailbox == recipient.facts.mailbox), recipient, now)
        else:
            self.do(Locate(recipient.facts))
            self.locating_until = now + LOCATING

    def live_legs(self) -> list[Leg]:
        """The servers that the transaction has."""
        return [leg for leg in self.legs.values() if leg.state == esmtp_leg.READY]

    def located(self, location: Location, now: float) -> list[Action]:
        transaction = self.transaction
        recipient = transaction.pending if transaction is not None else None
        if transaction is None or recipient is None or location.facts is not recipient.facts:
            return []
        if location.failure is not None or location.pool is None or location.server is None:
            self.answer_rcpt(speaks_for(location.failure or Failure.NO_SERVER), recipient, now)
            return []
        self.locating_until = 0.0
        place = (location.pool.name, location.server.name)
        leg = next((leg for leg in self.live_legs() if leg.place == place), None)
        if leg is None:
            self.do(Forget(recipient.facts))
            self.elsewhere(recipient, now)
        else:
            transaction.located.append(recipient.facts)
            self.add(leg, recipient, now)
        return []

    def expired(self, now: float, blocked: Side | None, progress: float) -> list[Action]:
        transaction = self.transaction
        pending = transaction.pending if transaction is not None else None
        if self.state == WAITING and self.locating_until and pending is not None and blocked is None:
            self.do(Forget(pending.facts))
            self.answer_rcpt(speaks_for(Failure.NO_STATE), pending, now)
            return self.output(0, now)
        return super().expired(now, blocked, progress)

    def begin_leg(self, recipient: Recipient, now: float) -> None:
        """The recipient's server is one that the transaction does not have yet."""
        recipient.leg = self.open_leg(recipient.facts, False, partial(self._opened, recipient), now)

    def _opened(self, recipient: Recipient, answer: Reply, now: float) -> None:
        leg, transaction = recipient.leg, self.transaction
        assert leg is not None
        if transaction is None or transaction.pending is not recipient:
            return
        if leg.state != esmtp_leg.READY:
            self.answer_rcpt(answer, recipient, now)
            return
        text = fitting(transaction.parameters, leg.offer)
        if text is None:
            # It can't do what was offered to the client when its capabilities were not known yet.
            self.answer_rcpt(reply(UNFIT), recipient, now)
            self.leave_leg(leg, now)
            return
        done = partial(self._sender_judged, leg, recipient)
        leg.ask(b"MAIL FROM:" + transaction.sender + text + b"\r\n", done, now)
        if b"PIPELINING" in leg.offer:
            self.add(leg, recipient, now)

    def _sender_judged(self, leg: Leg, recipient: Recipient, answer: Reply, now: float) -> None:
        transaction = self.transaction
        if transaction is None or transaction.pending is not recipient:
            return
        if answer.kind != 2:
            self.answer_rcpt(answer, recipient, now)
            leg.abort(None, now)
        elif b"PIPELINING" not in leg.offer:
            self.add(leg, recipient, now)

    def add(self, leg: Leg, recipient: Recipient, now: float) -> None:
        """Have a server take a recipient."""
        text = fitting(recipient.parameters, leg.offer)
        if text is None:
            self.answer_rcpt(
                reply(b"451 4.3.5 The server can't take this recipient now, try again later"), recipient, now
            )
            return
        recipient.leg = leg
        leg.ask(
            b"RCPT TO:" + recipient.path + text + b"\r\n", lambda got, then: self.answer_rcpt(got, recipient, then), now
        )

    def answer_rcpt(self, answer: Reply, recipient: Recipient, now: float) -> None:
        """The reply to RCPT."""
        transaction = self.transaction
        if transaction is None or transaction.pending is not recipient:
            return
        transaction.pending = None
        self.locating_until = 0.0
        if answer.kind == 2 and recipient.leg is not None:
            recipient.leg.accepted += 1
            transaction.recipients.append(recipient)
        elif answer.kind == 3:
            answer = speaks_for(Failure.SERVER_PROTOCOL)
        self.flow.facts = recipient.facts
        self.reply(answer)
        self.state = COMMAND

    # --- the message ----------------------------------------------------------------------------------------------

    def message_legs(self) -> list[Leg]:
        """The servers that the message goes to: those that took a recipient and are still there."""
        return [leg for leg in self.legs.values() if leg.accepted and leg.state != esmtp_leg.GONE]

    def drop(self, leg: Leg, failure: Failure | None, now: float) -> None:
        """A server has refused the message; ``failure``: it broke the protocol."""
        leg.abort(failure, now)

    def whole(self, transaction: Transaction) -> bool:
        """Whether enough of the recipients' servers are there for the message to be taken."""
        return bool(self.message_legs())

    def drop_bystanders(self, now: float) -> None:
        """Servers that took no recipient don't get the message."""
        for leg in list(self.legs.values()):
            if not leg.accepted and leg.state != esmtp_leg.GONE:
                self.leave_leg(leg, now)

    def _data(self, argument: bytes, now: float) -> None:
        transaction = self.transaction
        if argument:
            raise Fault(b"501 5.5.4 DATA has no argument")
        if transaction is None:
            raise Fault(b"503 5.5.1 Say MAIL first")
        if transaction.chunked:
            raise Fault(b"503 5.5.1 The message has begun with BDAT")
        if not transaction.recipients:
            raise Fault(self.none_accepted())
        if transaction.parameters.get(b"BODY", b"").upper() == b"BINARYMIME":
            raise Fault(b"503 5.5.1 BINARYMIME goes with BDAT")
        self.drop_bystanders(now)
        if not self.whole(transaction):
            self.say(LOST, now)
            self.over(now)
            return
        self.state = WAITING
        legs = self.message_legs()
        self.replies = len(legs)
        refusals: list[Reply] = []
        for leg in legs:
            leg.ask(b"DATA\r\n", partial(self._data_answered, leg, refusals), now)

    def _data_answered(self, leg: Leg, refusals: list[Reply], answer: Reply, now: float) -> None:
        self.replies -= 1
        if answer.code == 354 and leg.state == esmtp_leg.READY:
            leg.state = esmtp_leg.MESSAGE
        else:
            if answer.kind < 4:
                answer = speaks_for(Failure.SERVER_PROTOCOL)
            refusals.append(answer)
            leg.early = answer
            self.drop(leg, answer.lost, now)
        if self.replies:
            return
        if any(one.state == esmtp_leg.MESSAGE for one in self.legs.values()):
            self.say(b"354 End the message with a dot on a line of its own", now)
            self._scanner = DataScanner()
            self.state = MESSAGE
        else:
            self.reply(refusals[0])
            self.over(now)

    def message_bytes(self, now: float) -> None:
        self.deadline = now + self.shared.settings.command
        scanner = self._scanner
        passed, used = scanner.feed(bytes(self.buffer))
        del self.buffer[:used]
        if passed:
            for leg in self.message_legs():
                leg.send(passed)
        if scanner.state == LONE:
            for leg in self.message_legs():
                leg.abort(Failure.CLIENT_PROTOCOL, now)
            self.leave(b"521 5.5.2 A line ends in CRLF, not in LF or CR alone", Failure.CLIENT_PROTOCOL, now)
        elif scanner.state == END:
            self.whole_message(now)

    def whole_message(self, now: float) -> None:
        """The servers have the end of the message: what they say now counts."""
        for leg in self.message_legs():
            leg.state = esmtp_leg.READY
        self.state = WAITING
        self.delivered(now)

    def over(self, now: float) -> None:
        """The message has been answered."""
        self.state = COMMAND
        self.forget(now)
