"""The ClientHello: put together from records, and read (RFC 8446 sections 4.1.2 and 5.1, RFC 5246 section 7.4.1.2).

A ClientHello may be split over any number of records, and a record over any number of segments; each step of the
reader looks at a fixed number of bytes, so that any split gives the same result. Nothing is kept but the bytes that
have come, which are bounded: a fragment has one byte at least, so that a message of so many bytes takes six times as
many at most.

What is judged is only what must be known to route: that there is one message, one of each extension, one name. All
else is the server's business, such as versions, ciphers and extensions that nobody has heard of (GREASE, RFC 8701).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from l7lb.core.errors import Failure
from l7lb.protocols.tls import alerts

HANDSHAKE: Final = 22
ALERT: Final = 21
CLIENT_HELLO: Final = 1
RECORD_BYTES = 16 * 1024  # the longest fragment
HEAD_BYTES: Final = 5  # of a record

SERVER_NAME: Final = 0
ALPN: Final = 16
SESSION_TICKET: Final = 35
PRE_SHARED_KEY: Final = 41
SUPPORTED_VERSIONS: Final = 43
ENCRYPTED_CLIENT_HELLO: Final = 0xFE0D
TLS13: Final = 0x0304

# Beginnings of HTTP requests, also of HTTP/2 with prior knowledge.
METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE ", b"PRI * ")
LONGEST_FIRST = max(map(len, METHODS))
NAME = re.compile(rb"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\Z")
LONGEST_NAME = 255
SHORT = "a ClientHello that is shorter than it says"
FAILURES = {"refused": Failure.CLIENT_LIMIT, "closed": Failure.CLIENT_CLOSED}


class HelloFault(Exception):
    """What the client sent can't be taken. ``answer`` is what it is told; ``reason`` is the counts' word."""

    def __init__(self, code: int, detail: str, reason: str = "malformed", answer: bytes | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.reason = reason
        self.answer = answers(code) if answer is None else answer
        self.failure = FAILURES.get(reason, Failure.CLIENT_PROTOCOL)


def answers(code: int) -> bytes:
    """What the client is told: an alert, or nothing."""
    return alerts.alert(code) if code else b""


class ClientHello:
    """What a ClientHello shows.

    ``sni`` is the name in lower case, empty where there is none; with Encrypted Client Hello it is the outer one, the
    inner one can't be seen. ``ticket`` is one of TLS 1.2 (RFC 5077), empty where there is none or one is merely wished
    for; ``psk``: a ticket of TLS 1.3 is offered, which only the server can read. ``tls12``: the client takes a version
    in which sessions can be seen.
    """

    __slots__ = ("alpn", "ech", "psk", "session_id", "sni", "ticket", "tls12", "tls13", "version")

    def __init__(self, version: int, session_id: bytes) -> None:
        self.version = version
        self.session_id = session_id
        self.sni = b""
        self.alpn: Sequence[bytes] = ()
        self.ticket = b""
        self.psk = False
        self.ech = False
        self.tls12 = True
        self.tls13 = False


class HelloReader:
    """Puts a ClientHello together. ``raw`` is all that has come, for the server; ``limit`` is for the message."""

    __slots__ = ("_left", "_message", "_needed", "_position", "limit", "raw")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.raw = bytearray()
        self._position = 0  # of what was not looked at yet
        self._left = 0  # bytes of the record that are still to come into the message
        self._message = bytearray()
        self._needed = 0  # bytes of the message with its head; 0: not known yet

    def feed(self, data: bytes) -> ClientHello | None:
        """More bytes; the hello once it is complete. Raises HelloFault."""
        self.raw += data
        while True:
            if not self._left and not self._head():
                return None
            part = self.raw[self._position : self._position + self._left]
            if not part:
                return None
            self._message += part
            self._position += len(part)
            self._left -= len(part)
            self._judge()
            if len(self._message) == self._needed:
                return read_hello(bytes(self._message[4:]))

    def _head(self) -> bool:
        """Read a record's head, if it is there."""
        head = bytes(self.raw[self._position : self._position + HEAD_BYTES])
        if not self._position and not judge_first(bytes(self.raw[:LONGEST_FIRST])):
            return False
        if len(head) < HEAD_BYTES:
            return False
        kind, length = head[0], head[3] << 8 | head[4]
        if kind == ALERT:
            raise HelloFault(0, "the client gave up before its ClientHello was complete", "closed", b"")
        if kind != HANDSHAKE or head[1] != 3:
            raise HelloFault(alerts.UNEXPECTED_MESSAGE, f"a record of type {kind} inside the ClientHello")
        if length > RECORD_BYTES:
            raise HelloFault(alerts.RECORD_OVERFLOW, f"a record of {length} bytes")
        if not length:
            raise HelloFault(alerts.UNEXPECTED_MESSAGE, "an empty record")
        self._position += HEAD_BYTES
        self._left = length
        return True

    def _judge(self) -> None:
        """Look at the message's head as far as it has come."""
        message = self._message
        if message[0] != CLIENT_HELLO:
            raise HelloFault(alerts.UNEXPECTED_MESSAGE, f"a handshake message of type {message[0]}")
        if len(message) < 4:
            return
        if not self._needed:
            self._needed = 4 + int.from_bytes(message[1:4], "big")
            if self._needed > self.limit:
                text = f"a ClientHello of {self._needed} bytes, more than {self.limit}"
                raise HelloFault(alerts.HANDSHAKE_FAILURE, text, "refused")
        if len(message) + self._left > self._needed:
            # A hello is the last message that its sender may write in this flight, and ends its record.
            raise HelloFault(alerts.UNEXPECTED_MESSAGE, "more behind the ClientHello in its record")


def judge_first(data: bytes) -> bool:
    """Whether these first bytes begin a record of TLS; False: it can't be told yet.

    Raises HelloFault, in the words of what they begin instead.
    """
    if len(data) < 2:
        return False
    if data[0] in (HANDSHAKE, ALERT):
        if data[1] != 3:
            raise HelloFault(alerts.PROTOCOL_VERSION, f"version {data[1]} of TLS is not known", "unsupported")
        return True
    if data[0] & 0x80:
        if len(data) < 3:
            return False
        if data[2] == CLIENT_HELLO:
            raise HelloFault(alerts.PROTOCOL_VERSION, "a ClientHello in the form of SSL 2", "unsupported")
    for method in METHODS:
        if data.startswith(method):
            raise HelloFault(0, "plain HTTP, not TLS", "malformed", alerts.PLAIN_HTTP)
        if method.startswith(data):
            return False
    raise HelloFault(0, "not TLS", "malformed", b"")


class Reader:
    """Takes fields off a message. Raises HelloFault where it is too short, or longer than what it holds."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, size: int) -> int:
        """An integer of so many bytes."""
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        """So many bytes."""
        end = self._at + size
        if end > len(self._data):
            raise HelloFault(alerts.DECODE_ERROR, SHORT)
        data = self._data[self._at : end]
        self._at = end
        return data

    def vector(self, size: int) -> bytes:
        """Bytes behind their length, which takes ``size`` bytes."""
        return self.take(self.number(size))

    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def end(self) -> None:
        """Nothing may be left."""
        if self.more():
            raise HelloFault(alerts.DECODE_ERROR, "bytes behind the end of a field")


def read_hello(body: bytes) -> ClientHello:
    """The message without its head. Raises HelloFault."""
    reader = Reader(body)
    version = reader.number(2)
    reader.take(32)
    session_id = reader.vector(1)
    if len(session_id) > 32:
        raise HelloFault(alerts.DECODE_ERROR, "a session identifier of more than 32 bytes")
    ciphers, methods = reader.vector(2), reader.vector(1)
    if not ciphers or len(ciphers) % 2 or not methods:
        raise HelloFault(alerts.DECODE_ERROR, "a list of ciphers or compressions that is none")
    if version >> 8 != 3:
        raise HelloFault(alerts.PROTOCOL_VERSION, f"version {version:#06x} is not known", "unsupported")
    hello = ClientHello(version, session_id)
    if not reader.more():
        return hello  # before TLS 1.3 there may be no extensions
    extensions = reader.vector(2)
    reader.end()
    read_extensions(extensions, hello)
    return hello


def read_extensions(data: bytes, hello: ClientHello) -> None:
    """The list of extensions, each there once (RFC 8446 section 4.2). Raises HelloFault.

    A browser's hello has some twenty, most of which are passed over: so this goes without a Reader.
    """
    seen: set[int] = set()
    at, end = 0, len(data)
    while at < end:
        start = at + 4
        if start > end:
            raise HelloFault(alerts.DECODE_ERROR, SHORT)
        kind = data[at] << 8 | data[at + 1]
        at = start + (data[at + 2] << 8 | data[at + 3])
        if at > end:
            raise HelloFault(alerts.DECODE_ERROR, SHORT)
        if kind in seen:
            raise HelloFault(alerts.ILLEGAL_PARAMETER, f"extension {kind} is there twice")
        seen.add(kind)
        if kind == SERVER_NAME:
            hello.sni = read_name(data[start:at])
        elif kind == ALPN:
            hello.alpn = read_alpn(data[start:at])
        elif kind == SESSION_TICKET:
            hello.ticket = data[start:at]
        elif kind == SUPPORTED_VERSIONS:
            read_versions(data[start:at], hello)
        elif kind == PRE_SHARED_KEY:
            hello.psk = True
        elif kind == ENCRYPTED_CLIENT_HELLO:
            hello.ech = True


def read_name(data: bytes) -> bytes:
    """The host name of a server_name extension (RFC 6066 section 3), in lower case. Raises HelloFault."""
    reader = Reader(data)
    names = Reader(reader.vector(2))
    reader.end()
    found: bytes | None = None
    while names.more():
        kind = names.number(1)
        name = names.vector(2)
        if kind:
            continue  # no other kind was ever defined
        if found is not None:
            raise HelloFault(alerts.ILLEGAL_PARAMETER, "two server names")
        found = host_name(name)
    if found is None:
        raise HelloFault(alerts.DECODE_ERROR, "a server_name extension without a name")
    return found


def host_name(name: bytes) -> bytes:
    """The name as rules see it. Raises HelloFault for what is none.

    Some clients add the dot at the end that the RFC forbids; servers take both for the same name.
    """
    found = name.lower().removesuffix(b".")
    if len(found) > LONGEST_NAME or not NAME.match(found):
        raise HelloFault(alerts.ILLEGAL_PARAMETER, "a server name that is no host name")
    return found


def read_alpn(data: bytes) -> Sequence[bytes]:
    """The protocols that are offered (RFC 7301 section 3.1), without those that only grease. Raises HelloFault."""
    reader = Reader(data)
    names = Reader(reader.vector(2))
    reader.end()
    found = []
    while names.more():
        name = names.vector(1)
        if not name:
            raise HelloFault(alerts.DECODE_ERROR, "a protocol without a name")
        if not (len(name) == 2 and name[0] == name[1] and name[0] & 0x0F == 0x0A):
            found.append(name)
    return tuple(found)


def read_versions(data: bytes, hello: ClientHello) -> None:
    """The versions that are offered (RFC 8446 section 4.2.1). Raises HelloFault."""
    reader = Reader(data)
    versions = reader.vector(1)
    reader.end()
    if not versions or len(versions) % 2:
        raise HelloFault(alerts.DECODE_ERROR, "a list of versions that is none")
    offered = {versions[at] << 8 | versions[at + 1] for at in range(0, len(versions), 2)}
    hello.tls13 = TLS13 in offered
    hello.tls12 = any(0x0300 <= version < TLS13 for version in offered)
