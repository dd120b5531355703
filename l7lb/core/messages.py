"""What the supervisor and its workers tell one another, over a unix stream socket.

Each message is MessagePack behind its length in four bytes, big end first. The worker connects and says
:class:`Hello`; the supervisor answers with :class:`Configure`, then everything it knows of servers' health. A worker
that loses its supervisor goes on with what it knows and connects again.
"""

from __future__ import annotations

from typing import Final

import msgspec

from l7lb.core.snapshot import Snapshot

LIMIT = 256 * 1024 * 1024  # bytes of one message
PROTOCOL = 1  # grows when the messages change, so that versions don't talk past one another


class Configure(msgspec.Struct, tag="configure"):
    """The snapshot to use from now on."""

    snapshot: Snapshot


class ServerHealth(msgspec.Struct, tag="health"):
    """The supervisor's verdict on one server; ``since`` is monotonic, 0.0 where it was up from the start. ``down`` has
    the protocols that a healthy server is not to be used for, ``offers`` the extensions that checks found, by protocol.
    """

    pool: str
    server: str
    healthy: bool
    ejected: bool
    since: float
    down: tuple[str, ...] = ()
    offers: dict[str, tuple[str, ...]] = {}


class Drain(msgspec.Struct, tag="drain"):
    """Accept nothing more, finish within so many seconds, exit. ``patient``: others serve on, and idle clients may
    take a moment to go.
    """

    seconds: float
    patient: bool = True


class Wanted(msgspec.Struct):
    """Which sessions are wanted: all that have one of these mailboxes, this protocol, a client in this network. What
    is empty is not asked.
    """

    mailboxes: list[str] = []
    protocol: str = ""
    network: str = ""


ALL_SESSIONS: Final = Wanted()


class AskSessions(msgspec.Struct, tag="ask-sessions"):
    """List what is in progress, so many at most."""

    question: int
    limit: int
    wanted: Wanted = msgspec.field(default_factory=Wanted)


class ReopenLogs(msgspec.Struct, tag="reopen-logs"):
    """Open the log files again: they were rotated."""


ToWorker = Configure | ServerHealth | Drain | AskSessions | ReopenLogs


class Hello(msgspec.Struct, tag="hello"):
    """A worker introduces itself; ``snapshot`` is the version it runs, 0 for none."""

    protocol: int
    version: str
    index: int
    pid: int
    snapshot: int


class Applied(msgspec.Struct, tag="applied"):
    """The snapshot of that version is in use; ``problem`` says why not."""

    snapshot: int
    problem: str = ""


class ServerResult(msgspec.Struct, tag="result"):
    """Passive health: a failure's label, or "" for the first good answer after failures."""

    pool: str
    server: str
    failure: str


class SessionRow(msgspec.Struct):
    """One session in progress, as `l7lb sessions` prints it; ``since`` is RFC 3339."""

    protocol: str
    client: str
    listener: str
    pool: str
    server: str
    since: str
    mailbox: str = ""
    detail: str = ""


class Sessions(msgspec.Struct, tag="sessions"):
    """The answer to AskSessions."""

    question: int
    rows: list[SessionRow]


FromWorker = Hello | Applied | ServerResult | Sessions
