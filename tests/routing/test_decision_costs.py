"""The benchmark of decisions runs, on little work; what it measures is judged by its own command."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_a_smoke_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks import decisions

    monkeypatch.setattr(decisions, "SIZES", (10, 200))
    monkeypatch.setattr(decisions, "SERVERS", (3, 40))
    rules = decisions.routing(rounds=1, usual=20, new=100)
    servers = decisions.balancing(rounds=1, decisions=100)
    limits = decisions.limiting(rounds=1, decisions=500)
    table, _ = decisions.report(rules, servers, limits)
    assert len(table.splitlines()) == 4 + 2 * 7 + 5
    assert "200 rules" in table


def test_each_request_of_the_benchmark_meets_its_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    from benchmarks import decisions

    router = decisions.Router(decisions.listener(50))
    for number in range(49):
        choice = router.route(decisions.request(number, 7))
        assert choice is not None
        assert choice.route.number == number + 1
