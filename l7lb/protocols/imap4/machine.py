"""The IMAP machine: one client, sans-io. The states are those of :mod:`l7lb.protocols.mail.login`; in COMMANDS a client
may say:

==============  ==================================  ==================================================================
command         is allowed                          does
==============  ==================================  ==================================================================
CAPABILITY      always                              tells what can be done before the login
NOOP            always                              nothing
ID              always                              is answered, remembered for the server; a trusted proxy tells of
                                                    its client with it
LOGOUT          always                              ends the session
STARTTLS        with certificates, before TLS       begins TLS; what was said before is void
LOGIN           behind TLS, or by the cleartext     logs in
                rule
AUTHENTICATE    the same, with what is offered      logs in
all others      never: they need a login            are refused
==============  ==================================  ==================================================================

Behind the login the client learns what its server can do, in the way that it can't miss: in an untagged line if it has
asked for CAPABILITY before, else inside the OK (Outlook and others take one of them for the other's answer).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from l7lb.core.actions import Action
from l7lb.core.contracts import Assignment, Peer
from l7lb.core.errors import Failure
from l7lb.core.snapshot import Listener
from l7lb.protocols.imap4 import ids
from l7lb.protocols.imap4.dialogue import ImapDialogue
from l7lb.protocols.imap4.syntax import EOL, Arguments, Command, Malformed, Reader, Wanted
from l7lb.protocols.mail.credentials import Credentials
from l7lb.protocols.mail.dialogue import Dialogue
from l7lb.protocols.mail.failures import LIMITS, permanent, words
from l7lb.protocols.mail.lines import Lines
from l7lb.protocols.mail.login import LoginSession
from l7lb.protocols.mail.sasl import Identity, SaslFault, encoded
from l7lb.protocols.mail.shared import MailShared

OWN: Final = (b"IMAP4rev1", b"SASL-IR", b"LITERAL+", b"ID")
# What l7lb did already, or must not be done behind it: another user in the same session might have another server.
HIDDEN: Final = frozenset((b"STARTTLS", b"LOGINDISABLED", b"UNAUTHENTICATE"))
PASSED: Final = frozenset((b"AUTHORIZATIONFAILED", b"EXPIRED", b"CONTACTADMIN"))  # codes of a server's refusal
PRIVACY: Final = b"NO [PRIVACYREQUIRED] Ask for STARTTLS first: this connection is in the clear."
TOO_BIG: Final = b"BAD [TOOBIG] The command's literals are too long."


class ImapShared(MailShared):
    """What a listener's IMAP sessions share: the capabilities before a login."""

    __slots__ = ("own",)

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self.own = [name.encode() for name in self.settings.capabilities] or list(OWN)

    def capabilities(self, peer: Peer) -> bytes:
        """What this client can do now (RFC 3501 section 7.2.1)."""
        names = list(self.own)
        if self.offers_tls(peer):
            names.append(b"STARTTLS")
        if not self.confidential(peer):
            names.append(b"LOGINDISABLED")
        names += [b"AUTH=" + name.upper().encode() for name in self.offered(peer)]
        return b" ".join(names)


class ImapMachine(LoginSession):
    """A client's connection; see the module's head."""

    __slots__ = ("_asked", "_fields", "_lines", "_reader", "_tag", "capable")

    def __init__(self, shared: ImapShared, peer: Peer, now: float) -> None:
        super().__init__(shared, peer, now)
        self.capable = shared
        self._reader = Reader(self.settings.line_bytes, self.settings.literal_bytes)
        self._lines = Lines(self.settings.line_bytes)  # of SASL
        self._tag = b""  # of the login in progress
        self._asked = False  # for CAPABILITY
        self._fields: ids.Fields = {}  # what the client said of itself

    def greeting(self) -> bytes:
        host = self.settings.hostname.encode()
        return b"* OK [CAPABILITY %b] %b ready.\r\n" % (self.capable.capabilities(self.peer), host)

    def secured(self, now: float) -> list[Action]:
        self._asked = False
        self._fields = {}
        self._reader.reset()
        self._lines.reset()
        return super().secured(now)

    # --- commands ---------------------------------------------------------------------------------------------

    def command(self, now: float) -> list[Action] | None:
        taken = self._reader.take(self.buffer)
        if taken is None:
            return None
        if isinstance(taken, Wanted):
            return self._wanted(taken, now)
        if not taken.tag:
            return self.complain(b"* BAD A command begins with a tag.\r\n", now)
        if taken.overlong:
            return self._refuse(taken, TOO_BIG, now)
        carry_out = self.COMMANDS.get(taken.name)
        if carry_out is None:
            return self._refuse(taken, self._unknown(taken), now)
        try:
            return carry_out(self, taken, now)
        except Malformed as problem:
            return self._refuse(taken, b"BAD " + str(problem).encode().capitalize() + b".", now)

    def _wanted(self, wanted: Wanted, now: float) -> list[Action]:
        """A literal waits for consent. What will be refused gets none, and is over with that."""
        command = wanted.command
        refusal = b""
        if command.name not in self.COMMANDS:
            refusal = self._unknown(command)
        elif wanted.overlong:
            refusal = TOO_BIG
        elif command.name in (b"LOGIN", b"AUTHENTICATE") and not self.shared.confidential(self.peer):
            refusal = PRIVACY
        if not refusal:
            self._reader.accept()
            return self.say(b"+ Go on.\r\n")
        self._reader.reset()
        return self._refuse(command, refusal, now)

    def _unknown(self, command: Command) -> bytes:
        return b"BAD Log in first, or there is no such command." if command.name else b"BAD There is no command."

    def _refuse(self, command: Command, why: bytes, now: float) -> list[Action]:
        return self.complain((command.tag or b"*") + b" " + why + EOL, now)

    def _done(self, command: Command, untagged: bytes = b"") -> list[Action]:
        return self.say(b"%b%b OK %b completed.\r\n" % (untagged, command.tag, command.name.capitalize()))

    def _capability(self, command: Command, _now: float) -> list[Action]:
        Arguments(command.arguments).end()
        self._asked = True
        return self._done(command, b"* CAPABILITY " + self.capable.capabilities(self.peer) + EOL)

    def _noop(self, command: Command, _now: float) -> list[Action]:
        Arguments(command.arguments).end()
        return self._done(command)

    def _logout(self, command: Command, now: float) -> list[Action]:
        Arguments(command.arguments).end()
        return [*self._done(command, b"* BYE Logging out.\r\n"), *self.end(None, now)]

    def _id(self, command: Command, _now: float) -> list[Action]:
        fields = ids.read(Arguments(command.arguments))
        if self.shared.trusts(self.peer):
            ids.believe(fields, self.origin)
            self.facts = self.flow.facts = self.make_facts()
        self._fields = ids.own(fields)
        return self._done(command, ids.ANSWER)

    def _starttls(self, command: Command, now: float) -> list[Action]:
        Arguments(command.arguments).end()
        if not self.shared.offers_tls(self.peer):
            return self._refuse(command, b"BAD TLS is on already, or there is none here.", now)
        return self.begin_tls(command.tag + b" OK Begin TLS now.\r\n", now)

    def _login(self, command: Command, now: float) -> list[Action]:
        arguments = Arguments(command.arguments)
        user = arguments.space().astring()
        password = arguments.space().astring()
        arguments.end()
        if not self.shared.confidential(self.peer):
            return self._refuse(command, PRIVACY, now)
        self._tag = command.tag
        try:
            if not password:
                raise SaslFault("the password is empty")
            identity = Identity(user, password)
        except SaslFault as fault:
            return self.complain(self.malformed(str(fault).encode()), now)
        return self.login(identity, "login", now)

    def _authenticate(self, command: Command, now: float) -> list[Action]:
        arguments = Arguments(command.arguments)
        mechanism = arguments.space().astring().decode("latin-1").lower()
        initial = arguments.space().astring() if arguments.more else None
        arguments.end()
        if not self.shared.confidential(self.peer):
            return self._refuse(command, PRIVACY, now)
        if mechanism not in self.shared.offered(self.peer):
            return self._refuse(command, b"NO There is no such mechanism here.", now)
        self._tag = command.tag
        return self.begin_sasl(mechanism, initial, now)

    COMMANDS: ClassVar[dict[bytes, Callable[[ImapMachine, Command, float], list[Action]]]] = {
        b"CAPABILITY": _capability,
        b"NOOP": _noop,
        b"ID": _id,
        b"LOGOUT": _logout,
        b"STARTTLS": _starttls,
        b"LOGIN": _login,
        b"AUTHENTICATE": _authenticate,
    }

    # --- a login's steps in IMAP's words ----------------------------------------------------------------------

    def response_line(self) -> bytes | None:
        return self._lines.take(self.buffer)

    def challenge(self, data: bytes) -> bytes:
        return b"+ " + encoded(data) + EOL

    def malformed(self, why: bytes) -> bytes:
        return self._tag + b" BAD " + why.capitalize().rstrip(b".") + b"." + EOL

    def converse(self, assignment: Assignment, credentials: Credentials) -> Dialogue:
        how = assignment.pool.config.client_address.get(self.shared.protocol, "")
        identify = ids.write(self._fields, self.origin) if how == "id" else b""
        return ImapDialogue(credentials, assignment.server_tls == "starttls", identify)

    def welcome(self) -> bytes:
        dialogue = self.dialogue
        assert isinstance(dialogue, ImapDialogue)
        said = b"".join(b"* OK [ALERT] " + alert + EOL for alert in dialogue.alerts)
        able = [name for name in dialogue.capabilities if name.upper() not in HIDDEN]
        able = [name for name in able if not name.upper().startswith(b"AUTH=")]
        if not able:
            return said + self._tag + b" OK Logged in.\r\n"
        listed = b"CAPABILITY " + b" ".join(able)
        if self._asked:
            return said + b"* " + listed + EOL + self._tag + b" OK Logged in.\r\n"
        return said + self._tag + b" OK [" + listed + b"] Logged in.\r\n"

    def refusal(self, failure: Failure) -> bytes:
        text = words(failure)
        if permanent(failure):
            code = self.dialogue.code if isinstance(self.dialogue, ImapDialogue) else b""
            if code == b"ALERT" and self.dialogue is not None:
                text = self.dialogue.text  # the server's users must read it (RFC 3501 section 7.1)
            elif code not in PASSED:
                code = b"AUTHENTICATIONFAILED"
        elif failure in LIMITS:
            code = b"LIMIT"
        else:
            code = b"UNAVAILABLE"
        return b"%b NO [%b] %b\r\n" % (self._tag, code, text)

    def farewell(self, failure: Failure, why: str) -> bytes:
        text = why.encode("ascii", "replace") or words(failure)
        if failure in (Failure.SHUTDOWN, Failure.ENDED_HERE):
            text = b"[UNAVAILABLE] " + text
        return b"* BYE " + text + EOL
