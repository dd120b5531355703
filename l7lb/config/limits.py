"""How often clients may come: the rate limits of a listener and of a rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from l7lb.config.fields import Name, OneOrMore
from l7lb.config.pools import HashOn
from l7lb.config.section import Reading, Section
from l7lb.config.units import Rate, format_rate
from l7lb.config.wording import listing
from l7lb.core import snapshot

PLAIN_FACTS = ("source", "host", "path", "url", "method", "sni", "alpn", "mailbox", "listener")
Counted = Literal["requests", "connections", "logins", "messages"]
# What a protocol counts, and the facts that it knows by then: the first is what a limit counts that doesn't say.
Countable = Mapping[str, tuple[str, ...]]


class LimitKey(HashOn):
    """What has a bucket of its own: a fact by its word, or one that needs a name as a mapping."""

    WORDS: ClassVar[tuple[str, ...]] = PLAIN_FACTS


class Limit(Section):
    """How often those who share a fact may come; more is refused."""

    key: LimitKey = Field(
        description="What is limited: each source, mailbox, host, path, url, method, {header: NAME}, {cookie: NAME}, "
        "{query: NAME} by itself, or the listener as a whole. Who doesn't have the fact is not limited."
    )
    rate: Rate = Field(description="How many on average, such as 100/s, 600/m or 10000/h; of the whole node.")
    burst: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        default=None, description="How many at once after a pause; without it, what the rate lets pass in a second."
    )
    of: Counted | None = Field(
        default=None,
        description="What is counted: requests, connections, logins or messages; default: what the protocol has.",
    )
    name: Name | None = Field(
        default=None,
        description="Its name in metrics and logs; default: made of its place, what it counts and its key.",
    )
    prefix4: int = Field(default=32, ge=1, le=32, description="Bits of an IPv4 source that count.")
    prefix6: int = Field(default=64, ge=1, le=128, description="Bits of an IPv6 source that count.")
    size: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="Keys that are remembered in each worker; the oldest that use little make room.",
    )

    def check(self, reading: Reading) -> None:
        given = {"prefix4", "prefix6"} & self.model_fields_set
        if given and self.key.word != "source":
            self.complain(reading, "has no effect: it counts the bits of key: source", min(given))

    def compiled(self, place: str, countable: Countable) -> snapshot.Limit:
        """The limit for the data path."""
        key = self.key.compiled()
        of: str = self.of or next(iter(countable))
        return snapshot.Limit(
            name=f"{place}/{self.name or f'{of}-{key}'.replace(' ', '-')}",
            of=of,
            key=key,
            rate=self.rate,
            burst=float(self.burst or max(1, round(self.rate))),
            prefix4=self.prefix4,
            prefix6=self.prefix6,
            size=self.size,
        )

    def check_known(self, reading: Reading, countable: Countable, protocol: str) -> None:
        """Report what this protocol doesn't count, or doesn't know at that time."""
        of: str = self.of or next(iter(countable))
        if of not in countable:
            self.complain(reading, f"{protocol} has no {of} that could be limited here: {listing(countable)}", "of")
            return
        kind = self.key.compiled().kind
        if kind not in countable[of]:
            message = f"the {kind} is not known of {protocol} {of}: {listing(countable[of])}"
            self.complain(reading, message, "key")


Limits = OneOrMore[Limit]


def compile_limits(limits: Iterable[Limit] | None, place: str, countable: Countable) -> tuple[snapshot.Limit, ...]:
    """The limits of one place for the data path."""
    return tuple(limit.compiled(place, countable) for limit in limits or ())


def check_limits(limits: Iterable[Limit] | None, countable: Countable, protocol: str, reading: Reading) -> None:
    """Report what can't work in the limits of one place."""
    seen: dict[str, Limit] = {}
    for limit in limits or ():
        if not limit.key.given:
            continue  # what is wrong with the key has been said
        limit.check_known(reading, countable, protocol)
        name = limit.compiled("", countable).name
        first = seen.setdefault(name, limit)
        if first is not limit:
            line = reading.line(first.place)
            message = (
                f"line {line} has a limit of the same key already: give both a name, so that they can be told apart"
            )
            limit.complain(reading, message)


def describe_limit(limit: snapshot.Limit) -> str:
    """A limit in one line: ``1000/s of requests by source, 2000 at once``."""
    key = "in all" if limit.key.kind == "listener" else f"by {limit.key}"
    return f"{format_rate(limit.rate)} of {limit.of} {key}, {limit.burst:g} at once"
