"""What each mail protocol says in its own words; the life of a session is :mod:`l7lb.protocols.mail.login`'s."""

from __future__ import annotations

from l7lb.core.actions import Action
from l7lb.core.contracts import Assignment, Session
from l7lb.core.errors import Failure
from l7lb.protocols.mail.credentials import Credentials
from l7lb.protocols.mail.dialogue import Dialogue


class Wording(Session):
    """What a protocol's session has to say and to understand, until its client is logged in."""

    __slots__ = ()

    def greeting(self) -> bytes:
        """What the client is told first."""
        raise NotImplementedError

    def command(self, now: float) -> list[Action] | None:
        """Take one command out of ``buffer`` and carry it out; None if it is not complete. May raise LineTooLong."""
        raise NotImplementedError

    def response_line(self) -> bytes | None:
        """Take one line of SASL's, as it stands on the wire, out of ``buffer``; None if it is not complete."""
        raise NotImplementedError

    def challenge(self, data: bytes) -> bytes:
        """A SASL challenge, on the wire."""
        raise NotImplementedError

    def malformed(self, why: bytes) -> bytes:
        """The answer to a SASL exchange that the client cancelled or broke."""
        raise NotImplementedError

    def converse(self, assignment: Assignment, credentials: Credentials) -> Dialogue:
        """What logs in to this server. It has sent nothing yet: a mail server speaks first."""
        raise NotImplementedError

    def welcome(self) -> bytes:
        """The answer to the login: ``dialogue`` knows what the server said to it."""
        raise NotImplementedError

    def refusal(self, failure: Failure) -> bytes:
        """The answer to a login that came to nothing: ``dialogue`` knows what the server said, if it came so far."""
        raise NotImplementedError

    def farewell(self, failure: Failure, why: str) -> bytes:
        """What the client is told before its connection is closed, outside any answer; ``why`` may be empty."""
        raise NotImplementedError
