"""An index of rules by host and path, so that ten thousand of them cost a request no more than ten.

A rule stands in the index once for each pair of its host and path globs, as an :class:`Entry` with the checks that
the pair does not prove by itself. Hosts lead to a table of paths: exact ones by a dictionary, ``*.example.org`` by one
look-up a label, other globs by trying them. In a table an exact path is one look-up, a glob is found by its literal
beginning in a sorted list, and what has none is always tried.

Of mail it is the domain of the address that leads to a table, where a rule's globs name domains in full, as
``*@example.org`` does.

Where globs or regular expressions must be tried on a path, what it leads to is remembered by the router, within bounds,
since clients ask for the same things again: the entries in the rules' order, without those that fail on host or path,
up to the first that matches whatever else the request says. What is left to check for such a request is its method,
headers, cookies, parameters and source.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Generic, TypeVar

from l7lb.core.snapshot import Match
from l7lb.routing.globs import Glob, host_glob, path_glob
from l7lb.routing.matchers import (
    Check,
    method_condition,
    path_check,
    path_condition,
    regex_condition,
    remaining_conditions,
    sni_condition,
)

MAX_PAIRS = 256  # of one rule's hosts and paths; beyond, its paths are checked and not indexed
MAX_HOST = 255  # bytes of a host that is remembered
MAX_PATH = 255  # bytes of a path that is remembered; less than any regular expression may see
MAX_CANDIDATES = 64  # entries that are remembered for one host and path
MAX_KNOWN = 2048  # remembered pairs of host and path
LAST = 1 << 62  # behind every rule
MAX_STRANGERS = 2048  # remembered hosts beyond the number of host globs
Rule = TypeVar("Rule")


class Entry(Generic[Rule]):
    """One rule in one place of the index.

    ``fixed`` are the checks that depend on host and path alone; ``checks`` are the others, and ``every`` is both, in
    the order in which they are made.
    """

    __slots__ = ("checks", "every", "fixed", "number", "rule")

    def __init__(self, number: int, rule: Rule, fixed: tuple[Check, ...], checks: tuple[Check, ...]) -> None:
        self.number = number
        self.rule = rule
        self.fixed = fixed
        self.checks = checks
        self.every = fixed + checks


Entries = tuple[Entry[Rule], ...]


NUMBER = attrgetter("number")


def in_order(entries: Iterable[Entry[Rule]]) -> Entries[Rule]:
    """The entries in their rules' order, up to the first that always matches."""
    found = []
    for entry in sorted(entries, key=NUMBER):
        found.append(entry)
        if not entry.every:
            break
    return tuple(found)


class PathTable(Generic[Rule]):
    """The entries of one host glob, by path."""

    __slots__ = ("_exact", "_parents", "_prefix_entries", "_prefixes", "_rest")

    def __init__(self, entries: Sequence[tuple[Glob | None, Entry[Rule]]]) -> None:
        exact: dict[bytes, list[Entry[Rule]]] = {}
        prefixes: dict[bytes, list[Entry[Rule]]] = {}
        rest: list[Entry[Rule]] = []
        for glob, entry in entries:
            if glob is None or not glob.prefix:
                rest.append(entry)
            elif glob.literal:
                exact.setdefault(glob.text, []).append(entry)
            else:
                prefixes.setdefault(glob.prefix, []).append(entry)
        self._exact = {path: in_order(found) for path, found in exact.items()}
        self._prefixes = sorted(prefixes)
        self._prefix_entries = [in_order(prefixes[prefix]) for prefix in self._prefixes]
        self._parents = _parents(self._prefixes)
        self._rest = in_order(rest)

    def find(self, path: bytes, found: list[Entries[Rule]]) -> None:
        """Append the lists of entries that may match this path."""
        if self._exact:
            exact = self._exact.get(path)
            if exact is not None:
                found.append(exact)
        prefixes = self._prefixes
        if prefixes:
            # The last prefix that isn't greater than the path is a beginning of it, or shares its own with those that
            # are.
            number = bisect_right(prefixes, path) - 1
            while number >= 0:
                if path.startswith(prefixes[number]):
                    found.append(self._prefix_entries[number])
                number = self._parents[number]
        if self._rest:
            found.append(self._rest)


def _parents(prefixes: Sequence[bytes]) -> list[int]:
    """For each of the sorted prefixes the longest other one that it begins with; -1: none."""
    parents = []
    open_: list[int] = []
    for number, prefix in enumerate(prefixes):
        while open_ and not prefix.startswith(prefixes[open_[-1]]):
            open_.pop()
        parents.append(open_[-1] if open_ else -1)
        open_.append(number)
    return parents


class Index(Generic[Rule]):
    """All rules, by host and then by path. Raises ValueError where a rule can't be compiled.

    ``by_domain``: the host that is asked for is the domain of an address, in lower case.
    """

    def __init__(
        self, rules: Sequence[tuple[int, Match | None, Rule]], exact_case: bool, by_domain: bool = False
    ) -> None:
        self._exact: dict[bytes, PathTable[Rule]] = {}
        self._suffixes: dict[bytes, PathTable[Rule]] = {}
        self._globs: list[tuple[Glob, PathTable[Rule]]] = []
        self.tries = False  # whether a rule must try globs or regular expressions on a path
        by_host: dict[bytes, tuple[Glob, list[tuple[Glob | None, Entry[Rule]]]]] = {}
        for number, match, rule in rules:
            for host, path, entry in _entries(number, match, rule, exact_case, by_domain):
                by_host.setdefault(host.text, (host, []))[1].append((path, entry))
                self.tries = self.tries or bool(entry.fixed)
        self._any = PathTable(by_host.pop(b"*", (ANY, []))[1])
        for text, (glob, entries) in by_host.items():
            if glob.literal:
                self._exact[text] = PathTable(entries)
            elif text.startswith(b"*.") and glob.stars == 1:
                self._suffixes[text[1:]] = PathTable(entries)
            else:
                self._globs.append((glob, PathTable(entries)))
        self._longest = max(map(len, self._suffixes), default=0)
        self._tables: dict[bytes, tuple[PathTable[Rule], ...]] = {}
        self._max_tables = len(by_host) + MAX_STRANGERS

    def find(self, host: bytes, path: bytes) -> list[Entries[Rule]]:
        """Lists, each in the rules' order, that hold every entry which may match this host and path.

        The path is folded as the rules' globs are.
        """
        found: list[Entries[Rule]] = []
        for table in self._tables.get(host) or self._tables_of(host):
            table.find(path, found)
        return found

    def _tables_of(self, host: bytes) -> tuple[PathTable[Rule], ...]:
        """The tables of the globs that match this host."""
        found = []
        if host in self._exact:
            found.append(self._exact[host])
        suffixes = self._suffixes
        shortest = max(len(host) - self._longest, 0)
        dot = host.rfind(b".")
        while dot >= shortest:
            table = suffixes.get(host[dot:])
            if table is not None:
                found.append(table)
            dot = host.rfind(b".", 0, dot)
        found.extend(table for glob, table in self._globs if glob.matches(host))
        found.append(self._any)
        tables = tuple(found)
        if len(host) <= MAX_HOST:
            if len(self._tables) >= self._max_tables:
                self._tables.clear()
            self._tables[host] = tables
        return tables


ANY = Glob(b"*")


def domains(texts: Sequence[str]) -> list[Glob]:
    """The domains of all addresses that match one of the globs; any, where that can't be told.

    What stands behind a glob's last ``@`` is the domain of each address that matches, if it has no ``*``.
    """
    found: dict[bytes, Glob] = {}
    for text in texts:
        _, at, domain = text.rpartition("@")
        if not at or "*" in domain or not domain.isascii():
            return [ANY]
        found[domain.lower().encode()] = Glob(domain.lower().encode())
    return list(found.values())


def _entries(
    number: int, match: Match | None, rule: Rule, exact_case: bool, by_domain: bool
) -> list[tuple[Glob, Glob | None, Entry[Rule]]]:
    """A rule's places in the index: host glob, path glob (None: any), entry."""
    if match is None:
        return [(ANY, None, Entry(number, rule, (), ()))]
    if by_domain:
        hosts = domains(match.address) or [ANY]
    else:
        hosts = [host_glob(text) for text in match.host or match.sni] or [ANY]  # a listener's have one or the other
    paths: list[Glob | None] = [path_glob(text, exact_case) for text in match.path] or [None]
    fixed: tuple[Check, ...] = ()
    if len(hosts) * len(paths) > MAX_PAIRS and match.path:
        fixed = (path_condition(match.path, exact_case).holds,)
        paths = [None]
    if match.sni:
        fixed = (sni_condition(match.sni).holds,)  # "*" does not match a client that gives no name
    if match.path_regex:
        fixed = (*fixed, regex_condition(match.path_regex, exact_case).holds)
    checks = tuple(condition.holds for condition in remaining_conditions(match, exact_case))
    if match.method:
        checks = (method_condition(match.method).holds, *checks)
    found: list[tuple[Glob, Glob | None, Entry[Rule]]] = []
    for path in paths:
        proven = path is None or path.literal or path.is_prefix
        entry = Entry(number, rule, fixed if proven or path is None else (path_check(path), *fixed), checks)
        found.extend((host, path, entry) for host in hosts)
    return found
