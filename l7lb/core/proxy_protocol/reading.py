"""Reads one PROXY header, and not one byte more.

=======  =====================================  ==============================================================
state    waits for                              leaves on
=======  =====================================  ==============================================================
START    enough to tell the versions apart      "PROXY " -> LINE; the signature -> BLOCK; all else: a fault
LINE     LF within the first 107 bytes          a well-formed line -> DONE; all else: a fault
BLOCK    16 bytes, and as many as they say      a well-formed block within the limit -> DONE; all else: a fault
DONE     nothing                                takes no more bytes
=======  =====================================  ==============================================================

The state follows from the bytes so far, so it is not kept apart from them. The first byte that can't be right decides,
however the bytes were split.
"""

from __future__ import annotations

import re
import socket

from l7lb.core.contracts import ClientCertificate, Front, Handshake, Peer
from l7lb.core.names import escape_name
from l7lb.core.proxy_protocol import (
    ALPN,
    AUTHORITY,
    CLIENT_CERT_CONN,
    CLIENT_CERT_SESS,
    CLIENT_SSL,
    CRC32C,
    FIXED,
    INET,
    LINE,
    LOCAL,
    LONGEST_ID,
    LONGEST_LINE,
    LONGEST_NAME,
    PROXY,
    SIZES,
    SSL,
    SSL_CIPHER,
    SSL_CN,
    SSL_VERSION,
    STREAM,
    UNIQUE_ID,
    UNIX,
    UNSPEC,
    begins_header,
    crc32c,
)

KNOWN = frozenset({ALPN, AUTHORITY, CRC32C, UNIQUE_ID, SSL, SSL_VERSION, SSL_CN, SSL_CIPHER})
MAPPED = "::ffff:"  # before an IPv4 address in IPv6 form, as inet_ntop writes it

_ADDRESSES = re.compile(
    rb"PROXY TCP(?:4 ([0-9.]{7,15}) ([0-9.]{7,15})|6 ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39}))"
    rb" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n"
)
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")


class HeaderFault(Exception):
    """These bytes are no PROXY header that may stand; the text says why."""


class Header:
    """What a header says. ``source`` is empty where it tells no addresses: then the connection's own count.

    ``local``: the proxy in front made the connection for itself, for a health check. ``tls``: the client came over TLS;
    ``handshake`` is what is known of that, None for nothing.
    """

    __slots__ = (
        "destination", "destination_port", "handshake", "local", "source", "source_port", "tls", "unique_id", "version",
    )  # fmt: skip

    def __init__(self, version: int, local: bool = False) -> None:
        self.version = version
        self.local = local
        self.source = ""
        self.source_port = 0
        self.destination = ""
        self.destination_port = 0
        self.tls = False
        self.handshake: Handshake | None = None
        self.unique_id = b""

    def peer(self, own: Peer) -> Peer:
        """The client that it tells of; ``own`` is who made the connection."""
        if self.local:
            return own
        if self.source:
            peer = Peer(self.source, self.source_port, self.destination, self.destination_port, self.tls)
        else:
            peer = Peer(own.client, own.client_port, own.local, own.local_port, self.tls)
        peer.handshake = self.handshake
        peer.front = Front(own.client, self.unique_id)
        return peer


class HeaderReader:
    """``header`` is there once the last byte has come. ``limit`` bounds a version 2 header as a whole, in bytes."""

    __slots__ = ("_data", "_limit", "header")

    def __init__(self, limit: int) -> None:
        self.header: Header | None = None
        self._limit = limit
        self._data = b""

    def feed(self, data: bytes) -> int:
        """How many of these bytes belong to the header. Raises HeaderFault."""
        if self.header is not None:
            return 0
        before = len(self._data)
        known = self._data + data
        starts = begins_header(known)
        if starts is False:
            raise HeaderFault("this is no PROXY header")
        if starts is None:
            end = 0
        elif known.startswith(LINE):
            end = self._line(known)
        else:
            end = self._block(known)
        if not end:
            self._data = known
            return len(data)
        self._data = b""
        return end - before

    def _line(self, data: bytes) -> int:
        end = data.find(b"\n", 0, LONGEST_LINE) + 1
        if end:
            self.header = read_line(data[:end])
        elif len(data) >= LONGEST_LINE:
            raise HeaderFault(f"its line has no end within {LONGEST_LINE} bytes")
        return end

    def _block(self, data: bytes) -> int:
        if len(data) < FIXED:
            return 0
        end = FIXED + int.from_bytes(data[14:16], "big")
        if data[12] not in (0x20 | LOCAL, 0x20 | PROXY):
            raise HeaderFault(f"version and command {data[12]:#04x} are not known")
        if end > self._limit:
            raise HeaderFault(f"it has {end} bytes, and {self._limit} are allowed")
        if len(data) < end:
            return 0
        self.header = read_block(data[:end])
        return end


def read_line(line: bytes) -> Header:
    """A version 1 header with its CR LF. Raises HeaderFault."""
    header = Header(1)
    match = _ADDRESSES.fullmatch(line)
    if match is None:
        if _UNKNOWN.fullmatch(line):
            return header
        raise HeaderFault("its line is malformed")
    source4, destination4, source6, destination6, source_port, destination_port = match.groups()
    family = socket.AF_INET if source4 else socket.AF_INET6
    header.source = _canonical(family, source4 or source6)
    header.destination = _canonical(family, destination4 or destination6)
    header.source_port, header.destination_port = int(source_port), int(destination_port)
    if header.source_port > 65535 or header.destination_port > 65535:
        raise HeaderFault("a port is above 65535")
    return header


def _canonical(family: int, text: bytes) -> str:
    try:
        return _text(family, socket.inet_pton(family, text.decode("ascii")))
    except OSError:
        raise HeaderFault("an address is malformed") from None


def _text(family: int, packed: bytes) -> str:
    return socket.inet_ntop(family, packed).removeprefix(MAPPED)


def read_block(data: bytes) -> Header:
    """A version 2 header as a whole, whose length and command were looked at. Raises HeaderFault."""
    header = Header(2, local=data[12] & 15 == LOCAL)
    if header.local:
        # Its family has no meaning, and what follows is skipped; but a checksum counts where one can be found.
        if data[13] == UNSPEC and (found := _checksum_of_local(data)) is not None:
            _check(data, found)
        return header
    family, transport = data[13] >> 4, data[13] & 15
    if family > UNIX or transport > 2:
        raise HeaderFault(f"family and transport {data[13]:#04x} are not known")
    start = FIXED + SIZES[family]
    if len(data) < start:
        raise HeaderFault("it is too short for its addresses")
    if transport == STREAM:
        _addresses(header, family, data[FIXED:start])
    _facts(header, data, start)
    return header


def _addresses(header: Header, family: int, data: bytes) -> None:
    if family == UNSPEC:
        return
    if family == UNIX:
        header.source = header.destination = "unix:"
        return
    size = 4 if family == INET else 16
    known = socket.AF_INET if family == INET else socket.AF_INET6
    header.source = _text(known, data[:size])
    header.destination = _text(known, data[size : size * 2])
    header.source_port = int.from_bytes(data[size * 2 : size * 2 + 2], "big")
    header.destination_port = int.from_bytes(data[size * 2 + 2 :], "big")


def _values(data: bytes, position: int, end: int) -> dict[int, tuple[int, bytes]]:
    """The TLVs of the types that are known: where their values begin, and these."""
    found: dict[int, tuple[int, bytes]] = {}
    while position < end:
        start = position + 3
        stop = start + int.from_bytes(data[position + 1 : start], "big")
        if stop > end:
            raise HeaderFault("a TLV is longer than what is left")
        kind = data[position]
        if kind in KNOWN:
            if kind in found:
                raise HeaderFault(f"TLV {kind:#04x} is there twice")
            found[kind] = start, data[start:stop]
        position = stop
    return found


def _checksum_of_local(data: bytes) -> tuple[int, bytes] | None:
    try:
        return _values(data, FIXED, len(data)).get(CRC32C)
    except HeaderFault:
        return None


def _check(data: bytes, checksum: tuple[int, bytes]) -> None:
    start, value = checksum
    if len(value) != 4:
        raise HeaderFault("its checksum has not 4 bytes")
    if crc32c(data[:start] + bytes(4) + data[start + 4 :]) != int.from_bytes(value, "big"):
        raise HeaderFault("its checksum is wrong")


def _facts(header: Header, data: bytes, start: int) -> None:
    found = _values(data, start, len(data))
    if CRC32C in found:
        _check(data, found[CRC32C])
    nothing = (0, b"")
    header.unique_id = found.get(UNIQUE_ID, nothing)[1]
    if len(header.unique_id) > LONGEST_ID:
        raise HeaderFault(f"its unique id has more than {LONGEST_ID} bytes")
    name, alpn = found.get(AUTHORITY, nothing)[1], found.get(ALPN, nothing)[1]
    if len(alpn) > LONGEST_NAME or len(name) > LONGEST_NAME or not _readable(name):
        raise HeaderFault("its authority or protocol is malformed")
    if name or alpn:
        header.handshake = Handshake(name, alpn)
    if SSL in found:
        _handshake(header, found[SSL][1])


def _handshake(header: Header, value: bytes) -> None:
    if len(value) < 5:
        raise HeaderFault("its TLS facts are too short")
    client = value[0]
    if not client & CLIENT_SSL:
        return
    found = _values(value, 5, len(value))
    version, common_name, cipher = (
        found[kind][1].decode("utf-8", "replace") if kind in found else "" for kind in (SSL_VERSION, SSL_CN, SSL_CIPHER)
    )
    header.tls = True
    handshake = header.handshake = header.handshake or Handshake()
    handshake.version, handshake.cipher = version, cipher
    if client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS):
        verified = not any(value[1:5])
        subject = f"CN={escape_name(common_name)}" if common_name else ""
        handshake.certificate = ClientCertificate(common_name, subject, verified)


def _readable(name: bytes) -> bool:
    try:
        return name.decode("utf-8").isprintable() and b" " not in name
    except UnicodeDecodeError:
        return False
