"""The commands of SMTP and LMTP that are no part of a transaction: greetings, TLS, XCLIENT, and the small ones."""

from __future__ import annotations

from l7lb.core.actions import StartTls
from l7lb.core.errors import Failure
from l7lb.protocols.mail.esmtp import Command, Fault, from_xtext
from l7lb.protocols.mail.esmtp_replies import Reply
from l7lb.protocols.mail.esmtp_session import SECURING, EsmtpSession
from l7lb.protocols.mail.origin import Origin


class Commands(EsmtpSession):
    """Adds them; see :mod:`.esmtp_session` for the states."""

    __slots__ = ()

    def keywords(self) -> list[bytes]:
        """What the answer to EHLO has beside what servers offer."""
        return []

    def mail_command(self, command: Command, now: float) -> None:
        """Carry out a command of a transaction, or of the protocol's own. Raises Fault."""
        raise NotImplementedError

    def command(self, command: Command, now: float) -> None:
        verb = command.verb
        if verb in (b"EHLO", b"LHLO", b"HELO"):
            self._hello(verb, command.argument, now)
        elif verb == b"STARTTLS":
            self._start_tls(command.argument, now)
        elif verb == b"NOOP":
            self.say(b"250 2.0.0 OK", now)
        elif verb == b"QUIT":
            self.leave(b"221 2.0.0 Bye", None, now)
        elif verb == b"HELP":
            self.say(b"214 2.0.0 See RFC 5321", now)
        elif verb in (b"VRFY", b"EXPN"):
            if not command.argument:
                raise Fault(b"501 5.5.4 Expected an address")
            self.say(b"252 2.5.2 Addresses are not looked up here, send to it" if verb == b"VRFY"
                     else b"502 5.5.1 Lists are not expanded here", now)  # fmt: skip
        elif verb == b"XCLIENT":
            self._xclient(command.argument, now)
        else:
            self.mail_command(command, now)

    def _hello(self, verb: bytes, argument: bytes, now: float) -> None:
        if (verb == b"LHLO") is not (self.shared.server_hello == b"LHLO"):
            raise Fault(b"500 5.5.1 Say " + self.shared.server_hello)
        if not argument or len(argument) > 255 or b" " in argument or not argument.isascii():
            raise Fault(b"501 5.5.4 Expected " + verb + b" and a name")
        self.hello = argument
        self.extended = verb != b"HELO"
        self.forget(now)
        if verb == b"HELO":
            self.offer = {}
            self.say(b"250 " + self.shared.hostname, now)
            return
        self.offer = self.shared.offers.now()
        lines = [self.shared.hostname, b"PIPELINING"]
        lines += [name + b" " + value if value else name for name, value in self.offer.items()]
        if self.shared.offers_tls(self.peer):
            lines.append(b"STARTTLS")
        lines += self.keywords()
        if self.shared.trusts(self.peer):
            lines.append(b"XCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT TTL SESSION")
        self.tell(Reply(250, lines).render())

    def _start_tls(self, argument: bytes, now: float) -> None:
        if self.peer.tls:
            raise Fault(b"503 5.5.1 TLS is in use already")
        if not self.shared.starttls:
            raise Fault(b"502 5.5.1 There is no TLS here")
        if argument:
            raise Fault(b"501 5.5.4 STARTTLS has no argument")
        if self.buffer:
            # What came behind it was sent in the clear, by whomever: nothing of it may be done behind the handshake.
            self.leave(b"554 5.7.0 Nothing may come behind STARTTLS", Failure.CLIENT_PROTOCOL, now)
            return
        self.forget(now)
        self.hello, self.extended, self.offer = b"", False, {}
        self.origin = Origin(self.peer, self.shared.settings.hops)
        self.say(b"220 2.0.0 Go on", now)
        self.state = SECURING
        self.deadline = 0.0
        self.do(StartTls())

    def _xclient(self, argument: bytes, now: float) -> None:
        """A proxy that is trusted tells of its client (Postfix' XCLIENT_README); the session begins anew."""
        if not self.shared.trusts(self.peer):
            raise Fault(b"550 5.7.1 XCLIENT is not for this client")
        if not self.idle():
            raise Fault(b"503 5.5.1 A transaction is in progress")
        values: dict[bytes, bytes] = {}
        for word in argument.split():
            name, equals, value = word.partition(b"=")
            if not equals:
                raise Fault(b"501 5.5.4 XCLIENT has NAME=value")
            values[name.upper()] = from_xtext(value)
        self._believe(values)
        self.hello, self.extended, self.offer = b"", False, {}
        self.say(b"220 " + self.shared.hostname + b" " + self.shared.banner, now)

    def _believe(self, values: dict[bytes, bytes]) -> None:
        """What a trusted proxy tells of its client."""
        origin = self.origin
        address = values.get(b"ADDR", b"")
        if address and not address.startswith(b"[") and not origin.told(address, values.get(b"PORT", b"")):
            raise Fault(b"501 5.5.4 ADDR is no address")
        origin.arrived(values.get(b"DESTADDR", b""), values.get(b"DESTPORT", b""))
        origin.limited(values.get(b"TTL", b""))
        origin.session = values.get(b"SESSION", origin.session)
        if origin.hops < 0:
            raise Fault(b"554 5.4.6 Too many proxies lead to one another")
