"""What an HTTP request shows the router: its facts, read from the internal form only when a rule asks."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from l7lb.core.facts import NOTHING, Facts
from l7lb.core.snapshot import Listener
from l7lb.protocols.http.message import Request, read_request
from l7lb.protocols.http.settings import HttpSettings
from l7lb.protocols.http.syntax import OWS

MAX_PARAMETERS = 200
Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


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
        cookies = self.request.cookies
        if cookies.find(name) < 0:
            return NOTHING
        found = []
        for pair in cookies.split(b";"):
            key, _, value = pair.partition(b"=")
            if key == name or key.strip(OWS) == name:
                value = value.strip(OWS)
                found.append(value[1:-1] if value[:1] == b'"' and value[-1:] == b'"' and len(value) > 1 else value)
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

    ``peer`` is trusted already. A malformed element ends the search: what stands left of it can't be believed.
    """
    if request.forwarded is None:
        return peer
    source = peer
    chain = b",".join(value for name, value in request.forwarded if name == b"x-forwarded-for")
    for element in reversed(chain.split(b",")[-32:]):
        text = element.strip(OWS).decode("latin-1")
        try:
            source = str(ipaddress.ip_address(text))
        except ValueError:
            break
        if not trusted(source, networks):
            break
    return source


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
    return HttpFacts(listener.name, source, scheme.lower().encode(), request)
