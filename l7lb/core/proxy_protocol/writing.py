"""Makes PROXY headers: for the server that wants to know the client, and for checks, which have none.

Version 1 tells the addresses. Version 2 tells besides what is known of the client's TLS, the proxy's name for the
connection, and ends in a checksum, so that a header that was damaged or cut is not believed.
"""

from __future__ import annotations

import socket

from l7lb.core.contracts import Handshake, Peer
from l7lb.core.proxy_protocol import (
    ALPN,
    AUTHORITY,
    CLIENT_CERT_CONN,
    CLIENT_SSL,
    CRC32C,
    FIXED,
    INET,
    INET6,
    LOCAL,
    LONGEST_ID,
    LONGEST_NAME,
    PROXY,
    SIGNATURE,
    SSL,
    SSL_CIPHER,
    SSL_CN,
    SSL_VERSION,
    STREAM,
    UNIQUE_ID,
    UNIX,
    UNSPEC,
    crc32c,
)
from l7lb.core.proxy_protocol.reading import MAPPED

VERSIONS = ("v1", "v2")
UNKNOWN = b"PROXY UNKNOWN\r\n"
LONGEST_FACT = 512  # bytes of a name in the TLS facts: what a certificate says is the client's own choice


def write(version: str, peer: Peer) -> bytes:
    """The header of that version (``v1``, ``v2``) for a client's connection."""
    return write_line(peer) if version == "v1" else write_block(peer)


def write_line(peer: Peer) -> bytes:
    """A version 1 header; UNKNOWN for a client without an IP address."""
    packed = _packed(peer)
    if packed is None:
        return UNKNOWN
    family, source, destination = packed
    name = "TCP4" if family == socket.AF_INET else "TCP6"
    addresses = f"{socket.inet_ntop(family, source)} {socket.inet_ntop(family, destination)}"
    return f"PROXY {name} {addresses} {peer.client_port} {peer.local_port}\r\n".encode("ascii")


def write_block(peer: Peer) -> bytes:
    """A version 2 header with all that is known; over unix sockets with paths of no name."""
    packed = _packed(peer)
    if packed is not None:
        family, source, destination = packed
        kind = INET if family == socket.AF_INET else INET6
        ports = peer.client_port.to_bytes(2, "big") + peer.local_port.to_bytes(2, "big")
        addresses = source + destination + ports
    elif peer.client.startswith("unix:"):
        kind, addresses = UNIX, bytes(216)
    else:
        kind, addresses = UNSPEC, b""
    return _block(PROXY, kind << 4 | STREAM if kind else UNSPEC, addresses + _facts(peer))


def write_local() -> bytes:
    """A version 2 header for a connection of our own, such as a check's."""
    return _block(LOCAL, UNSPEC, b"")


def write_own(version: str, own: object, server: object) -> bytes:
    """The header of that version for a connection of our own; the addresses are those that its socket tells.

    Version 1 has no LOCAL, and servers may refuse UNKNOWN: it tells the connection's own addresses (section 2.1).
    """
    if version == "v2":
        return write_local()
    if not isinstance(own, tuple) or not isinstance(server, tuple):
        return UNKNOWN  # a unix socket
    return write_line(Peer(own[0], own[1], server[0], server[1]))


def _packed(peer: Peer) -> tuple[int, bytes, bytes] | None:
    """Family and both addresses; IPv6 for both where only one is."""
    family = socket.AF_INET6 if ":" in peer.client + peer.local else socket.AF_INET
    try:
        return family, _address(family, peer.client), _address(family, peer.local)
    except OSError:
        return None


def _address(family: int, text: str) -> bytes:
    text = text.partition("%")[0]  # without the zone of a link-local address
    return socket.inet_pton(family, MAPPED + text if family == socket.AF_INET6 and ":" not in text else text)


def _facts(peer: Peer) -> bytes:
    handshake = peer.handshake
    facts = b""
    if handshake is not None:
        facts += _value(ALPN, handshake.alpn, LONGEST_NAME) + _value(AUTHORITY, handshake.sni, LONGEST_NAME)
    if peer.front is not None:
        facts += _value(UNIQUE_ID, peer.front.unique_id, LONGEST_ID)
    if peer.tls:
        facts += _value(SSL, _tls(handshake or Handshake()), 4 * LONGEST_FACT)
    return facts


def _tls(handshake: Handshake) -> bytes:
    certificate = handshake.certificate
    client, verify, common_name = CLIENT_SSL, 1, ""
    if certificate is not None:
        client |= CLIENT_CERT_CONN
        verify = 0 if certificate.verified else 1
        common_name = certificate.common_name
    return (
        bytes((client,))
        + verify.to_bytes(4, "big")
        + _value(SSL_VERSION, handshake.version.encode(), LONGEST_FACT)
        + _value(SSL_CN, common_name.encode("utf-8", "replace"), LONGEST_FACT)
        + _value(SSL_CIPHER, handshake.cipher.encode(), LONGEST_FACT)
    )


def _value(kind: int, value: bytes, longest: int) -> bytes:
    """A TLV; none for what is empty, or too long to be passed on whole."""
    if not value or len(value) > longest:
        return b""
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def _block(command: int, family: int, body: bytes) -> bytes:
    length = len(body) + 7
    data = SIGNATURE + bytes((0x20 | command, family)) + length.to_bytes(2, "big") + body
    data += bytes((CRC32C, 0, 4))
    assert len(data) + 4 == FIXED + length
    return data + crc32c(data + bytes(4)).to_bytes(4, "big")
