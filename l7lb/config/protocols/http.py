"""An HTTP listener's section."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema

from l7lb.config.fields import TOKEN, CookieName, HeaderName, TrustedNetwork
from l7lb.config.limits import Countable
from l7lb.config.listeners import Listener, ListenerLimits, ListenerTimeouts
from l7lb.config.section import Reading, Section, seconds
from l7lb.config.units import Duration, Size, within
from l7lb.config.wording import describe, quoted, wrong
from l7lb.core import snapshot

NEVER_PASSED = ("h2c", "tls")  # and every version of HTTP
ForwardingHeader = Literal[
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-host",
    "forwarded",
    "x-request-id",
    "via",
]
FORWARDING: tuple[ForwardingHeader, ...] = get_args(ForwardingHeader)


def _upgrades(value: Any) -> Any:
    """``any``, ``none``, or names of protocols, in lower case."""
    if value in ("any", "none"):
        return value
    if isinstance(value, str):
        raise wrong(f"{quoted(value)} is not known: write any, none or a list, such as [websocket]")
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise wrong(f"must be any, none or a list of names, not {describe(value)}")
    names = [name.lower() for name in value]
    for name in names:
        if name in NEVER_PASSED or name.startswith("http/"):
            raise wrong(f"{quoted(name)} would hide requests from the rules, and is never passed on")
        if not TOKEN.match(name.replace("/", "", 1)):
            raise wrong(f"{quoted(name)} is not the name of a protocol, such as websocket")
    if not names:
        raise wrong("is empty: write none")
    return names


Upgrades = Annotated[
    str | list[str],
    BeforeValidator(_upgrades),
    WithJsonSchema(
        {"anyOf": [{"enum": ["any", "none"]}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    ),
]


class Forwarded(Section):
    """Headers that say whom a request came from."""

    trust: list[TrustedNetwork] = Field(
        default=[],
        description="Whose X-Forwarded-*, Forwarded and X-Request-ID headers are believed and kept; all others' are "
        "taken out.",
    )
    send: list[ForwardingHeader] = Field(
        default=list(FORWARDING),
        description="Which of these headers are added to what servers get; via also to what clients get.",
    )

    def compiled_send(self) -> list[str]:
        """The headers to add, each once, in their usual order."""
        return [name for name in FORWARDING if name in self.send]


class Timeouts(ListenerTimeouts):
    """How long a client may take."""

    request_header: Duration = Field(default=10.0, description="For the whole header of a request.")
    request_body: Duration = Field(
        default=60.0,
        description="Between two reads of the request's body; also for a client that does not read its answer.",
    )
    keep_alive: Duration = Field(default=15.0, description="For the next request on a connection.")
    tunnel: Duration = Field(default=3600.0, description="Without a byte in either direction, after an Upgrade.")


class Limits(ListenerLimits):
    """How much a client may send, and how many may come."""

    header_bytes: Annotated[Size, within(256, 1024**2)] = Field(
        default=32 * 1024, description="Of a request's line and headers together; more is answered with 414 or 431."
    )
    headers: int = Field(default=100, ge=1, le=1000, description="How many headers a request may have.")
    body_bytes: Size = Field(default=10 * 1024**3, description="Of a request's body; more is answered with 413.")
    pipeline_bytes: Annotated[Size, within(1024, 16 * 1024**2)] = Field(
        default=64 * 1024, description="Read ahead from a client that sends requests before it has the answers."
    )


class Http2(Section):
    """Limits of one client's HTTP/2 connection."""

    prior_knowledge: bool = Field(
        default=True, description="Whether a client may begin with HTTP/2 without having agreed on it in TLS."
    )
    max_concurrent_streams: int = Field(
        default=100, ge=1, le=10_000, description="Requests at the same time on one connection; more are refused."
    )
    stream_window: Annotated[Size, within(64 * 1024, 16 * 1024**2)] = Field(
        default=64 * 1024,
        description="Of a request's body that a client may send before its server has taken it; times the streams, it "
        "bounds what a connection can make l7lb hold.",
    )
    connection_window: Annotated[Size, within(64 * 1024, 64 * 1024**2)] = Field(
        default=1024**2, description="Of all bodies together that a client may have on their way."
    )
    frame_bytes: Annotated[Size, within(16 * 1024, 1024**2)] = Field(
        default=16 * 1024, description="Of one frame from a client."
    )
    resets: int = Field(
        default=200,
        ge=1,
        le=1_000_000,
        description="Streams that a client may reset, or that are reset for its fault, within 10 seconds; one more "
        "ends the connection.",
    )
    control_frames: int = Field(
        default=2000,
        ge=10,
        le=1_000_000,
        description="Frames without a request or a body (SETTINGS, PING, PRIORITY, WINDOW_UPDATE, CONTINUATION, empty "
        "DATA) within 10 seconds; one more ends the connection. Each frame with contents pays for four.",
    )


class WebMailbox(Section):
    """Where a request of a web mail program names its mailbox."""

    KINDS: ClassVar[tuple[str, ...]] = ("header", "cookie", "query")

    header: HeaderName | None = Field(default=None, description="The value of this header.")
    cookie: CookieName | None = Field(default=None, description="The value of this cookie.")
    query: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="The value of this parameter of the URL's query."
    )

    def check(self, reading: Reading) -> None:
        given = [kind for kind in self.KINDS if getattr(self, kind) is not None]
        if len(given) > 1 or (not given and self.silent):
            self.complain(reading, "must name one place, such as {header: x-user}")

    def compiled(self) -> dict[str, str]:
        """Kind and name of the fact that holds the address."""
        kind = next(kind for kind in self.KINDS if getattr(self, kind) is not None)
        return {"kind": kind, "name": getattr(self, kind)}


class HttpListener(Listener):
    """Clients that speak HTTP/1.1, HTTP/1.0 or HTTP/2."""

    kind: ClassVar[str] = "http"
    conditions: ClassVar[tuple[str, ...]] = (
        "host", "path", "path_regex", "method", "header", "cookie", "query", "source",
    )  # fmt: skip
    shows: ClassVar[tuple[str, ...]] = (
        "cookie", "application_cookie", "header", "query", "path", "host", "url", "source",
    )  # fmt: skip
    because: ClassVar[str] = ", which belongs to TLS that is passed through"
    alpn: ClassVar[tuple[str, ...]] = ("h2", "http/1.1")
    countable: ClassVar[Countable] = {
        "requests": ("source", "host", "path", "url", "method", "header", "cookie", "query", "listener"),
        "connections": ("source", "listener"),
    }
    countable_by_rule: ClassVar[Countable] = {"requests": countable["requests"]}

    protocol: Literal["http"] = Field(description="What clients speak there.")
    forwarded: Forwarded = Field(default=Forwarded(), description="Whose word on where a request comes from counts.")
    timeouts: Timeouts = Field(default=Timeouts(), description="How long a client may take.")
    limits: Limits = Field(default=Limits(), description="How much a client may send.")
    http2: Http2 = Field(default=Http2(), description="Limits of HTTP/2.")
    upgrades: Upgrades = Field(
        default="any",
        description="Protocols that a client may change to: any, none, or names such as [websocket]. h2c, TLS and "
        "other versions of HTTP are never passed on.",
    )
    mailbox: WebMailbox | None = Field(
        default=None,
        description="Where requests name the mailbox that they are about, so that they go to its server; without it, "
        "nowhere.",
    )
    path_case: Literal["ignore", "exact"] = Field(
        default="ignore",
        description="Whether rules tell upper from lower case in paths; ignore: they can't be walked around by case.",
    )

    def showing(self) -> tuple[str, ...]:
        return self.shows if self.mailbox is None else (*self.shows, "mailbox")

    def _sees(self, condition: str) -> bool:
        return super()._sees(condition) or (condition == "address" and self.mailbox is not None)

    def compiled(self, reading: Reading) -> snapshot.Listener:
        limits = seconds(self.limits)
        timeouts = seconds(self.timeouts)
        del timeouts["handshake"]
        return snapshot.Listener(
            **self.common(reading),
            connections=limits.pop("connections"),
            backlog=limits.pop("backlog"),
            exact_case=self.path_case == "exact",
            settings={
                "trust": list(self.forwarded.trust),
                "send": self.forwarded.compiled_send(),
                "timeouts": timeouts,
                "upgrades": self.upgrades,
                "http2": seconds(self.http2),
                **({"mailbox": self.mailbox.compiled()} if self.mailbox is not None else {}),
                **limits,
            },
        )
