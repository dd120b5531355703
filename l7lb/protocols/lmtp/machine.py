"""LMTP by recipient: a message goes to the servers of all its recipients, and each recipient has a reply of its own.

That is what makes a fan-out right here: who stored it says so, and who didn't is tried again, without the others. The
replies behind the message come in the recipients' order, whichever server is the first to answer. A server that is lost
is lost for its own recipients only. The states are those of :mod:`l7lb.protocols.mail.esmtp_session`.
"""

from __future__ import annotations

from l7lb.core.contracts import Peer
from l7lb.core.errors import Failure
from l7lb.protocols.mail.esmtp_chunks import Chunks
from l7lb.protocols.mail.esmtp_replies import Reply, speaks_for
from l7lb.protocols.mail.esmtp_shared import EsmtpShared
from l7lb.protocols.mail.esmtp_transaction import Recipient


class LmtpMachine(Chunks):
    """A client's connection; see the module's head."""

    __slots__ = ("_answers",)

    def __init__(self, shared: EsmtpShared, peer: Peer, now: float) -> None:
        super().__init__(shared, peer, now)
        self._answers: list[Reply | None] = []  # by recipient; those that were told are gone

    def none_accepted(self) -> bytes:
        return b"503 5.5.1 No recipient was accepted"

    def elsewhere(self, recipient: Recipient, now: float) -> None:
        self.begin_leg(recipient, now)

    def delivered(self, now: float) -> None:
        transaction = self.transaction
        assert transaction is not None
        self._answers = [None] * len(transaction.recipients)
        for number, recipient in enumerate(transaction.recipients):
            leg = recipient.leg
            assert leg is not None
            leg.expect(
                lambda answer, then, number=number: self._answered(number, answer, then),  # type: ignore[misc]
                now,
                self.shared.settings.data_answer,
            )
        self._tell(now)

    def _answered(self, number: int, answer: Reply, now: float) -> None:
        if self.transaction is None:
            return
        told = len(self.transaction.recipients) - len(self._answers)
        self._answers[number - told] = answer if answer.kind != 3 else speaks_for(Failure.SERVER_PROTOCOL)
        self._tell(now)

    def _tell(self, now: float) -> None:
        """The replies that are due: as many as are known from the first on."""
        answers = self._answers
        if self.transaction is None:
            return
        while answers and (answer := answers[0]) is not None:
            del answers[0]
            self.reply(answer)
        if not answers:
            self.over(now)
