"""SASL, the server's half: what clients say with each mechanism, and what it means.

==============  =====================================================  ===========================================
mechanism       the client's responses                                 specified by
==============  =====================================================  ===========================================
plain           authorization NUL user NUL password                    RFC 4616
login           user, then password, each behind a challenge           draft-murchison-sasl-login
xoauth2         ``user=`` USER ^A ``auth=Bearer`` TOKEN ^A ^A          Google's, before there was the next
oauthbearer     ``n,a=`` USER ``,`` ^A ``auth=Bearer`` TOKEN ^A ^A     RFC 7628
external        authorization, or nothing; TLS proves it               RFC 4422 appendix A
==============  =====================================================  ===========================================

A refused token has one step more: the client gets a challenge that says why, answers it, and only then is refused.
"""

from __future__ import annotations

import binascii
import re
from typing import Final

NAMES: Final = ("plain", "login", "xoauth2", "oauthbearer", "external")
TOKENS: Final = frozenset({"xoauth2", "oauthbearer"})
INVALID_TOKEN: Final = b'{"status":"invalid_token","schemes":"bearer","scope":"mail"}'
ERROR_SEEN: Final = b"\x01"  # what a client says to OAUTHBEARER's error (RFC 7628 section 3.2.3)

# What no name may hold: it would end a line, a field or a mechanism's part early.
UNUSABLE = re.compile(rb"[\x00-\x1f\x7f]")
BEARER = re.compile(rb"bearer +([A-Za-z0-9\-._~+/]+=*)", re.IGNORECASE)
PROMPTS: Final = (b"Username:", b"Password:")


class SaslFault(Exception):
    """What the client sent is no response of its mechanism; the text says why."""


class Identity:
    """Who logs in, and what proves it; see :class:`l7lb.protocols.mail.facts.MailFacts`."""

    __slots__ = ("authorization", "password", "token", "user")

    def __init__(self, user: bytes, password: bytes, authorization: bytes = b"", token: bool = False) -> None:
        if not user or UNUSABLE.search(user) or UNUSABLE.search(authorization):
            raise SaslFault("there is no usable name")
        if b"\0" in password or b"\r" in password or b"\n" in password:
            raise SaslFault("the password has a line's end in it")
        self.user = user
        self.password = password
        self.authorization = b"" if authorization == user else authorization
        self.token = token


class Exchange:
    """One AUTHENTICATE. ``challenge`` is what the client gets, decoded, and :meth:`step` takes what it answers.

    ``certified`` is the name that the client's certificate proves, empty where there is none.
    """

    __slots__ = ("_certified", "_user", "challenge", "mechanism")

    def __init__(self, mechanism: str, certified: bytes = b"") -> None:
        if mechanism not in NAMES:
            raise ValueError(mechanism)
        self.mechanism = mechanism
        self._certified = certified
        self._user: bytes | None = None
        self.challenge = PROMPTS[0] if mechanism == "login" else b""

    def step(self, response: bytes) -> Identity | None:
        """The client's next response, decoded. None: there is another challenge. Raises SaslFault."""
        if self.mechanism == "plain":
            return _plain(response)
        if self.mechanism == "login":
            return self._login(response)
        if self.mechanism == "xoauth2":
            return _xoauth2(response)
        if self.mechanism == "oauthbearer":
            return _oauthbearer(response)
        if not self._certified:
            raise SaslFault("there is no certificate that proves a name")
        return Identity(self._certified, b"", response)

    def _login(self, response: bytes) -> Identity | None:
        if self._user is None:
            self._user = response
            self.challenge = PROMPTS[1]
            return None
        if not response:
            raise SaslFault("the password is empty")
        return Identity(self._user, response)


def decoded(text: bytes) -> bytes:
    """Base64 as mail protocols have it: complete, with nothing else inside. Raises SaslFault."""
    try:
        return binascii.a2b_base64(text, strict_mode=True) if text else b""
    except binascii.Error as problem:
        raise SaslFault(f"this is not base64: {problem}") from None


def encoded(data: bytes) -> bytes:
    """The base64 of a response or challenge, without a line's end."""
    return binascii.b2a_base64(data, newline=False)


def first_response(mechanism: str, identity: Identity, user: bytes) -> bytes:
    """What a client of this mechanism says for ``identity`` under the name ``user``: all but ``login`` need no more."""
    if mechanism == "plain":
        return b"\0".join((identity.authorization, user, identity.password))
    if mechanism == "xoauth2":
        return b"user=%b\x01auth=Bearer %b\x01\x01" % (user, identity.password)
    if mechanism == "oauthbearer":
        escaped = user.replace(b"=", b"=3D").replace(b",", b"=2C")
        return b"n,a=%b,\x01auth=Bearer %b\x01\x01" % (escaped, identity.password)
    raise ValueError(mechanism)


def _plain(response: bytes) -> Identity:
    parts = response.split(b"\0")
    if len(parts) != 3:
        raise SaslFault("PLAIN has three parts")
    authorization, user, password = parts
    if not password:
        raise SaslFault("the password is empty")
    return Identity(user, password, authorization)


def _fields(text: bytes) -> dict[bytes, bytes]:
    if not text.endswith(b"\x01\x01"):
        raise SaslFault("the end is missing")
    fields: dict[bytes, bytes] = {}
    for field in text[:-2].split(b"\x01"):
        name, separator, value = field.partition(b"=")
        if not separator or name.lower() in fields:
            raise SaslFault("a field is malformed, or there twice")
        fields[name.lower()] = value
    return fields


def _bearer(fields: dict[bytes, bytes]) -> bytes:
    found = BEARER.fullmatch(fields.get(b"auth", b""))
    if found is None:
        raise SaslFault("there is no bearer token")
    return found[1]


def _xoauth2(response: bytes) -> Identity:
    fields = _fields(response)
    return Identity(fields.get(b"user", b""), _bearer(fields), token=True)


def _oauthbearer(response: bytes) -> Identity:
    header, separator, rest = response.partition(b"\x01")
    parts = header.split(b",")
    # There is no channel binding here: p=... asks for one, y and n say that none is done (RFC 5801 section 4).
    if not separator or len(parts) != 3 or parts[0] not in (b"n", b"y") or parts[2]:
        raise SaslFault("OAUTHBEARER's header is malformed")
    if not parts[1].startswith(b"a="):
        raise SaslFault("without a name nobody knows where the mailbox is")
    name = parts[1][2:].replace(b"=2C", b",").replace(b"=3D", b"=")
    return Identity(name, _bearer(_fields(rest)), token=True)
