"""The conditions of a rule: each knows how to test facts, fast, and how to say why it failed, in an operator's words.

``holds(facts, path)`` gets the path beside the facts, already in lower case unless the listener tells cases apart,
so that it is folded once for all rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import methodcaller

from l7lb.core.facts import Facts
from l7lb.core.snapshot import Match
from l7lb.routing.globs import Glob, any_of, host_glob, path_glob, value_glob
from l7lb.routing.networks import Networks
from l7lb.routing.regex import Regex

Check = Callable[[Facts, bytes], bool]
SHOWN = 200  # bytes of a value in an explanation


class PathTooLong(Exception):
    """The route depends on a regular expression that may see fewer bytes than the path has; the limit is the value."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"its regular expression may see {limit} bytes")
        self.limit = limit


class Condition:
    """One key of a match, tested by ``holds``; ``seen`` tells what the facts hold instead."""

    __slots__ = ("holds", "seen", "wanted")

    def __init__(self, holds: Check, wanted: str, seen: Callable[[Facts], str]) -> None:
        self.holds = holds
        self.wanted = wanted
        self.seen = seen

    def why_not(self, facts: Facts) -> str:
        """Why it failed."""
        return f"{self.wanted} is wanted, but {self.seen(facts)}"

    def why(self, facts: Facts) -> str:
        """Why it holds."""
        return f"{self.wanted}: {self.seen(facts)}"


def show(value: bytes) -> str:
    """A value from the wire as an explanation prints it: quoted, and cut where it is long."""
    text = value[:SHOWN].decode("utf-8", "backslashreplace")
    plain = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return f'"{plain}"' + (f"... ({len(value)} bytes)" if len(value) > SHOWN else "")


def _alternatives(texts: Sequence[str]) -> str:
    return " or ".join(f'"{text}"' for text in texts)


def host_condition(texts: Sequence[str]) -> Condition:
    """The host matches one of the globs."""
    matches = any_of([host_glob(text) for text in texts])
    return Condition(
        lambda facts, _path: matches(facts.host),
        f"host {_alternatives(texts)}",
        lambda facts: f"the host is {show(facts.host)}" if facts.host else "there is no host",
    )


def path_condition(texts: Sequence[str], exact_case: bool) -> Condition:
    """The path matches one of the globs."""
    matches = any_of([path_glob(text, exact_case) for text in texts])
    return Condition(
        lambda _facts, path: matches(path),
        f"path {_alternatives(texts)}",
        lambda facts: f"the path is {show(facts.path)}",
    )


def path_check(glob: Glob) -> Check:
    """A path glob alone, for the index, which knows what else holds already."""
    matches = any_of([glob])
    return lambda _facts, path: matches(path)


def regex_condition(texts: Sequence[str], exact_case: bool) -> Condition:
    """One of the regular expressions is found in the path. ``holds`` raises PathTooLong."""
    regexes = tuple(Regex(text, exact_case) for text in texts)
    limit = min(regex.limit for regex in regexes)
    searches = tuple(regex.search for regex in regexes)
    only = searches[0]

    def one(facts: Facts, path: bytes) -> bool:
        # The path as it came: whether case counts is the expression's own affair.
        if len(path) > limit:
            raise PathTooLong(limit)
        return only(facts.path) is not None

    def several(facts: Facts, path: bytes) -> bool:
        if len(path) > limit:
            raise PathTooLong(limit)
        return any(search(facts.path) is not None for search in searches)

    return Condition(
        one if len(searches) == 1 else several,
        f"path_regex {_alternatives(texts)}",
        lambda facts: f"the path is {show(facts.path)}",
    )


def method_condition(texts: Sequence[str]) -> Condition:
    """The method is one of these, in exactly this case (RFC 9110 section 9.1)."""
    methods = frozenset(text.encode() for text in texts)
    return Condition(
        lambda facts, _path: facts.method in methods,
        f"method {_alternatives(texts)}",
        lambda facts: f"the method is {show(facts.method)}" if facts.method else "there is no method",
    )


def source_condition(texts: Sequence[str]) -> Condition:
    """The client's address lies in one of the networks."""
    networks = Networks(texts)
    return Condition(
        lambda facts, _path: facts.source in networks,
        f"source {_alternatives(texts)}",
        lambda facts: f"the client is {facts.source}" if facts.source else "the client has no address",
    )


def sni_condition(texts: Sequence[str]) -> Condition:
    """The name that a TLS client asks for matches one of the globs; without a name none does."""
    matches = any_of([host_glob(text) for text in texts])
    return Condition(
        lambda facts, _path: bool(facts.host) and matches(facts.host),
        f"sni {_alternatives(texts)}",
        lambda facts: f"the SNI is {show(facts.host)}" if facts.host else "there is no SNI",
    )


def alpn_condition(texts: Sequence[str]) -> Condition:
    """A TLS client offers one of these protocols."""
    names = frozenset(text.encode() for text in texts)
    return Condition(
        lambda facts, _path: not names.isdisjoint(facts.alpn()),
        f"alpn {_alternatives(texts)}",
        lambda facts: "the client offers " + (", ".join(show(name) for name in facts.alpn()[:5]) or "no protocol"),
    )


def address_condition(texts: Sequence[str]) -> Condition:
    """The canonical address of mail matches one of the globs, in any case."""
    matches = any_of([value_glob(text.lower()) for text in texts])
    return Condition(
        lambda facts, _path: bool(facts.address) and matches(facts.address.lower()),
        f"address {_alternatives(texts)}",
        lambda facts: f"the address is {show(facts.address)}" if facts.address else "there is no address",
    )


def values_condition(kind: str, name: str, texts: Sequence[str]) -> Condition:
    """One of the values of a header, cookie or query parameter matches one of the globs."""
    matches = any_of([value_glob(text) for text in texts])
    values = methodcaller(kind, name.lower().encode() if kind == "header" else name.encode())
    label = f"query parameter {name}" if kind == "query" else f"{kind} {name}"

    def holds(facts: Facts, _path: bytes) -> bool:
        for value in values(facts):  # noqa: SIM110 - a generator would cost more
            if matches(value):
                return True
        return False

    def seen(facts: Facts) -> str:
        found = values(facts)
        return f"{label} is {', '.join(show(value) for value in found[:5])}" if found else f"there is no {label}"

    return Condition(holds, f"{label} {_alternatives(texts)}", seen)


def not_condition(match: Match, exact_case: bool) -> Condition:
    """The conditions of the inner match don't all hold."""
    inner = conditions_of(match, exact_case)
    checks = tuple(condition.holds for condition in inner)

    def holds(facts: Facts, path: bytes) -> bool:
        for check in checks:  # noqa: SIM110 - as above
            if not check(facts, path):
                return True
        return False

    def seen(facts: Facts) -> str:
        return " and ".join(condition.seen(facts) for condition in inner) or "that is always so"

    return Condition(holds, "not " + " and ".join(condition.wanted for condition in inner), seen)


def conditions_of(match: Match | None, exact_case: bool) -> list[Condition]:
    """The conditions that must all hold, in the order in which they are tested.

    Host and path come first, since the index answers these. Raises ValueError for what can't be compiled.
    """
    if match is None:
        return []
    found: list[Condition] = []
    if match.host:
        found.append(host_condition(match.host))
    if match.sni:
        found.append(sni_condition(match.sni))
    if match.path:
        found.append(path_condition(match.path, exact_case))
    if match.path_regex:
        found.append(regex_condition(match.path_regex, exact_case))
    if match.method:
        found.append(method_condition(match.method))
    found.extend(remaining_conditions(match, exact_case))
    return found


def remaining_conditions(match: Match, exact_case: bool) -> list[Condition]:
    """All conditions but those on host or SNI, path and method."""
    found: list[Condition] = []
    if match.alpn:
        found.append(alpn_condition(match.alpn))
    if match.source:
        found.append(source_condition(match.source))
    if match.address:
        found.append(address_condition(match.address))
    found.extend(values_condition("header", name, values) for name, values in match.header)
    found.extend(values_condition("cookie", name, values) for name, values in match.cookie)
    found.extend(values_condition("query", name, values) for name, values in match.query)
    if match.not_ is not None:
        found.append(not_condition(match.not_, exact_case))
    return found
