"""Failed logins slow their address down: how long its next login waits."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

ADDRESSES = 100_000  # that are remembered; the one that failed the longest ago leaves
LONGEST = 15.0  # seconds that a login waits at most
FIRST = 1.0  # seconds for the first failure beyond those that are free; doubled with each


def prefix(address: str) -> str:
    """What counts as one address: an IPv6 host has a network of 64 bits to itself."""
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Address(int(parsed) >> 64 << 64))


class Penalties:
    """How often logins from each address failed; a failure is forgotten bit by bit, all free ones within the window."""

    def __init__(self) -> None:
        self._levels: dict[str, tuple[float, float]] = {}  # failures, and when they were so many

    def __len__(self) -> int:
        return len(self._levels)

    def failed(self, address: str, free: int, window: float, now: float) -> None:
        """A login from there was refused; ``free`` failures in ``window`` seconds cost nothing (0: none is counted)."""
        if free <= 0:
            return
        key = prefix(address)
        level = self._level(key, free, window, now) + 1.0
        self._levels.pop(key, None)
        self._levels[key] = (min(level, free + 10.0), now)
        if len(self._levels) > ADDRESSES:
            del self._levels[next(iter(self._levels))]

    def delay(self, address: str, free: int, window: float, now: float) -> float:
        """The seconds that a login from there waits."""
        if free <= 0 or not self._levels:
            return 0.0
        beyond = self._level(prefix(address), free, window, now) - free
        return min(LONGEST, FIRST * 2.0**beyond) if beyond >= 0.0 else 0.0

    def _level(self, key: str, free: int, window: float, now: float) -> float:
        level, since = self._levels.get(key, (0.0, now))
        return max(0.0, level - (now - since) * free / max(window, 1.0))
