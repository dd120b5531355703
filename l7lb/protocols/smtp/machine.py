"""SMTP by recipient: one server a message, that of the first recipient's mailbox.

There is one reply to a message, so it can't go to two servers: with one that takes it and one that doesn't, whatever
the client is told loses mail or doubles it. Recipients whose mailboxes are on another server get 452 4.5.3, and the
client comes again with them (RFC 5321 section 4.5.3.1.10). With ``recipients: first`` the first one's server gets all.
The states are those of :mod:`l7lb.protocols.mail.esmtp_session`.
"""

from __future__ import annotations

from l7lb.core.errors import Failure
from l7lb.protocols.mail import esmtp_leg
from l7lb.protocols.mail.esmtp_chunks import Chunks
from l7lb.protocols.mail.esmtp_replies import Reply, reply, speaks_for
from l7lb.protocols.mail.esmtp_transaction import LOST, Recipient, Transaction


class SmtpMachine(Chunks):
    """A client's connection; see the module's head."""

    __slots__ = ()

    def none_accepted(self) -> bytes:
        return b"554 5.5.1 No recipient was accepted"

    def whole(self, transaction: Transaction) -> bool:
        """All recipients are on one server: without it none has the message."""
        legs = {recipient.leg for recipient in transaction.recipients}
        return all(leg is not None and leg.state != esmtp_leg.GONE for leg in legs)

    def route(self, recipient: Recipient, now: float) -> None:
        transaction = self.transaction
        assert transaction is not None
        legs = self.live_legs()
        if not self.whole(transaction):
            self.answer_rcpt(reply(LOST), recipient, now)
        elif legs and self.shared.settings.recipients == "first":
            self.add(legs[0], recipient, now)
        else:
            super().route(recipient, now)

    def elsewhere(self, recipient: Recipient, now: float) -> None:
        transaction = self.transaction
        assert transaction is not None
        if transaction.recipients:
            self.answer_rcpt(
                reply(b"452 4.5.3 This recipient is on another server, send to it separately"), recipient, now
            )
            return
        for leg in self.live_legs():
            self.leave_leg(leg, now)  # what it refused is not accepted by anybody
        self.begin_leg(recipient, now)

    def delivered(self, now: float) -> None:
        transaction = self.transaction
        assert transaction is not None
        leg = transaction.recipients[0].leg
        assert leg is not None
        leg.expect(self._answered, now, self.shared.settings.data_answer)

    def _answered(self, answer: Reply, now: float) -> None:
        if self.transaction is None:
            return
        if answer.kind == 3:
            answer = speaks_for(Failure.SERVER_PROTOCOL)
        self.flow.status = answer.code
        self.reply(answer)
        self.over(now)
