"""What a listener's configuration says to HTTP."""

from __future__ import annotations

import ipaddress

import msgspec

from l7lb.core.snapshot import Listener
from l7lb.protocols.http.webmail import MailboxPlace, Webmail

# The fields that tell of a request's way, in lower case: what a listener adds unless it is told otherwise.
FORWARDING = (
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-host",
    "forwarded",
    "x-request-id",
    "via",
)


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds. ``request_header`` is for the whole head, ``request_body`` between two reads of the body, and as long
    for a client that does not read its answer; ``tunnel`` without a byte in either direction.
    """

    request_header: float = 10.0
    request_body: float = 60.0
    keep_alive: float = 15.0
    tunnel: float = 3600.0


class Http2Settings(msgspec.Struct, frozen=True):
    """Limits of one client's HTTP/2 connection. Sizes are bytes; ``resets`` and ``control_frames`` are counted over ten
    seconds (see :mod:`l7lb.protocols.http.http2.guard`).
    """

    prior_knowledge: bool = True
    max_concurrent_streams: int = 100
    stream_window: int = 64 * 1024
    connection_window: int = 1024**2
    frame_bytes: int = 16 * 1024
    resets: int = 200
    control_frames: int = 2000


class HttpSettings(msgspec.Struct, frozen=True):
    """An HTTP listener's settings. ``upgrades`` is ``any``, ``none`` or a list of names in lower case, ``send`` those
    of FORWARDING that l7lb adds. ``mailbox`` says where requests name one.
    """

    trust: tuple[str, ...] = ()
    send: tuple[str, ...] = FORWARDING
    timeouts: Timeouts = Timeouts()
    header_bytes: int = 32 * 1024
    headers: int = 100
    body_bytes: int = 10 * 1024**3
    upgrades: str | tuple[str, ...] = "any"
    pipeline_bytes: int = 64 * 1024
    http2: Http2Settings = Http2Settings()
    mailbox: MailboxPlace | None = None

    @classmethod
    def of(cls, listener: Listener) -> HttpSettings:
        """The settings of a compiled listener; raises msgspec.ValidationError."""
        return msgspec.convert(listener.settings, cls)

    def webmail(self, listener: Listener) -> Webmail | None:
        """What finds a request's mailbox, by the listener's rules for addresses."""
        return Webmail(self.mailbox, listener.addresses) if self.mailbox is not None else None

    def networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The trusted networks, parsed."""
        return [ipaddress.ip_network(text, strict=False) for text in self.trust]
