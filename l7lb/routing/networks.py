"""Is an address in one of these networks? A table for that, and a bounded memory of its answers.

IPv4 addresses mapped into IPv6 (``::ffff:192.0.2.1``, what a socket for both families shows) count as IPv4, in
networks and addresses alike. ``unix:`` stands for clients that came over a unix socket and have no address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, inet_pton

REMEMBERED = 8192
MAPPED = bytes(10) + b"\xff\xff"
MAPPED_NETWORK = ipaddress.IPv6Network("::ffff:0:0/96")
UNIX = "unix:"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_network(text: str) -> Network:
    """A network or single address; raises ValueError in words for the operator."""
    try:
        network: Network = ipaddress.ip_network(text)
    except ValueError:
        try:
            suggestion = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f'"{text}" is no address or network, such as 192.0.2.0/24 or 2001:db8::/32') from None
        raise ValueError(f'"{text}" has bits set behind its prefix; {suggestion} may be meant') from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(MAPPED_NETWORK):
        mapped = network.network_address.ipv4_mapped
        assert mapped is not None
        return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def check_network(text: str) -> str | None:
    """What is wrong with a network, or None."""
    if text == UNIX:
        return None
    try:
        parse_network(text)
    except ValueError as problem:
        return str(problem)
    return None


def packed(source: str) -> bytes | None:
    """An address as 4 or 16 bytes, mapped ones as 4; None for what is no address."""
    try:
        return inet_pton(AF_INET, source)
    except (OSError, ValueError):
        pass
    try:
        address = inet_pton(AF_INET6, source.partition("%")[0])
    except (OSError, ValueError):
        return None
    return address[12:] if address.startswith(MAPPED) else address


class Networks:
    """A set of networks. A look-up of a new address costs a set look-up for each distinct prefix length."""

    __slots__ = ("_four", "_known", "_six", "_unix")

    def __init__(self, texts: Sequence[str]) -> None:
        self._unix = UNIX in texts
        self._four: list[tuple[int, set[int]]] = []
        self._six: list[tuple[int, set[int]]] = []
        self._known: dict[str, bool] = {}
        tables: dict[tuple[int, int], set[int]] = {}
        for text in texts:
            if text != UNIX:
                network = parse_network(text)
                shift = network.max_prefixlen - network.prefixlen
                tables.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift)
        for (version, shift), prefixes in sorted(tables.items()):
            (self._four if version == 4 else self._six).append((shift, prefixes))

    def __contains__(self, source: str) -> bool:
        known = self._known
        answer = known.get(source)
        if answer is None:
            if len(known) >= REMEMBERED:
                known.clear()
            answer = known[source] = self._look_up(source)
        return answer

    def _look_up(self, source: str) -> bool:
        if source.startswith(UNIX):
            return self._unix
        address = packed(source)
        if address is None:
            return False
        number = int.from_bytes(address, "big")
        table = self._four if len(address) == 4 else self._six
        return any(number >> shift in prefixes for shift, prefixes in table)
