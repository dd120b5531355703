"""What listeners of all protocols have in common; each protocol's own keys are in ``l7lb.config.protocols``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import Field

from l7lb.config.addresses import parse_bind, resolve
from l7lb.config.fields import Bind, Name, Source
from l7lb.config.limits import Countable, Limits, check_limits, compile_limits
from l7lb.config.mailboxes import address_rules
from l7lb.config.routes import Route
from l7lb.config.section import Reading, Section
from l7lb.config.tls import Tls
from l7lb.config.units import Duration, Size, within
from l7lb.config.wording import listing
from l7lb.core import snapshot


class ListenerTimeouts(Section):
    """How long a client may take; each protocol adds its own."""

    handshake: Duration = Field(
        default=10.0, description="For all that comes before the protocol's first byte, such as a PROXY header or TLS."
    )


class ProxyProtocol(Section):
    """Proxies in front that tell who their clients are."""

    sources: Annotated[list[Source], Field(min_length=1)] = Field(
        alias="from",
        description='Their addresses and networks ("unix:" for those on a unix socket): connections of theirs must '
        "begin with a PROXY header of version 1 or 2, and no others may.",
    )
    header_bytes: Annotated[Size, within(536, 65551)] = Field(
        default=4096, description="Of a header of version 2 with all that it tells; more is refused."
    )

    def compiled(self) -> snapshot.ProxyProtocol:
        return snapshot.ProxyProtocol(tuple(self.sources), self.header_bytes)


class ListenerLimits(Section):
    """How many clients may come; each protocol adds its own."""

    connections: int = Field(
        default=20_000,
        ge=1,
        le=1_000_000,
        description="Clients at the same time, of the whole node; more wait in the backlog.",
    )
    backlog: int = Field(
        default=4096, ge=1, le=65535, description="Connections that the kernel holds until they are accepted."
    )


class TunnelTimeouts(ListenerTimeouts):
    """How long a client may take whose connection is passed through."""

    tunnel: Duration = Field(default=3600.0, description="Without a byte in either direction.")
    half_closed: Duration = Field(default=300.0, description="The same, once one side has ended its half.")


class Listener(Section):
    """A place where clients come in."""

    kind: ClassVar[str]  # the protocol's name
    client_first: ClassVar[bool] = True  # whether it is the client who speaks first
    # What rules of this protocol can see, what they can't do, and why, as the end of a sentence.
    conditions: ClassVar[tuple[str, ...]] = ()
    impossible: ClassVar[tuple[str, ...]] = ()
    because: ClassVar[str] = ""
    shows: ClassVar[tuple[str, ...]] = ("source",)  # persistence keys and facts to hash that its connections have
    ends_tls: ClassVar[bool] = True  # whether TLS can end there
    alpn: ClassVar[tuple[str, ...]] = ()  # what is spoken over TLS in ALPN's names, the preferred one first
    countable: ClassVar[Countable] = {"connections": ("source", "listener")}  # what can be limited
    countable_by_rule: ClassVar[Countable] = countable  # ... once a rule has matched

    name: Name = Field(description="The listener's name, once in the file.")
    protocol: Name = Field(description="What clients speak there.")
    bind: Annotated[list[Bind], Field(min_length=1)] = Field(
        description='Where it listens: "192.0.2.1:80", "[::1]:80", "*:80" (all addresses of IPv4 and IPv6) or '
        '"unix:run/x.sock".',
    )
    routes: Annotated[list[Route], Field(min_length=1)] = Field(
        description="The rules in their order: the first that matches decides."
    )
    proxy_protocol: ProxyProtocol | None = Field(
        default=None, description="Proxies in front that tell who their clients are; without it, nobody is believed."
    )
    limit: Limits | None = Field(default=None, description="How often clients may come, one limit or several.")
    timeouts: ListenerTimeouts = Field(default=ListenerTimeouts(), description="How long a client may take.")
    tls: Tls | None = Field(default=None, description="TLS ends here; without it, clients speak in the clear.")

    def check(self, reading: Reading) -> None:
        for number, text in enumerate(self.bind):
            address = parse_bind(text)
            if not address.path and address.port == 0:
                message = "port 0 lets the kernel choose, another one for each worker: good for tests only"
                reading.warning((*self.place, "bind", number), message)
        if self.tls is not None and not self.ends_tls:
            self.complain(reading, f"{self.kind} does not end TLS: leave it out, or choose another protocol", "tls")
        for number, name in enumerate((self.tls.alpn if self.tls is not None else None) or ()):
            if name not in self.alpn:
                message = f"{name} is not spoken here and not offered; known: {', '.join(self.alpn) or 'none'}"
                reading.warning((*self.place, "tls", "alpn", number), message)
        for route in self.routes:
            self._check_route(route, reading)
        self._check_limits(reading)

    def _check_limits(self, reading: Reading) -> None:
        """Report what this protocol doesn't count."""
        check_limits(self.limit, self.countable, self.kind, reading)
        for route in self.routes:
            check_limits(route.limit, self.countable_by_rule, self.kind, reading)

    def _sees(self, condition: str) -> bool:
        """Whether rules can match this."""
        return condition in self.conditions

    def _check_route(self, route: Route, reading: Reading) -> None:
        """Report what this protocol's rules can't match or do."""
        for place in route.match.given() if route.match else ():
            if not self._sees(str(place[-1])):
                seen = listing(self.conditions)
                message = f"a rule for {self.kind} can't see this{self.because}; it sees {seen}"
                reading.problem((*route.place, "match", *place), message, key=True)
        if route.directory and "mailbox" not in self.showing():
            message = f"a rule for {self.kind} has no mailbox to ask a directory for{self.because}"
            reading.problem((*route.place, "directory"), message, key=True)
        for name in self.impossible:
            if getattr(route, name):
                message = f"a rule for {self.kind} can't do this{self.because}; it has pool or split"
                reading.problem((*route.place, name), message, key=True)

    def showing(self) -> tuple[str, ...]:
        """The persistence keys and facts to hash that its connections have."""
        return self.shows

    def compiled(self, reading: Reading) -> snapshot.Listener:
        """The listener for the data path; each protocol's model adds its settings to what is :meth:`common`."""
        raise NotImplementedError

    def common(self, reading: Reading) -> dict[str, Any]:
        """What the listeners of all protocols have, as arguments of :class:`snapshot.Listener`."""
        return {
            "name": self.name,
            "protocol": self.kind,
            "bind": self.addresses(reading.base),
            "routes": self.compiled_routes(reading),
            "client_first": self.client_first,
            "handshake": self.timeouts.handshake,
            "proxy_protocol": self.proxy_protocol.compiled() if self.proxy_protocol else None,
            "tls": self.tls.compiled(reading, self.alpn) if self.tls is not None else None,
            "limits": compile_limits(self.limit, self.name, self.countable),
            "addresses": address_rules(reading),
        }

    def addresses(self, base: Path) -> tuple[snapshot.Address, ...]:
        """The parsed ``bind``."""
        return tuple(resolve(parse_bind(text), base) for text in self.bind)

    def compiled_routes(self, reading: Reading) -> tuple[snapshot.Route, ...]:
        """The rules with their numbers and lines."""
        file = Path(reading.file).name
        return tuple(
            msgspec.structs.replace(
                route.compiled(number, f"{file}:{reading.line(route.place)}"),
                limits=compile_limits(route.limit, f"{self.name}/rule-{number}", self.countable_by_rule),
            )
            for number, route in enumerate(self.routes, 1)
        )

    def pools(self) -> set[str]:
        """The names of the pools that its rules lead to."""
        shares = {share.pool for route in self.routes for share in route.split or ()}
        return shares | {route.pool for route in self.routes if route.pool is not None}
