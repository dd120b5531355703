"""Rules for mail: by the canonical address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7lb.core.facts import Facts
from l7lb.core.snapshot import Address, Listener, Match, Route, ToPool
from l7lb.routing.matchers import conditions_of
from l7lb.routing.router import Router


def facts(address: bytes, source: str = "192.0.2.1") -> Facts:
    found = Facts("imap4", "imap", source)
    found.address = address
    return found


def router(*matches: Match | None) -> Router:
    """Rules for these matches, each to a pool of its number."""
    routes = tuple(
        Route(number=n, where=f"f:{n}", match=one, action=ToPool(str(n))) for n, one in enumerate(matches, 1)
    )
    return Router(Listener(name="imap", protocol="imap4", bind=(Address("127.0.0.1", 143),), routes=routes))


def pool(found: Router, address: bytes, source: str = "192.0.2.1") -> str | None:
    choice = found.route(facts(address, source))
    return choice.pool if choice is not None else None


@pytest.mark.parametrize(
    ("globs", "address", "matches"),
    [
        (("*@example.com",), b"anna@example.com", True),
        (("*@example.com",), b"anna@www.example.com", False),
        (("*@*.example.com",), b"anna@www.example.com", True),
        (("*@Example.COM",), b"anna@example.com", True),
        (("anna@*",), b"Anna@example.com", True),  # where the file keeps the case of local parts
        (("a*@b", "c*@d"), b"cc@d", True),
        (("*",), b"anna", True),
        (("*",), b"", False),  # not known yet, or a request that names no mailbox
        (("anna",), b"anna@example.com", False),
    ],
)
def test_globs_of_addresses(globs: tuple[str, ...], address: bytes, matches: bool) -> None:
    assert pool(router(Match(address=globs)), address) == ("1" if matches else None)


def test_the_first_rule_decides() -> None:
    found = router(
        Match(address=("boss@example.com",)),
        Match(address=("*@example.com",), source=("10.0.0.0/8",)),
        Match(not_=Match(address=("*@example.com",))),
        None,
    )
    assert pool(found, b"boss@example.com") == "1"
    assert pool(found, b"anna@example.com", "10.1.1.1") == "2"
    assert pool(found, b"anna@example.com") == "4"
    assert pool(found, b"anna@example.org") == "3"


def test_many_rules_keep_their_order() -> None:
    found = router(*(Match(address=(f"*@{number}.example",)) for number in range(500)), None)
    assert pool(found, b"a@0.example") == "1"
    assert pool(found, b"a@499.example") == "500"
    assert pool(found, b"a@500.example") == "501"


@given(st.data())
def test_the_index_finds_what_the_conditions_say(data: st.DataObject) -> None:
    texts = st.text("ab*@.", min_size=1, max_size=6).filter(lambda text: "**" not in text)
    rules = data.draw(st.lists(st.lists(texts, min_size=1, max_size=3), min_size=1, max_size=6))
    matches = [Match(address=tuple(globs)) for globs in rules]
    address = data.draw(st.text("abA@.", max_size=6)).encode()
    first = next((str(n) for n, one in enumerate(matches, 1) if holds(one, address)), None)
    assert pool(router(*matches), address) == first


def holds(match: Match, address: bytes) -> bool:
    return all(condition.holds(facts(address), b"") for condition in conditions_of(match, exact_case=False))


def test_rules_for_domains_cost_no_more_when_there_are_many() -> None:
    found = router(*(Match(address=(f"*@{number}.example",)) for number in range(5000)), None)
    index = found._index
    assert sum(len(entries) for entries in index.find(b"77.example", b"")) == 2


def test_an_explanation_shows_what_was_seen() -> None:
    found = router(Match(address=("*@example.com",)))
    assert found.explain(facts(b"a@b"))[0].why == 'address "*@example.com" is wanted, but the address is "a@b"'
    assert found.explain(facts(b""))[0].why == 'address "*@example.com" is wanted, but there is no address'
