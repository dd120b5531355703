"""ID (RFC 2971): what a client says of itself, and how proxies tell servers who their client is.

Dovecot's names for the latter are understood by others as well: ``x-originating-ip`` and ``-port`` are the client's,
``x-connected-ip`` and ``-port`` where it arrived, ``x-proxy-ttl`` how many proxies may still follow, ``x-session-id``
the session's name in logs.
"""

from __future__ import annotations

from typing import Final

from l7lb.protocols.imap4.syntax import Arguments, Malformed, quotable, quoted
from l7lb.protocols.mail.origin import Origin

PAIRS: Final = 30  # in one list (RFC 2971 section 3.3)
NAME_BYTES: Final = 30
VALUE_BYTES: Final = 1024
ANSWER: Final = b'* ID ("name" "l7lb")\r\n'

Fields = dict[bytes, bytes]


def read(arguments: Arguments) -> Fields:
    """The list that ID has as its argument, names in lower case; raises Malformed. NIL is empty."""
    arguments.space()
    fields: Fields = {}
    if not arguments.skip(b"NIL"):
        if not arguments.skip(b"("):
            raise Malformed("a list or NIL is missing")
        while not arguments.skip(b")"):
            if fields:
                arguments.space()
            name = arguments.string().lower()
            value = arguments.space().nstring()
            if len(name) > NAME_BYTES or len(value or b"") > VALUE_BYTES or len(fields) >= PAIRS or name in fields:
                raise Malformed("the list is too long, or has a name twice")
            fields[name] = value or b""
    arguments.end()
    return fields


def believe(fields: Fields, origin: Origin) -> None:
    """A trusted proxy says this of its client."""
    if b"x-originating-ip" in fields:
        origin.told(fields[b"x-originating-ip"], fields.get(b"x-originating-port", b""))
    if b"x-connected-ip" in fields:
        origin.arrived(fields[b"x-connected-ip"], fields.get(b"x-connected-port", b""))
    if b"x-proxy-ttl" in fields:
        origin.limited(fields[b"x-proxy-ttl"])
    origin.session = fields.get(b"x-session-id", b"")[:VALUE_BYTES]


def own(fields: Fields) -> Fields:
    """What a client says of itself alone: no names that only proxies may say."""
    return {name: value for name, value in fields.items() if not name.startswith(b"x-")}


def write(fields: Fields, origin: Origin) -> bytes:
    """ID's argument for a server: what the client said of itself, and who it is."""
    said = dict(fields)
    if origin.session:
        said[b"x-session-id"] = origin.session
    for name, host, port in (
        (b"originating", origin.client, origin.port),
        (b"connected", origin.local, origin.local_port),
    ):
        if host and not host.startswith("unix:"):
            said[b"x-%b-ip" % name] = host.encode()
            said[b"x-%b-port" % name] = b"%d" % port
    said[b"x-proxy-ttl"] = b"%d" % origin.hops
    pairs = [quoted(name) + b" " + quoted(value) for name, value in said.items() if quotable(name) and quotable(value)]
    return b"(" + b" ".join(pairs) + b")"
