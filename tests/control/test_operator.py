from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from l7lb.control import operator as verbs
from l7lb.control.effective import Answer
from l7lb.control.node import NodeState
from l7lb.control.operator import Operator, Refused
from l7lb.core.errors import UnknownName
from l7lb.core.snapshot import Address, Health, Outliers, Server, ServerTls

Make = Callable[..., Any]
WALL = "2026-01-01T00:00:00Z"
SHOWN = "2026-01-01 00:00:00Z"
FORGOTTEN = "; without `state:` in the configuration it is forgotten when the supervisor restarts"


@pytest.fixture
def operator(make_pool: Make, make_snapshot: Make, make_server: Make, tmp_path: Path, clock: Any) -> Operator:
    configured = make_snapshot(
        make_pool("web", "web1", "web2", "shared", health=Health(kind="tcp"), outliers=Outliers()),
        make_pool("api", "api1", "shared", make_server("named", "app.internal:80")),
    )
    return Operator(NodeState(configured, tmp_path / "state", clock=clock, wall=lambda: WALL))


def state_of(operator: Operator, target: str) -> str:
    return operator.find(target)[2][0].state


def why(operator: Operator, name: str) -> str:
    return next(row.why for row in operator.rows() if row.name == name)


# --- names --------------------------------------------------------------------------------------------------------


def test_a_server_is_found_with_and_without_its_pool(operator: Operator) -> None:
    assert operator.find("web1")[:2] == ("web", "web1")
    assert operator.find("web/web1")[:2] == ("web", "web1")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("wbe1", "no server wbe1: did you mean web1?"),
        ("web/api1", "no server api1 in pool web: did you mean api/api1?"),
        ("wbe/web1", "no pool wbe: did you mean web?"),
        ("shared", "shared is a server of several pools: say web/shared or api/shared"),
        ("", "no server without a name: known: api1, named, shared, web1, web2"),
        ("web/", "no server without a name in pool web: known: shared, web1, web2"),
    ],
)
def test_a_wrong_name_gets_a_helpful_answer(operator: Operator, target: str, words: str) -> None:
    with pytest.raises(UnknownName) as caught:
        operator.find(target)
    assert str(caught.value) == words


# --- states -------------------------------------------------------------------------------------------------------


def test_drain_and_undrain(operator: Operator) -> None:
    assert operator.drain("web1") == "web/web1 drains: it keeps the users it has and gets no new ones"
    assert state_of(operator, "web1") == "draining"
    assert why(operator, "web1") == f"draining by operator since {SHOWN}; never checked yet"
    assert operator.drain("web1").endswith("(as before)")
    operator.undrain("web1")
    assert state_of(operator, "web1") == "enabled"


def test_disable_wins_over_health_and_undrain_does_not_take_it_back(operator: Operator) -> None:
    operator.disable("web1")
    operator.node.set_health("web", "web1", False, "connect refused (3 of 3 checks)")
    row = next(row for row in operator.rows() if row.name == "web1")
    assert (row.state, row.healthy) == ("disabled", False)
    assert row.why == f"disabled by operator since {SHOWN}; connect refused (3 of 3 checks)"
    with pytest.raises(Refused, match=r"web/web1 is disabled, not draining; `l7lb enable web/web1`"):
        operator.undrain("web1")
    operator.enable("web1")
    assert state_of(operator, "web1") == "enabled"
    assert next(row for row in operator.rows() if row.name == "web1").state == "down"


def test_health_never_changes_what_an_operator_said(operator: Operator) -> None:
    operator.drain("web1")
    operator.weight("web1", 9)
    for healthy in (False, True, False, True):
        operator.node.set_health("web", "web1", healthy, "x")
        server = operator.find("web1")[2][0]
        assert (server.state, server.weight) == ("draining", 9)


def test_a_configured_state_can_be_overridden(make_pool: Make, make_snapshot: Make, make_server: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", make_server("web1", state="disabled"), "web2")))
    operator = Operator(node)
    assert why(operator, "web1") == "disabled in the configuration"
    assert operator.enable("web1") == "web/web1 takes new users" + FORGOTTEN
    assert state_of(operator, "web1") == "enabled"


def test_an_ejected_server_is_down_and_says_for_how_long(operator: Operator, clock: Any) -> None:
    operator.node.set_health("web", "web1", True, "connected in 1 ms")
    operator.node.set_ejected("web", "web1", 10.0, "ejected after 5 errors")
    clock.now += 3
    row = next(row for row in operator.rows() if row.name == "web1")
    assert (row.state, row.why) == ("down", "ejected after 5 errors, 7 s left; connected in 1 ms")


def test_only_what_differs_from_before_makes_a_new_snapshot(operator: Operator) -> None:
    version = operator.node.effective().version
    operator.enable("web1")
    assert operator.node.effective().version == version
    operator.drain("web1")
    assert operator.node.effective().version == version + 1


# --- weights ------------------------------------------------------------------------------------------------------


def test_a_weight_is_set_and_taken_back(operator: Operator) -> None:
    assert operator.weight("web1", 5) == "web/web1 has weight 5"
    assert why(operator, "web1") == f"weight 5 by operator since {SHOWN}; never checked yet"
    assert operator.weight("web1", None) == "web/web1 has weight 1, as configured"
    assert operator.node.overrides.servers == {}


@pytest.mark.parametrize("weight", [-1, 65_536])
def test_a_weight_beyond_the_limits_is_refused(operator: Operator, weight: int) -> None:
    with pytest.raises(Refused, match="from 0 to 65535"):
        operator.weight("web1", weight)


def test_weight_0_is_explained(make_pool: Make, make_snapshot: Make, make_server: Make) -> None:
    operator = Operator(NodeState(make_snapshot(make_pool("web", make_server("web1", weight=0)))))
    assert why(operator, "web1") == "weight 0: no new users"


def test_an_override_outlives_a_reload(operator: Operator, make_pool: Make, make_snapshot: Make) -> None:
    operator.drain("web1")
    operator.weight("web2", 5)
    assert operator.node.reload(make_snapshot(make_pool("web", "web2", "web1"))) == []
    assert state_of(operator, "web1") == "draining"
    assert operator.find("web2")[2][0].weight == 5


def test_an_override_is_forgotten_with_its_server(operator: Operator, make_pool: Make, make_snapshot: Make) -> None:
    operator.drain("web1")
    notes = operator.node.reload(make_snapshot(make_pool("web", "web2")))
    assert notes == ["web/web1: its state and weight set at run time are forgotten: no such server"]
    operator.node.reload(make_snapshot(make_pool("web", "web1", "web2")))
    assert state_of(operator, "web1") == "enabled"


# --- servers added and removed ------------------------------------------------------------------------------------


def new(name: str, address: str = "10.0.0.9", port: int = 80, **settings: Any) -> Server:
    return Server(name=name, address=Address(host=address, port=port if address else 0), **settings)


def test_a_server_is_added_and_removed(operator: Operator) -> None:
    assert operator.add_server("web", new("web9", weight=4)) == "web/web9 is added at 10.0.0.9:80"
    assert operator.find("web9")[2][0].weight == 4
    assert operator.remove_server("web9").startswith("web/web9 is removed")
    with pytest.raises(UnknownName):
        operator.find("web9")
    assert operator.node.overrides.size() == 0


def test_adding_what_is_there_or_has_no_address_is_refused(operator: Operator) -> None:
    with pytest.raises(Refused, match="pool web already has a server web1"):
        operator.add_server("web", new("web1"))
    with pytest.raises(Refused, match="web/web9 needs an address"):
        operator.add_server("web", new("web9", ""))
    with pytest.raises(UnknownName, match="no pool wbe: did you mean web"):
        operator.add_server("wbe", new("web9"))


def test_a_configured_server_stays_removed_until_it_is_added_again(
    operator: Operator, make_pool: Make, make_snapshot: Make
) -> None:
    operator.drain("web1")
    operator.remove_server("web1")
    notes = operator.node.reload(make_snapshot(make_pool("web", "web1", "web2")))
    assert notes == [f"web/web1 stays removed by operator since {WALL}"]
    with pytest.raises(Refused, match="give no address to bring it back"):
        operator.add_server("web", new("web1"))
    assert operator.add_server("web", new("web1", "")) == "web/web1 is back as it is configured"
    assert state_of(operator, "web1") == "enabled"


def test_a_server_that_the_file_has_meanwhile_is_no_longer_an_added_one(
    operator: Operator, make_pool: Make, make_snapshot: Make
) -> None:
    operator.add_server("web", new("web9"))
    operator.add_server("api", new("api9"))
    notes = operator.node.reload(make_snapshot(make_pool("web", "web9")))
    assert "web/web9, added at run time, is forgotten: the configuration has it now" in notes
    assert "api/api9, added at run time, is forgotten: its pool is gone" in notes
    assert str(operator.find("web9")[2][0].address) == "127.0.0.1:9001"


def test_an_added_server_may_be_a_host_name(operator: Operator) -> None:
    operator.add_server("web", new("far", "far.internal"))
    assert ("web", "far") in operator.node.host_names()
    assert why(operator, "far") == "its name is not resolved yet"
    operator.drain("far")
    operator.node.set_answer("web", "far", Answer("far.internal", ("10.0.0.7",)))
    assert state_of(operator, "web/far@10.0.0.7") == "draining"


# --- host names ---------------------------------------------------------------------------------------------------


def test_a_name_stands_for_its_addresses_and_one_of_them_can_be_named(operator: Operator) -> None:
    operator.node.set_answer("api", "named", Answer("app.internal", ("10.0.0.5", "10.0.0.6")))
    operator.drain("named@10.0.0.5")
    states = {server.name: server.state for server in operator.find("named")[2]}
    assert states == {"named@10.0.0.5": "draining", "named@10.0.0.6": "enabled"}
    operator.disable("named")
    assert {server.state for server in operator.find("named")[2]} == {"disabled"}
    operator.enable("named")
    assert {server.state for server in operator.find("named")[2]} == {"enabled"}
    with pytest.raises(Refused, match=r"remove api/named, or disable named@10\.0\.0\.5"):
        operator.remove_server("named@10.0.0.5")
    operator.remove_server("named")
    assert not [row for row in operator.rows() if row.name.startswith("named")]


# --- limits and failures ------------------------------------------------------------------------------------------


def test_the_number_of_changes_is_bounded(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "ENTRIES", 2)
    operator.drain("web1")
    operator.drain("web2")
    operator.weight("web2", 3)
    with pytest.raises(Refused, match="put them into the configuration"):
        operator.drain("api1")
    with pytest.raises(Refused, match="put them into the configuration"):
        operator.add_server("web", new("web9"))


def test_what_cannot_be_kept_is_in_force_and_says_so(make_pool: Make, make_snapshot: Make, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, not a directory")
    node = NodeState(make_snapshot(make_pool("web", "web1")), tmp_path / "state")
    assert "Not a directory" in node.warnings[0]
    words = Operator(node).drain("web1")
    assert "it could not be kept for a restart" in words
    assert node.effective().pools[0].servers[0].state == "draining"


def test_rows_are_in_the_pools_order(operator: Operator) -> None:
    operator.add_server("web", new("web9"))
    assert [f"{row.pool}/{row.name}" for row in operator.rows()] == [
        "web/web1",
        "web/web2",
        "web/shared",
        "web/web9",
        "api/api1",
        "api/shared",
        "api/named",
    ]
    assert msgspec.to_builtins(operator.rows()[0])["state"] == "up"


def test_who_adds_a_server_is_told_that_it_lacks_the_others_tls(make_pool: Make, make_snapshot: Make) -> None:
    server = Server(name="web1", address=Address(host="10.0.0.1", port=443), tls=ServerTls(server_name="web1"))
    operator = Operator(NodeState(make_snapshot(make_pool("web", server))))
    added = operator.add_server("web", Server(name="web2", address=Address(host="10.0.0.2", port=443)))
    assert added.startswith("web/web2 is added at 10.0.0.2:443; it is spoken to without TLS, unlike others of the pool")
