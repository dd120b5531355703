"""The heads that l7lb writes: a request for a server, an answer for a client, always from the parsed form.

Who the client is travels in X-Forwarded-* (the common habit) and Forwarded (RFC 7239). Both are believed only from
trusted peers, whose chain is continued; anybody else's are taken out, since servers act on them. ``forwarded.send``
chooses which of these fields l7lb adds itself; it changes nothing about whom it believes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from typing import Final

from l7lb.core.contracts import Assignment, Choice, Handshake, Peer
from l7lb.core.snapshot import Route
from l7lb.protocols.http import syntax
from l7lb.protocols.http.message import CHUNKED, Request, Response
from l7lb.protocols.http.settings import FORWARDING

VIA: Final = b"Via: 1.1 l7lb"
VIA_20: Final = b"Via: 2.0 l7lb"
VIA_10: Final = b"Via: 1.0 l7lb"  # the version in which the message came (RFC 9110 section 7.6.3)
OWN: Final = frozenset([b"cookie", b"forwarded", b"x-request-id", b"via"])  # fields that are written anew
PRIVATE: Final = re.compile(rb"(?i)cache-control:.*\b(?:private|no-store)\b(?!=)")
MAX_REQUEST_ID: Final = 128
LINE_BREAKS: Final = re.compile(rb"[\x00-\x1f\x7f]")  # that no certificate may smuggle into a head


def via_line(version: int) -> bytes:
    """The Via of a message that came in that version."""
    return VIA if version == 11 else VIA_20 if version == 20 else VIA_10


class RequestIds:
    """Names for requests that no other process gives: 32 hexadecimal digits, half of them random for each process.

    The last two digits come from a table, so that most names are made by putting two pieces together.
    """

    __slots__ = ("_high", "_instance", "_low", "_prefix")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew, in another process."""
        self._instance = os.urandom(8).hex().encode()
        self._high = int.from_bytes(os.urandom(4), "big")
        self._low = len(DIGITS)
        self._prefix = b""

    def next(self) -> bytes:
        """A new one."""
        if self._low == len(DIGITS):
            self._low = 0
            self._high += 1
            self._prefix = b"%b%014x" % (self._instance, self._high)
        low = self._low
        self._low = low + 1
        return self._prefix + DIGITS[low]


DIGITS: Final = [b"%02x" % number for number in range(256)]
_ids: Final = RequestIds()
os.register_at_fork(after_in_child=_ids.renew)


def new_request_id() -> bytes:
    """A name for a request; see :class:`RequestIds`."""
    return _ids.next()


def believe_identity(request: Request) -> None:
    """Call a request what a trusted peer calls it."""
    if len(request.request_id) <= MAX_REQUEST_ID:
        request.identity = request.request_id


def named(request: Request) -> bytes:
    """What a request is called in the log, in refusals and by servers, on every try; it gets a name if it has none."""
    if not request.identity:
        request.identity = new_request_id()
    return request.identity


class Origin:
    """What every request of one client connection says about where it came from: the fields that ``send`` names.

    ``identify`` says whether X-Request-ID is among them.
    """

    __slots__ = ("_block", "_named", "_peer", "identify", "send")

    def __init__(self, peer: Peer, send: Collection[str] = FORWARDING) -> None:
        # An idle client holds one of these, so it keeps no more than the next request needs.
        self._peer = peer
        self.send = send
        self.identify = "x-request-id" in send
        self._named = b""  # the host of the request before, and what was said of it: most often it stays the same
        self._block = b""

    @property
    def host(self) -> bytes:
        """What a request without a Host was sent to, for servers that insist on one."""
        if self._address() == b"unknown":
            return b"localhost"
        local = self._peer.local.encode()
        return b"%b:%d" % (b"[%b]" % local if b":" in local else local, self._peer.local_port)

    def _address(self) -> bytes:
        """The client's address; a unix socket has none (RFC 7239 section 6)."""
        address = self._peer.client.encode()
        return b"unknown" if not address or address.startswith(b"unix:") else address

    def _scheme(self) -> bytes:
        return b"https" if self._peer.tls else b"http"

    def _certificate(self) -> bytes:
        handshake = self._peer.handshake
        return _certificate_fields(handshake) if handshake is not None else b""

    def fields(self, request: Request, trusted: bool) -> bytes:
        """The forwarding fields of a request and its Via, complete lines."""
        host = request.host_field or self.host
        if request.version == 10 or (trusted and request.forwarded is not None):
            chains = self._continued(request.forwarded, host) if trusted and request.forwarded else self._fresh(host)
            return self._lines(chains) + self._via(request.version) + self._certificate()
        if host != self._named:
            self._named = host
            self._block = self._lines(self._fresh(host)) + self._via(request.version) + self._certificate()
        return self._block

    def _via(self, version: int) -> bytes:
        if "via" not in self.send:
            return b""
        return via_line(version) + b"\r\n"

    def _fresh(self, host: bytes) -> dict[bytes, list[bytes]]:
        """What this hop says where nobody who is believed has said anything."""
        own = self._own(host)
        own[b"forwarded"] = self._element(host)
        return {name: [value] for name, value in own.items() if name.decode() in self.send}

    def _own(self, host: bytes) -> dict[bytes, bytes]:
        return {
            b"x-forwarded-for": self._address(),
            b"x-forwarded-proto": self._scheme(),
            b"x-forwarded-port": b"%d" % self._peer.local_port,
            b"x-forwarded-host": host,
        }

    def _element(self, host: bytes) -> bytes:
        """This hop in a Forwarded field: an IPv6 address goes in brackets and quotes (RFC 7239 section 6)."""
        address = self._address()
        node = b'"[%b]"' % address if b":" in address else address
        return b'for=%b;host="%b";proto=%b' % (node, host, self._scheme())

    def _continued(self, given: list[tuple[bytes, bytes]], host: bytes) -> dict[bytes, list[bytes]]:
        """What a trusted peer says, with what this hop adds to it. What is not sent here passes as it came."""
        chains: dict[bytes, list[bytes]] = {}
        for name, value in given:
            chains.setdefault(name, []).append(value)
        for name, value in self._own(host).items():
            if name.decode() in self.send:
                if name == b"x-forwarded-for":
                    chains.setdefault(name, []).append(value)
                else:
                    chains.setdefault(name, [value])
        # Where the proxy before says it in X-Forwarded-* alone, a Forwarded of ours would contradict it.
        if b"forwarded" in chains and "forwarded" in self.send:
            chains[b"forwarded"].append(self._element(host))
        return chains

    def _lines(self, chains: dict[bytes, list[bytes]]) -> bytes:
        return b"".join(
            b"%b: %b\r\n" % (b"-".join(part.capitalize() for part in name.split(b"-")), b", ".join(values))
            for name, values in chains.items()
        )


def _certificate_fields(handshake: Handshake) -> bytes:
    """What a server is told of the client's certificate, complete lines; nothing where none was asked for.

    Nobody else can say it: these fields are taken out of every request.
    """
    certificate = handshake.certificate
    if certificate is None:
        return b"X-SSL-Client-Verify: NONE\r\n" if handshake.asked else b""
    told = {
        "Verify": "SUCCESS" if certificate.verified else "FAILED",
        "Subject": certificate.subject,
        "Issuer": certificate.issuer,
        "Serial": certificate.serial,
        "Fingerprint": hashlib.sha256(certificate.der).hexdigest() if certificate.der else "",
    }
    return b"".join(
        b"X-SSL-Client-%b: %b\r\n" % (name.encode(), LINE_BREAKS.sub(b" ", value.encode("ascii", "replace")))
        for name, value in told.items()
        if value
    )


def _without(names: list[bytes], lines: list[bytes], removed: set[bytes]) -> list[bytes]:
    return [line for name, line in zip(names, lines, strict=True) if name not in removed]


def _request_changes(request: Request, route: Route, own: bytes) -> tuple[list[bytes], bytes]:
    """The client's lines and those written anew, as a rule changes them."""
    removed = {name.lower().encode() for name in route.remove_headers}
    removed.update(name.lower().encode() for name, _ in route.set_headers)
    # A client must not forge X-User by an X_User that the server's gateway takes for the same.
    plain = {syntax.gateway_name(name) for name in removed}
    lines = _without([syntax.gateway_name(name) for name in request.names], request.lines, plain)
    lines += [name.encode("latin-1") + b": " + value.encode("latin-1") for name, value in route.set_headers]
    if not OWN.isdisjoint(removed) or any(name.startswith(b"x-forwarded-") for name in removed):
        kept = [line for line in own.split(b"\r\n")[:-1] if line.partition(b":")[0].lower() not in removed]
        own = b"".join(line + b"\r\n" for line in kept)
    return lines, own


def request_head(request: Request, choice: Choice, origin: Origin, trusted: bool) -> bytes:
    """The head that the server gets."""
    lines = request.lines
    path = choice.path or request.path
    query = request.query
    if choice.path and b"?" in choice.path:
        query = b"&" + query[1:] if len(query) > 1 else b""
    own = origin.fields(request, trusted)
    if origin.identify or request.identity:
        own = b"%bX-Request-ID: %b\r\n" % (own, named(request))
    cookie = b"Cookie: %b\r\n" % request.cookies if request.cookies else b""
    if choice.edits_request:
        lines, own = _request_changes(request, choice.route, cookie + own)
        cookie = b""
    fields = b"\r\n".join(lines) + b"\r\n" if lines else b""
    if request.length:
        fields += (
            b"Transfer-Encoding: chunked\r\n"
            if request.length == CHUNKED
            else b"Content-Length: %d\r\n" % request.length
        )
        if request.expects:
            fields += b"Expect: 100-continue\r\n"
    elif request.method in (b"POST", b"PUT", b"PATCH"):
        fields += b"Content-Length: 0\r\n"
    if request.upgrade:
        fields += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % request.upgrade
    return b"%b %b%b HTTP/1.1\r\nHost: %b\r\n%b%b%b\r\n" % (
        request.method,
        path,
        query,
        choice.host or request.host_field or origin.host,
        fields,
        cookie,
        own,
    )


def _response_changes(response: Response, route: Route) -> list[bytes]:
    removed = {name.lower().encode() for name in route.remove_response_headers}
    removed.update(name.lower().encode() for name, _ in route.set_response_headers)
    lines = _without(response.names, response.lines, removed) if removed else response.lines
    return lines + [
        name.encode("latin-1") + b": " + value.encode("latin-1") for name, value in route.set_response_headers
    ]


def response_head(
    request: Request, response: Response, assignment: Assignment, close: bool, via: bool = True, date: bytes = b""
) -> bytes:
    """The head that the client gets, for any answer but 1xx.

    ``via``: whether l7lb names itself in it; ``date``: the line for an answer that has none.
    """
    choice = assignment.choice
    # The answer's own list grows: nobody looks at it after this.
    lines = _response_changes(response, choice.route) if choice.edits_response else response.lines
    if date and not response.dated and not _rules_date(choice.route):
        lines.append(date)
    if assignment.set_cookie:
        private = any(PRIVATE.match(line) for line in lines)
        lines.append(b"Set-Cookie: %b" % assignment.set_cookie)
        if not private:
            # A shared cache must not hand one user's cookie to another.
            lines.append(b"Cache-Control: private")
    length = response.length
    if length > 0 or (length == 0 and request.method != b"HEAD" and response.status not in (204, 304)):
        lines.append(response.length_line or b"Content-Length: %d" % length)
    elif length == CHUNKED and request.version == 11:
        lines.append(b"Transfer-Encoding: chunked")
    if response.status == 426 and response.upgrade:
        # What it takes must be said (RFC 9110 section 15.5.22); elsewhere an offer of the server's would mislead.
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b" % response.upgrade)
    if close:
        lines.append(b"Connection: close")
    elif request.version == 10:
        lines.append(b"Connection: keep-alive")
    if via:
        lines.append(via_line(response.version))
    if not lines:
        return b"HTTP/1.1%b\r\n\r\n" % response.start
    return b"HTTP/1.1%b\r\n%b\r\n\r\n" % (response.start, b"\r\n".join(lines))


def _rules_date(route: Route) -> bool:
    """Whether a rule says what becomes of the Date field."""
    changed = (*route.remove_response_headers, *(name for name, _ in route.set_response_headers))
    return any(name.lower() == "date" for name in changed)


def interim_head(response: Response) -> bytes:
    """A 1xx answer, passed on; 101 says which protocol follows."""
    fields = b"".join(line + b"\r\n" for line in response.lines)
    if response.status == 101:
        fields += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % response.upgrade
    return b"HTTP/1.1%b\r\n%b\r\n" % (response.start, fields)


def allowed_upgrade(offered: bytes, allowed: str | tuple[str, ...]) -> bytes:
    """What of a request's Upgrade may be passed on; h2c, TLS and HTTP itself never, since they would carry requests
    past the rules.
    """
    if not offered or allowed == "none":
        return b""
    kept = []
    for name in syntax.tokens(offered):
        plain = name.partition(b"/")[0]
        if plain in (b"h2c", b"h2", b"tls", b"http"):
            continue
        if allowed == "any" or name.decode("latin-1") in allowed or plain.decode("latin-1") in allowed:
            kept.append(name)
    return b", ".join(kept)
