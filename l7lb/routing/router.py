"""The router: from the facts of a request to the first rule that matches, in the operator's order.

It runs once a request, so everything that can be known before is computed once: see :mod:`l7lb.routing.index`.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import accumulate

from l7lb.core.contracts import Choice, Explanation
from l7lb.core.facts import Facts
from l7lb.core.mailbox import MAIL_PROTOCOLS
from l7lb.core.snapshot import Listener, Redirect, Route, ToPool, ToSplit
from l7lb.routing.explain import explain_action, explain_route, explain_too_long
from l7lb.routing.globs import Glob, path_glob
from l7lb.routing.index import LAST, MAX_CANDIDATES, MAX_HOST, MAX_KNOWN, MAX_PATH, NUMBER, Entry, Index
from l7lb.routing.matchers import PathTooLong
from l7lb.routing.regex import Regex


class CompiledRule:
    """What a matched rule leads to.

    ``ready`` is the choice where it is always the same one; the proxy writes expanded templates into a choice, so
    that rules which have any get a new one each time.
    """

    __slots__ = ("_captures", "_cumulative", "_globs", "_pools", "_regexes", "ready", "route")

    def __init__(self, route: Route, exact_case: bool) -> None:
        self.route = route
        self.ready: Choice | None = None
        self._pools: tuple[str | None, ...] = (None,)
        self._cumulative: list[int] = []
        action = route.action
        if isinstance(action, ToPool):
            self._pools = (action.pool,)
        elif isinstance(action, ToSplit):
            shares = [(pool, weight) for pool, weight in action.shares if weight > 0]
            if not shares:
                raise ValueError(f"rule {route.number}: all shares of the split have weight 0")
            self._pools = tuple(pool for pool, _ in shares)
            self._cumulative = list(accumulate(weight for _, weight in shares))
        self._globs: tuple[Glob, ...] = ()
        self._regexes: tuple[Regex, ...] = ()
        self._captures = uses_captures(route)
        if self._captures and route.match is not None:
            self._globs = tuple(path_glob(text, exact_case) for text in route.match.path)
            self._regexes = tuple(Regex(text, exact_case) for text in route.match.path_regex)
        if not self._cumulative and not isinstance(action, Redirect) and route.rewrite is None:
            self.ready = Choice(route, self._pools[0])

    def choice(self, facts: Facts, path: bytes, chance: random.Random) -> Choice:
        """A new choice for these facts, which match."""
        pool = self._pools[0]
        if self._cumulative:
            pool = self._pools[bisect_right(self._cumulative, chance.random() * self._cumulative[-1])]
        return Choice(self.route, pool, self.captures(facts, path) if self._captures else ())

    def captures(self, facts: Facts, path: bytes) -> tuple[bytes, ...]:
        """What the ``*`` of the path glob that matches stand for, else the groups of the regular expression."""
        for glob in self._globs:
            found = glob.captures(path, facts.path)
            if found is not None:
                return found
        for regex in self._regexes:
            match = regex.search(facts.path)
            if match is not None:
                return tuple(group or b"" for group in match.groups())
        return ()


def uses_captures(route: Route) -> bool:
    """Whether one of the route's templates names what a ``*`` stood for."""
    templates: list[str] = []
    if isinstance(route.action, Redirect):
        templates.append(route.action.location)
    if route.rewrite is not None:
        templates += [route.rewrite.path, route.rewrite.host]
    return any("{path." in template for template in templates)


class Router:
    """A listener's rules, compiled. ``seed`` makes the draws of splits repeatable; None: they differ each time.

    Raises ValueError where a rule can't be compiled, which a checked configuration does not contain.
    """

    def __init__(self, listener: Listener, seed: int | None = None) -> None:
        self.listener = listener
        self._exact_case = listener.exact_case
        self._chance = random.Random(seed)
        rules = [(route.number, route.match, CompiledRule(route, listener.exact_case)) for route in listener.routes]
        self._by_domain = listener.protocol in MAIL_PROTOCOLS
        self._index: Index[CompiledRule] = Index(rules, listener.exact_case, self._by_domain)
        self._memory: dict[tuple[bytes, bytes], list[Entry[CompiledRule]] | Choice] = {}
        self._get = self._memory.get
        # Where host and the path's beginning decide, to find a rule anew costs no more than to remember it.
        self._remembers = self._index.tries and not self._by_domain

    def route(self, facts: Facts) -> Choice | None:
        """The first rule that matches; None where none does."""
        path = facts.path if self._exact_case else facts.path.lower()
        if not self._remembers:
            return self._search(facts, path)
        known = self._get((facts.host, facts.path))
        if isinstance(known, Choice):
            return known
        if known is None:
            known = self._look_up(facts, path)
            if known is None:
                return self._search(facts, path)
        for entry in known:
            for check in entry.checks:
                if not check(facts, path):
                    break
            else:
                rule = entry.rule
                return rule.ready or rule.choice(facts, path, self._chance)
        return None

    def _look_up(self, facts: Facts, path: bytes) -> list[Entry[CompiledRule]] | None:
        """What this host and path lead to, remembered; None for what is not: it is too long, or there is too much."""
        host = facts.host
        if len(path) > MAX_PATH or len(host) > MAX_HOST:
            return None
        lists = self._index.find(host, path)
        candidates = lists[0] if len(lists) == 1 else [entry for entries in lists for entry in entries]
        if len(candidates) > MAX_CANDIDATES:
            return None
        if len(lists) > 1:
            candidates = sorted(candidates, key=NUMBER)
        entries = []
        for entry in candidates:
            for check in entry.fixed:
                if not check(facts, path):
                    break
            else:
                entries.append(entry)
                if not entry.checks:
                    break
        if len(self._memory) >= MAX_KNOWN:
            self._memory.clear()
        # Where nothing is left to check, and the choice is always the same, it is the choice that is remembered.
        certain = entries[0].rule.ready if entries and not entries[0].checks else None
        self._memory[host, facts.path] = certain or entries
        return entries

    def _search(self, facts: Facts, path: bytes) -> Choice | None:
        """The first match without memory: that of each list, and of these the rule that stands first."""
        number = LAST
        rule: CompiledRule | None = None
        host = facts.address.rpartition(b"@")[2].lower() if self._by_domain else facts.host
        for entries in self._index.find(host, path):
            for entry in entries:
                if entry.number >= number:
                    break
                try:
                    for check in entry.every:
                        if not check(facts, path):
                            break
                    else:
                        number, rule = entry.number, entry.rule
                        break
                except PathTooLong:
                    # Neither this rule nor one behind it may be taken: see regex.py.
                    number, rule = entry.number, None
                    break
        if rule is None:
            return None
        return rule.ready or rule.choice(facts, path, self._chance)

    def explain(self, facts: Facts) -> list[Explanation]:
        """Each rule up to the one that matches: whether it does, and why or why not."""
        path = facts.path if self._exact_case else facts.path.lower()
        found = []
        for route in self.listener.routes:
            try:
                explanation = explain_route(route, facts, path, self._exact_case)
            except PathTooLong as problem:
                found.append(explain_too_long(route, problem, facts))
                break
            found.append(explanation)
            if explanation.matched:
                captures = CompiledRule(route, self._exact_case).captures(facts, path)
                explanation.details += explain_action(route, facts, captures)
                break
        return found
