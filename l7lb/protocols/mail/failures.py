"""Which failures a mail client is told of as permanent, and in which words."""

from __future__ import annotations

from typing import Final

from l7lb.core.errors import Failure

# All else passes: a client that is told of a permanent failure forgets its password, a server returns the message.
PERMANENT: Final = frozenset({Failure.NO_MAILBOX, Failure.LOGIN_REFUSED})

# Of a limit the client, or its user, can do something about it.
LIMITS: Final = frozenset({Failure.SESSION_LIMIT, Failure.RATE_LIMITED, Failure.CONNECTION_LIMIT})

WORDS: Final = {
    Failure.LOGIN_REFUSED: b"Authentication failed.",
    Failure.NO_MAILBOX: b"Authentication failed.",  # in a login's answer nobody learns which mailboxes there are
    Failure.MAILBOX_MOVING: b"The mailbox is being moved, try again in a moment.",
    Failure.SESSION_LIMIT: b"Too many sessions of this mailbox or from this address.",
    Failure.RATE_LIMITED: b"Too many requests, try again later.",
    Failure.CONNECTION_LIMIT: b"Too many connections, try again later.",
    Failure.SHUTDOWN: b"Shutting down.",
    Failure.CLIENT_TIMEOUT: b"Timed out.",
    Failure.CLIENT_LIMIT: b"What was sent exceeds a limit.",
    Failure.CLIENT_PROTOCOL: b"This is not the protocol spoken here.",
}
UNAVAILABLE: Final = b"The mailbox's server is not available, try again later."


def permanent(failure: Failure) -> bool:
    """Whether a client that does the same again gets the same."""
    return failure in PERMANENT


def words(failure: Failure) -> bytes:
    """What a client is told; in its protocol's place for text, behind the code that means it."""
    return WORDS.get(failure, UNAVAILABLE)
