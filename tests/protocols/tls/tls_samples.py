"""ClientHellos: those of Python's ssl, and those built here, field by field."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from typing import Any

GREASE = 0x1A1A
TLS12 = 0x0303
TLS13 = 0x0304


def vector(size: int, data: bytes) -> bytes:
    """Bytes behind their length."""
    return len(data).to_bytes(size, "big") + data


def sni(*names: bytes) -> tuple[int, bytes]:
    """A server_name extension."""
    return 0, vector(2, b"".join(b"\0" + vector(2, name) for name in names))


def alpn(*names: bytes) -> tuple[int, bytes]:
    """An ALPN extension."""
    return 16, vector(2, b"".join(vector(1, name) for name in names))


def versions(*numbers: int) -> tuple[int, bytes]:
    """A supported_versions extension."""
    return 43, vector(1, b"".join(number.to_bytes(2, "big") for number in numbers))


def message(
    extensions: Sequence[tuple[int, bytes]] | None = (), session_id: bytes = b"", version: int = TLS12
) -> bytes:
    """A ClientHello as a handshake message; None: without the list of extensions."""
    body = version.to_bytes(2, "big") + bytes(range(32)) + vector(1, session_id)
    body += vector(2, b"\x13\x01\xc0\x2f") + vector(1, b"\0")
    if extensions is not None:
        body += vector(2, b"".join(kind.to_bytes(2, "big") + vector(2, data) for kind, data in extensions))
    return b"\x01" + vector(3, body)


def records(data: bytes, sizes: Iterable[int] = (), kind: int = 22) -> bytes:
    """A handshake message in records: of these sizes, the rest in one."""
    found, at = [], 0
    for size in sizes:
        if at < len(data):
            found.append(data[at : at + size])
            at += size
    if at < len(data):
        found.append(data[at:])
    return b"".join(bytes((kind,)) + b"\x03\x01" + vector(2, part) for part in found)


def real(name: str | None = "www.example.com", offers: Sequence[str] = (), **limits: Any) -> bytes:
    """What Python's ssl says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for key, value in limits.items():
        setattr(context, key, value)
    if offers:
        context.set_alpn_protocols(list(offers))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()
