"""The login at an IMAP server, sans-io.

============  ================================  =================================================================
state         waits for                         leaves on
============  ================================  =================================================================
GREETING      the server's first line           OK -> what comes next; BYE, PREAUTH, anything else -> OVER
CAPABLE       its answer to CAPABILITY          OK -> what comes next; else -> OVER
STARTTLS      its answer to STARTTLS            OK -> HANDSHAKE; else -> OVER: without TLS it is not spoken to
HANDSHAKE     the handshake                     secured -> CAPABLE: what it said before counts no longer
PROOF         its answers to ID and the login,  OK -> OVER, or KNOWN where it did not say what it can do now;
              challenges in between             NO -> OVER: refused, or something temporary; ``+`` -> PROOF
KNOWN         its answer to CAPABILITY          any -> OVER: logged in
OVER          nothing                           what comes is the session's
============  ================================  =================================================================

What comes next is STARTTLS, where it is wanted, then CAPABILITY, where the server has not said yet what it can do, then
ID, where the server is to be told of the client and knows ID, and the login right behind it. Tags are this dialogue's
own; of untagged lines alerts are kept for the client, and a BYE never reaches it: another login may go well.
"""

from __future__ import annotations

import re
from typing import Final

from l7lb.core.errors import Failure
from l7lb.protocols.imap4.syntax import EOL, LITERAL, Response, quotable, quoted, response
from l7lb.protocols.mail.credentials import Credentials
from l7lb.protocols.mail.dialogue import ACCEPTED, GOES_ON, TLS, Dialogue
from l7lb.protocols.mail.lines import Lines, LineTooLong
from l7lb.protocols.mail.sasl import ERROR_SEEN, TOKENS, encoded

GREETING: Final = 0
CAPABLE: Final = 1
STARTTLS: Final = 2
HANDSHAKE: Final = 3
PROOF: Final = 4
KNOWN: Final = 5
OVER: Final = 6

LINE_BYTES: Final = 16 * 1024
ALERTS: Final = 8
ID_TAG: Final = b"l7lb1"
LOGIN_TAG: Final = b"l7lb2"
TAG: Final = b"l7lb0"  # of all others

# Codes of NO (RFC 5530) that mean the credentials, not the server's own trouble; without a code it means them as well.
REFUSALS: Final = frozenset(
    (b"", b"AUTHENTICATIONFAILED", b"AUTHORIZATIONFAILED", b"EXPIRED", b"ALERT", b"CONTACTADMIN")
)
NAME = re.compile(rb"[\x21-\x5c\x5e-\x7e]+\Z")


class ImapDialogue(Dialogue):
    """One login. ``identify`` is ID's argument, empty where the server is not told of the client; ``secure``: STARTTLS
    comes before all else. ``code`` is that of the server's NO, ``capabilities`` what the server can do behind the
    login, ``alerts`` what its users must read.
    """

    __slots__ = (
        "_credentials", "_identify", "_lines", "_pending", "_secure", "_skip", "_state", "_whole", "alerts",
        "capabilities", "code",
    )  # fmt: skip

    def __init__(self, credentials: Credentials, secure: bool, identify: bytes) -> None:
        super().__init__()
        self._credentials = credentials
        self._secure = secure
        self._identify = identify
        self._lines = Lines(LINE_BYTES)
        self._skip = 0  # bytes of a literal inside a response
        self._whole = b""  # that response, without the literal
        self._pending: list[bytes] = []  # what follows when the server says +
        self._state = GREETING
        self.capabilities: list[bytes] = []
        self.alerts: list[bytes] = []
        self.code = b""

    def received(self, buffer: bytearray) -> bytes:
        said = b""
        try:
            while self.outcome == GOES_ON and (line := self._take(buffer)) is not None:
                found = response(line)
                said += self._heard(found) if found is not None else self.fail(Failure.SERVER_PROTOCOL)
        except LineTooLong:
            self.fail(Failure.SERVER_PROTOCOL)
        return said

    def secured(self) -> bytes:
        self._secure = False
        self.capabilities = []
        self.alerts = []
        self._lines.reset()
        return self._next()

    def _take(self, buffer: bytearray) -> bytes | None:
        """The next response. A literal in it is skipped: nothing that counts has one."""
        while True:
            if self._skip:
                size = min(self._skip, len(buffer))
                del buffer[:size]
                self._skip -= size
                if self._skip:
                    return None
            line = self._lines.take(buffer)
            if line is None:
                return None
            whole, self._whole = self._whole + line, b""
            found = LITERAL.search(line) if whole[:2] == b"* " else None
            if found is None:
                return whole
            if len(whole) > LINE_BYTES:
                raise LineTooLong(whole.decode("latin-1")[:40])
            self._whole, self._skip = whole, int(found[1])

    def _heard(self, said: Response) -> bytes:
        if self._state == GREETING:
            return self._greeted(said)
        if said.tag == b"*":
            return self._untagged(said)
        if said.tag == b"+":
            return self._continued(said)
        if self._state == PROOF:
            return self._judged(said)
        if said.tag != TAG:
            return self.fail(Failure.SERVER_PROTOCOL)
        if self._state == STARTTLS:
            if said.word != b"OK":
                return self.fail(Failure.CONNECT_TLS)
            self._state, self.outcome = HANDSHAKE, TLS
            return b""
        if self._state == KNOWN:
            return self._accepted()
        return self._login() if said.word == b"OK" and self.capabilities else self.fail(Failure.SERVER_PROTOCOL)

    def _greeted(self, said: Response) -> bytes:
        if said.tag != b"*" or said.word != b"OK":
            # PREAUTH: whoever that session belongs to, it is not this client's; and nobody could ask for TLS in it.
            return self.fail(Failure.SERVER_ERROR if said.word == b"BYE" else Failure.SERVER_PROTOCOL)
        self._learn(said)
        return self._next()

    def _next(self) -> bytes:
        if not self.capabilities:
            self._state = CAPABLE
            return TAG + b" CAPABILITY" + EOL
        return self._login()

    def _untagged(self, said: Response) -> bytes:
        if said.word == b"BYE":
            return self.fail(Failure.SERVER_ERROR)
        self._learn(said)
        if said.word in (b"OK", b"NO") and said.code == b"ALERT" and len(self.alerts) < ALERTS:
            self.alerts.append(said.text)
        return b""

    def _learn(self, said: Response) -> None:
        """Take over what the server says that it can do, wherever it says so."""
        if said.word == b"CAPABILITY":
            self.capabilities = _names(said.text)
        elif said.code == b"CAPABILITY" and said.word in (b"OK", b"PREAUTH"):
            self.capabilities = _names(said.detail)

    def _continued(self, said: Response) -> bytes:
        """The server waits for the next part of the login."""
        if self._state != PROOF:
            return self.fail(Failure.SERVER_PROTOCOL)
        if self._pending:
            return self._pending.pop(0)
        # Behind the whole proof: it tells why it takes no token, and NO follows an answer. There is one at most.
        mechanism, self._credentials.mechanism = self._credentials.mechanism, ""
        if mechanism not in TOKENS:
            return self.fail(Failure.SERVER_PROTOCOL)
        return (encoded(ERROR_SEEN) if mechanism == "oauthbearer" else b"") + EOL

    def _login(self) -> bytes:
        able = self._able()
        if self._secure:
            if b"STARTTLS" not in able:
                return self.fail(Failure.CONNECT_TLS)
            self._state = STARTTLS
            return TAG + b" STARTTLS" + EOL
        credentials = self._credentials
        self._state = PROOF
        self.capabilities = []  # from here on: what it can do behind the login
        said = b""
        if self._identify and b"ID" in able:
            said = ID_TAG + b" ID " + self._identify + EOL
        name = credentials.mechanism.upper().encode()
        if b"AUTH=" + name in able:
            command = LOGIN_TAG + b" AUTHENTICATE " + name
            response = encoded(credentials.response())
            if b"SASL-IR" in able:
                return said + command + b" " + (response or b"=") + EOL
            self._pending = [response + EOL]
            return said + command + EOL
        if credentials.mechanism in TOKENS:
            return self.refuse()  # the client has chosen it, where it is offered
        if not credentials.simple:
            return self.postpone()
        if b"LOGINDISABLED" in able:
            return self.fail(Failure.SERVER_PROTOCOL)
        return said + self._command(b"LITERAL+" in able or b"LITERAL-" in able)

    def _command(self, eager: bool) -> bytes:
        """LOGIN, with literals where a quoted string can't say it; ``eager``: they need not wait."""
        parts = [LOGIN_TAG + b" LOGIN"]
        for text in (self._credentials.user, self._credentials.password):
            if quotable(text):
                parts[-1] += b" " + quoted(text)
            elif eager and len(text) <= 4096:
                parts[-1] += b" {%d+}\r\n%b" % (len(text), text)
            else:
                parts[-1] += b" {%d}\r\n" % len(text)
                parts.append(text)
        parts[-1] += EOL
        self._pending = parts[1:]
        return parts[0]

    def _judged(self, said: Response) -> bytes:
        """The server's word on ID, which changes nothing, or on the login."""
        if said.tag == ID_TAG and self._identify:
            self._identify = b""
            return b""
        if said.tag != LOGIN_TAG:
            return self.fail(Failure.SERVER_PROTOCOL)
        self.code, self.text = said.code, said.text
        if said.word == b"NO":
            if said.code in REFUSALS:
                return self.refuse()
            if said.code in (b"INUSE", b"REFERRAL"):
                return self.postpone()
            return self.fail(Failure.SESSION_LIMIT if said.code == b"LIMIT" else Failure.SERVER_ERROR)
        if said.word == b"BAD":
            return self.postpone()  # for a name or a password that it has no words for, which may be anybody's
        if said.word != b"OK" or self._pending:
            return self.fail(Failure.SERVER_PROTOCOL)
        if said.code == b"ALERT" and len(self.alerts) < ALERTS:
            self.alerts.append(said.text)
        self._learn(said)
        if self.capabilities:
            return self._accepted()
        self._state = KNOWN
        return TAG + b" CAPABILITY" + EOL

    def _accepted(self) -> bytes:
        self._state, self.outcome = OVER, ACCEPTED
        return b""

    def _able(self) -> set[bytes]:
        return {name.upper() for name in self.capabilities}


def _names(text: bytes) -> list[bytes]:
    return [name for name in text.split() if NAME.match(name)]
