"""What a listener's or a rule's limits say to one request, connection or login."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from l7lb.core.facts import Facts
from l7lb.core.keys import address_key, digest
from l7lb.core.snapshot import Limit
from l7lb.limits.buckets import Buckets

ANYBODY: Final = b"*"
PLAIN: Final = 64  # bytes of a fact that is kept as it is; a longer one as its digest
SECRETS: Final = ("header", "cookie", "query", "url")


class Bound:
    """One limit with its buckets."""

    __slots__ = ("_kind", "_name", "_prefix4", "_prefix6", "_secret", "buckets", "config")

    def __init__(self, config: Limit, buckets: Buckets) -> None:
        self.config = config
        self.buckets = buckets
        self._kind = config.key.kind
        self._name = config.key.name
        self._prefix4 = config.prefix4
        self._prefix6 = config.prefix6
        self._secret = self._kind in SECRETS

    def key(self, facts: Facts) -> bytes | None:
        """The bucket's key, or None for who doesn't have the fact: the limit does not concern him.

        A source that is no address (a unix socket, an unknown client of a proxy) has one bucket with all like it.
        """
        kind = self._kind
        if kind == "source":
            return address_key(facts.source, self._prefix4, self._prefix6) or facts.source.encode()
        if kind == "listener":
            return ANYBODY
        value = facts.text(kind, self._name)
        if value is None:
            return None
        return digest(value) if self._secret or len(value) > PLAIN else value


class Gate:
    """Several limits, all of which must agree. ``refused`` is the one that did not, the last time."""

    __slots__ = ("_bounds", "_only", "refused")

    def __init__(self, bounds: Sequence[Bound]) -> None:
        self._bounds = tuple(bounds)
        self._only: Bound | None = bounds[0] if len(bounds) == 1 else None
        self.refused: Limit | None = None

    def wait(self, facts: Facts, now: float) -> float:
        """Admit one with these facts, or say in how many seconds it would be admitted: 0.0 if it was.

        What one of the limits refuses is counted by none of them.
        """
        only = self._only
        if only is not None:
            key = only.key(facts)
            wait = 0.0 if key is None else only.buckets.take(key, now)
            if wait:
                self.refused = only.config
            return wait
        keys = [(bound, bound.key(facts)) for bound in self._bounds]
        for bound, key in keys:
            if key is not None:
                wait = bound.buckets.wait(key, now)
                if wait:
                    self.refused = bound.config
                    return wait
        for bound, key in keys:
            if key is not None:
                bound.buckets.take(key, now)
        return 0.0
