"""What every algorithm must do, whatever happens to its servers."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from balance_helpers import EVERY, assert_shares, every_id, give_back, key, pool_of, server, take, weighted
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from l7lb.core.servers import ServerState
from l7lb.core.snapshot import Balance, Server
from l7lb.routing.balance import make_balancer

every = pytest.mark.parametrize("balance", EVERY, ids=every_id)


@every
def test_no_server_at_all(balance: Balance) -> None:
    assert make_balancer(pool_of([], balance), 0).choose(key(), 0.0) is None


@every
def test_closed_servers_are_not_chosen(balance: Balance) -> None:
    pool = pool_of([server(name) for name in "abcdef"], balance)
    a, b, c, d, e, _ = pool.servers
    a.healthy = False
    b.ejected = True
    c.config = server("c", state="draining")
    d.config = server("d", state="disabled")
    e.config = server("e", weight=0)
    balancer = make_balancer(pool, 0)
    assert {balancer.choose(key(number), 0.0).name for number in range(50)} == {"f"}  # type: ignore[union-attr]


@every
def test_backups_only_when_no_other_is_open(balance: Balance) -> None:
    pool = pool_of([server("a"), server("b", backup=True), server("c", backup=True)], balance)
    balancer = make_balancer(pool, 0)
    names = {balancer.choose(key(number), 0.0).name for number in range(30)}  # type: ignore[union-attr]
    assert names == {"a"}
    assert balancer.choose(key(), 0.0, [pool.servers[0]]).name in {"b", "c"}  # type: ignore[union-attr]
    pool.servers[0].healthy = False
    balancer.changed(0.0)
    names = {take(balancer, key(number)).name for number in range(30)}
    assert names == ({"b"} if balance.algorithm == "first" else {"b", "c"})
    pool.servers[0].healthy = True
    balancer.changed(0.0)
    assert balancer.choose(key(), 0.0) is pool.servers[0]


@every
def test_a_full_primary_is_not_replaced_by_a_backup(balance: Balance) -> None:
    pool = pool_of([server("a", max_connections=1), server("b", backup=True)], balance)
    balancer = make_balancer(pool, 0)
    take(balancer)
    assert balancer.choose(key(), 0.0) is pool.servers[0]


@every
def test_full_servers_are_passed_over_unless_all_are_full(balance: Balance) -> None:
    pool = pool_of([server(name, max_connections=2) for name in "abc"], balance)
    balancer = make_balancer(pool, 0)
    running = [take(balancer, key(number)) for number in range(6)]
    assert Counter(one.name for one in running) == {"a": 2, "b": 2, "c": 2}
    chosen = balancer.choose(key(), 0.0)
    assert chosen is not None
    assert chosen.full
    give_back(balancer, pool.servers[1])
    for number in range(10):
        assert balancer.choose(key(number), 0.0) is pool.servers[1]


@every
def test_a_change_that_nobody_told_is_survived(balance: Balance) -> None:
    pool, balancer = weighted([1] * 20, balance)
    balancer.choose(key(), 0.0)
    for state in pool.servers[:19]:
        state.healthy = False
    for number in range(20):
        assert balancer.choose(key(number), 0.0) is pool.servers[19]


@every
def test_a_pool_configured_anew_under_it(balance: Balance) -> None:
    """The proxy makes the balancer first, puts the new configuration into the states then, and tells it."""
    pool = pool_of([server("a"), server("b")], balance)
    balancer = make_balancer(pool, 0)
    pool.servers[0].config = server("a", weight=3, state="draining")
    pool.servers[1].config = server("b", weight=7)
    balancer.changed(0.0)
    assert balancer.choose(key(), 0.0) is pool.servers[1]


@pytest.mark.parametrize("balance", [one for one in EVERY if one.algorithm in ("round-robin", "least-connections")])
def test_slow_start_grows_a_servers_share(balance: Balance) -> None:
    pool = pool_of([server("old"), server("new")], balance, slow_start=10.0)
    balancer = make_balancer(pool, 0)
    pool.servers[1].up_since = 100.0
    balancer.changed(100.0)
    shares = []
    for second in range(12):
        counts = Counter(balancer.choose(key(), 100.0 + second + part / 200).name for part in range(200))  # type: ignore[union-attr]
        shares.append(counts["new"] / 200)
    assert shares[0] < 0.2
    assert 0.25 < shares[5] < 0.45
    assert abs(shares[-1] - 0.5) < 0.02
    assert all(later >= earlier - 0.03 for earlier, later in pairwise(shares))


@pytest.mark.parametrize("balance", [one for one in EVERY if one.algorithm in ("round-robin", "least-connections")])
def test_shares_follow_the_weights(balance: Balance) -> None:
    weights = [1, 2, 3, 10]
    _, balancer = weighted(weights, balance, seed=2)
    counts: Counter[str] = Counter()
    for _ in range(3200):
        chosen = take(balancer)
        counts[chosen.name] += 1
        give_back(balancer, chosen)
    assert_shares(counts, {f"s{number}": weight for number, weight in enumerate(weights)})


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match='no algorithm "fastest"; there are round-robin'):
        weighted([1], Balance("fastest"))


configurations = st.builds(
    lambda weight, limit, backup: (weight, limit, backup),
    st.integers(0, 3),
    st.sampled_from([0, 0, 1, 2]),
    st.sampled_from([False, False, True]),
)


class Life(RuleBasedStateMachine):
    """Servers go and come, fill and empty, change weight; requests begin and end."""

    @initialize(
        balance=st.sampled_from(EVERY),
        servers=st.lists(configurations, min_size=1, max_size=20),
        slow_start=st.sampled_from([0.0, 5.0]),
    )
    def begin(self, balance: Balance, servers: list[tuple[int, int, bool]], slow_start: float) -> None:
        configured = [
            server(f"s{number}", weight, max_connections=limit, backup=backup)
            for number, (weight, limit, backup) in enumerate(servers)
        ]
        self.pool = pool_of(configured, balance, slow_start)
        self.balancer = make_balancer(self.pool, 1)
        self.now = 10.0
        self.running: list[ServerState] = []

    def _some(self, number: int) -> ServerState:
        return self.pool.servers[number % len(self.pool.servers)]

    @rule(number=st.integers(0, 20), healthy=st.booleans(), told=st.booleans())
    def health(self, number: int, healthy: bool, told: bool) -> None:
        state = self._some(number)
        state.healthy = healthy
        if healthy:
            state.up_since = self.now
        if told or healthy:
            self.balancer.changed(self.now)

    @rule(number=st.integers(0, 20), ejected=st.booleans())
    def outlier(self, number: int, ejected: bool) -> None:
        self._some(number).ejected = ejected
        self.balancer.changed(self.now)

    @rule(
        number=st.integers(0, 20), weight=st.integers(0, 5), state=st.sampled_from(["enabled", "draining", "disabled"])
    )
    def operator(self, number: int, weight: int, state: str) -> None:
        one = self._some(number)
        old = one.config
        one.config = Server(
            name=old.name,
            address=old.address,
            weight=weight,
            max_connections=old.max_connections,
            backup=old.backup,
            state=state,
        )
        self.balancer.changed(self.now)

    @rule(number=st.integers(0, 20), others=st.integers(0, 3))
    def other_workers(self, number: int, others: int) -> None:
        self._some(number).others = others

    @rule(seconds=st.sampled_from([0.001, 0.1, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=st.integers(0, 100), latency=st.sampled_from([0.001, 0.2, -1.0]))
    def ends(self, number: int, latency: float) -> None:
        if self.running:
            state = self.running.pop(number % len(self.running))
            give_back(self.balancer, state, latency)

    @rule(path=st.integers(0, 5), excluded=st.lists(st.integers(0, 20), max_size=3))
    def begins(self, path: int, excluded: list[int]) -> None:
        without = [self._some(number) for number in excluded]
        servers = [one for one in self.pool.servers if one.open and one not in without]
        chosen = self.balancer.choose(key(path), self.now, without)
        if not servers:
            assert chosen is None
            return
        assert chosen in servers
        primaries = [one for one in servers if not one.config.backup]
        if primaries:
            assert not chosen.config.backup
        if any(not one.full for one in primaries or servers):
            assert not chosen.full
        if not chosen.full:
            chosen.active += 1
            self.balancer.taken(chosen)
            self.running.append(chosen)

    @invariant()
    def counts_are_whole(self) -> None:
        for state in getattr(self, "pool", pool_of([], Balance())).servers:
            assert state.active == self.running.count(state)
            assert state.latency >= 0


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
