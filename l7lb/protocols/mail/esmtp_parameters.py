"""Parameters of MAIL and RCPT: what a client may say by what it was offered, and what a server gets of it.

============  ==============================  ===========================
parameter     values                          belongs to
============  ==============================  ===========================
SIZE          bytes                           SIZE (RFC 1870)
BODY          7BIT, 8BITMIME, BINARYMIME      8BITMIME (6152), BINARYMIME
SMTPUTF8      none                            SMTPUTF8 (RFC 6531)
RET, ENVID    FULL or HDRS; xtext             DSN (RFC 3461)
AUTH          xtext                           AUTH (RFC 4954)
NOTIFY        NEVER, SUCCESS,FAILURE,DELAY    DSN
ORCPT         type;xtext                      DSN
============  ==============================  ===========================
"""

from __future__ import annotations

from typing import Final

from l7lb.protocols.mail.esmtp import Fault, is_xtext
from l7lb.protocols.mail.esmtp_offers import Offer

_BODIES: Final = {b"7BIT": b"8BITMIME", b"8BITMIME": b"8BITMIME", b"BINARYMIME": b"BINARYMIME"}
_NOTIFY: Final = frozenset({b"SUCCESS", b"FAILURE", b"DELAY"})
_EXTENSIONS: Final = {
    b"SIZE": b"SIZE",
    b"SMTPUTF8": b"SMTPUTF8",
    b"RET": b"DSN",
    b"ENVID": b"DSN",
    b"NOTIFY": b"DSN",
    b"ORCPT": b"DSN",
    b"AUTH": b"AUTH",
}
_MAIL: Final = {name: _EXTENSIONS[name] for name in (b"SIZE", b"SMTPUTF8", b"RET", b"ENVID")}
_DISPENSABLE: Final = frozenset({b"SIZE", b"AUTH"})  # what a server that does not know it does without


def mail_parameters(parameters: dict[bytes, bytes], offer: Offer, *, logged_in: bool) -> None:
    """Whether MAIL's parameters fit what the client was offered. Raises Fault."""
    for name, value in parameters.items():
        if name == b"BODY":
            extension = _BODIES.get(value.upper())
            if extension is None or extension not in offer:
                raise _unknown(name)
        elif not (logged_in if name == b"AUTH" else _MAIL.get(name) in offer):
            raise _unknown(name)
        elif not _mail_value(name, value):
            raise _malformed(name)
    limit, size = offer.get(b"SIZE", b""), parameters.get(b"SIZE", b"")
    if limit and size and int(size) > int(limit):
        raise Fault(b"552 5.3.4 The message is larger than " + limit + b" bytes")


def rcpt_parameters(parameters: dict[bytes, bytes], offer: Offer) -> None:
    """The same for RCPT's."""
    for name, value in parameters.items():
        if name not in (b"NOTIFY", b"ORCPT") or b"DSN" not in offer:
            raise _unknown(name)
        if name == b"NOTIFY":
            words = value.upper().split(b",")
            good = words == [b"NEVER"] or (bool(words) and len(set(words)) == len(words) and _NOTIFY.issuperset(words))
        else:
            kind, semicolon, address = value.partition(b";")
            good = bool(kind and semicolon and address) and is_xtext(address) and len(value) <= 500
        if not good:
            raise _malformed(name)


def fitting(parameters: dict[bytes, bytes], offer: Offer) -> bytes | None:
    """The parameters as a server gets them, each with a space before it; None if it can't do what they ask for."""
    text = b""
    for name, value in parameters.items():
        extension = _BODIES[value.upper()] if name == b"BODY" else _EXTENSIONS[name]
        if extension in offer:
            text += b" " + name + (b"=" + value if value else b"")
        elif name not in _DISPENSABLE and value.upper() != b"7BIT":
            return None
    return text


def _mail_value(name: bytes, value: bytes) -> bool:
    if name == b"SIZE":
        return value.isdigit() and len(value) <= 20
    if name == b"SMTPUTF8":
        return not value
    if name == b"RET":
        return value.upper() in (b"FULL", b"HDRS")
    return bool(value) and is_xtext(value) and len(value) <= (100 if name == b"ENVID" else 500)


def _unknown(name: bytes) -> Fault:
    return Fault(b"555 5.5.4 " + name + b" is not offered here")


def _malformed(name: bytes) -> Fault:
    return Fault(b"501 5.5.4 The value of " + name + b" is malformed")
