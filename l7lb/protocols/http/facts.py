"""What an HTTP request shows the router: its facts, read from the internal form only when a rule asks."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from mypy_extensions import mypyc_attr

from l7lb.core.facts import NOTHING, Facts
from l7lb.core.snapshot import Listener
from l7lb.protocols.http.message import Request, read_request
from l7lb.protocols.http.settings import HttpSettings
from l7lb.protocols.http.syntax import OWS

BLANK: Final = 0x20
QUOTE: Final = 0x22
MAX_PARAMETERS: Final = 200
MAX_CHAIN: Final = 32  # proxies
# An address in a chain of proxies: in brackets or not, with a port or not.
NODE: Final = re.compile(rb"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+)(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)")
PAIR: Final = re.compile(rb'[ \t]*([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^",;\s]*))[ \t]*(;|,|\Z)')
QUOTED_PAIR: Final = re.compile(rb"\\(.)")
Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


@mypyc_attr(acyclic=True, free_list_len=1)
class HttpFacts(Facts):
    """The facts of one request. ``query`` of the URL is looked at without its question mark."""

    __slots__ = ("request",)

    def __init__(self, listener: str, source: str, scheme: bytes, request: Request) -> None:
        self.protocol = "http"
        self.listener = listener
        self.source = source
        self.scheme = scheme
        self.host = request.host
        self.path = request.path
        self.method = request.method
        self.address = self.mailbox = b""
        self.request = request

    def header(self, name: bytes) -> Sequence[bytes]:
        request = self.request
        if name == b"host":
            return (request.host_field,) if request.host_field else NOTHING
        if name == b"cookie":
            return (request.cookies,) if request.cookies else NOTHING
        if name == b"x-request-id":
            return (request.request_id,) if request.request_id else NOTHING
        if request.forwarded is not None and (name == b"forwarded" or name.startswith(b"x-forwarded-")):
            return [value for known, value in request.forwarded if known == name]
        return request.values(name)

    def cookie(self, name: bytes) -> Sequence[bytes]:
        line = self.request.cookie_line
        if line is None:
            return self._find_cookie(name)
        if name != line.asked:
            line.found = self._find_cookie(name)
            line.asked = name
        return line.found

    def _find_cookie(self, name: bytes) -> Sequence[bytes]:
        cookies = self.request.cookies
        if not cookies:
            return NOTHING
        found = []
        size = len(name)
        for part in cookies.split(b";"):
            pair = part[1:] if part.startswith(b" ") else part
            if pair.startswith(name) and pair[size : size + 1] == b"=":
                value = pair[size + 1 :]
            elif pair and pair[0] > BLANK and not pair.startswith(name):
                continue
            else:
                # Seldom the one that is asked for: blanks in odd places.
                key, _, value = pair.partition(b"=")
                if key.strip(OWS) != name:
                    continue
            if value and (value[0] <= QUOTE or value[-1] <= BLANK):
                value = value.strip(OWS)
                if value.startswith(b'"') and value.endswith(b'"') and len(value) > 1:
                    value = value[1:-1]
            found.append(value)
        return found

    def query(self, name: bytes) -> Sequence[bytes]:
        query = self.request.query
        if len(query) < 2:
            return NOTHING
        found = []
        for pair in query[1:].split(b"&", MAX_PARAMETERS)[:MAX_PARAMETERS]:
            key, _, value = pair.partition(b"=")
            if unquote_to_bytes(key.replace(b"+", b" ")) == name:
                found.append(unquote_to_bytes(value.replace(b"+", b" ")))
        return found

    def text(self, kind: str, name: str) -> bytes | None:
        if kind == "url":
            return self.request.path + self.request.query
        return super().text(kind, name)


def trusted(address: str, networks: Networks) -> bool:
    """Whether an address (as text, IPv4 perhaps mapped into IPv6) lies in one of the networks."""
    try:
        parsed: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def client_source(peer: str, request: Request, networks: Networks) -> str:
    """The client's address behind trusted proxies: the last in X-Forwarded-For that is not itself trusted.

    ``peer`` is trusted already. Where an element is no address the client is ``unknown``, which lies in no network:
    what stands left of it can't be believed, and the proxy's own address may be allowed what its clients are not.
    Forwarded (RFC 7239) is asked where there is no X-Forwarded-For.
    """
    source = peer
    elements = [element.strip(OWS) for element in _told(request, b"x-forwarded-for").split(b",")]
    if elements == [b""]:
        if not _told(request, b"forwarded"):
            return peer
        elements = [pairs.get(b"for", b"") for pairs in read_forwarded(_told(request, b"forwarded"))] or [b""]
    for element in reversed(elements[-MAX_CHAIN:]):
        match = NODE.fullmatch(element)
        try:
            parsed = ipaddress.ip_address((match[1] or match[2] or match[3]).decode() if match else "")
        except ValueError:
            return "unknown"
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        source = str(mapped or parsed)
        if not trusted(source, networks):
            break
    return source


def client_scheme(request: Request) -> bytes:
    """The scheme that a trusted proxy says the client used; http where it says nothing."""
    told = _told(request, b"x-forwarded-proto").rpartition(b",")[2].strip(OWS)
    if not told:
        chain = read_forwarded(_told(request, b"forwarded"))
        told = chain[-1].get(b"proto", b"") if chain else b""
    return b"https" if told.lower() == b"https" else b"http"


def read_forwarded(value: bytes) -> list[dict[bytes, bytes]]:
    """The elements of a Forwarded field, names in lower case; empty where it is malformed."""
    chain: list[dict[bytes, bytes]] = [{}]
    position = 0
    while position < len(value):
        match = PAIR.match(value, position)
        if match is None:
            return []
        name, quoted, plain, end = match.groups()
        chain[-1][name.lower()] = QUOTED_PAIR.sub(rb"\1", quoted) if quoted is not None else plain
        if end == b",":
            chain.append({})
        position = match.end()
    return chain


def _told(request: Request, field: bytes) -> bytes:
    return b",".join([value for name, value in request.forwarded or () if name == field])


def explain_facts(
    listener: Listener, method: str, url: str, headers: Sequence[tuple[str, str]], source: str = "127.0.0.1"
) -> HttpFacts:
    """The facts of a request as the proxy would see it, for `l7lb explain`; raises SyntaxFault as the proxy would.

    ``url`` is absolute (its scheme and host count) or a path.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "http", url
    cut = min((found for mark in "/?" if (found := rest.find(mark)) >= 0), default=len(rest))
    host, target = (rest[:cut], rest[cut:]) if separator else ("", rest)
    if not target.startswith("/"):
        target = "/" + target
    lines = [f"{method} {target} HTTP/1.1"]
    if not any(name.lower() == "host" for name, _ in headers):
        lines.append(f"Host: {host or 'localhost'}")
    lines += [f"{name}: {value}" for name, value in headers]
    settings = HttpSettings.of(listener)
    request = read_request("\r\n".join(lines).encode("latin-1", "replace"), settings.headers)
    networks = settings.networks()
    if trusted(source, networks):
        source = client_source(source, request, networks)
        if request.forwarded is not None and scheme.lower() == "http":
            scheme = client_scheme(request).decode()
    facts = HttpFacts(listener.name, source, scheme.lower().encode(), request)
    webmail = settings.webmail(listener)
    if webmail is not None:
        webmail(facts)
    return facts
