"""Pools of servers that can stand in for one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import Field, PlainValidator, WithJsonSchema

from l7lb.config.addresses import parse_server, resolve
from l7lb.config.document import Mapping
from l7lb.config.fields import CookieName, HeaderName, Name, Port, ServerAddress, TlsName
from l7lb.config.health import Health, Outliers
from l7lb.config.persistence import Key, PersistenceKeys, check_order
from l7lb.config.section import Reading, Section, Shorthand, seconds
from l7lb.config.tls import ToServer
from l7lb.config.units import Duration, DurationOrZero
from l7lb.config.wording import choice, describe, listing, quoted, wrong
from l7lb.core import snapshot
from l7lb.core.mailbox import MAIL_PROTOCOLS
from l7lb.routing.balance import ALGORITHMS

WORD_ALGORITHMS = tuple(name for name in ALGORITHMS if name != "hash")
PLAIN_FACTS = ("path", "source", "host", "url", "sni", "alpn", "mailbox")
NAMED_FACTS = ("header", "cookie", "query")
OUTCOMES = ("connect-failure", "reset-before-response", "response-timeout")


class HashOn(Shorthand):
    """What is hashed: a fact by its word, or one that needs a name as a mapping."""

    WORDS: ClassVar[tuple[str, ...]] = PLAIN_FACTS

    header: HeaderName | None = Field(default=None, description="The value of this header.")
    cookie: CookieName | None = Field(default=None, description="The value of this cookie.")
    query: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="The value of this parameter of the URL's query."
    )

    @classmethod
    def read_word(cls, word: str) -> str:
        if word in NAMED_FACTS:
            raise wrong(f"which {word}? write {{{word}: its name}}")
        if word not in cls.WORDS:
            raise wrong(choice("the fact", word, cls.WORDS + NAMED_FACTS))
        return word

    @property
    def given(self) -> list[str]:
        """The facts that it names; valid are those that have one."""
        return [self.word] if self.word else [name for name in NAMED_FACTS if getattr(self, name) is not None]

    def check(self, reading: Reading) -> None:
        if len(self.given) > 1 or (not self.given and self.silent):
            self.complain(reading, "must name one fact, such as {header: x-user}")

    def compiled(self) -> snapshot.FactName:
        if self.word:
            return snapshot.FactName(self.word)
        return next(snapshot.FactName(kind, name) for kind in NAMED_FACTS if (name := getattr(self, kind)) is not None)


class Balance(Shorthand):
    """How a server is chosen: the algorithm's name, or ``{hash: ...}``."""

    WORDS: ClassVar[tuple[str, ...]] = WORD_ALGORITHMS

    hash: HashOn | None = Field(
        default=None, description="What is hashed, so that the same value goes to the same server as long as it lives."
    )
    bounded_load: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] | None = Field(
        default=None,
        description="No server gets more than so many times the average load; without it, there is no bound.",
    )

    @classmethod
    def read_word(cls, word: str) -> str:
        if word == "hash":
            raise wrong("hash needs to know what is hashed: write {hash: path}")
        if word not in cls.WORDS:
            raise wrong(choice("the algorithm", word, ALGORITHMS))
        return word

    def check(self, reading: Reading) -> None:
        if self.hash is None and self.silent:
            self.complain(reading, "a mapping is for hash: give hash, or write the algorithm's name alone")

    def compiled(self) -> snapshot.Balance:
        if self.hash is None:
            return snapshot.Balance(self.word or WORD_ALGORITHMS[0])
        return snapshot.Balance("hash", self.hash.compiled(), self.bounded_load or 0.0)


def _outcome(value: Any) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 500 <= value <= 599:
            raise wrong(f"{value} can't be retried: only statuses 500 to 599 can")
        return value
    if isinstance(value, str) and value.isascii() and value.isdigit():
        raise wrong(f"{quoted(value)} is text: write the status without quotes")
    if not isinstance(value, str):
        raise wrong(f"must be one of {listing(OUTCOMES)} or a status such as 503, not {describe(value)}")
    if value not in OUTCOMES:
        raise wrong(choice("the outcome", value, (*OUTCOMES, "a status such as 503")))
    return value


_OUTCOME_SCHEMA = {"anyOf": [{"enum": list(OUTCOMES)}, {"type": "integer", "minimum": 500, "maximum": 599}]}
Outcome = Annotated[Any, PlainValidator(_outcome), WithJsonSchema(_OUTCOME_SCHEMA)]


class Retries(Section):
    """What is tried again. A request that may have been processed is repeated only if its method allows."""

    attempts: int = Field(default=1, ge=0, le=10, description="Attempts after the first.")
    when: list[Outcome] = Field(
        default=["connect-failure"],
        description="After what: connect-failure, reset-before-response, response-timeout, or a status 500 to 599.",
    )

    def compiled(self) -> snapshot.Retries:
        return snapshot.Retries(
            self.attempts,
            frozenset(item for item in self.when if isinstance(item, str)),
            frozenset(item for item in self.when if isinstance(item, int)),
        )


class PoolTimeouts(Section):
    """How long a server may take."""

    connect: Duration = Field(default=5.0, description="To accept a connection.")
    queue: Duration = Field(default=5.0, description="That a request waits for a server below its limit.")
    response_header: Duration = Field(default=60.0, description="From the request's end to the answer's header.")
    response_body: Duration = Field(default=60.0, description="Between two reads of the answer's body.")
    idle: Duration = Field(default=60.0, description="That a connection without work is kept open.")

    def compiled(self) -> snapshot.PoolTimeouts:
        return snapshot.PoolTimeouts(**seconds(self))


class Server(Section):
    """One server."""

    name: Name = Field(description="The server's name, once in its pool.")
    address: ServerAddress | None = Field(
        default=None,
        description='Where it is: "192.0.2.1:80", "[2001:db8::1]:80", "app.internal:80" (looked up by DNS, each '
        'address a server) or "unix:run/app.sock". This, or host and ports.',
    )
    host: TlsName | None = Field(
        default=None, description="Its host alone, an IP address or a name, where it speaks several protocols."
    )
    ports: Annotated[dict[Name, Port], Field(min_length=1)] | None = Field(
        default=None, description="With host: its port for each protocol, such as {imap4: 143, lmtp: 24}."
    )
    weight: int = Field(
        default=1, ge=0, le=1000, description="Its part of the users, in relation to the others'; 0: none new."
    )
    max_connections: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        default=None,
        description="Requests at the same time, of the whole node; more wait in the queue. Without it, no limit.",
    )
    backup: bool = Field(default=False, description="Used only while no other server of the pool is up.")
    send_proxy: Literal["v1", "v2"] | None = Field(
        default=None,
        description="Begin each connection with a PROXY header of this version, to tell the server who the client is.",
    )
    tls: ToServer | None = Field(default=None, description="Speak TLS to it: {} verifies it by the system's CAs.")

    def check(self, reading: Reading) -> None:
        tls = self.tls
        if tls is not None and tls.verify and tls.server_name is None and self.is_unix:
            self.complain(reading, "a unix socket has no name to be verified: give server_name", "tls")
        if self.address is not None:
            for name in ("host", "ports"):
                if getattr(self, name) is not None:
                    self.complain(reading, f"{name} and address exclude one another: keep one", name)
        elif self.ports is None and self.host is not None:
            self.complain(reading, "a host needs ports, such as {imap4: 143}; or write address: HOST:PORT", "host")
        elif self.host is None and self.ports is not None:
            self.complain(reading, "ports of which host? give host", "ports")

    @classmethod
    def _known(cls, data: Mapping, reading: Reading) -> dict[str, Any]:
        known = super()._known(data, reading)
        if known.keys().isdisjoint(("address", "host", "ports")):
            reading.problem(data.path, '"address" is missing: where it is; or give host and ports')
        return known

    @property
    def is_unix(self) -> bool:
        """Whether it is a unix socket."""
        return self.address is not None and self.address.startswith("unix:")

    def addresses(self) -> list[tuple[str, snapshot.Address]]:
        """Where it is, with the key that says so; several where it has ``ports``."""
        if self.address is not None:
            return [("address", parse_server(self.address))]
        return [("ports", snapshot.Address(self.host or "", port)) for port in (self.ports or {}).values()]

    def compiled(self, base: Path, mode: str) -> snapshot.Server:
        """The server for the data path; ``mode`` is how TLS begins where the section doesn't say."""
        address = resolve(self.addresses()[0][1], base)
        return snapshot.Server(
            name=self.name,
            address=address,
            weight=self.weight,
            max_connections=self.max_connections or 0,
            backup=self.backup,
            send_proxy=self.send_proxy or "",
            tls=self.tls.compiled(address.host, base, mode) if self.tls is not None else None,
            ports=dict(self.ports or {}),
        )


Extended = Literal["none", "xclient", "proxy-v1", "proxy-v2"]
Identified = Literal["none", "id", "proxy-v1", "proxy-v2"]


class ClientAddress(Section):
    """How mail servers learn a client's address, by protocol."""

    imap4: Identified = Field(default="none", description="none, id (the ID command), proxy-v1 or proxy-v2.")
    pop3: Extended = Field(default="none", description="none, xclient, proxy-v1 or proxy-v2.")
    managesieve: Extended = Field(default="none", description="none, xclient, proxy-v1 or proxy-v2.")
    submission: Extended = Field(default="none", description="none, xclient, proxy-v1 or proxy-v2.")
    smtp: Extended = Field(default="none", description="none, xclient, proxy-v1 or proxy-v2.")
    lmtp: Extended = Field(default="none", description="none, xclient, proxy-v1 or proxy-v2.")

    def compiled(self) -> dict[str, str]:
        """What is not none, by protocol."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in found.items() if value != "none"}


class Pool(Section):
    """Servers that can stand in for one another."""

    servers: Annotated[list[Server], Field(min_length=1)] = Field(description="The servers.")
    balance: Balance = Field(
        default=Balance(word="round-robin"),
        description="How a server is chosen: the algorithm's name, or {hash: ...}.",
        json_schema_extra={"default": "round-robin"},
    )
    persistence: PersistenceKeys | None = Field(
        default=None, description="What keeps a user on one server: one key, or a list that is tried in its order."
    )
    health: Health | None = Field(default=None, description="Active checks of the servers; without it, none.")
    outliers: Outliers | None = Field(default=None, description="Take out servers that fail users; without it, don't.")
    retries: Retries = Field(default=Retries(), description="What is tried again on another server.")
    timeouts: PoolTimeouts = Field(default=PoolTimeouts(), description="How long a server may take.")
    queue: int = Field(
        default=1000,
        ge=0,
        le=1_000_000,
        description="Requests that wait, in each worker, while all servers are at their limit.",
    )
    slow_start: DurationOrZero = Field(
        default=0.0, description="A server that comes back gets its full weight after so long."
    )
    http_version: Literal["1.1", "2"] = Field(
        default="1.1",
        description="What HTTP servers are spoken to in. 2: with prior knowledge, or over TLS by ALPN; gRPC needs it.",
    )
    idle_connections: int = Field(
        default=64, ge=0, le=100_000, description="Connections without work that are kept, for each server and worker."
    )

    login_as: Literal["typed", "mailbox"] = Field(
        default="typed",
        description="What mail servers get as the user's name: what was typed, or the mailbox that it means.",
    )
    client_address: ClientAddress = Field(
        default=ClientAddress(), description="How mail servers learn a client's address."
    )

    def check(self, reading: Reading) -> None:
        if not any(server.weight for server in self.servers):
            self.complain(reading, "all weights are 0, so that no server is used: give one of them more", "servers")
        elif all(server.backup for server in self.servers):
            reading.warning((*self.place, "servers"), "all servers are backup, which is as if none were")
        if self.persistence:
            check_order(self.keys_in_order(), (*self.place, "persistence"), reading)
        if self.health and self.health.port is not None:
            for number, server in enumerate(self.servers):
                if server.is_unix:
                    message = "a unix socket has no port, so that health's port does not apply to it"
                    reading.warning((*self.place, "servers", number, "address"), message)

    def keys_in_order(self) -> list[Key]:
        """The persistence keys in the order in which they are tried."""
        return [key for entry in self.persistence or () for key in entry.chain()]

    def _spoken_to(self, server: snapshot.Server) -> snapshot.Server:
        """Over TLS the server is asked for the version that it will be spoken to in."""
        if self.http_version != "2" or server.tls is None:
            return server
        return msgspec.structs.replace(server, tls=msgspec.structs.replace(server.tls, alpn=("h2",)))

    def compiled(self, name: str, protocols: tuple[str, ...], base: Path) -> snapshot.Pool:
        """The pool for the data path; ``protocols`` are those of the listeners that lead to it."""
        mode = "implicit" if set(protocols).isdisjoint(MAIL_PROTOCOLS) else "auto"
        several = any(server.ports for server in self.servers)
        return snapshot.Pool(
            name=name,
            servers=tuple(self._spoken_to(server.compiled(base, mode)) for server in self.servers),
            balance=self.balance.compiled(),
            persistence=tuple(key.compiled() for key in self.keys_in_order()),
            health=self.health.compiled(protocols, several) if self.health else None,
            outliers=self.outliers.compiled() if self.outliers else None,
            retries=self.retries.compiled(),
            timeouts=self.timeouts.compiled(),
            queue=self.queue,
            slow_start=self.slow_start,
            idle_connections=self.idle_connections,
            http_version=self.http_version,
            login_as=self.login_as,
            client_address=self.client_address.compiled(),
        )
