"""Facts without a protocol, short ways to write rules, and a router so simple that it is right to look at."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from l7lb.core.facts import NOTHING, Facts
from l7lb.core.snapshot import Listener, Match, Redirect, Respond, Rewrite, Route, ToPool, ToSplit

Values = Mapping[bytes, Sequence[bytes]]


class PlainFacts(Facts):
    """Facts given one by one."""

    def __init__(
        self,
        host: bytes = b"",
        path: bytes = b"/",
        method: bytes = b"GET",
        source: str = "192.0.2.1",
        headers: Values | None = None,
        cookies: Values | None = None,
        parameters: Values | None = None,
        query: bytes = b"",
    ) -> None:
        super().__init__("http", "web", source)
        self.host = host
        self.path = path
        self.method = method
        self.scheme = b"http"
        self.headers = headers or {}
        self.cookies = cookies or {}
        self.parameters = parameters or {}
        self.query_string = query

    def header(self, name: bytes) -> Sequence[bytes]:
        return self.headers.get(name, NOTHING)

    def cookie(self, name: bytes) -> Sequence[bytes]:
        return self.cookies.get(name, NOTHING)

    def query(self, name: bytes) -> Sequence[bytes]:
        return self.parameters.get(name, NOTHING)

    def text(self, kind: str, name: str) -> bytes | None:
        return self.path + self.query_string if kind == "url" else super().text(kind, name)


def route(
    number: int,
    match: Match | None = None,
    action: ToPool | ToSplit | Respond | Redirect | None = None,
    rewrite: Rewrite | None = None,
) -> Route:
    return Route(
        number=number,
        where=f"web.yaml:{number}",
        match=match,
        action=action or ToPool(f"pool{number}"),
        rewrite=rewrite,
    )


def listener(*matches: Match | Route | None, exact_case: bool = False) -> Listener:
    routes = [one if isinstance(one, Route) else route(number, one) for number, one in enumerate(matches, 1)]
    return Listener(name="web", protocol="http", bind=(), routes=tuple(routes), exact_case=exact_case)


# --- the reference: every rule from the first to the last, every condition by the shortest means ---------------------


def glob_matches(glob: str, value: bytes, fold: bool = False) -> bool:
    pattern = b".*".join(re.escape(piece.encode()) for piece in glob.split("*"))
    return re.fullmatch(pattern, value, re.DOTALL | (re.IGNORECASE if fold else 0)) is not None


def glob_captures(glob: str, value: bytes, fold: bool = False) -> tuple[bytes, ...]:
    pieces = [re.escape(piece.encode()) for piece in glob.split("*")]
    match = re.fullmatch(b"(.*?)".join(pieces), value, re.DOTALL | (re.IGNORECASE if fold else 0))
    assert match is not None
    return match.groups()


def in_network(network: str, source: str) -> bool:
    if network == "unix:" or source.startswith("unix:"):
        return network == "unix:" and source.startswith("unix:")
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address in ipaddress.ip_network(network)


def matches(match: Match | None, facts: PlainFacts, exact_case: bool = False) -> bool:
    if match is None:
        return True
    named = [(match.header, facts.headers), (match.cookie, facts.cookies), (match.query, facts.parameters)]
    return (
        (not match.host or any(glob_matches(glob, facts.host, True) for glob in match.host))
        and (not match.path or any(glob_matches(glob, facts.path, not exact_case) for glob in match.path))
        and (
            not match.path_regex
            or any(
                re.search(text.encode(), facts.path, 0 if exact_case else re.IGNORECASE) for text in match.path_regex
            )
        )
        and (not match.method or facts.method.decode() in match.method)
        and (not match.source or any(in_network(network, facts.source) for network in match.source))
        and all(
            any(glob_matches(glob, value) for value in values.get(name.encode(), ()) for glob in globs)
            for wanted, values in named
            for name, globs in wanted
        )
        and not (match.not_ is not None and matches(match.not_, facts, exact_case))
    )


def first_match(config: Listener, facts: PlainFacts) -> int | None:
    return next((rule.number for rule in config.routes if matches(rule.match, facts, config.exact_case)), None)
