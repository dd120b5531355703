"""One exchange: a request, the server that has it, and its answer, and what the access record tells of them."""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from l7lb.core.actions import Recorded
from l7lb.core.contracts import Assignment, Choice
from l7lb.core.errors import Failure
from l7lb.core.record import AccessRecord
from l7lb.protocols.http.body import BodyReader
from l7lb.protocols.http.facts import HttpFacts
from l7lb.protocols.http.forward import named
from l7lb.protocols.http.http2.server import ServerLink
from l7lb.protocols.http.message import IDEMPOTENT, Request, Response

REPLAY_BYTES: Final = 64 * 1024  # a body up to this size is kept until the answer begins, for a retry
MAX_TEXT: Final = 2048  # bytes of a field in the record
VERSION_NAMES: Final = {10: "1.0", 11: "1.1", 20: "2"}

# What `retries.when` names, by the failure that it stands for.
RETRY_NAMES: Final = {
    Failure.CONNECT_REFUSED: "connect-failure",
    Failure.CONNECT_TIMEOUT: "connect-failure",
    Failure.CONNECT_TLS: "connect-failure",
    Failure.SERVER_CLOSED: "reset-before-response",
    Failure.SERVER_TIMEOUT: "response-timeout",
}


@mypyc_attr(free_list_len=1)
class Exchange(Recorded):
    """A request from its head to its answer's end. Times are monotonic seconds, 0.0 where not reached yet."""

    __slots__ = (
        "assignment",
        "began",
        "body",
        "body_done",
        "choice",
        "facts",
        "head_at",
        "inbox",
        "interim",
        "link",
        "reader",
        "received",
        "replay",
        "request",
        "response",
        "response_at",
        "retries",
        "searched",
        "sent",
        "sent_at",
        "status",
        "uploaded",
    )

    def __init__(self, request: Request, facts: HttpFacts, began: float, now: float, received: int) -> None:
        self.request = request
        self.facts = facts
        self.began = began
        self.head_at = now
        self.received = received
        self.sent = 0
        self.sent_at = 0.0
        self.response_at = 0.0
        self.body: BodyReader | None = None  # the request's
        self.body_done = True
        self.uploaded = 0  # bytes of the request's body
        self.reader: BodyReader | None = None  # the answer's
        self.response: Response | None = None
        self.inbox = b""  # an answer's head that is not complete
        self.interim = 0  # 1xx answers passed on
        self.searched = 0
        self.replay: list[bytes] | None = []  # what of the body went to the server; None: too much to keep
        self.link: ServerLink | None = None  # to a server that speaks HTTP/2
        self.retries = 0
        self.status = 0
        self.choice: Choice | None = None
        self.assignment: Assignment | None = None

    def keep(self, data: bytes) -> None:
        """Remember a part of the body for a retry, as long as it is small."""
        replay = self.replay
        if replay is not None and data:
            replay.append(data)
            if self.uploaded > REPLAY_BYTES:
                self.replay = None

    def may_retry(self, failure: Failure, status: int = 0) -> bool:
        """Whether the request may go to another server.

        It may have been processed, so only a method that allows repetition qualifies (RFC 9110 section 9.2.2), and only
        while nothing of an answer has gone to the client. A kept connection that the server closed under the
        request is tried again once beyond what the pool allows, since closing it was the server's right. What a server
        of HTTP/2 says it did not look at is tried again as what was never sent.
        """
        assignment = self.assignment
        if assignment is None or self.replay is None or self.sent or self.request.upgrade:
            return False
        unprocessed = self.link is not None and self.link.unprocessed
        if self.request.method not in IDEMPOTENT and not unprocessed:
            return False
        if failure is Failure.SERVER_CLOSED and assignment.reused:
            return True
        retries = assignment.pool.config.retries
        if self.retries >= retries.attempts:
            return False
        if unprocessed and "connect-failure" in retries.when:
            return True
        return status in retries.statuses if status else RETRY_NAMES.get(failure, "") in retries.when

    def latency(self) -> float:
        """Seconds from the request sent to the answer's head, negative where there is none."""
        return self.response_at - self.sent_at if self.response_at and self.sent_at else -1.0

    def record(self, ended: str, elapsed: float) -> AccessRecord:
        request, assignment = self.request, self.assignment
        record = AccessRecord(
            time="",
            listener=self.facts.listener,
            protocol="http",
            client=self.facts.source,
            request_id=_text(named(request)),
            method=_text(request.method),
            scheme=_text(self.facts.scheme),
            host=_text(request.host_field),
            path=_text(request.path + request.query),
            version=VERSION_NAMES[request.version],
            status=self.status,
            ended=ended,
            received=self.received,
            sent=self.sent,
            request_ms=_milliseconds(self.began, self.head_at),
            total_ms=round(elapsed * 1000, 3),
            user_agent=_text(next(iter(request.values(b"user-agent")), b"")),
            referer=_text(next(iter(request.values(b"referer")), b"")),
        )
        if self.facts.mailbox:
            record.mailbox = self.facts.mailbox[:MAX_TEXT].decode("utf-8", "backslashreplace")
        record.went(self.choice, assignment)
        if assignment is not None:
            record.response_ms = _milliseconds(self.sent_at, self.response_at)
        return record


class Unread(Recorded):
    """A request whose head could not be read."""

    __slots__ = ("client", "identity", "listener", "status")

    def __init__(self, listener: str, client: str, identity: bytes, status: int) -> None:
        self.listener = listener
        self.client = client
        self.identity = identity
        self.status = status

    def record(self, ended: str, elapsed: float) -> AccessRecord:
        return AccessRecord(
            time="",
            listener=self.listener,
            protocol="http",
            client=self.client,
            request_id=_text(self.identity),
            status=self.status,
            ended=ended,
            total_ms=round(elapsed * 1000, 3),
        )


def _text(value: bytes) -> str:
    return value[:MAX_TEXT].decode("latin-1")


def _milliseconds(start: float, end: float) -> float:
    return round((end - start) * 1000, 3) if start and end else -1.0
