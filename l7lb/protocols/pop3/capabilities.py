"""What CAPA answers before a server is known (RFC 2449 section 5): what all servers can do, and l7lb's own part.

Each server is asked for its CAPA at a login now and then. Until the first answer the usual ones stand for them; a
listener may say what stands there instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakValueDictionary

ASK_EVERY = 600.0  # seconds; a login then has one more question for its server
REMEMBERED = 3 * ASK_EVERY
SERVERS = 1000
USUAL = (b"TOP", b"UIDL", b"RESP-CODES", b"PIPELINING", b"AUTH-RESP-CODE")
# Those that mean the session behind the login, so that l7lb can promise what all servers do. All others are left out:
# l7lb itself would have to keep what they promise.
PASSED = frozenset((*USUAL, b"EXPIRE", b"LOGIN-DELAY"))
EOL = b"\r\n"
# By listener and what is fixed: a reload makes another listener of the same name, and what was learned stays known.
KNOWN: WeakValueDictionary[tuple[str, tuple[str, ...]], Capabilities] = WeakValueDictionary()


class Capabilities:
    """Those of all servers together. ``fixed`` are the listener's own lines: they stand for what servers tell."""

    __slots__ = ("__weakref__", "_common", "_fixed", "_servers")

    def __init__(self, fixed: Sequence[str] = ()) -> None:
        self._fixed = tuple(line.encode() for line in fixed)
        self._servers: dict[str, tuple[tuple[bytes, ...], float]] = {}
        self._common = self._fixed or USUAL

    @classmethod
    def of(cls, listener: str, fixed: tuple[str, ...]) -> Capabilities:
        """Those that this listener's sessions have in common, before and behind a reload."""
        found = KNOWN.get((listener, fixed))
        if found is None:
            found = KNOWN[listener, fixed] = cls(fixed)
        return found

    def wanted(self, server: str, now: float) -> bool:
        """Whether this server is to be asked."""
        if self._fixed:
            return False
        known = self._servers.get(server)
        if known is None:
            return len(self._servers) < SERVERS
        return known[1] < now - ASK_EVERY

    def learn(self, server: str, lines: Sequence[bytes], now: float) -> None:
        """This server has answered with these lines: none where it knows no CAPA."""
        told = tuple(line.upper() for line in lines if line.split(b" ")[0].upper() in PASSED)
        self._servers[server] = (told, now)
        for name in [name for name, (_, seen) in self._servers.items() if seen < now - REMEMBERED]:
            del self._servers[name]
        first, *others = [told for told, _ in self._servers.values()]
        self._common = tuple(line for line in first if all(line in other for other in others))

    def lines(self, mechanisms: Sequence[str], starttls: bool, user: bool) -> bytes:
        """CAPA's answer; ``user``: USER and PASS are taken."""
        said = [b"+OK Capability list follows", *self._common]
        if user:
            said.append(b"USER")
        if mechanisms:
            said.append(b"SASL " + " ".join(mechanisms).encode())
        if starttls:
            said.append(b"STLS")
        return EOL.join([*said, b"IMPLEMENTATION l7lb", b"."]) + EOL
