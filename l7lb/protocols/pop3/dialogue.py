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

import base64
from typing import Final

from l7lb.core.errors import Failure
from l7lb.protocols.pop3.syntax import PLACE_IN_LINE, Reply, reply

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

CAPABILITIES = 64  # lines of one answer

ERROR_SEEN = base64.b64encode(b"\x01")  # what a client says to a refused token (RFC 7628 section 3.2.3)
REFUSALS = (b"", b"AUTH")  # codes of -ERR that mean the credentials, not the server's own trouble
EOL = b"\r\n"


class Dialogue:
    """One login. ``outcome`` says how it went: empty while it goes on, ``tls`` (a handshake is wanted), ``accepted``,
    ``refused`` (the credentials), ``failed`` (all else: see ``failure``). ``code`` is the server's response code.

    Without a ``mechanism`` the server gets USER and PASS, else AUTH with ``response``, the mechanism's first and only
    one. ``announce`` is the argument of XCLIENT, ``secure``: STLS comes before all else, ``ask``: CAPA is asked for,
    and ``capabilities`` its lines once it was answered.
    """

    __slots__ = (
        "_announce", "_ask", "_mechanism", "_password", "_response", "_secure", "_state", "_user", "capabilities",
        "code", "failure", "outcome",
    )  # fmt: skip

    def __init__(self, user: bytes, password: bytes, mechanism: str = "", response: bytes = b"") -> None:
        self._user = user
        self._password = password
        self._mechanism = mechanism
        self._response = base64.b64encode(response)
        self._announce = b""
        self._secure = False
        self._ask = False
        self._state = GREETING
        self.capabilities: list[bytes] | None = None
        self.outcome = ""
        self.code = b""
        self.failure = Failure.SERVER_PROTOCOL

    def wants(self, secure: bool, announce: bytes, ask: bool) -> None:
        """What is done before the login."""
        self._secure = secure
        self._ask = ask
        self._announce = announce

    def line(self, line: bytes) -> bytes:
        """A line of the server's, without its end; what it gets now."""
        if self._state == LISTED:
            return self._listed(line)
        found = reply(line)
        if found is None or (found.more and self._state not in (AUTH, PROOF)):
            return self._fail(Failure.SERVER_PROTOCOL)
        if self._state == GREETING:
            return self._greeted(found)
        if self._state == TLS:
            if not found.ok:
                return self._fail(Failure.CONNECT_TLS)
            self._state, self.outcome = HANDSHAKE, "tls"
            return b""
        if self._state == ADDRESS:
            return self._question() if found.ok else self._fail(Failure.SERVER_ERROR)
        if self._state == LIST:
            self.capabilities = []
            if not found.ok:
                return self._login()
            self._state = LISTED
            return b""
        return self._judged(found)

    def secured(self) -> bytes:
        """The handshake is done; what the server gets now."""
        self.outcome = ""
        return self._next()

    def _greeted(self, found: Reply) -> bytes:
        if not found.ok:
            self.code = found.code
            return self._fail(Failure.SERVER_ERROR)
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
            return self._fail(Failure.SERVER_PROTOCOL)
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
            if found.code not in REFUSALS:
                return self._fail(Failure.SERVER_ERROR)
            self._state, self.outcome, self.failure = OVER, "refused", Failure.LOGIN_REFUSED
            return b""
        if found.more:
            state, self._state = self._state, PROOF
            if state == AUTH:
                return self._response + EOL
            return self._challenged()
        if self._state == NAME:
            self._state = PROOF
            return b"PASS " + self._password + EOL
        if self._state == AUTH:
            return self._fail(Failure.SERVER_PROTOCOL)  # logged in without a proof?
        self._state, self.outcome = OVER, "accepted"
        return b""

    def _challenged(self) -> bytes:
        """A challenge behind the whole proof: the server tells why it takes no token, and -ERR follows an answer."""
        mechanism, self._mechanism = self._mechanism, ""  # there is one at most
        if mechanism == "oauthbearer":
            return ERROR_SEEN + EOL
        return EOL if mechanism == "xoauth2" else self._fail(Failure.SERVER_PROTOCOL)

    def _fail(self, failure: Failure) -> bytes:
        self._state, self.outcome, self.failure = OVER, "failed", failure
        return b""
