"""A worker's claims of mailboxes: what it has claimed, has open, and is told to end. See :mod:`.mailboxes`.

While there is no state process claims wait for one, ``PATIENCE`` seconds at most; sessions that are open go on, and the
next state process is told of them before it grants anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Protocol

from l7lb.core.errors import Failure
from l7lb.persistence.exchange import Sender
from l7lb.persistence.mailbox_messages import (
    SESSIONS,
    Claim,
    Denied,
    Dismiss,
    Ended,
    Granted,
    Held,
    MailboxFromWorker,
    MailboxToWorker,
    Opened,
    Refusal,
)

PATIENCE = 2.0  # seconds that a claim waits for a state process

FAILURES = {failure.label: failure for failure in Failure}


class Holder(Protocol):
    """Who claims. One of the first two is called once for each claim, and never inside ``claim``."""

    def granted(self, server: str) -> None:
        """The session has its mailbox on that server."""
        ...

    def denied(self, failure: Failure | None) -> None:
        """It has not; None: it stays on the server that was lost to this session."""
        ...

    def dismissed(self, why: str, moving: bool) -> None:
        """End the session; ``moving``: one that has no server's connection yet may claim again."""
        ...


class Record:
    """A claim or an open session."""

    __slots__ = ("claim", "held", "holder")

    def __init__(self, holder: Holder, claim: Claim) -> None:
        self.holder = holder
        self.claim: Claim | None = claim  # until it is answered
        self.held = claim.held


class Claims:
    """One worker's, for its whole life."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._records: dict[int, Record] = {}
        self._sender: Sender | None = None

    def __len__(self) -> int:
        return len(self._records)

    @property
    def connected(self) -> bool:
        """Whether there is a state process."""
        return self._sender is not None

    def number(self) -> int:
        """A new session's number."""
        return next(self._numbers)

    def claim(self, holder: Holder, claim: Claim) -> None:
        """Claim a mailbox, or claim it anew under the same number."""
        self._records[claim.held.number] = Record(holder, claim)
        if self._sender is None:
            asyncio.get_running_loop().call_later(PATIENCE, self._give_up, [claim])
        else:
            self._say(claim)

    def end(self, number: int) -> None:
        """A session is over, its server's connection closed; or its claim is given up."""
        if self._records.pop(number, None) is not None:
            self._say(Ended([number]))

    def refused(self, refusal: Refusal) -> None:
        """A server refused a login."""
        self._say(refusal)

    def _say(self, message: MailboxFromWorker) -> None:
        """Without a state process nothing is lost: the next one is told what there is."""
        sender = self._sender
        if sender is not None and not sender.post(message):
            self._sender = None  # it does not read: the connection ends, and with the next one all is told anew
            sender.give_up()

    # --- the link -------------------------------------------------------------------------------------------------

    def join(self, sender: Sender) -> None:
        """A state process is there: tell it all."""
        self._sender = sender
        opened = [record.held for record in self._records.values() if record.claim is None]
        for start in range(0, len(opened), SESSIONS):
            sender.write(Opened(opened[start : start + SESSIONS]))
        sender.write(Opened([], last=True))
        for record in self._records.values():
            if record.claim is not None:
                sender.write(record.claim)

    def leave(self) -> None:
        """It is gone."""
        self._sender = None
        claims = [record.claim for record in self._records.values() if record.claim is not None]
        if claims:
            asyncio.get_running_loop().call_later(PATIENCE, self._give_up, claims)

    def apply(self, message: MailboxToWorker) -> None:
        """What the state process says."""
        if isinstance(message, Dismiss):
            for number in message.numbers:
                record = self._records.get(number)
                if record is not None and record.claim is None:
                    record.holder.dismissed(message.why, message.moving)
            return
        record = self._records.get(message.number)
        if record is None or record.claim is None:
            return  # it was given up, which the state process will hear
        if isinstance(message, Granted):
            record.claim = None
            record.held.server = message.server
            record.holder.granted(message.server)
        elif isinstance(message, Denied):
            del self._records[message.number]
            record.holder.denied(FAILURES.get(message.why))

    def _give_up(self, claims: Sequence[Claim]) -> None:
        if self._sender is not None:
            return  # it has been told of them
        for claim in claims:
            record = self._records.get(claim.held.number)
            if record is not None and record.claim is claim:
                del self._records[claim.held.number]
                record.holder.denied(Failure.NO_STATE)

    def held(self) -> list[Held]:
        """The sessions that are open."""
        return [record.held for record in self._records.values() if record.claim is None]
