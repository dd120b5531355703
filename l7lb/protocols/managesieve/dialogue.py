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

from collections.abc import Sequence
from typing import Final

from l7lb.core.errors import Failure
from l7lb.protocols.mail.credentials import Credentials
from l7lb.protocols.mail.dialogue import ACCEPTED, GOES_ON, Dialogue
from l7lb.protocols.mail.dialogue import TLS as WANTS_TLS
from l7lb.protocols.mail.sasl import ERROR_SEEN, TOKENS, encoded
from l7lb.protocols.managesieve.syntax import Atom, Malformed, Reader, Result, result, string

GREETING: Final = 0
TLS: Final = 1
HANDSHAKE: Final = 2
ADDRESS: Final = 3
PROOF: Final = 4
OVER: Final = 5

CAPABILITIES = 64  # lines of one greeting
REPLY_BYTES = 16 * 1024  # a server's line; lists of extensions are long
REFUSALS = (b"", b"AUTH-TOO-WEAK", b"TRANSITION-NEEDED")  # codes of NO that mean the credentials
EOL = b"\r\n"


class SieveDialogue(Dialogue):
    """One login; see the module's head. ``result`` is the server's last word, and ``capabilities`` what it has, by
    names in upper case, once it was logged in to.

    ``secure``: STARTTLS comes before all else. ``announce`` are XCLIENT's arguments.
    """

    __slots__ = ("_announce", "_mechanism", "_reader", "_response", "_secure", "_state", "capabilities", "result")

    def __init__(self, credentials: Credentials, secure: bool = False, announce: bytes = b"") -> None:
        super().__init__()
        self._mechanism = credentials.mechanism
        self._response = encoded(credentials.response())
        self._secure = secure
        self._announce = announce
        self._reader = Reader(REPLY_BYTES, REPLY_BYTES, marked=False)
        self._state = GREETING
        self.capabilities: dict[bytes, bytes] = {}
        self.result: Result | None = None

    def received(self, buffer: bytearray) -> bytes:
        said = b""
        while self.outcome == GOES_ON:
            try:
                tokens = self._reader.take(buffer)
                if tokens is None:
                    break
                found = result(tokens)
            except Malformed:
                return self.fail(Failure.SERVER_PROTOCOL)
            said += self._untold(tokens) if found is None else self._told(found)
        return said

    def secured(self) -> bytes:
        """The server tells its capabilities again."""
        self.outcome = GOES_ON
        self.capabilities = {}
        self._secure = False
        self._state = GREETING
        return b""

    def fail(self, failure: Failure) -> bytes:
        self._state = OVER
        return super().fail(failure)

    def _untold(self, tokens: Sequence[bytes]) -> bytes:
        """A line that is no result yet."""
        if self._state == GREETING:
            return self._capability(tokens)
        return self._challenged(tokens) if self._state == PROOF else self.fail(Failure.SERVER_PROTOCOL)

    def _told(self, found: Result) -> bytes:
        """A result."""
        self.result = found
        self.text = found.text
        if self._state == PROOF:
            return self._judged(found)
        if found.word != b"OK":
            return self.fail(Failure.CONNECT_TLS if self._state == TLS else Failure.SERVER_ERROR)
        if self._state == GREETING:
            return self._greeted()
        if self._state == TLS:
            self._state, self.outcome = HANDSHAKE, WANTS_TLS
            return b""
        return self._login()

    def _capability(self, tokens: Sequence[bytes]) -> bytes:
        """A capability: its name, and perhaps its value."""
        words = len(tokens)
        if not 1 <= words <= 2 or any(isinstance(token, Atom) for token in tokens):
            return self.fail(Failure.SERVER_PROTOCOL)
        if len(self.capabilities) >= CAPABILITIES:
            return self.fail(Failure.SERVER_PROTOCOL)
        self.capabilities[tokens[0].upper()] = tokens[1] if words == 2 else b""
        return b""

    def _greeted(self) -> bytes:
        if self._secure:
            if b"STARTTLS" not in self.capabilities:
                return self.fail(Failure.CONNECT_TLS)
            self._state = TLS
            return b"STARTTLS" + EOL
        if self._announce and b"XCLIENT" in self.capabilities:
            self._state = ADDRESS
            return b"XCLIENT " + self._announce + EOL
        return self._login()

    def _login(self) -> bytes:
        name = self._mechanism.upper().encode()
        if name not in self.capabilities.get(b"SASL", b"").upper().split():
            # The client has chosen the token's mechanism, the operator that passwords may come.
            return self.refuse() if self._mechanism in TOKENS else self.fail(Failure.SERVER_PROTOCOL)
        self._state = PROOF
        return b'AUTHENTICATE "%b" %b' % (name, string(self._response, marked=True)) + EOL

    def _challenged(self, tokens: Sequence[bytes]) -> bytes:
        """A challenge behind the whole proof: the server tells why it takes no token, and NO follows an answer."""
        mechanism, self._mechanism = self._mechanism, ""  # there is one at most
        if len(tokens) != 1 or isinstance(tokens[0], Atom) or mechanism not in ("oauthbearer", "xoauth2"):
            return self.fail(Failure.SERVER_PROTOCOL)
        return string(encoded(ERROR_SEEN) if mechanism == "oauthbearer" else b"", marked=True) + EOL

    def _judged(self, found: Result) -> bytes:
        """The server's word on the login."""
        if found.word == b"OK":
            self._state, self.outcome = OVER, ACCEPTED
            return b""
        self._state = OVER
        if found.word == b"NO" and found.code in REFUSALS:
            return self.refuse()
        return self.postpone() if found.code == b"REFERRAL" else self.fail(Failure.SERVER_ERROR)
