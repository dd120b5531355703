"""An index of rules by host and path, so that ten thousand of them cost a request no more than ten.

A rule stands in the index once for each pair of its host and path globs, as an :class:`Entry` with the checks that
the pair does not prove by itself. Hosts lead to a :class:`PathTable`: exact ones by a dictionary, ``*.example.org`` by
one look-up a label, other globs by trying them. In a table an exact path is one look-up, a glob is found by its
literal beginning in a sorted list, and what has none is always tried. What a host, and a host with a path, led to is
remembered, within bounds: clients ask for the same things.

Entries of one list are in the rules' order. Several lists may hold candidates; the router goes through them one after
another, and leaves each as soon as its next rule stands behind the best one found.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from l7lb.core.snapshot import Match
from l7lb.routing.globs import Glob, host_glob, path_glob
from l7lb.routing.matchers import (
    Check,
    method_condition,
    path_check,
    path_condition,
    remaining_conditions,
)

MAX_PAIRS = 256  # of one rule's hosts and paths; beyond, its paths are checked and not indexed
MAX_HOST = 255  # bytes of a host that is remembered
MAX_STRANGERS = 2048  # remembered hosts that no rule names
MAX_PATH = 255  # bytes of a path that is remembered
MAX_KNOWN = 2048  # remembered pairs of host and path
Rule = TypeVar("Rule")


class Entry(Generic[Rule]):
    """One rule in one place of the index: what must still be checked there."""

    __slots__ = ("checks", "number", "rule")

    def __init__(self, number: int, rule: Rule, checks: tuple[Check, ...]) -> None:
        self.number = number
        self.rule = rule
        self.checks = checks


Entries = tuple[Entry[Rule], ...]


def in_order(entries: Iterable[Entry[Rule]]) -> Entries[Rule]:
    """The entries in their rules' order, up to the first that always matches."""
    found = []
    for entry in sorted(entries, key=lambda entry: entry.number):
        found.append(entry)
        if not entry.checks:
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
        """Append the lists of entries that may match this path, the most certain first."""
        prefixes = self._prefixes
        exact = self._exact.get(path)
        if exact is not None:
            found.append(exact)
        # The last prefix that isn't greater than the path is a beginning of it, or shares its own with those that are.
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
    """All rules, by host and then by path."""

    def __init__(self, rules: Sequence[tuple[int, Match | None, Rule]], exact_case: bool) -> None:
        self._exact: dict[bytes, PathTable[Rule]] = {}
        self._suffixes: dict[bytes, PathTable[Rule]] = {}
        self._globs: list[tuple[Glob, PathTable[Rule]]] = []
        by_host: dict[bytes, tuple[Glob, list[tuple[Glob | None, Entry[Rule]]]]] = {}
        for number, match, rule in rules:
            for host, path, entry in _entries(number, match, rule, exact_case):
                by_host.setdefault(host.text, (host, []))[1].append((path, entry))
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
        self._max_tables = len(self._exact) + MAX_STRANGERS
        self._known: dict[tuple[bytes, bytes], list[Entries[Rule]]] = {}
        self.known = self._known.get  # what a host and path led to before, or None

    def candidates(self, host: bytes, path: bytes) -> list[Entries[Rule]]:
        """The lists of entries that may match this host and path; the path is folded as the rules' globs are."""
        found: list[Entries[Rule]] = []
        for table in self._tables.get(host) or self._tables_of(host):
            table.find(path, found)
        if len(path) <= MAX_PATH and len(host) <= MAX_HOST:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[host, path] = found
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


def _entries(
    number: int, match: Match | None, rule: Rule, exact_case: bool
) -> list[tuple[Glob, Glob | None, Entry[Rule]]]:
    """A rule's places in the index: host glob, path glob (None: any), entry."""
    if match is None:
        return [(ANY, None, Entry(number, rule, ()))]
    hosts = [host_glob(text) for text in match.host] or [ANY]
    paths: list[Glob | None] = [path_glob(text, exact_case) for text in match.path] or [None]
    first = (method_condition(match.method).holds,) if match.method else ()
    others = tuple(condition.holds for condition in remaining_conditions(match, exact_case))
    if len(hosts) * len(paths) > MAX_PAIRS:
        others = (path_condition(match.path, exact_case).holds, *others) if match.path else others
        paths = [None]
    found: list[tuple[Glob, Glob | None, Entry[Rule]]] = []
    for path in paths:
        proven = path is None or path.literal or path.is_prefix
        own = () if proven or path is None else (path_check(path),)
        entry = Entry(number, rule, (*first, *own, *others))
        found.extend((host, path, entry) for host in hosts)
    return found
