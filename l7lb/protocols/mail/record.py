"""One mail session, and what its access record tells."""

from __future__ import annotations

from l7lb.core.actions import Recorded
from l7lb.core.contracts import Assignment, Choice
from l7lb.core.record import AccessRecord
from l7lb.protocols.mail.facts import MailFacts


class MailFlow(Recorded):
    """One session. Times are monotonic seconds, 0.0 where not reached. ``facts`` are those of its last login."""

    __slots__ = (
        "assignment",
        "began",
        "choice",
        "closed_by",
        "connected_at",
        "facts",
        "logged_in_at",
        "received",
        "sent",
        "status",
    )

    def __init__(self, facts: MailFacts, began: float) -> None:
        self.facts = facts
        self.began = began
        self.connected_at = 0.0
        self.logged_in_at = 0.0
        self.received = 0
        self.sent = 0
        self.status = 0
        self.closed_by = ""
        self.choice: Choice | None = None
        self.assignment: Assignment | None = None

    def latency(self) -> float:
        """Seconds from the server's connection to its consent to the login, negative where there is none."""
        return self.logged_in_at - self.connected_at if self.logged_in_at else -1.0

    def record(self, ended: str, elapsed: float) -> AccessRecord:
        facts = self.facts
        record = AccessRecord(
            time="",
            listener=facts.listener,
            protocol=facts.protocol,
            client=facts.source,
            status=self.status,
            ended=ended,
            closed_by=self.closed_by,
            received=self.received,
            sent=self.sent,
            total_ms=round(elapsed * 1000, 3),
            mailbox=facts.mailbox.decode("utf-8", "backslashreplace"),
            user=facts.user.decode("utf-8", "backslashreplace"),
            mechanism=facts.mechanism,
        )
        record.went(self.choice, self.assignment)
        if self.logged_in_at:
            record.response_ms = round(self.latency() * 1000, 3)
        return record
