"""What logs in to a server: each protocol has its own, and the session sees it through this."""

from __future__ import annotations

from typing import Final

from l7lb.core.errors import Failure

GOES_ON: Final = ""
TLS: Final = "tls"
ACCEPTED: Final = "accepted"
REFUSED: Final = "refused"
FAILED: Final = "failed"


class Dialogue:
    """One login at a server, sans-io. It begins with the server's greeting.

    ``outcome`` says how it went: empty while it goes on, ``tls`` (a handshake is wanted, and :meth:`secured` follows),
    ``accepted``, ``refused`` (the credentials), ``failed`` (all else: see ``failure``). ``text`` is what the server
    said with it, for records of its own kind and codes that are passed on; never for the client as it stands.
    ``blamed``: a failure counts against the server, whose other users then go elsewhere.
    """

    __slots__ = ("blamed", "failure", "outcome", "text")

    def __init__(self) -> None:
        self.outcome = GOES_ON
        self.failure = Failure.SERVER_PROTOCOL
        self.text = b""
        self.blamed = True

    def received(self, buffer: bytearray) -> bytes:
        """The server sent this, and perhaps more will come: take what is complete. Returns what the server gets now.

        Nothing is taken once ``outcome`` says something.
        """
        raise NotImplementedError

    def secured(self) -> bytes:
        """The handshake is done; returns what the server gets now. What it said before counts no longer."""
        raise NotImplementedError

    def fail(self, failure: Failure) -> bytes:
        """It is over."""
        self.outcome, self.failure = FAILED, failure
        return b""

    def postpone(self) -> bytes:
        """The server takes this login at another time. It may well take others: a mailbox that is locked, which its
        user can bring about, must not take a server out.
        """
        self.blamed = False
        return self.fail(Failure.SERVER_ERROR)

    def refuse(self) -> bytes:
        """The server won't have the credentials."""
        self.outcome, self.failure = REFUSED, Failure.LOGIN_REFUSED
        return b""
