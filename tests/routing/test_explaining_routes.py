from __future__ import annotations

from routing_helpers import PlainFacts, listener, route

from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import (
    Address,
    Balance,
    FactName,
    Match,
    Pool,
    Redirect,
    Respond,
    Rewrite,
    Server,
    ToPool,
    ToSplit,
)
from l7lb.routing import Router
from l7lb.routing.explain import explain_pool
from l7lb.routing.matchers import show


def why_not(match: Match, facts: PlainFacts) -> str:
    (explanation,) = Router(listener(match)).explain(facts)
    assert not explanation.matched
    return explanation.why


def test_each_condition_says_what_it_wants_and_what_it_saw() -> None:
    facts = PlainFacts(b"h", b"/a", b"GET", "192.0.2.1", {b"x": [b"2"]}, {b"c": [b"3", b"4"]})
    assert why_not(Match(host=("i", "*.h")), facts) == 'host "i" or "*.h" is wanted, but the host is "h"'
    assert why_not(Match(path=("/b*",)), facts) == 'path "/b*" is wanted, but the path is "/a"'
    assert why_not(Match(path_regex=("^/b",)), facts) == 'path_regex "^/b" is wanted, but the path is "/a"'
    assert why_not(Match(method=("POST",)), facts) == 'method "POST" is wanted, but the method is "GET"'
    assert why_not(Match(header=(("X", ("1",)),)), facts) == 'header X "1" is wanted, but header X is "2"'
    assert why_not(Match(header=(("Y", ("1",)),)), facts) == 'header Y "1" is wanted, but there is no header Y'
    assert why_not(Match(cookie=(("c", ("5",)),)), facts) == 'cookie c "5" is wanted, but cookie c is "3", "4"'
    assert why_not(Match(query=(("q", ("*",)),)), facts).endswith("but there is no query parameter q")
    assert why_not(Match(source=("10.0.0.0/8",)), facts) == 'source "10.0.0.0/8" is wanted, but the client is 192.0.2.1'
    inner = Match(path=("/a",), source=("192.0.2.0/24",))
    assert why_not(Match(path=("/a",), not_=inner), facts) == (
        'not path "/a" and source "192.0.2.0/24" is wanted, but the path is "/a" and the client is 192.0.2.1'
    )
    assert why_not(Match(host=("h",)), PlainFacts()) == 'host "h" is wanted, but there is no host'


def test_a_matched_rule_says_why_and_what_it_does() -> None:
    facts = PlainFacts(b"h", b"/old/a")
    config = listener(
        Match(host=("i",)),
        route(2, Match(path=("/old/*",)), Redirect("/new/{path.1}", 308)),
        route(3, None),
    )
    first, second = Router(config).explain(facts)
    assert (first.number, first.matched, first.where) == (1, False, "web.yaml:1")
    assert (second.number, second.matched, second.why) == (2, True, "all its conditions hold")
    assert second.details == [
        'path "/old/*": the path is "/old/a"',
        '* number 1 stands for "a"',
        'answers 308, go to "/new/a"',
    ]


def test_every_action_is_described() -> None:
    actions = [
        (route(1, action=Respond(418)), ["answers 418"]),
        (route(1, action=ToPool("web")), ["goes to pool web"]),
        (route(1, action=ToSplit((("web", 3), ("new", 1)))), ["goes to one of the pools web 75%, new 25%"]),
        (
            route(1, action=ToPool("web"), rewrite=Rewrite("/x{path}", "in.example")),
            ["goes to pool web", 'the server gets the path "/x/a"', 'the server gets the host "in.example"'],
        ),
    ]
    for rule, expected in actions:
        (explanation,) = Router(listener(rule)).explain(PlainFacts(path=b"/a"))
        assert explanation.why == "it has no conditions"
        assert explanation.details == expected


def test_values_are_shown_safely() -> None:
    assert show(b"a\x1b[31m\xff\n") == '"a\\x1b[31m\\xff\\n"'
    assert show(b"x" * 1000).endswith("... (1000 bytes)")


def pool_of(balance: Balance, *servers: Server) -> PoolState:
    return PoolState(
        Pool(name="web", servers=servers, balance=balance), [ServerState("web", server) for server in servers]
    )


def server(name: str, **settings: int | bool | str) -> Server:
    return Server(name=name, address=Address("127.0.0.1", 80), **settings)  # type: ignore[arg-type]


def test_a_pool_says_which_server_and_why() -> None:
    pool = pool_of(
        Balance(), server("a", state="draining"), server("b", weight=2, max_connections=5), server("c", backup=True)
    )
    pool.servers[1].active = 3
    pool.servers[1].latency = 0.25
    explanation = explain_pool(pool, PlainFacts())
    assert explanation.where == "pool web"
    assert explanation.matched
    assert explanation.why.startswith("b: round-robin, servers take turns")
    assert explanation.details == [
        "a (127.0.0.1:80): draining, weight 1, 0 in progress",
        "b (127.0.0.1:80): open, weight 2, 3 of 5 in progress, answers in 250.0 ms",
        "c (127.0.0.1:80): open, weight 1, 0 in progress, backup",
    ]
    pool.servers[1].active = 5
    assert "so that the request waits" in explain_pool(pool, PlainFacts()).why
    pool.servers[1].healthy = False
    assert "c: round-robin" in explain_pool(pool, PlainFacts()).why
    assert "it is a backup" in explain_pool(pool, PlainFacts()).why
    pool.servers[2].ejected = True
    explanation = explain_pool(pool, PlainFacts())
    assert (explanation.matched, explanation.why) == (False, "no server is open")


def test_a_hash_says_whose_key_it_is() -> None:
    pool = pool_of(Balance("hash", FactName("path")), server("a"), server("b"))
    owner = explain_pool(pool, PlainFacts(path=b"/x")).why
    assert owner.endswith('the hash of path "/x" belongs to it')
    state = pool.by_name[owner.partition(":")[0]]
    state.healthy = False
    other = explain_pool(pool, PlainFacts(path=b"/x")).why
    assert f'the hash of path "/x" belongs to {state.name} (down)' in other
    pool = pool_of(Balance("hash", FactName("header", "x-user")), server("a"))
    assert "no header x-user to hash" in explain_pool(pool, PlainFacts()).why


def test_slow_start_shows_in_the_weight() -> None:
    configured = server("a", weight=4)
    pool = PoolState(Pool(name="web", servers=(configured,), slow_start=10.0), [ServerState("web", configured)])
    pool.servers[0].up_since = 100.0
    assert "weight 2 of 4" in explain_pool(pool, PlainFacts(), now=105.0).details[0]
