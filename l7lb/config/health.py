"""How a pool's servers are watched: active checks, and passive ones that learn from the users' requests."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PrivateAttr, WithJsonSchema

from l7lb.config.fields import Authority, FilePath, Method, Port, RequestPath, SetHeaders, Text
from l7lb.config.files import read_secret
from l7lb.config.section import Reading, Section
from l7lb.config.units import Duration, Share
from l7lb.config.wording import describe, quoted, wrong
from l7lb.core import snapshot

_RANGE = re.compile(r"([1-9][0-9]{2})(?:-([1-9][0-9]{2}))?\Z", re.ASCII)

Range = tuple[int, int]


def _range(value: Any) -> Range:
    """``200-299`` or ``204``."""
    match = _RANGE.match(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    if match is None:
        raise wrong(f"{describe(value)} is not a status or a range of them: write 200 or 200-299")
    low, high = int(match[1]), int(match[2] or match[1])
    if high > 599:
        raise wrong(f"{high} is not a status: those end at 599")
    if low > high:
        raise wrong(f"{quoted(str(value))} is upside down: write {high}-{low}")
    return low, high


def _ranges(value: Any) -> list[Range]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise wrong("is empty: write the expected status, such as 200-299")
    return [_range(item) for item in values]


def _ranges_text(ranges: list[Range]) -> list[str]:
    return [str(low) if low == high else f"{low}-{high}" for low, high in ranges]


_ONE_RANGE = {
    "anyOf": [{"type": "integer", "minimum": 100, "maximum": 599}, {"type": "string"}],
    "examples": ["200-299"],
}
Expect = Annotated[
    list[Range],
    BeforeValidator(_ranges),
    PlainSerializer(_ranges_text),
    WithJsonSchema({"anyOf": [*_ONE_RANGE["anyOf"], {"type": "array", "items": _ONE_RANGE}], "examples": ["200-299"]}),
]


class HttpCheck(Section):
    """A request, and the answer that a healthy server gives."""

    path: RequestPath = Field(default="/", description="The path that is asked for.")
    expect: Expect = Field(
        default=[(200, 399)],
        description="The status of a good answer: 200, 200-299, or a list of these.",
        json_schema_extra={"default": "200-399"},
    )
    method: Method = Field(default="GET", description="The request's method.")
    host: Authority | None = Field(default=None, description="The Host header; default: the server's address.")
    headers: SetHeaders = Field(default={}, description="Further headers.")
    body: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="A text that the answer's first 64 KiB must hold."
    )

    def check(self, reading: Reading) -> None:
        if "host" in self.headers:
            self.complain(reading, "the Host is set by host, not here", "headers")

    def settings(self) -> dict[str, Any]:
        """For the probe."""
        settings: dict[str, Any] = {
            "path": self.path,
            "expect": [list(pair) for pair in self.expect],
            "method": self.method,
        }
        optional = {"host": self.host, "headers": dict(self.headers), "body": self.body}
        return settings | {key: value for key, value in optional.items() if value}


class TcpCheck(Section):
    """A connection, which must be accepted."""


class PingCheck(Section):
    """An ICMP echo."""


class ProtocolCheck(Section):
    """The listeners' protocols, spoken as far as their greeting, and for mail as far as a login where one is given."""

    user: Text | None = Field(
        default=None,
        description="Log in as this user, in mail protocols that have logins; a mailbox that nobody else uses.",
    )
    password_file: FilePath | None = Field(default=None, description="The file with that one's password.")

    _password: str = PrivateAttr(default="")

    def check(self, reading: Reading) -> None:
        if self.user is not None and self.password_file is None:
            self.complain(reading, "has no password: give password_file", "user")
        if self.password_file is None:
            return
        if self.user is None:
            self.complain(reading, "whose password is it? give user", "password_file")
        try:
            self._password = read_secret(str(reading.base / self.password_file)).decode()
        except UnicodeDecodeError:
            self.complain(reading, f"{self.password_file}: is no text in UTF-8", "password_file")
        except ValueError as error:
            self.complain(reading, f"{self.password_file}: {error}", "password_file")

    def settings(self) -> dict[str, Any]:
        """For the probe."""
        return {"user": self.user, "password": self._password} if self.user else {}


class Health(Section):
    """Active checks. They are made once a node, whatever the number of workers."""

    KINDS: ClassVar[tuple[str, ...]] = ("http", "tcp", "ping", "protocol")

    http: HttpCheck | None = Field(default=None, description="Make a request and look at the answer's status.")
    tcp: TcpCheck | None = Field(default=None, description="Connect: {}.")
    ping: PingCheck | None = Field(default=None, description="Send an ICMP echo: {}.")
    protocol: ProtocolCheck | None = Field(default=None, description="Speak the protocol of the listeners: {}.")
    interval: Duration = Field(default=2.0, description="From one check of a server to the next; it varies by a tenth.")
    timeout: Duration = Field(default=1.0, description="How long one check may take.")
    rise: int = Field(default=2, ge=1, le=100, description="Good checks in a row that put a server back.")
    fall: int = Field(default=3, ge=1, le=100, description="Bad checks in a row that take a server out.")
    port: Port | None = Field(default=None, description="The port that is checked; default: the server's own.")
    scope: Literal["server", "protocol"] = Field(
        default="server",
        description="With protocol, what a server is out for while the check of one protocol fails: all (server), or "
        "that protocol.",
    )

    def given(self) -> list[str]:
        """The kinds of check that are there."""
        return [kind for kind in self.KINDS if getattr(self, kind) is not None]

    def check(self, reading: Reading) -> None:
        given = self.given()
        if not given and self.silent:
            self.complain(reading, "says nothing to check: give one of http, tcp, ping, protocol, such as tcp: {}")
        for kind in given[1:]:
            self.complain(reading, f"{kind} and {given[0]} exclude one another: keep one", kind)
        if self.ping and self.port is not None:
            self.complain(reading, "a ping has no port", "port")
        if self.scope == "protocol" and given and not self.protocol:
            reading.warning((*self.place, "scope"), f"has no effect: {given[0]} is not the check of a protocol")

    def compiled(self, protocols: tuple[str, ...], several: bool) -> snapshot.Health:
        """For the monitor; ``protocols`` are those of the listeners that lead to the pool, ``several``: servers have a
        port for each.
        """
        kind = self.given()[0]
        checked = self.http or self.protocol
        return snapshot.Health(
            kind=kind,
            interval=self.interval,
            timeout=self.timeout,
            rise=self.rise,
            fall=self.fall,
            settings=checked.settings() if checked is not None else {},
            protocol=protocols[0] if kind == "protocol" and protocols else "",
            port=self.port or 0,
            scope=self.scope if kind == "protocol" else "server",
            protocols=protocols if kind == "protocol" and several else (),
        )


class Outliers(Section):
    """Passive checks: a server that fails users is out for a while."""

    consecutive_errors: int = Field(default=5, ge=1, le=10_000, description="Errors in a row that take a server out.")
    eject_for: Duration = Field(
        default=10.0, description="How long it is out; each time it happens again so much longer, up to ten times."
    )
    max_ejected: Share = Field(default=0.5, description="How much of the pool may be out at the same time.")

    def compiled(self) -> snapshot.Outliers:
        return snapshot.Outliers(self.consecutive_errors, self.eject_for, self.max_ejected)
