"""What a client is told before its server is known (RFC 5804 section 1.7): what all servers have.

Every server tells its capabilities when it is logged in to, so they are learned at no cost. Until the first login the
common Sieve extensions stand for them; a listener may say what stands there instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

from l7lb.protocols.managesieve.syntax import string

REMEMBERED = 3600.0  # seconds without a login after which a server is taken for gone
SERVERS = 1000
COMMON = {
    b"SIEVE": b"body comparator-i;ascii-numeric copy date encoded-character envelope fileinto imap4flags reject"
    b" relational subaddress vacation variables",
    b"VERSION": b"1.0",
}
LISTS = (b"SIEVE", b"NOTIFY")  # those whose value is a list, of which all servers have what all lists have
OWN = (b"IMPLEMENTATION", b"SASL", b"STARTTLS", b"OWNER", b"XCLIENT", b"UNAUTHENTICATE")  # never a server's to tell
EOL = b"\r\n"
# By listener and what is fixed: a reload makes another listener of the same name, and what was learned stays known.
KNOWN: WeakValueDictionary[tuple[str, tuple[str, ...]], Capabilities] = WeakValueDictionary()


class Capabilities:
    """Those of all servers together. ``fixed`` are the listener's own, each ``NAME`` or ``NAME value``."""

    __slots__ = ("__weakref__", "_common", "_fixed", "_servers")

    def __init__(self, fixed: Sequence[str] = ()) -> None:
        self._fixed: dict[bytes, bytes] = {}
        for line in fixed:
            name, _, value = line.encode().partition(b" ")
            self._fixed[name.upper()] = value
        self._servers: dict[str, tuple[dict[bytes, bytes], float]] = {}
        self._common: dict[bytes, bytes] = COMMON | self._fixed

    @classmethod
    def of(cls, listener: str, fixed: tuple[str, ...]) -> Capabilities:
        """Those that this listener's sessions have in common, before and behind a reload."""
        found = KNOWN.get((listener, fixed))
        if found is None:
            found = KNOWN[listener, fixed] = cls(fixed)
        return found

    def learn(self, server: str, told: dict[bytes, bytes], now: float) -> None:
        """This server told these when it was logged in to."""
        known = self._servers.get(server)
        if known is None and len(self._servers) >= SERVERS:
            return
        self._servers[server] = (told, now)
        if known is not None and known[0] == told:
            return
        for name in [name for name, (_, seen) in self._servers.items() if seen < now - REMEMBERED]:
            del self._servers[name]
        self._common = _common([told for told, _ in self._servers.values()]) | self._fixed

    def lines(self, mechanisms: Sequence[str], starttls: bool) -> bytes:
        """The lines of a response, without the OK behind them."""
        said = [b'"IMPLEMENTATION" "l7lb"', b'"SASL" ' + string(" ".join(mechanisms).encode())]
        if starttls:
            said.append(b'"STARTTLS"')
        for name, value in self._common.items():
            said.append(string(name) + (b" " + string(value) if value or name in LISTS else b""))
        return EOL.join(said) + EOL


def _common(servers: Sequence[dict[bytes, bytes]]) -> dict[bytes, bytes]:
    first, *others = servers
    found = {}
    for name, value in first.items():
        if name in OWN or any(name not in other for other in others):
            continue
        values = [other[name] for other in others]
        if name in LISTS:
            lists = [set(each.split()) for each in values]
            found[name] = b" ".join(word for word in value.split() if all(word in each for each in lists))
        elif name == b"MAXREDIRECTS":
            numbers = [int(each) for each in (value, *values) if each.isdigit()]
            if numbers:
                found[name] = b"%d" % min(numbers)
        elif all(each == value for each in values):
            found[name] = value
    return found
