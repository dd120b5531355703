from __future__ import annotations

import random
from collections import Counter
from hashlib import sha256
from itertools import pairwise
from math import ceil

import pytest
from balance_helpers import BOUNDED, HASH, give_back, key, pool_of, server, take, weighted
from hypothesis import given, settings
from hypothesis import strategies as st

from l7lb.core.contracts import Balancer
from l7lb.core.snapshot import Balance, FactName
from l7lb.routing.balance import make_balancer
from l7lb.routing.balance.hash import MAX_POINTS, HashBalancer, ring

KEYS = [key(f"/item/{number}") for number in range(600)]


def owners(balancer: Balancer) -> list[str]:
    found = [balancer.choose(facts, 0.0) for facts in KEYS]
    return [one.name for one in found if one is not None]


def test_the_same_key_goes_to_the_same_server_everywhere() -> None:
    names = ["a", "b", "c", "d"]
    first = owners(make_balancer(pool_of([server(name) for name in names], HASH), 1))
    shuffled = owners(make_balancer(pool_of([server(name) for name in reversed(names)], HASH), 2))
    assert first == shuffled
    assert owners(make_balancer(pool_of([server(name) for name in names], HASH))) == first


def test_the_choice_does_not_depend_on_the_process() -> None:
    # Written down once: another value would send the users of a running cluster elsewhere.
    points = repr(ring((("a", 1), ("b", 2)))).encode()
    assert sha256(points).hexdigest() == "9b1c1b51b46f321cfd3133c0621b30e18ba2e5ac817c51d7e31926e0bc3f51b0"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=8), st.data())
def test_a_server_that_leaves_moves_its_own_keys_only(weights: list[int], data: st.DataObject) -> None:
    pool, balancer = weighted(weights, HASH)
    before = owners(balancer)
    gone = pool.servers[data.draw(st.integers(0, len(weights) - 1))]

    gone.healthy = False
    balancer.changed(0.0)
    down = owners(balancer)
    assert gone.name not in down
    assert all(now == then for now, then in zip(down, before, strict=True) if then != gone.name)

    rest = [one for one in pool.config.servers if one.name != gone.name]
    removed = owners(make_balancer(pool_of(rest, HASH), 0))
    assert removed == down  # taken out of the configuration is the same as down

    gone.healthy = True
    balancer.changed(0.0)
    assert owners(balancer) == before


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 2, 5], [10, 20]])
def test_shares_follow_the_weights(weights: list[int]) -> None:
    _, balancer = weighted(weights, HASH)
    counts = Counter(balancer.choose(key(number), 0.0).name for number in range(20_000))  # type: ignore[union-attr]
    for number, weight in enumerate(weights):
        share = counts[f"s{number}"] / 20_000 / (weight / sum(weights))
        assert 0.75 < share < 1.25, counts


def test_the_keys_of_a_dead_server_spread_over_all_others() -> None:
    pool, balancer = weighted([1] * 5, HASH)
    before = owners(balancer)
    pool.servers[0].healthy = False
    balancer.changed(0.0)
    moved = Counter(now for now, then in zip(owners(balancer), before, strict=True) if then == "s0")
    assert len(moved) == 4


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=20),
    st.sampled_from([1.0, 1.1, 1.25, 2.0]),
    st.integers(1, 8),
    st.integers(0, 2**32),
)
def test_no_server_takes_more_than_its_bound(weights: list[int], bound: float, keys: int, seed: int) -> None:
    _, balancer = weighted(weights, Balance("hash", FactName("path"), bound))
    chance = random.Random(seed)
    running = []
    total_weight = sum(weights)
    for _ in range(150):
        if running and chance.random() < 0.3:
            give_back(balancer, running.pop(chance.randrange(len(running))))
        chosen = take(balancer, key(chance.randrange(keys)))  # few keys: the worst case
        running.append(chosen)
        assert chosen.load <= ceil(bound * len(running) * chosen.config.weight / total_weight)


def test_a_popular_key_overflows_and_comes_back() -> None:
    pool, balancer = weighted([1] * 4, BOUNDED)
    owner = balancer.choose(key("/popular"), 0.0)
    running = [take(balancer, key("/popular")) for _ in range(40)]
    assert max(state.active for state in pool.servers) <= ceil(1.25 * 40 / 4)
    for chosen in running:
        give_back(balancer, chosen)
    assert balancer.choose(key("/popular"), 0.0) is owner


def test_what_other_workers_have_counts_for_the_bound() -> None:
    for size in (3, 30):
        pool, balancer = weighted([1] * size, BOUNDED)
        owner = balancer.choose(key("/x"), 0.0)
        assert owner is not None
        owner.others = 100
        assert balancer.choose(key("/x"), 1.0) is not owner
        owner.others = 0
        assert balancer.choose(key("/x"), 2.0) is owner
        assert len(pool.servers) == size


def test_a_full_server_is_passed_over_unless_all_are() -> None:
    pool = pool_of([server(name, max_connections=1) for name in "abc"], HASH)
    balancer = make_balancer(pool, 0)
    owner = take(balancer, key("/x"))
    second = take(balancer, key("/x"))
    third = take(balancer, key("/x"))
    assert {owner.name, second.name, third.name} == set("abc")
    assert balancer.choose(key("/x"), 0.0) is owner  # it waits for its own
    assert balancer.choose(key("/x"), 0.0, [owner]) is second


def test_a_request_without_the_fact_goes_by_random_of_two() -> None:
    pool, balancer = weighted([1, 1, 1], Balance("hash", FactName("header", "x-user")))
    counts = Counter(balancer.choose(key(), 0.0).name for _ in range(300))  # type: ignore[union-attr]
    assert len(counts) == 3
    pool.servers[0].healthy = False
    balancer.changed(0.0)
    assert {balancer.choose(key(), 0.0).name for _ in range(100)} == {"s1", "s2"}  # type: ignore[union-attr]


def test_slow_start_brings_the_keys_home_by_and_by() -> None:
    servers = [server(name) for name in "abcd"]
    pool = pool_of(servers, HASH, slow_start=10.0)
    balancer = make_balancer(pool, 0)
    before = owners(balancer)
    state = pool.by_name["b"]
    state.up_since = 100.0
    balancer.changed(100.0)
    home: list[set[int]] = []
    for now in (100.0, 103.0, 106.0, 109.0, 111.0):
        found = [balancer.choose(facts, now) for facts in KEYS]
        home.append({number for number, one in enumerate(found) if one is state})
        others = [one.name for one in found if one is not None and one is not state]
        assert others == [
            then if then != "b" else now_name
            for then, now_name in ((before[n], found[n].name) for n in range(len(KEYS)) if n not in home[-1])  # type: ignore[union-attr]
        ]
    for earlier, later in pairwise(home):
        assert earlier <= later
    own = {number for number, name in enumerate(before) if name == "b"}
    assert home[-1] == own
    assert 0.02 * len(own) < len(home[0]) < 0.25 * len(own)


def test_an_operators_weight_moves_keys_to_or_from_that_server_only() -> None:
    pool, balancer = weighted([2, 2, 2], HASH)
    before = owners(balancer)
    pool.servers[1].config = server("s1", weight=4)
    balancer.changed(0.0)
    after = owners(balancer)
    assert all(now == "s1" for now, then in zip(after, before, strict=True) if now != then)
    assert after.count("s1") > before.count("s1")


def test_backups_have_a_ring_of_their_own() -> None:
    pool = pool_of([server("a"), server("b", backup=True), server("c", backup=True)], HASH)
    balancer = make_balancer(pool, 0)
    assert set(owners(balancer)) == {"a"}
    pool.servers[0].healthy = False
    balancer.changed(0.0)
    assert set(owners(balancer)) == {"b", "c"}


def test_nearly_all_servers_down() -> None:
    pool, balancer = weighted([1] * 1000, HASH)
    for state in pool.servers[:-1]:
        state.healthy = False
    balancer.changed(0.0)
    assert {balancer.choose(facts, 0.0) for facts in KEYS[:20]} == {pool.servers[-1]}


def test_the_ring_is_bounded() -> None:
    assert len(ring((("a", 1),))) == 128
    assert len(ring((("a", 1_000_000), ("b", 1_000_000)))) <= MAX_POINTS * 1.01
    points = ring(tuple((f"s{number:04}", 1) for number in range(3000)))
    assert len(points) <= MAX_POINTS * 1.01
    assert len({point & 0x3FFF for point in points}) == 3000


def test_a_hash_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="name of a fact"):
        weighted([1], Balance("hash"))


def test_why_a_keys_own_server_does_not_get_it() -> None:
    servers = [server("a", max_connections=9), server("b", max_connections=9)]
    pool = pool_of(servers, BOUNDED, slow_start=10.0)
    balancer = HashBalancer(pool, BOUNDED, 0)
    facts = key("/x")
    owner = balancer.choose(facts, 0.0)
    assert owner is not None
    assert balancer.explain(facts, 0.0) == 'the hash of path "/x" belongs to it'

    def passed_over(now: float = 0.0) -> str:
        balancer.changed(now)
        return balancer.explain(facts, now).partition(f"passed over: {owner.name} ")[2]

    owner.active = 3
    assert passed_over() == "(at its bound)"
    owner.active = 9
    assert passed_over() == "(at its connection limit)"
    owner.active = 0
    owner.ejected = True
    assert passed_over() == "(ejected)"
    owner.ejected = False
    owner.config = server(owner.name, state="draining")
    assert passed_over() == "(takes no new users)"
    owner.config = server(owner.name)
    owner.healthy = False
    assert passed_over() == "(down)"
    owner.healthy = True
    owner.up_since = 1.0
    balancer.changed(1.0)
    assert any("(starting slowly)" in balancer.explain(facts, 1.0) for facts in KEYS[:50])
