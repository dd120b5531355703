"""The request target: its forms, and the one normal form that rules match and servers get.

RFC 9112 section 3.2 (forms), RFC 3986 section 6.2.2 (normalisation). What is done to a path: percent-encoded
unreserved characters are decoded, the others' hex digits made upper case, empty segments and dot segments removed.
An encoded slash stays as it is, because %2F and / may mean different things to a server; so does an encoded percent
sign. Where a dot segment stands beside an encoded slash or carries parameters (`..%2F`, `..;x`), some servers would
remove it and so leave the path that the rules saw: that is refused, and nobody has a use for it.
"""

from __future__ import annotations

import re
from typing import Final

from l7lb.core.paths import plain_path
from l7lb.protocols.http.syntax import TARGET_BYTES, SyntaxFault

UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
HOST: Final = re.compile(
    rb"(?:(?P<name>[A-Za-z0-9\-._~!$&'()*+;=]{0,255})|\[(?P<six>[0-9A-Fa-f:.]{2,45}(?:%25[A-Za-z0-9]{1,16})?)\])"
    rb"(?::(?P<port>[0-9]{0,5}))?"
)
AMBIGUOUS: Final = re.compile(rb"(?:/|%2F|%5C)\.\.?(?:;|%2F|%5C)|(?:%2F|%5C)\.\.?(?:/|\Z)")
MAX_HOSTS: Final = 4096

_hosts: Final[dict[bytes, tuple[bytes, int]]] = {}


def _escapes() -> dict[bytes, bytes]:
    """What two hex digits behind a percent sign become, in every case of their letters; NUL is not among them."""
    digits = b"0123456789ABCDEFabcdef"
    pairs = [bytes([first, second]) for first in digits for second in digits]
    values = {pair: int(pair, 16) for pair in pairs if pair != b"00"}
    return {pair: bytes([value]) if value in UNRESERVED else b"%" + pair.upper() for pair, value in values.items()}


ESCAPES: Final = _escapes()


def _unescape(path: bytes) -> bytes:
    pieces = path.split(b"%")
    for index in range(1, len(pieces)):
        piece = pieces[index]
        known = ESCAPES.get(piece[:2])
        if known is None:
            raise SyntaxFault(
                400, "an encoded NUL in the path" if piece[:2] == b"00" else "a broken percent-encoding in the path"
            )
        pieces[index] = known + piece[2:]
    return b"".join(pieces)


def normal_path(path: bytes) -> bytes:
    """The path in normal form; raises SyntaxFault(400) for broken encodings."""
    if path.find(b"%") >= 0:
        path = _unescape(path)
    if path.find(b".") >= 0 and AMBIGUOUS.search(path):
        raise SyntaxFault(400, "a dot segment that servers read in different ways")
    return plain_path(path)


def normal_host(value: bytes) -> tuple[bytes, int]:
    """The host in lower case without port and final dot, and the port or 0; SyntaxFault(400) for a malformed one."""
    known = _hosts.get(value)
    if known is not None:
        return known
    match = HOST.fullmatch(value)
    if match is None:
        raise SyntaxFault(400, "the host is malformed")
    port = int(match["port"] or 0)
    if port > 65535:
        raise SyntaxFault(400, "the host's port is out of range")
    name = match["name"]
    host = name.lower().removesuffix(b".") if name is not None else b"[" + match["six"].lower() + b"]"
    known = (host, port)
    if len(_hosts) >= MAX_HOSTS:
        _hosts.clear()
    _hosts[value] = known
    return known


def split_target(method: bytes, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """A request target as normal path, query with its question mark, and the authority of an absolute target.

    Raises SyntaxFault: 400 for what no form allows.
    """
    if not target or target.translate(None, TARGET_BYTES):
        raise SyntaxFault(400, "a character in the request target that must be encoded")
    authority = None
    if not target.startswith(b"/"):
        if target == b"*" and method == b"OPTIONS":
            return target, b"", None
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise SyntaxFault(400, "the request target has no known form")
        cut = len(rest)
        for mark in (b"/", b"?"):
            found = rest.find(mark)
            if 0 <= found < cut:
                cut = found
        authority, target = rest[:cut], rest[cut:]
        if not authority:
            raise SyntaxFault(400, "the request target names no host")
        if target[:1] != b"/":
            target = (b"*" if method == b"OPTIONS" and not target else b"/") + target
    path, mark, query = target.partition(b"?")
    # partition() costs half of find(). `in` costs most: for bytes it first tries an integer, by way of an exception.
    if path.partition(b"%")[1] or path.partition(b"//")[1] or path.partition(b"/.")[1]:
        path = normal_path(path)
    return path, mark + query, authority
