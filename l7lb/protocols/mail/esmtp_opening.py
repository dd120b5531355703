"""The dialogue with an SMTP, submission or LMTP server until it takes mail, sans-io: its replies in, lines for it out.

=========  ==========================  ===========================================================================
state      waits for                   leaves on
=========  ==========================  ===========================================================================
GREETING   the server's first reply    220 -> HELLO; else -> OVER: it is not well
HELLO      its answer to EHLO, LHLO    250 -> what comes next; 5xx of a server that needs nothing more -> OLD
OLD        its answer to HELO          250 -> OVER, ready; else -> OVER
TLS        its answer to STARTTLS      220 -> HANDSHAKE; else -> OVER: without TLS it is not spoken to
HANDSHAKE  the handshake               secured -> HELLO: what it said in the clear counts no longer
ADDRESS    its answer to XCLIENT       220 -> HELLO: it has begun anew; else -> OVER: it would take l7lb for the client
LOGIN      its answer to AUTH          235 -> OVER, ready; 334 -> the next response; 535 -> OVER, refused; else -> OVER
OVER       nothing                     what comes is the session's
=========  ==========================  ===========================================================================

What comes next is STARTTLS where it is wanted, then XCLIENT, then AUTH, then mail.
"""

from __future__ import annotations

from typing import Final

from l7lb.core.errors import Failure
from l7lb.protocols.mail.credentials import Credentials
from l7lb.protocols.mail.esmtp import xtext
from l7lb.protocols.mail.esmtp_offers import Offer, parse_offer
from l7lb.protocols.mail.esmtp_replies import Reply
from l7lb.protocols.mail.origin import Origin
from l7lb.protocols.mail.sasl import ERROR_SEEN, encoded

GREETING: Final = 0
HELLO: Final = 1
OLD: Final = 2
TLS: Final = 3
HANDSHAKE: Final = 4
ADDRESS: Final = 5
LOGIN: Final = 6
OVER: Final = 7

GOES_ON: Final = ""
HANDSHAKE_WANTED: Final = "tls"
READY: Final = "ready"
REFUSED: Final = "refused"
FAILED: Final = "failed"

UNAVAILABLE: Final = b"[UNAVAILABLE]"
ANY: Final = ("0.0.0.0", "::", "unix:")


class Client:
    """What a server may be told of the client: who it is, what it called itself, by whose word it is logged in.

    ``extended``: it said EHLO.
    """

    __slots__ = ("extended", "hello", "login", "origin")

    def __init__(self, origin: Origin, hello: bytes, extended: bool) -> None:
        self.origin = origin
        self.hello = hello
        self.extended = extended
        self.login = b""

    def attributes(self, offered: bytes, proto: bytes) -> bytes:
        """XCLIENT's argument: all that the server takes and that is known (Postfix' XCLIENT_README)."""
        origin = self.origin
        values = {
            b"NAME": UNAVAILABLE,  # else the server would go on with the proxy's
            b"ADDR": _address(origin.client),
            b"PORT": b"%d" % origin.port if origin.port else UNAVAILABLE,
            b"PROTO": proto,
            b"HELO": xtext(self.hello) if self.hello else UNAVAILABLE,
            b"LOGIN": xtext(self.login) if self.login else b"",
            b"DESTADDR": _address(origin.local) if origin.local not in ANY else b"",
            b"DESTPORT": b"%d" % origin.local_port if origin.local_port else b"",
            b"TTL": b"%d" % origin.hops,
            b"SESSION": xtext(origin.session) if origin.session else b"",
        }
        takes = offered.upper().split()
        return b" ".join(name + b"=" + value for name, value in values.items() if value and name in takes)


def _address(text: str) -> bytes:
    if ":" not in text:
        return text.encode()
    return UNAVAILABLE if text == "unix:" else b"IPV6:" + text.encode()


class Opening:
    """One dialogue. ``outcome`` says how it went: empty while it goes on, ``tls`` (a handshake is wanted), ``ready``,
    ``refused`` (the credentials), ``failed`` (all else: see ``failure``). ``offer`` is what it offers.
    """

    __slots__ = (
        "_client", "_credentials", "_hello", "_hello_verb", "_response", "_secure", "_tell", "failure", "offer",
        "outcome", "state",
    )  # fmt: skip

    def __init__(self, verb: bytes, hello: bytes) -> None:
        self._hello_verb = verb
        self._hello = hello
        self._secure = False
        self._tell = False
        self._client: Client | None = None
        self._credentials: Credentials | None = None
        self._response = b""  # what AUTH LOGIN still has to say
        self.state = GREETING
        self.outcome = GOES_ON
        self.failure = Failure.SERVER_PROTOCOL
        self.offer: Offer = {}

    def wants(self, secure: bool, client: Client | None, credentials: Credentials | None) -> None:
        """What is done before mail: STARTTLS, XCLIENT with what is known of ``client``, AUTH."""
        self._secure = secure
        self._tell = client is not None
        self._client = client
        self._credentials = credentials

    @property
    def greeted(self) -> bool:
        """Whether the server has said something."""
        return self.state != GREETING

    def reply(self, reply: Reply) -> bytes:
        """The server's next reply; what it gets now."""
        state = self.state
        if state == GREETING:
            return self._say_hello() if reply.code == 220 else self._fail(Failure.SERVER_ERROR)
        if state == HELLO:
            return self._answered_hello(reply)
        if state == OLD:
            if reply.kind != 2:
                return self._fail(Failure.SERVER_ERROR)
            return self._end(READY)
        if state == TLS:
            if reply.code != 220:
                return self._fail(Failure.CONNECT_TLS)
            self.state, self.outcome = HANDSHAKE, HANDSHAKE_WANTED
            return b""
        if state == ADDRESS:
            return self._say_hello() if reply.code == 220 else self._fail(Failure.SERVER_ERROR)
        if state == LOGIN:
            return self._answered_login(reply)
        return self._fail(Failure.SERVER_PROTOCOL)

    def secured(self) -> bytes:
        """The handshake is done; what the server gets now."""
        self.outcome = GOES_ON
        self._secure = False
        return self._say_hello()

    def _say_hello(self) -> bytes:
        self.state = HELLO
        return self._hello_verb + b" " + self._hello + b"\r\n"

    def _answered_hello(self, reply: Reply) -> bytes:
        if reply.kind == 5 and self._hello_verb == b"EHLO" and not (self._secure or self._tell or self._credentials):
            self.state = OLD
            self.offer = {}
            return b"HELO " + self._hello + b"\r\n"
        if reply.kind != 2:
            return self._fail(Failure.SERVER_ERROR)
        self.offer = parse_offer(reply.lines[1:])
        if self._secure:
            if b"STARTTLS" not in self.offer:
                return self._fail(Failure.CONNECT_TLS)
            self.state = TLS
            return b"STARTTLS\r\n"
        if self._tell:
            return self._announce()
        return self._log_in() if self._credentials is not None else self._end(READY)

    def _announce(self) -> bytes:
        """Tell who the client is."""
        client = self._client
        assert client is not None
        takes = self.offer.get(b"XCLIENT")
        if takes is None or (client.login and b"LOGIN" not in takes.upper().split()):
            return self._fail(Failure.SERVER_ERROR)
        self._tell = False
        self.state = ADDRESS
        proto = b"ESMTP" if client.extended else b"SMTP"
        if self._hello_verb == b"LHLO":
            proto = b"LMTP"
        return b"XCLIENT " + client.attributes(takes, proto) + b"\r\n"

    def _log_in(self) -> bytes:
        credentials = self._credentials
        assert credentials is not None
        mechanisms = self.offer.get(b"AUTH", b"").upper().split()
        mechanism = credentials.mechanism.upper().encode()
        self.state = LOGIN
        if mechanism == b"PLAIN" and mechanism not in mechanisms and b"LOGIN" in mechanisms and credentials.simple:
            self._response = encoded(credentials.password)
            return b"AUTH LOGIN " + encoded(credentials.user) + b"\r\n"
        if mechanism not in mechanisms:
            return self._fail(Failure.SERVER_ERROR)
        return b"AUTH " + mechanism + b" " + (encoded(credentials.response()) or b"=") + b"\r\n"

    def _answered_login(self, reply: Reply) -> bytes:
        if reply.code == 235:
            return self._end(READY)
        if reply.code == 334:
            response, self._response = self._response, encoded(ERROR_SEEN)
            # A refused token's second step: whatever is answered, the refusal follows.
            return (response or encoded(ERROR_SEEN)) + b"\r\n"
        if reply.code == 535:
            self.failure = Failure.LOGIN_REFUSED
            return self._end(REFUSED)
        return self._fail(Failure.SERVER_ERROR)

    def _end(self, outcome: str) -> bytes:
        self.state, self.outcome = OVER, outcome
        return b""

    def _fail(self, failure: Failure) -> bytes:
        self.failure = failure
        return self._end(FAILED)
