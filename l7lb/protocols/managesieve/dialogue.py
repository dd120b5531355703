"""The login at a ManageSieve server, sans-io: lines of its responses in, bytes for it out.

===========  ===============================  ======================================================================
state        waits for                        leaves on
===========  ===============================  ======================================================================
GREETING     the server's capabilities        OK -> TLS, or what comes next; NO, BYE -> OVER: it is not well
TLS          its answer to STARTTLS           OK -> HANDSHAKE; else -> OVER: without TLS it is not spoken to
HANDSHAKE    the handshake                    secured -> GREETING, since it tells its capabilities again
ADDRESS      its answer to XCLIENT            OK -> PROOF; else -> OVER: it would take l7lb for the client
PROOF        its answer to AUTHENTICATE       OK -> OVER: logged in; a string: a token's refusal, answered;
                                              NO -> OVER: refused, or something temporary; BYE -> OVER, with REFERRAL
OVER         nothing                          what comes is the session's
===========  ===============================  ======================================================================
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

from l7lb.core.errors import Failure
from l7lb.protocols.managesieve.syntax import Atom, Malformed, Result, result, string

GREETING: Final = 0
TLS: Final = 1
HANDSHAKE: Final = 2
ADDRESS: Final = 3
PROOF: Final = 4
OVER: Final = 5

ERROR_SEEN = base64.b64encode(b"\x01")  # what a client says to a refused token (RFC 7628 section 3.2.3)
CAPABILITIES = 64  # lines of one greeting
EOL = b"\r\n"


class Dialogue:
    """One login. ``outcome`` says how it went: empty while it goes on, ``tls`` (a handshake is wanted), ``accepted``,
    ``refused`` (the credentials), ``failed`` (all else: see ``failure``). ``result`` is the server's last word, and
    ``capabilities`` what it has, by names in upper case, once it was logged in to.

    ``response`` is the mechanism's first and only one. ``announce`` are XCLIENT's arguments, ``secure``: STARTTLS comes
    before all else.
    """

    __slots__ = (
        "_announce", "_mechanism", "_response", "_secure", "_state", "capabilities", "failure", "outcome", "result",
    )  # fmt: skip

    def __init__(self, mechanism: str, response: bytes) -> None:
        self._mechanism = mechanism
        self._response = base64.b64encode(response)
        self._announce = b""
        self._secure = False
        self._state = GREETING
        self.outcome = ""
        self.capabilities: dict[bytes, bytes] = {}
        self.result: Result | None = None
        self.failure = Failure.SERVER_PROTOCOL

    def wants(self, secure: bool, announce: bytes) -> None:
        """What is done before the login."""
        self._secure = secure
        self._announce = announce

    def line(self, tokens: Sequence[bytes]) -> bytes:
        """A line of the server's, as tokens; what it gets now."""
        try:
            found = result(tokens)
        except Malformed:
            found = None
            tokens = ()
        if found is None:
            if self._state == GREETING:
                return self._told(tokens)
            return self._challenged(tokens) if self._state == PROOF else self._fail(Failure.SERVER_PROTOCOL)
        self.result = found
        if self._state == PROOF:
            return self._judged(found)
        if found.word != b"OK":
            return self._fail(Failure.CONNECT_TLS if self._state == TLS else Failure.SERVER_ERROR)
        if self._state == GREETING:
            return self._greeted()
        if self._state == TLS:
            self._state, self.outcome = HANDSHAKE, "tls"
            return b""
        return self._login()

    def secured(self) -> bytes:
        """The handshake is done; the server tells its capabilities again, and what it told before counts no longer."""
        self.outcome = ""
        self.capabilities = {}
        self._secure = False
        self._state = GREETING
        return b""

    def _told(self, tokens: Sequence[bytes]) -> bytes:
        """A capability: its name, and perhaps its value."""
        words = len(tokens)
        if not 1 <= words <= 2 or any(isinstance(token, Atom) for token in tokens):
            return self._fail(Failure.SERVER_PROTOCOL)
        if len(self.capabilities) >= CAPABILITIES:
            return self._fail(Failure.SERVER_PROTOCOL)
        self.capabilities[tokens[0].upper()] = tokens[1] if words == 2 else b""
        return b""

    def _greeted(self) -> bytes:
        if self._secure:
            if b"STARTTLS" not in self.capabilities:
                return self._fail(Failure.CONNECT_TLS)
            self._state = TLS
            return b"STARTTLS" + EOL
        if self._announce and b"XCLIENT" in self.capabilities:
            self._state = ADDRESS
            return b"XCLIENT " + self._announce + EOL
        return self._login()

    def _login(self) -> bytes:
        name = self._mechanism.upper().encode()
        if name not in self.capabilities.get(b"SASL", b"").upper().split():
            return self._fail(Failure.SERVER_PROTOCOL)
        self._state = PROOF
        return b'AUTHENTICATE "%b" %b' % (name, string(self._response, marked=True)) + EOL

    def _challenged(self, tokens: Sequence[bytes]) -> bytes:
        """A challenge behind the whole proof: the server tells why it takes no token, and NO follows an answer."""
        mechanism, self._mechanism = self._mechanism, ""  # there is one at most
        if len(tokens) != 1 or isinstance(tokens[0], Atom) or mechanism not in ("oauthbearer", "xoauth2"):
            return self._fail(Failure.SERVER_PROTOCOL)
        return string(ERROR_SEEN if mechanism == "oauthbearer" else b"", marked=True) + EOL

    def _judged(self, found: Result) -> bytes:
        """The server's word on the login."""
        if found.word == b"OK":
            self._state, self.outcome = OVER, "accepted"
        elif found.word == b"BYE" or found.code not in (b"", b"AUTH-TOO-WEAK", b"TRANSITION-NEEDED"):
            self._fail(Failure.SERVER_ERROR)
        else:
            self._state, self.outcome, self.failure = OVER, "refused", Failure.LOGIN_REFUSED
        return b""

    def _fail(self, failure: Failure) -> bytes:
        self._state, self.outcome, self.failure = OVER, "failed", failure
        return b""
