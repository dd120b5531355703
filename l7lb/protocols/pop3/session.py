"""A POP3 session before its login (RFC 1939, RFC 2449, RFC 2595, RFC 5034). Its states are those of
:mod:`l7lb.protocols.mail.login`.

=========  ===========================================================================================================
command    what it does
=========  ===========================================================================================================
CAPA       tells what all servers can do, and what is l7lb's own part
STLS       TLS, where it is offered; what was said before is forgotten
USER       keeps the name, whatever it is: nobody learns here which there are
PASS       logs in with that name, once
AUTH       SASL, with the first response in the line or behind a challenge; without a word, the list of mechanisms
XCLIENT    a trusted proxy tells of its client
NOOP QUIT  as ever
=========  ===========================================================================================================

There is no APOP, and so no timestamp in the greeting: a proxy would have to know everybody's password.
"""

from __future__ import annotations

from l7lb.core.actions import Action
from l7lb.core.contracts import Assignment, Peer
from l7lb.core.errors import Failure
from l7lb.core.snapshot import Listener
from l7lb.protocols.mail.credentials import Credentials
from l7lb.protocols.mail.dialogue import Dialogue
from l7lb.protocols.mail.dovecot import announcement, believe
from l7lb.protocols.mail.failures import PERMANENT, words
from l7lb.protocols.mail.lines import Lines
from l7lb.protocols.mail.login import LoginSession
from l7lb.protocols.mail.sasl import Identity, SaslFault, encoded
from l7lb.protocols.mail.shared import MailShared
from l7lb.protocols.pop3.capabilities import Capabilities
from l7lb.protocols.pop3.dialogue import Pop3Dialogue
from l7lb.protocols.pop3.syntax import command

EOL = b"\r\n"
PASSED_ON = (b"IN-USE", b"LOGIN-DELAY", b"SYS/PERM")  # codes that a server's refusal keeps (RFC 2449, RFC 3206)
CODE_WORDS = {
    b"IN-USE": b"The mailbox is in use by another session.",
    b"LOGIN-DELAY": b"The last login was too short ago.",
    b"SYS/PERM": b"The mailbox can't be opened, ask the operator.",
}
WITHOUT_CODE = (Failure.CLIENT_PROTOCOL, Failure.CLIENT_LIMIT, Failure.CLIENT_TIMEOUT)


class Pop3Shared(MailShared):
    """What all sessions of one listener share; ``capabilities`` is what they have learned of the servers."""

    __slots__ = ("capabilities",)

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self.capabilities = Capabilities.of(listener.name, self.settings.capabilities)


class Pop3Session(LoginSession):
    """A client's connection; see the module's head and :class:`l7lb.protocols.mail.login.LoginSession`."""

    __slots__ = ("_capabilities", "_lines", "_name")

    def __init__(self, shared: Pop3Shared, peer: Peer, now: float) -> None:
        super().__init__(shared, peer, now)
        self._capabilities = shared.capabilities
        self._lines = Lines(shared.settings.line_bytes)
        self._name = b""  # that USER gave

    # --- the client's side ------------------------------------------------------------------------------------

    def greeting(self) -> bytes:
        return (
            b"+OK %b%b ready."
            % (
                b"[XCLIENT] " if self.shared.trusts(self.peer) else b"",
                self.settings.hostname.encode(),
            )
            + EOL
        )

    def secured(self, now: float) -> list[Action]:
        self._name = b""
        return super().secured(now)

    def command(self, now: float) -> list[Action] | None:
        line = self._lines.take(self.buffer)
        if line is None:
            return None
        word, argument = command(line)
        if word == b"USER":
            return self._user(argument, now)
        if word == b"PASS":
            return self._pass(argument, now)
        if word == b"AUTH":
            return self._auth(argument, now)
        if word == b"CAPA":
            return self.say(self._capa())
        if word == b"STLS":
            return self._stls(argument, now)
        if word == b"NOOP":
            return self.say(b"+OK" + EOL)
        if word == b"QUIT":
            return [*self.say(b"+OK Bye." + EOL), *self.end(None, now)]
        if word == b"XCLIENT" and self.shared.trusts(self.peer):
            return self._xclient(argument, now)
        return self._wrong(b"Unknown command." if word != b"APOP" else b"APOP is not offered.", now)

    def _wrong(self, why: bytes, now: float) -> list[Action]:
        return self.complain(b"-ERR " + why + EOL, now)

    def _in_the_clear(self, now: float) -> list[Action]:
        """Before a password was sent, if the client waits for its answers."""
        return self._wrong(b"[AUTH] No logins in the clear: use STLS first.", now)

    def _capa(self) -> bytes:
        offered = self.shared.offered(self.peer)
        return self._capabilities.lines(
            [name.upper() for name in offered],
            starttls=self.shared.offers_tls(self.peer),
            user=self.shared.confidential(self.peer),
        )

    def _stls(self, argument: bytes, now: float) -> list[Action]:
        if argument:
            return self._wrong(b"STLS has no argument.", now)
        if not self.shared.offers_tls(self.peer):
            return self._wrong(b"TLS is active already." if self.peer.tls else b"TLS is not offered.", now)
        return self.begin_tls(b"+OK Begin TLS." + EOL, now)

    def _user(self, name: bytes, now: float) -> list[Action]:
        if not self.shared.confidential(self.peer):
            return self._in_the_clear(now)
        if not name:
            return self._wrong(b"USER needs a name.", now)
        self._name = name
        return self.say(b"+OK" + EOL)

    def _pass(self, password: bytes, now: float) -> list[Action]:
        if not self.shared.confidential(self.peer):
            return self._in_the_clear(now)
        name, self._name = self._name, b""
        if not name:
            return self._wrong(b"USER comes first.", now)
        try:
            identity = Identity(name, password)
        except SaslFault:
            return self.complain(self.refusal(Failure.LOGIN_REFUSED), now)
        if not password:
            return self.complain(self.refusal(Failure.LOGIN_REFUSED), now)  # an LDAP server might well take it
        return self.login(identity, "login", now)

    def _auth(self, argument: bytes, now: float) -> list[Action]:
        offered = self.shared.offered(self.peer)
        if not offered:
            return self._in_the_clear(now)
        if not argument:
            names = [name.upper().encode() for name in offered]
            return self.say(EOL.join([b"+OK", *names, b"."]) + EOL)
        mechanism, space, initial = argument.partition(b" ")
        name = mechanism.lower().decode("latin-1")
        if name not in offered:
            return self._wrong(b"This mechanism is not offered.", now)
        self._name = b""
        return self.begin_sasl(name, initial if space else None, now)

    def _xclient(self, argument: bytes, now: float) -> list[Action]:
        """What a proxy in front tells of its client, in Dovecot's words."""
        if not believe(self.origin, argument.split()):
            return self._wrong(b"This is no address.", now)
        self.facts = self.flow.facts = self.make_facts()
        return self.say(b"+OK Updated." + EOL)

    # --- SASL -------------------------------------------------------------------------------------------------

    def response_line(self) -> bytes | None:
        return self._lines.take(self.buffer)

    def challenge(self, data: bytes) -> bytes:
        return b"+ " + encoded(data) + EOL

    def malformed(self, why: bytes) -> bytes:
        return b"-ERR " + why + EOL

    # --- the server's side, and the answers -------------------------------------------------------------------

    def converse(self, assignment: Assignment, credentials: Credentials) -> Dialogue:
        server = assignment.server
        return Pop3Dialogue(
            credentials,
            secure=assignment.server_tls == "starttls",
            announce=announcement(self.origin, assignment, self.shared.protocol),
            ask=self._capabilities.wanted(f"{server.pool}/{server.name}", self.flow.connected_at),
        )

    def welcome(self) -> bytes:
        dialogue, assignment = self.dialogue, self.assignment
        if isinstance(dialogue, Pop3Dialogue) and assignment is not None and dialogue.capabilities is not None:
            name = f"{assignment.server.pool}/{assignment.server.name}"
            self._capabilities.learn(name, dialogue.capabilities, self.flow.logged_in_at)
        return b"+OK Logged in." + EOL

    def refusal(self, failure: Failure) -> bytes:
        dialogue = self.dialogue
        if failure in PERMANENT:
            return b"-ERR [AUTH] " + words(failure) + EOL
        code = dialogue.code if isinstance(dialogue, Pop3Dialogue) else b""
        if failure is Failure.SERVER_ERROR and code in PASSED_ON:
            return b"-ERR [%b] %b" % (code, CODE_WORDS[code]) + EOL
        return b"-ERR [SYS/TEMP] " + words(failure) + EOL

    def farewell(self, failure: Failure, why: str) -> bytes:
        if failure in PERMANENT:
            return b""  # its answer was the last word
        text = why.encode("utf-8", "replace").translate(None, b"\r\n") or words(failure)
        return (b"-ERR " if failure in WITHOUT_CODE else b"-ERR [SYS/TEMP] ") + text + EOL
