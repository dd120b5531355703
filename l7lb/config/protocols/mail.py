"""The sections of listeners that speak mail: IMAP4, POP3, ManageSieve, submission, SMTP and LMTP."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import AfterValidator, Field

from l7lb.config.addresses import parse_bind
from l7lb.config.fields import TlsName, TrustedNetwork
from l7lb.config.limits import Countable
from l7lb.config.listeners import Listener, ListenerLimits, ListenerTimeouts
from l7lb.config.naming import node_name
from l7lb.config.routes import HTTP_ONLY
from l7lb.config.section import Reading, Section, seconds
from l7lb.config.tls import Tls
from l7lb.config.units import Duration, Size, within
from l7lb.config.wording import quoted, wrong
from l7lb.core import snapshot

_CAPABILITY = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*\Z")


class MailTls(Tls):
    """TLS that ends at a listener of mail."""

    mode: Literal["starttls", "implicit"] = Field(
        description="When TLS begins: starttls, when the client asks for it, or implicit, with the first byte."
    )

    def compiled(self, reading: Reading, alpn: tuple[str, ...]) -> snapshot.ListenerTls:
        return msgspec.structs.replace(super().compiled(reading, alpn), mode=self.mode)


def _capability(value: str) -> str:
    if not _CAPABILITY.match(value):
        raise wrong(f"{quoted(value)} is not a capability: write it as the protocol does, such as IDLE or SIZE 50000")
    return value


Capability = Annotated[str, AfterValidator(_capability)]
Mechanism = Literal["plain", "login", "xoauth2", "oauthbearer", "external"]


class Failures(Section):
    """What failed logins lead to."""

    per_address: int = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="So many failed logins from a client's address within the window, and answers to it slow down.",
    )
    window: Duration = Field(default=60.0, description="How long a failed login counts.")


class MailSessions(Section):
    """How many sessions there may be at the same time."""

    per_mailbox: int = Field(default=100, ge=1, le=1_000_000, description="Of one mailbox, over all protocols.")
    per_address: int = Field(default=1000, ge=1, le=1_000_000, description="From one client's address.")


class Login(Section):
    """What holds for logins."""

    cleartext: Literal["after-tls", "always"] = Field(
        default="after-tls", description="When passwords are taken: after-tls, or always, which anybody can read."
    )
    mechanisms: Annotated[list[Mechanism], Field(min_length=1)] = Field(
        default=["plain", "login", "xoauth2", "oauthbearer"],
        description="SASL mechanisms that are offered; external: the name in the client's certificate.",
    )
    failures: Failures = Field(default=Failures(), description="What failed logins lead to.")
    sessions: MailSessions = Field(
        default=MailSessions(), description="How many sessions there may be at the same time; more are refused."
    )
    attempts: int = Field(default=3, ge=1, le=100, description="Failed logins on one connection until it is closed.")


class LoginTimeouts(ListenerTimeouts):
    """How long the sides of a session may take that begins with a login."""

    login: Duration = Field(default=60.0, description="From the greeting to a login that is taken.")
    greeting: Duration = Field(default=30.0, description="For the server's greeting.")
    answer: Duration = Field(default=60.0, description="For the server's answer to the login, and to what precedes it.")
    tunnel: Duration = Field(default=1860.0, description="Without a byte in either direction, after the login.")
    half_closed: Duration = Field(default=60.0, description="The same, once one side has ended its half.")


class ShortLoginTimeouts(LoginTimeouts):
    """The same for protocols whose clients are not silent for long."""

    tunnel: Duration = Field(default=660.0, description="Without a byte in either direction, after the login.")


class SubmissionTimeouts(ShortLoginTimeouts):
    """The same for submission."""

    command: Duration = Field(default=300.0, description="For the client's next command, before the login.")


class TransferTimeouts(ListenerTimeouts):
    """How long the sides of a session may take that hands over mail."""

    command: Duration = Field(
        default=300.0, description="For the client's next command, and between two reads of data."
    )
    greeting: Duration = Field(default=30.0, description="For the server's greeting.")
    answer: Duration = Field(default=300.0, description="For the server's answer to a command.")
    data_answer: Duration = Field(
        default=660.0, description="For the server's answer to a message: 10 minutes and more (RFC 5321, 4.5.3.2.6)."
    )


class MailLimits(ListenerLimits):
    """What all of mail limits."""

    bad_commands: int = Field(
        default=10, ge=1, le=1000, description="Commands that are refused as wrong, until the connection is closed."
    )
    hops: int = Field(
        default=5, ge=1, le=100, description="Proxies that may stand behind one another, by what XCLIENT or ID says."
    )


class LoginLimits(MailLimits):
    """How many clients may come, and how much they may say before they are logged in."""

    line_bytes: Annotated[Size, within(512, 1024**2)] = Field(
        default=16 * 1024, description="Of a line, before the login; tokens need much."
    )
    literal_bytes: Annotated[Size, within(512, 1024**2)] = Field(
        default=64 * 1024, description="Of a literal, before the login."
    )


class LineLimits(MailLimits):
    """The same for a protocol without literals."""

    line_bytes: Annotated[Size, within(512, 1024**2)] = Field(
        default=16 * 1024, description="Of a line, before the login; tokens need much."
    )


class MailListener(Listener):
    """A listener whose sessions belong to a mailbox."""

    client_first: ClassVar[bool] = False
    conditions: ClassVar[tuple[str, ...]] = ("address", "source")
    impossible: ClassVar[tuple[str, ...]] = HTTP_ONLY
    because: ClassVar[str] = ", which belongs to HTTP"
    shows: ClassVar[tuple[str, ...]] = ("mailbox", "source")

    tls: MailTls | None = Field(default=None, description="TLS ends here; without it, clients speak in the clear.")
    limits: MailLimits = Field(default=MailLimits(), description="How much a client may send.")
    hostname: TlsName | None = Field(
        default=None, description="The name in greetings and answers; default: the node's name."
    )
    trust: list[TrustedNetwork] = Field(
        default=[], description="Who is believed to tell a client's address, by XCLIENT or ID."
    )
    capabilities: list[Capability] | None = Field(
        default=None,
        description="What is announced before a server is known; default: what the pools' servers all have.",
    )

    def compiled(self, reading: Reading) -> snapshot.Listener:
        limits = seconds(self.limits)
        timeouts = seconds(self.timeouts)
        del timeouts["handshake"]
        common = self.common(reading)
        common["client_first"] = self.tls is not None and self.tls.mode == "implicit"  # with its ClientHello
        return snapshot.Listener(
            **common,
            connections=limits.pop("connections"),
            backlog=limits.pop("backlog"),
            settings={
                "hostname": self.hostname or node_name(reading.root.get("node")),
                "trusted": list(self.trust),
                "capabilities": list(self.capabilities or ()),
                **timeouts,
                **limits,
                **self.own_settings(),
            },
        )

    def own_settings(self) -> dict[str, Any]:
        """What listeners of this protocol have beside what all of mail have."""
        return {}

    def _is_private(self) -> bool:
        """Whether only this machine can connect."""
        addresses = [parse_bind(text) for text in self.bind]
        return all(address.path or _is_loopback(address.host) for address in addresses)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


LOGINS: Countable = {
    "logins": ("source", "mailbox", "listener"),
    "connections": ("source", "listener"),
}
MESSAGES: Countable = {
    "messages": ("source", "mailbox", "listener"),
    "connections": ("source", "listener"),
}


class LoginListener(MailListener):
    """A listener whose clients log in."""

    countable: ClassVar[Countable] = LOGINS
    countable_by_rule: ClassVar[Countable] = {"logins": LOGINS["logins"]}

    login: Login = Field(default=Login(), description="What holds for logins.")
    timeouts: LoginTimeouts = Field(default=LoginTimeouts(), description="How long the sides may take.")

    def check(self, reading: Reading) -> None:
        super().check(reading)
        always = self.login.cleartext == "always"
        if self.tls is None and not always and self.proxy_protocol is None:
            message = "nobody can log in, since passwords are taken after TLS: give tls, or login: {cleartext: always}"
            self.complain(reading, message)
        place = self.login.place or self.place
        if "external" in self.login.mechanisms and (self.tls is None or self.tls.client_ca is None):
            message = "external needs certificates of clients: give tls: {client_ca: FILE}"
            reading.warning((*place, "mechanisms"), message)
        if always and not self._is_private() and (self.tls is None or self.tls.mode == "starttls"):
            message = "anybody who is in between can read passwords: write after-tls"
            reading.warning((*place, "cleartext"), message)

    def own_settings(self) -> dict[str, Any]:
        login = self.login
        return {
            "cleartext": login.cleartext,
            "mechanisms": list(dict.fromkeys(login.mechanisms)),
            "failures_per_address": login.failures.per_address,
            "failures_window": login.failures.window,
            "sessions_per_mailbox": login.sessions.per_mailbox,
            "sessions_per_address": login.sessions.per_address,
            "login_attempts": login.attempts,
        }


class Imap4Listener(LoginListener):
    """Clients that speak IMAP4 (RFC 3501, RFC 9051)."""

    kind: ClassVar[str] = "imap4"
    alpn: ClassVar[tuple[str, ...]] = ("imap",)

    protocol: Literal["imap4"] = Field(description="What clients speak there.")
    limits: LoginLimits = Field(default=LoginLimits(), description="How much a client may send.")


class Pop3Listener(LoginListener):
    """Clients that speak POP3 (RFC 1939)."""

    kind: ClassVar[str] = "pop3"
    alpn: ClassVar[tuple[str, ...]] = ("pop3",)

    protocol: Literal["pop3"] = Field(description="What clients speak there.")
    timeouts: ShortLoginTimeouts = Field(default=ShortLoginTimeouts(), description="How long the sides may take.")
    limits: LineLimits = Field(default=LineLimits(), description="How much a client may send.")


class ManageSieveListener(LoginListener):
    """Clients that speak ManageSieve (RFC 5804)."""

    kind: ClassVar[str] = "managesieve"
    alpn: ClassVar[tuple[str, ...]] = ("managesieve",)

    protocol: Literal["managesieve"] = Field(description="What clients speak there.")
    limits: LoginLimits = Field(default=LoginLimits(), description="How much a client may send.")


class SubmissionListener(LoginListener):
    """Clients that hand in their mail (RFC 6409)."""

    kind: ClassVar[str] = "submission"

    protocol: Literal["submission"] = Field(description="What clients speak there.")
    timeouts: SubmissionTimeouts = Field(default=SubmissionTimeouts(), description="How long the sides may take.")


class TransferListener(MailListener):
    """A listener that mail is handed over to, by recipients."""

    countable: ClassVar[Countable] = MESSAGES
    countable_by_rule: ClassVar[Countable] = {"messages": MESSAGES["messages"]}

    timeouts: TransferTimeouts = Field(default=TransferTimeouts(), description="How long the sides may take.")


class SmtpListener(TransferListener):
    """Servers and programs that hand over mail (RFC 5321)."""

    kind: ClassVar[str] = "smtp"

    protocol: Literal["smtp"] = Field(description="What clients speak there.")
    recipients: Literal["split", "first"] = Field(
        default="split",
        description="Recipients on several servers: split (those of another server get 452 and come again), or first "
        "(the first recipient's server takes all).",
    )

    def own_settings(self) -> dict[str, Any]:
        return {"recipients": self.recipients}


class LmtpListener(TransferListener):
    """Servers that deliver mail (RFC 2033); each recipient goes to its own server."""

    kind: ClassVar[str] = "lmtp"

    protocol: Literal["lmtp"] = Field(description="What clients speak there.")


MAIL_LISTENERS: tuple[type[MailListener], ...] = (
    Imap4Listener,
    Pop3Listener,
    ManageSieveListener,
    SubmissionListener,
    SmtpListener,
    LmtpListener,
)
