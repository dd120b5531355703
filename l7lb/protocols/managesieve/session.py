"""A ManageSieve session before its login (RFC 5804). Its states are those of :mod:`l7lb.protocols.mail.login`.

============  ========================================================================================================
command       what it does
============  ========================================================================================================
(none)        the capabilities are told when the client connects, and again once it has TLS
CAPABILITY    tells them when asked
STARTTLS      TLS, where it is offered; what was said before is forgotten
AUTHENTICATE  SASL, whose base64 comes in strings: quoted or literal, in the command or behind a challenge
XCLIENT       a trusted proxy tells of its client
NOOP LOGOUT   as ever, NOOP with the tag that it was given
============  ========================================================================================================
"""

from __future__ import annotations

import re

from l7lb.core.actions import Action
from l7lb.core.contracts import Assignment, Peer
from l7lb.core.errors import Failure
from l7lb.core.snapshot import Listener
from l7lb.protocols.mail.credentials import Credentials
from l7lb.protocols.mail.dialogue import Dialogue
from l7lb.protocols.mail.dovecot import announcement, believe
from l7lb.protocols.mail.failures import PERMANENT, words
from l7lb.protocols.mail.lines import LineTooLong
from l7lb.protocols.mail.login import LoginSession
from l7lb.protocols.mail.sasl import encoded
from l7lb.protocols.mail.shared import MailShared
from l7lb.protocols.managesieve.capabilities import Capabilities
from l7lb.protocols.managesieve.dialogue import SieveDialogue
from l7lb.protocols.managesieve.syntax import Atom, Malformed, Reader, string

EOL = b"\r\n"
NO_BASE64 = b"!"  # stands for a response that is none
REFERRED = re.compile(rb"sieve://[!-~]{1,1000}\Z")
# Where the connection ends by what the client did, coming again helps nobody.
FOR_GOOD = PERMANENT | {Failure.CLIENT_PROTOCOL, Failure.CLIENT_LIMIT, Failure.CLIENT_TIMEOUT}
LOGGED_IN_ONLY = frozenset({
    b"HAVESPACE", b"PUTSCRIPT", b"LISTSCRIPTS", b"SETACTIVE", b"GETSCRIPT", b"DELETESCRIPT", b"RENAMESCRIPT",
    b"CHECKSCRIPT",
})  # fmt: skip


class SieveShared(MailShared):
    """What all sessions of one listener share; ``capabilities`` is what they have learned of the servers."""

    __slots__ = ("capabilities",)

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self.capabilities = Capabilities.of(listener.name, self.settings.capabilities)


class SieveSession(LoginSession):
    """A client's connection; see the module's head and :class:`l7lb.protocols.mail.login.LoginSession`."""

    __slots__ = ("_capabilities", "_reader")

    def __init__(self, shared: SieveShared, peer: Peer, now: float) -> None:
        super().__init__(shared, peer, now)
        self._capabilities = shared.capabilities
        self._reader = Reader(shared.settings.line_bytes, shared.settings.literal_bytes, marked=True)

    # --- the client's side ------------------------------------------------------------------------------------

    def greeting(self) -> bytes:
        return self._told() + b'OK "%b ready."' % self.settings.hostname.encode() + EOL

    def _told(self) -> bytes:
        trusted = b'"XCLIENT" "ADDR PORT TTL SESSION"' + EOL if self.shared.trusts(self.peer) else b""
        offered = [name.upper() for name in self.shared.offered(self.peer)]
        return self._capabilities.lines(offered, self.shared.offers_tls(self.peer)) + trusted

    def secured(self, now: float) -> list[Action]:
        return [*super().secured(now), *self.say(self._told() + b'OK "TLS is active."' + EOL)]

    def command(self, now: float) -> list[Action] | None:
        try:
            tokens = self._reader.take(self.buffer)
        except Malformed as fault:
            if fault.limit:
                raise LineTooLong(fault.detail) from None
            if fault.fatal:
                return self.end(Failure.CLIENT_PROTOCOL, now)
            return self._wrong(fault.detail.encode(), now)
        if tokens is None:
            return None
        if not tokens or not isinstance(tokens[0], Atom):
            return self._wrong(b"A command begins with a word.", now)
        return self._carry_out(tokens[0].upper(), tokens[1:], now)

    def _carry_out(self, word: bytes, arguments: list[bytes], now: float) -> list[Action]:
        strings = not any(isinstance(each, Atom) for each in arguments)
        if word == b"AUTHENTICATE" and strings and 1 <= len(arguments) <= 2:
            return self._authenticate(arguments, now)
        if word == b"NOOP" and strings and len(arguments) <= 1:
            tag = b"(TAG %b) " % string(arguments[0]) if arguments else b""
            return self.say(b"OK " + tag + b'"Done."' + EOL)
        if word == b"XCLIENT" and self.shared.trusts(self.peer):
            return self._xclient(arguments, now)
        if not arguments:
            if word == b"CAPABILITY":
                return self.say(self._told() + b'OK "That is all."' + EOL)
            if word == b"STARTTLS":
                return self._starttls(now)
            if word == b"LOGOUT":
                return [*self.say(b'OK "Bye."' + EOL), *self.end(None, now)]
        return self._wrong(b"Log in first." if word in LOGGED_IN_ONLY else b"Unknown command or arguments.", now)

    def _wrong(self, why: bytes, now: float, code: bytes = b"") -> list[Action]:
        return self.complain(_answer(b"NO", code, why), now)

    def _starttls(self, now: float) -> list[Action]:
        if not self.shared.offers_tls(self.peer):
            return self._wrong(b"TLS is active already." if self.peer.tls else b"TLS is not offered.", now)
        return self.begin_tls(b'OK "Begin TLS."' + EOL, now)

    def _authenticate(self, arguments: list[bytes], now: float) -> list[Action]:
        offered = self.shared.offered(self.peer)
        if not offered:
            return self._wrong(b"No logins in the clear: use STARTTLS first.", now, b"ENCRYPT-NEEDED")
        mechanism = arguments[0].lower().decode("latin-1")
        if mechanism not in offered:
            return self._wrong(b"This mechanism is not offered.", now)
        return self.begin_sasl(mechanism, arguments[1] if len(arguments) > 1 else None, now)

    def _xclient(self, arguments: list[bytes], now: float) -> list[Action]:
        """What a proxy in front tells of its client, in Dovecot's words."""
        if not believe(self.origin, arguments):
            return self._wrong(b"This is no address.", now)
        self.facts = self.flow.facts = self.make_facts()
        return self.say(b'OK "Updated."' + EOL)

    # --- SASL -------------------------------------------------------------------------------------------------

    def response_line(self) -> bytes | None:
        try:
            tokens = self._reader.take(self.buffer)
        except Malformed as fault:
            if fault.fatal:
                raise LineTooLong(fault.detail) from None  # it can't be read to its end
            return NO_BASE64
        if tokens is None:
            return None
        return tokens[0] if len(tokens) == 1 and not isinstance(tokens[0], Atom) else NO_BASE64

    def challenge(self, data: bytes) -> bytes:
        return string(encoded(data)) + EOL

    def malformed(self, why: bytes) -> bytes:
        return _answer(b"NO", b"", why)

    # --- the server's side, and the answers -------------------------------------------------------------------

    def converse(self, assignment: Assignment, credentials: Credentials) -> Dialogue:
        return SieveDialogue(
            credentials,
            secure=assignment.server_tls == "starttls",
            announce=announcement(self.origin, assignment, self.shared.protocol),
        )

    def welcome(self) -> bytes:
        dialogue, assignment = self.dialogue, self.assignment
        if isinstance(dialogue, SieveDialogue) and assignment is not None:
            name = f"{assignment.server.pool}/{assignment.server.name}"
            self._capabilities.learn(name, dialogue.capabilities, self.flow.logged_in_at)
        return b'OK "Logged in."' + EOL

    def give_up(self, failure: Failure, now: float) -> list[Action]:
        """A server that sends the client elsewhere is taken at its word (RFC 5804 section 1.3)."""
        dialogue = self.dialogue
        found = dialogue.result if isinstance(dialogue, SieveDialogue) else None
        if found is None or found.word != b"BYE" or found.code != b"REFERRAL" or not REFERRED.match(found.about):
            return super().give_up(failure, now)
        code = b"REFERRAL " + string(found.about)
        said = self.say(_answer(b"BYE", code, b"The mailbox is on another server."))
        return [*said, *self.close(failure, f"{failure.label}@server-login", now)]

    def refusal(self, failure: Failure) -> bytes:
        return _answer(b"NO", b"" if failure in PERMANENT else b"TRYLATER", words(failure))

    def farewell(self, failure: Failure, why: str) -> bytes:
        text = why.encode("utf-8", "replace").translate(None, b"\r\n") or words(failure)
        return _answer(b"BYE", b"" if failure in FOR_GOOD else b"TRYLATER", text)


def _answer(word: bytes, code: bytes, text: bytes) -> bytes:
    """A result with its code and its text (RFC 5804 section 1.3)."""
    return word + b" " + (b"(" + code + b") " if code else b"") + string(text) + EOL
