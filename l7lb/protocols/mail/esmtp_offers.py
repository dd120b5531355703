"""What SMTP servers offer in their answer to EHLO, and what a listener may therefore offer to its clients.

A client is told what it can do before anybody knows which server it gets, so it is told what all of them can do: the
intersection, with the smallest size. A worker learns this from its own dialogues, each of which brings what is known of
its server up to date. Until all servers are known it is :data:`CAREFUL`; where a server can't do what was offered by
then the client has to come again, and no message is changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Listener, ToPool, ToSplit
from l7lb.protocols.mail.esmtp_replies import Reply

KNOWN_LIMIT: Final = 10_000

Offer = dict[bytes, bytes]  # keywords in upper case, and what stands behind them

CAREFUL: Final[Offer] = {b"8BITMIME": b""}
# Those that a proxy can pass on: what they add are parameters of MAIL and RCPT, and BDAT.
PASSED: Final = (b"SIZE", b"8BITMIME", b"SMTPUTF8", b"DSN", b"CHUNKING", b"BINARYMIME", b"ENHANCEDSTATUSCODES")

_known: dict[tuple[str, str], Offer] = {}  # by the server's address and protocol


def parse_offer(reply: Reply) -> Offer:
    """What stands in an answer to EHLO or LHLO."""
    offer: Offer = {}
    for line in reply.lines[1:]:
        words = line.split(None, 1)
        if words:
            name, equals, rest = words[0].upper().partition(b"=")  # AUTH=PLAIN is how it was written once
            value = words[1] if len(words) > 1 else rest if equals else b""
            offer[name] = offer[name] + b" " + value if name in offer else value
    return offer


def learn(server: ServerState, protocol: str, offer: Offer) -> None:
    """A server has said what it offers."""
    if len(_known) >= KNOWN_LIMIT:
        _known.clear()
    _known[str(server.config.address_for(protocol)), protocol] = offer


def known(server: ServerState, protocol: str) -> Offer | None:
    """What a server offered when it was last asked."""
    return _known.get((str(server.config.address_for(protocol)), protocol))


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
        self._pools: dict[str, PoolState] = {}  # as a dialogue with one of its servers last showed them
        self._fixed: Offer | None = None
        if fixed:
            lines = [b"", *(word.encode() for word in fixed)]
            self._fixed = {name: value for name, value in parse_offer(Reply(250, lines)).items() if name in PASSED}

    def learn(self, pool: PoolState, server: ServerState, offer: Offer) -> None:
        """A server of that pool has said what it offers."""
        self._pools[pool.name] = pool
        learn(server, self._protocol, offer)

    def now(self) -> Offer:
        """What a client can be offered."""
        if self._fixed is not None:
            return self._fixed
        offers: list[Offer] = []
        for name in self._wanted:
            pool = self._pools.get(name)
            if pool is None:
                return dict(CAREFUL)
            for server in pool.servers:
                offer = known(server, self._protocol)
                if offer is not None:
                    offers.append(offer)
                elif server.alive_for(self._protocol):
                    return dict(CAREFUL)
        return common(offers)


def _pools(listener: Listener) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for route in listener.routes:
        action = route.action
        if isinstance(action, ToPool):
            names[action.pool] = None
        elif isinstance(action, ToSplit):
            names.update((pool, None) for pool, _ in action.shares)
    return tuple(names)
