"""BDAT (RFC 3030): messages in chunks whose bytes are counted.

A chunk's bytes are on their way behind its command, whatever the answer will be: those that nobody wants are skipped.
Once a chunk was refused the message is broken, and the chunks behind it are refused alike, until RSET.
"""

from __future__ import annotations

from functools import partial

from l7lb.core.contracts import Peer
from l7lb.core.errors import Failure
from l7lb.protocols.mail import esmtp_leg
from l7lb.protocols.mail.esmtp import Command, Fault, parse_chunk
from l7lb.protocols.mail.esmtp_leg import Leg
from l7lb.protocols.mail.esmtp_replies import Reply, reply, speaks_for
from l7lb.protocols.mail.esmtp_session import CHUNK, COMMAND, WAITING
from l7lb.protocols.mail.esmtp_shared import EsmtpShared
from l7lb.protocols.mail.esmtp_transaction import LOST, UNFIT, Transaction, Transactions


class Chunks(Transactions):
    """Adds BDAT; see :mod:`.esmtp_session` for the states."""

    __slots__ = ("_last", "_left")

    def __init__(self, shared: EsmtpShared, peer: Peer, now: float) -> None:
        super().__init__(shared, peer, now)
        self._left = 0  # bytes of the chunk that are to come
        self._last = False  # it is the last

    def mail_command(self, command: Command, now: float) -> None:
        if command.verb == b"BDAT":
            self._bdat(command.argument, now)
        else:
            super().mail_command(command, now)

    def message_bytes(self, now: float) -> None:
        if self.state != CHUNK:
            super().message_bytes(now)
            return
        self.deadline = now + self.shared.settings.command
        taken = bytes(self.buffer[: self._left])
        del self.buffer[: len(taken)]
        self._chunk_bytes(taken, now)

    def _bdat(self, argument: bytes, now: float) -> None:
        try:
            size, last = parse_chunk(argument)
        except Fault as fault:
            # How much comes behind it is not known, and must not be taken for commands.
            self.leave(fault.reply, Failure.CLIENT_PROTOCOL, now)
            return
        transaction = self.transaction
        self._left, self._last = size, last
        if transaction is not None and not transaction.broken and not self._cant_chunk(transaction):
            self.drop_bystanders(now)
            transaction.chunked = True
            for leg in self.message_legs():
                leg.state = esmtp_leg.MESSAGE
                leg.send(b"BDAT %d%b\r\n" % (size, b" LAST" if last else b""))
        self.state = CHUNK
        if not size:
            self._chunk_bytes(b"", now)

    def _cant_chunk(self, transaction: Transaction) -> bool:
        """Whether BDAT can't be; then the transaction is broken."""
        if b"CHUNKING" not in self.offer:
            transaction.broken = reply(b"502 5.5.1 BDAT is not offered here")
        elif not transaction.recipients:
            transaction.broken = reply(self.none_accepted())
        elif not self.whole(transaction):
            transaction.broken = reply(LOST)
        elif any(b"CHUNKING" not in leg.offer for leg in self.message_legs()):
            transaction.broken = reply(UNFIT)
        return transaction.broken is not None

    def _chunk_bytes(self, data: bytes, now: float) -> None:
        """Some of a chunk's bytes; those that nobody wants are skipped (RFC 3030 section 2)."""
        transaction = self.transaction
        broken = transaction.broken if transaction is not None else reply(b"503 5.5.1 Say MAIL first")
        self._left -= len(data)
        if data and broken is None:
            for leg in self.message_legs():
                leg.send(data)
        if self._left:
            return
        if broken is not None:
            self.reply(broken)
            self.state = COMMAND
        elif self._last:
            self.whole_message(now)
        else:
            self._await_chunk(now)

    def _await_chunk(self, now: float) -> None:
        """The servers have a chunk that is not the last: it has one reply."""
        transaction = self.transaction
        assert transaction is not None
        legs = list(dict.fromkeys(one.leg for one in transaction.recipients if one.leg is not None))
        self.state = WAITING
        self.replies = len(legs)
        answers: list[Reply] = []
        for leg in legs:
            leg.expect(partial(self._chunk_answered, leg, answers), now)

    def _chunk_answered(self, leg: Leg, answers: list[Reply], answer: Reply, now: float) -> None:
        transaction = self.transaction
        self.replies -= 1
        if transaction is None:
            return
        if answer.kind != 2:
            answer = answer if answer.kind >= 4 else speaks_for(Failure.SERVER_PROTOCOL)
            leg.early = answer
            self.drop(leg, answer.lost, now)
        answers.append(answer)
        if self.replies:
            return
        good = [one for one in answers if one.kind == 2]
        if not good or not self.whole(transaction):
            transaction.broken = next(one for one in answers if one.kind != 2)
        self.reply(transaction.broken or good[0])
        self.state = COMMAND
