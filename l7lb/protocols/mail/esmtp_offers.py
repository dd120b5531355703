"""What SMTP servers offer in their answer to EHLO, and what a listener may therefore offer to its clients.

A client is told what it can do before anybody knows which server it gets, so it is told what all of them can do: the
intersection, with the smallest size. A worker learns this from health checks and from its own dialogues, each of which
brings what is known of its server up to date. Until all servers are known it is :data:`CAREFUL`; where a server can't
do what was offered by then the client has to come again, and no message is changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from l7lb.core.servers import POOLS, PoolState, ServerState
from l7lb.core.snapshot import Listener, ToPool, ToSplit

Offer = dict[bytes, bytes]  # keywords in upper case, and what stands behind them

CAREFUL: Final[Offer] = {b"8BITMIME": b""}
# Those that a proxy can pass on: what they add are parameters of MAIL and RCPT, and BDAT.
PASSED: Final = (b"SIZE", b"8BITMIME", b"SMTPUTF8", b"DSN", b"CHUNKING", b"BINARYMIME", b"ENHANCEDSTATUSCODES")


def parse_offer(lines: Iterable[bytes]) -> Offer:
    """What stands in the lines of an answer to EHLO or LHLO, without its first."""
    offer: Offer = {}
    for line in lines:
        words = line.split(None, 1)
        if words:
            name, equals, rest = words[0].upper().partition(b"=")  # AUTH=PLAIN is how it was written once
            value = words[1] if len(words) > 1 else rest if equals else b""
            offer[name] = offer[name] + b" " + value if name in offer else value
    return offer


def common(offers: Iterable[Offer]) -> Offer:
    """What all of them offer, of what can be passed on."""
    every = list(offers)
    if not every:
        return dict(CAREFUL)
    shared = {name: b"" for name in PASSED if all(name in offer for offer in every)}
    if b"SIZE" in shared:
        limits = [int(offer[b"SIZE"]) for offer in every if offer[b"SIZE"].isdigit() and int(offer[b"SIZE"])]
        shared[b"SIZE"] = b"%d" % min(limits) if limits else b""
    if b"CHUNKING" not in shared:
        shared.pop(b"BINARYMIME", None)
    return shared


class Offers:
    """What one listener offers. ``fixed`` are the configuration's words, which stand for the servers'."""

    def __init__(self, listener: Listener, fixed: tuple[str, ...]) -> None:
        self._protocol = listener.protocol
        self._wanted = _pools(listener)
        self._pools: dict[str, PoolState] = {}  # where the process has no runtime: as a dialogue showed them
        self._fixed = _passed(parse_offer(word.encode() for word in fixed)) if fixed else None
        self._seen: list[tuple[str, ...]] = []  # what servers said, and what that comes to
        self._common: Offer = dict(CAREFUL)

    def learn(self, pool: PoolState, server: ServerState, offer: Offer) -> None:
        """A server of that pool has said what it offers."""
        self._pools[pool.name] = pool
        server.offers[self._protocol] = tuple((name + b" " + value).decode("latin-1") for name, value in offer.items())

    def now(self) -> Offer:
        """What a client can be offered."""
        if self._fixed is not None:
            return self._fixed
        seen: list[tuple[str, ...]] = []
        for name in self._wanted:
            pool = POOLS.get(name) or self._pools.get(name)
            if pool is None:
                return dict(CAREFUL)
            for server in pool.servers:
                said = server.offers.get(self._protocol)
                if said is not None:
                    seen.append(said)
                elif server.alive_for(self._protocol):
                    return dict(CAREFUL)
        if seen != self._seen:
            self._common = common(parse_offer(word.encode("latin-1") for word in said) for said in seen)
            self._seen = seen
        return self._common


def _passed(offer: Offer) -> Offer:
    return {name: value for name, value in offer.items() if name in PASSED}


def _pools(listener: Listener) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for route in listener.routes:
        action = route.action
        if isinstance(action, ToPool):
            names[action.pool] = None
        elif isinstance(action, ToSplit):
            names.update((pool, None) for pool, _ in action.shares)
    return tuple(names)
