"""The PROXY protocol, versions 1 and 2: who the client of a connection is, told before its first byte.

As in haproxy's proxy-protocol.txt (sections 2.1 and 2.2). Sans-io: :mod:`.reading` takes bytes, :mod:`.writing` makes
them. Facts that surround the addresses travel as TLVs, in version 2 only.
"""

from __future__ import annotations

from typing import Final

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
LINE: Final = b"PROXY "
LONGEST_LINE: Final = 107  # bytes of a version 1 header with its CR LF
FIXED: Final = 16  # bytes of a version 2 header before its addresses

LOCAL: Final = 0
PROXY: Final = 1

UNSPEC: Final = 0
INET: Final = 1
INET6: Final = 2
UNIX: Final = 3
STREAM: Final = 1
SIZES: Final = (0, 12, 36, 216)  # bytes of the addresses, by family

ALPN: Final = 0x01
AUTHORITY: Final = 0x02
CRC32C: Final = 0x03
NOOP: Final = 0x04
UNIQUE_ID: Final = 0x05
SSL: Final = 0x20
SSL_VERSION: Final = 0x21
SSL_CN: Final = 0x22
SSL_CIPHER: Final = 0x23

CLIENT_SSL: Final = 0x01
CLIENT_CERT_CONN: Final = 0x02
CLIENT_CERT_SESS: Final = 0x04

LONGEST_NAME: Final = 255  # bytes of an authority, and of a protocol's name (RFC 7301 section 3.1)
LONGEST_ID: Final = 128


def begins_header(data: bytes) -> bool | None:
    """Whether these are the first bytes of a PROXY header of either version; None: too few to tell."""
    for start in (LINE, SIGNATURE):
        if data.startswith(start):
            return True
        if start.startswith(data):
            return None
    return False


def _table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)  # noqa: PLW2901
        table.append(number)
    return tuple(table)


_CRC = _table()


def crc32c(data: bytes) -> int:
    """The checksum of RFC 4960, Appendix B (Castagnoli), as the protocol's TLV carries it in network order."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF
