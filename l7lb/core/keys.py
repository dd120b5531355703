"""What stands for a user in tables and limits: digests of what may be secret, addresses cut to a prefix."""

from __future__ import annotations

import socket
from functools import lru_cache
from hashlib import blake2b

DIGEST = 15  # bytes; one less than would seem natural, since with it an entry takes 16 bytes less


@lru_cache(maxsize=1024)
def digest(value: bytes) -> bytes:
    """What stands for a cookie's or header's value in a table."""
    return blake2b(value, digest_size=DIGEST, person=b"l7lb sticky").digest()


def session_digest(value: bytes) -> bytes:
    """What stands for a TLS session in a table. Nearly each is asked for once, so that none is remembered."""
    return blake2b(value, digest_size=DIGEST, person=b"l7lb session").digest()


@lru_cache(maxsize=1024)
def address_key(source: str, prefix4: int, prefix6: int) -> bytes | None:
    """What stands for an address in a table: four bytes for IPv4; for IPv6 a ``6`` and the bytes of the prefix.

    An IPv4 address mapped into IPv6 (RFC 4291, section 2.5.5.2) is the IPv4 address. None for what is no address,
    such as a unix socket.
    """
    try:
        if ":" not in source:
            packed = socket.inet_pton(socket.AF_INET, source)
        else:
            packed = socket.inet_pton(socket.AF_INET6, source.partition("%")[0])
    except (OSError, ValueError):
        return None
    packed = packed.removeprefix(_MAPPED)
    if len(packed) == 4:
        return packed if prefix4 >= 32 else _masked(packed, prefix4)
    return b"6" + _masked(packed, prefix6)[: (prefix6 + 7) // 8]


def show_address(key: bytes) -> str:
    """The address that :func:`address_key` made this of, a prefix with zeros behind it; "" for another key."""
    if len(key) == 4:
        return socket.inet_ntop(socket.AF_INET, key)
    if key[:1] == b"6" and len(key) <= 17:
        return socket.inet_ntop(socket.AF_INET6, key[1:].ljust(16, b"\0"))
    return ""


_MAPPED = bytes(10) + b"\xff\xff"


def _masked(packed: bytes, prefix: int) -> bytes:
    bits = len(packed) * 8
    mask = ((1 << bits) - 1) ^ ((1 << (bits - prefix)) - 1)
    return (int.from_bytes(packed, "big") & mask).to_bytes(len(packed), "big")
