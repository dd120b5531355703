"""The login at a POP3 server, sans-io: its lines in, lines for it out.

=========  ==========================  ===========================================================================
state      waits for                   leaves on
=========  ==========================  ===========================================================================
GREETING   the server's first line     +OK -> TLS, or what comes next; -ERR -> OVER: it is not well
TLS        its answer to STLS          +OK -> HANDSHAKE; -ERR -> OVER: without TLS it is not spoken to
HANDSHAKE  the handshake               secured -> what comes next
ADDRESS    its answer to XCLIENT       +OK -> what comes next; -ERR -> OVER: it would take l7lb for the client
LIST       its answer to CAPA          its last line, -ERR -> the login
NAME       its answer to USER          +OK -> PROOF; -ERR -> OVER: refused, or something temporary
AUTH       its challenge to AUTH       ``+`` -> PROOF; else as in NAME
PROOF      its word on the password    +OK -> OVER: logged in; ``+``: a token's refusal, answered; -ERR as in NAME
OVER       nothing                     what comes is the session's
=========  ==========================  ===========================================================================

What comes next is XCLIENT, where it is wanted and the greeting had ``[XCLIENT]``, then CAPA, where it is wanted, and
then the login.
"""

from __future__ import annotations

from typing import Final

from l7lb.core.errors import Failure
from l7lb.protocols.mail.credentials import Credentials
from l7lb.protocols.mail.dialogue import ACCEPTED, GOES_ON, Dialogue
from l7lb.protocols.mail.dialogue import TLS as WANTS_TLS
from l7lb.protocols.mail.lines import Lines, LineTooLong
from l7lb.protocols.mail.sasl import ERROR_SEEN, encoded
from l7lb.protocols.pop3.syntax import PLACE_IN_LINE, Reply, fits, reply

GREETING: Final = 0
TLS: Final = 1
HANDSHAKE: Final = 2
ADDRESS: Final = 3
LIST: Final = 4
LISTED: Final = 5  # inside its lines
NAME: Final = 6
AUTH: Final = 7
PROOF: Final = 8
OVER: Final = 9

REPLY_BYTES = 4096  # RFC 2449 section 4 has 512; some servers' greetings are longer
CAPABILITIES = 64  # lines of one answer
REFUSALS = (b"", b"AUTH")  # codes of -ERR that mean the credentials, not the server's own trouble
EOL = b"\r\n"


class Pop3Dialogue(Dialogue):
    """One login; see the module's head. ``code`` is the code of the reply that ended it.

    ``secure``: STLS comes before all else. ``announce`` is the argument of XCLIENT. ``ask``: CAPA is asked for, and
    ``capabilities`` are its lines once it was answered.
    """

    __slots__ = (
        "_announce", "_ask", "_lines", "_mechanism", "_password", "_response", "_secure", "_state", "_user",
        "capabilities", "code",
    )  # fmt: skip

    def __init__(
        self, credentials: Credentials, secure: bool = False, announce: bytes = b"", ask: bool = False
    ) -> None:
        super().__init__()
        simple = credentials.simple and fits(credentials.user, credentials.password)
        self._user = credentials.user
        self._password = credentials.password
        self._mechanism = "" if simple else credentials.mechanism
        self._response = b"" if simple else encoded(credentials.response())
        self._secure = secure
        self._announce = announce
        self._ask = ask
        self._lines = Lines(REPLY_BYTES)
        self._state = GREETING
        self.capabilities: list[bytes] | None = None
        self.code = b""

    def received(self, buffer: bytearray) -> bytes:
        said = b""
        while self.outcome == GOES_ON:
            try:
                line = self._lines.take(buffer)
            except LineTooLong:
                return self.fail(Failure.SERVER_PROTOCOL)
            if line is None:
                break
            said += self._line(line)
        return said

    def secured(self) -> bytes:
        self.outcome = GOES_ON
        return self._next()

    def fail(self, failure: Failure) -> bytes:
        self._state = OVER
        return super().fail(failure)

    def _line(self, line: bytes) -> bytes:
        """A line of the server's; what it gets now."""
        if self._state == LISTED:
            return self._listed(line)
        found = reply(line)
        if found is None or (found.more and self._state not in (AUTH, PROOF)):
            return self.fail(Failure.SERVER_PROTOCOL)
        self.text = line
        if self._state >= NAME:
            return self._judged(found)
        if not found.ok and self._state != LIST:
            self.code = found.code
            return self.fail(Failure.CONNECT_TLS if self._state == TLS else Failure.SERVER_ERROR)
        if self._state == GREETING:
            return self._greeted(found)
        if self._state == TLS:
            self._state, self.outcome = HANDSHAKE, WANTS_TLS
            return b""
        if self._state == ADDRESS:
            return self._question()
        self.capabilities = []
        if not found.ok:
            return self._login()
        self._state = LISTED
        return b""

    def _greeted(self, found: Reply) -> bytes:
        if found.code != b"XCLIENT":
            self._announce = b""
        if not self._secure:
            return self._next()
        self._state = TLS
        return b"STLS" + EOL

    def _next(self) -> bytes:
        if not self._announce:
            return self._question()
        self._state = ADDRESS
        return b"XCLIENT " + self._announce + EOL

    def _question(self) -> bytes:
        if not self._ask:
            return self._login()
        self._state = LIST
        return b"CAPA" + EOL

    def _listed(self, line: bytes) -> bytes:
        """A line of what the server can do, or the end of them."""
        if line == b".":
            return self._login()
        listed = self.capabilities
        if listed is None or len(listed) >= CAPABILITIES:
            return self.fail(Failure.SERVER_PROTOCOL)
        listed.append(line)
        return b""

    def _login(self) -> bytes:
        if not self._mechanism:
            self._state = NAME
            return b"USER " + self._user + EOL
        start = b"AUTH " + self._mechanism.upper().encode()
        whole = start + b" " + (self._response or b"=") + EOL
        if len(whole) <= PLACE_IN_LINE:
            self._state = PROOF
            return whole
        self._state = AUTH
        return start + EOL

    def _judged(self, found: Reply) -> bytes:
        """The server's word on the name, the mechanism or the password."""
        if not found.ok:
            self.code = found.code
            self._state = OVER
            if found.code in REFUSALS:
                return self.refuse()
            return self.fail(Failure.SERVER_ERROR) if found.code == b"SYS/TEMP" else self.postpone()
        if found.more:
            state, self._state = self._state, PROOF
            if state == AUTH:
                return self._response + EOL
            return self._challenged()
        if self._state == NAME:
            self._state = PROOF
            return b"PASS " + self._password + EOL
        if self._state == AUTH:
            return self.fail(Failure.SERVER_PROTOCOL)  # logged in without a proof?
        self._state, self.outcome = OVER, ACCEPTED
        return b""

    def _challenged(self) -> bytes:
        """A challenge behind the whole proof: the server tells why it takes no token, and -ERR follows an answer."""
        mechanism, self._mechanism = self._mechanism, ""  # there is one at most
        if mechanism == "oauthbearer":
            return encoded(ERROR_SEEN) + EOL
        return EOL if mechanism == "xoauth2" else self.fail(Failure.SERVER_PROTOCOL)
