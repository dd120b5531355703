"""What can go wrong with a user's connection, and whose fault it is.

Every failure has an owner first and a kind second. The kind alone decides whether another server may be
tried, and each protocol renders it in its own words (503, 421, -ERR, * BYE). Exceptions of the program
itself derive from :class:`L7lbError`::

    L7lbError
      ConfigurationError     a configuration that can't work; carries every problem found
      ProbeFailed            a health check's verdict, with the reason an operator reads
      UnknownName            no listener, pool or server of that name
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Owner(Enum):
    """Whose fault a failure is."""

    CLIENT = "client"
    SERVER = "server"
    POLICY = "policy"
    BUG = "bug"


class Failure(Enum):
    """A typed failure: its name for logs, its owner, and what an operator should read about it.

    The names are stable: they stand in access records and metrics.
    """

    CLIENT_PROTOCOL = ("client-protocol", Owner.CLIENT, "the client broke the protocol")
    CLIENT_TIMEOUT = ("client-timeout", Owner.CLIENT, "the client was too slow")
    CLIENT_CLOSED = ("client-closed", Owner.CLIENT, "the client went away")
    CLIENT_LIMIT = ("client-limit", Owner.CLIENT, "the client's message exceeds a limit")

    NO_ROUTE = ("no-route", Owner.POLICY, "no route matches")
    NO_SERVER = ("no-server", Owner.POLICY, "no server of the pool is available")
    QUEUE_FULL = ("queue-full", Owner.POLICY, "all servers are at their limit and the queue is full")
    QUEUE_TIMEOUT = ("queue-timeout", Owner.POLICY, "all servers stayed at their limit for the queue's time")
    CONNECTION_LIMIT = ("connection-limit", Owner.POLICY, "the listener's connection limit is reached")
    RATE_LIMITED = ("rate-limited", Owner.POLICY, "this comes too often: a rate limit is reached")
    NO_MAILBOX = ("no-mailbox", Owner.POLICY, "no directory knows the mailbox")
    MAILBOX_SERVER = ("mailbox-server", Owner.POLICY, "the mailbox's own server is not available")
    MAILBOX_MOVING = ("mailbox-moving", Owner.POLICY, "the mailbox is being moved to another server")
    SESSION_LIMIT = ("session-limit", Owner.POLICY, "the mailbox or the address has too many sessions")
    LOGIN_REFUSED = ("login-refused", Owner.CLIENT, "the credentials were refused")
    ENDED_HERE = ("ended-here", Owner.POLICY, "the node ended the session: its mailbox moved, or an operator said so")
    DIRECTORY = ("directory", Owner.SERVER, "no directory could answer where the mailbox lives")
    NO_STATE = ("no-state", Owner.POLICY, "the node's state process did not say in time which server the mailbox is on")
    SHUTDOWN = ("shutdown", Owner.POLICY, "the node is shutting down")

    CONNECT_REFUSED = ("connect-refused", Owner.SERVER, "the server refused the connection")
    CONNECT_TIMEOUT = ("connect-timeout", Owner.SERVER, "the server did not accept the connection in time")
    CONNECT_TLS = ("connect-tls", Owner.SERVER, "the TLS handshake with the server failed")
    SERVER_CLOSED = ("server-closed", Owner.SERVER, "the server closed before it answered")
    SERVER_CLOSED_INSIDE = ("server-closed-inside", Owner.SERVER, "the server closed inside its answer")
    SERVER_TIMEOUT = ("server-timeout", Owner.SERVER, "the server did not answer in time")
    SERVER_STALLED = ("server-stalled", Owner.SERVER, "the server stopped inside its answer")
    SERVER_ERROR = ("server-error", Owner.SERVER, "the server answered with an error of its own")
    SERVER_PROTOCOL = ("server-protocol", Owner.SERVER, "the server's answer breaks the protocol")

    BUG = ("bug", Owner.BUG, "a fault in l7lb itself")

    def __init__(self, label: str, owner: Owner, meaning: str) -> None:
        self.label = label
        self.owner = owner
        self.meaning = meaning


class L7lbError(Exception):
    """The root of what this package raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration.

    ``line`` and ``column`` count from 1; 0 where the file's format does not tell.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class ConfigurationError(L7lbError):
    """A configuration that can't work, with every problem found in one pass."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class ProbeFailed(L7lbError):
    """A health check failed; the text is the reason that ``l7lb servers`` shows."""


class UnknownName(L7lbError):
    """No listener, pool or server has that name; the text names the nearest one."""
