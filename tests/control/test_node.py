from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from l7lb.control.effective import Answer
from l7lb.control.node import Change, NodeState
from l7lb.control.operator import Operator
from l7lb.control.slots import NoRowLeft
from l7lb.core.messages import ServerHealth
from l7lb.core.snapshot import Health, Outliers, Pool, Server, Snapshot, decode, encode
from l7lb.proxy.counts import ACTIVE, COLUMNS, REQUESTS, ROWS, Counts

CHECKED: dict[str, Any] = {"health": Health(kind="tcp"), "outliers": Outliers()}
Make = Callable[..., Any]


def names(snapshot: Snapshot) -> list[str]:
    return [f"{pool.name}/{server.name}" for pool in snapshot.pools for server in pool.servers]


def slots(snapshot: Snapshot) -> dict[str, int]:
    return {f"{pool.name}/{server.name}": server.slot for pool in snapshot.pools for server in pool.servers}


def changes(node: NodeState) -> list[Change]:
    seen: list[Change] = []
    node.subscribe(seen.append)
    return seen


def test_the_first_snapshot_has_a_version_and_a_row_for_every_name(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", "web2"), make_pool("api", "api1")))
    found = node.effective()
    assert found.version == 1
    rows = [one.slot for one in (*found.listeners, *found.pools)] + list(slots(found).values())
    assert sorted(rows) == [1, 2, 3, 4, 5, 6]
    assert node.effective() is found


def test_a_reload_keeps_rows_and_grows_the_version(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", "web2")))
    seen = changes(node)
    before = slots(node.effective())
    assert node.reload(make_snapshot(make_pool("web", "web2", "web3"))) == []
    after = slots(node.effective())
    assert node.effective().version == 2
    assert after["web/web2"] == before["web/web2"]
    assert [change.snapshot for change in seen] == [True]


def test_a_reload_of_the_same_changes_nothing(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1")))
    seen = changes(node)
    node.reload(make_snapshot(make_pool("web", "web1")))
    assert node.effective().version == 1
    assert seen == []


def test_a_reload_beyond_the_rows_is_refused(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1")))
    before = node.effective()
    with pytest.raises(NoRowLeft):
        node.reload(make_snapshot(make_pool("web", *(f"web{number}" for number in range(17_000)))))
    assert node.effective() is before
    assert names(node.configured) == ["web/web1"]


# --- health -------------------------------------------------------------------------------------------------------


def test_servers_that_are_still_to_be_checked_are_not_spoken_of(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **CHECKED), make_pool("api", "api1")))
    assert node.health_messages() == [ServerHealth("api", "api1", True, False, 0.0)]
    assert node.healthy("web", "web1")
    node.set_health("web", "web1", True, "connected")
    assert ServerHealth("web", "web1", True, False, 0.0) in node.health_messages()


def test_a_change_of_health_is_told_once(make_pool: Make, make_snapshot: Make, clock: Any) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **CHECKED)), clock=clock)
    seen = changes(node)
    assert not node.set_health("web", "web1", True, "connected")
    assert not node.set_health("web", "web1", True, "connected in 2 ms")
    assert node.set_health("web", "web1", False, "connect refused")
    assert not node.set_health("web", "web1", False, "still refused")
    assert node.verdict("web", "web1").why == "still refused"
    clock.now = 1005.0
    assert node.set_health("web", "web1", True, "connected")
    assert [change.health[0] for change in seen] == [
        ServerHealth("web", "web1", True, False, 0.0),
        ServerHealth("web", "web1", False, False, 0.0),
        ServerHealth("web", "web1", True, False, 1005.0),
    ]
    assert not any(change.snapshot for change in seen)


def test_a_verdict_on_an_unknown_server_is_ignored(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **CHECKED)))
    assert not node.set_health("web", "gone", False, "x")
    node.set_ejected("web", "gone", 5.0, "x")
    assert node.ejection("web", "gone") is None


def test_health_survives_a_reload_and_ends_with_the_address(
    make_pool: Make, make_snapshot: Make, make_server: Make
) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", "web2", **CHECKED)))
    for name in ("web1", "web2"):
        node.set_health("web", name, False, "connect refused")
    seen = changes(node)
    node.reload(make_snapshot(make_pool("web", "web1", make_server("web2", "127.0.0.1:9999"), **CHECKED)))
    assert not node.healthy("web", "web1")
    assert node.verdict("web", "web2") is None
    # The workers know the server by its name and must hear that the new one is used.
    assert [(message.server, message.healthy) for change in seen for message in change.health] == [("web2", True)]


def test_a_pool_that_is_checked_no_more_has_healthy_servers(make_pool: Make, make_snapshot: Make) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **CHECKED)))
    node.set_health("web", "web1", False, "connect refused")
    node.set_ejected("web", "web1", 60.0, "ejected")
    seen = changes(node)
    node.reload(make_snapshot(make_pool("web", "web1")))
    assert seen[-1].health == (ServerHealth("web", "web1", True, False, 0.0),)


def test_an_ejection_is_told_and_its_end_starts_slowly(make_pool: Make, make_snapshot: Make, clock: Any) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", **CHECKED)), clock=clock)
    node.set_ejected("web", "web1", 10.0, "ejected after 5 errors")
    ejection = node.ejection("web", "web1")
    assert ejection is not None
    assert ejection.until == 1010.0
    assert not node.is_open("web", node.effective().pools[0].servers[0])
    node.set_ejected("web", "web1", 0)
    assert node.ejection("web", "web1") is None
    assert node.since("web", "web1") == 1000.0


def test_slow_start_counts_for_newcomers_but_not_for_a_new_pool(
    make_pool: Make, make_snapshot: Make, clock: Any
) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1")), clock=clock)
    node.reload(make_snapshot(make_pool("web", "web1", "web2"), make_pool("api", "api1")))
    assert node.since("web", "web1") == 0.0
    assert node.since("web", "web2") == 1000.0
    assert node.since("api", "api1") == 0.0
    operator = Operator(node)
    operator.disable("web1")
    clock.now = 1010.0
    operator.enable("web1")
    assert node.since("web", "web1") == 1010.0


# --- names --------------------------------------------------------------------------------------------------------


def named(make_pool: Make, make_snapshot: Make, make_server: Make, host: str = "app.internal") -> Snapshot:
    made: Snapshot = make_snapshot(
        make_pool("web", make_server("app", f"{host}:80", weight=2, max_connections=5), "web2", **CHECKED)
    )
    return made


def test_a_host_name_becomes_a_server_for_each_address(make_pool: Make, make_snapshot: Make, make_server: Make) -> None:
    node = NodeState(named(make_pool, make_snapshot, make_server))
    assert names(node.effective()) == ["web/web2"]
    assert node.host_names() == {("web", "app"): "app.internal"}
    assert [absent.why for absent in node.absent] == ["its name is not resolved yet"]
    assert node.set_answer("web", "app", Answer("app.internal", ("10.0.0.5", "fd00::1")))
    first = node.effective().pools[0].servers[0]
    assert names(node.effective()) == ["web/app@10.0.0.5", "web/app@fd00::1", "web/web2"]
    assert [one.host for one in node.effective().pools[0].servers] == ["app.internal", "app.internal", ""]
    assert (first.origin, first.weight, first.max_connections, str(first.address)) == ("app", 2, 5, "10.0.0.5:80")
    assert node.absent == []


def test_a_failed_look_up_keeps_the_last_answer(make_pool: Make, make_snapshot: Make, make_server: Make) -> None:
    node = NodeState(named(make_pool, make_snapshot, make_server))
    node.set_answer("web", "app", Answer("app.internal", why="app.internal: no name server answered"))
    assert node.absent[0].why == "app.internal: no name server answered"
    node.set_answer("web", "app", Answer("app.internal", ("10.0.0.5",)))
    assert not node.set_answer("web", "app", Answer("app.internal", why="app.internal: no name server answered"))
    assert names(node.effective()) == ["web/app@10.0.0.5", "web/web2"]
    rows = {row.name: row for row in Operator(node).rows()}
    assert rows["app@10.0.0.5"].why == "never checked yet; app.internal: no name server answered"


def test_rows_of_addresses_stay_while_others_come_and_go(
    make_pool: Make, make_snapshot: Make, make_server: Make
) -> None:
    node = NodeState(named(make_pool, make_snapshot, make_server))
    node.set_answer("web", "app", Answer("app.internal", ("10.0.0.5", "10.0.0.6")))
    before = slots(node.effective())
    node.set_answer("web", "app", Answer("app.internal", ("10.0.0.4", "10.0.0.6")))
    assert slots(node.effective())["web/app@10.0.0.6"] == before["web/app@10.0.0.6"]


def test_another_host_name_forgets_the_old_ones_addresses(
    make_pool: Make, make_snapshot: Make, make_server: Make
) -> None:
    node = NodeState(named(make_pool, make_snapshot, make_server))
    node.set_answer("web", "app", Answer("app.internal", ("10.0.0.5",)))
    node.reload(named(make_pool, make_snapshot, make_server, "other.internal"))
    assert names(node.effective()) == ["web/web2"]
    node.set_answer("web", "app", Answer("other.internal", why="the name does not exist"))
    assert names(node.effective()) == ["web/web2"]


# --- a supervisor after another -----------------------------------------------------------------------------------


def test_a_new_supervisor_goes_on_with_the_same_snapshot(
    make_pool: Make, make_snapshot: Make, make_server: Make, counts: Counts
) -> None:
    configured = named(make_pool, make_snapshot, make_server)
    first = NodeState(configured, counts=counts)
    first.reload(make_snapshot(make_pool("old", "old1")))
    first.reload(configured)
    first.set_answer("web", "app", Answer("app.internal", ("10.0.0.5", "10.0.0.6")))
    second = NodeState(configured, counts=counts)
    second.adopt(decode(encode(first.effective())))
    assert second.effective() == first.effective()


def test_a_new_supervisor_with_another_file_goes_on_counting(
    make_pool: Make, make_snapshot: Make, counts: Counts
) -> None:
    first = NodeState(make_snapshot(make_pool("web", "web1", "web2")), counts=counts)
    before = slots(first.effective())
    second = NodeState(make_snapshot(make_pool("web", "web2", "web3")), counts=counts)
    second.adopt(first.effective())
    after = slots(second.effective())
    assert after["web/web2"] == before["web/web2"]
    assert after["web/web3"] not in before.values()
    assert second.effective().version == first.effective().version + 1


def test_operators_words_outlive_a_restart(make_pool: Make, make_snapshot: Make, tmp_path: Path) -> None:
    configured = make_snapshot(make_pool("web", "web1", "web2"))
    first = Operator(NodeState(configured, tmp_path, wall=lambda: "2026-01-01T00:00:00Z"))
    first.drain("web1")
    first.weight("web2", 7)
    second = NodeState(configured, tmp_path)
    states = {server.name: (server.state, server.weight) for server in second.effective().pools[0].servers}
    assert states == {"web1": ("draining", 1), "web2": ("enabled", 7)}
    assert second.warnings == []
    third = NodeState(make_snapshot(make_pool("web", "web2")), tmp_path)
    assert third.warnings == ["web/web1: its state and weight set at run time are forgotten: no such server"]


def test_unreadable_overrides_are_a_warning(make_pool: Make, make_snapshot: Make, tmp_path: Path) -> None:
    (tmp_path / "overrides.json").write_text("{")
    node = NodeState(make_snapshot(make_pool("web", "web1")), tmp_path)
    assert len(node.warnings) == 1
    assert "set aside" in node.warnings[0]


# --- counts -------------------------------------------------------------------------------------------------------


def test_counts_are_summed_over_the_workers(make_pool: Make, make_snapshot: Make, counts: Counts) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1"), workers=2), counts=counts)
    server: Server = node.effective().pools[0].servers[0]
    for worker in (0, 1, 2):
        counts.cells[counts.row(server.slot) + worker * ROWS * COLUMNS + REQUESTS] = 10 + worker
    assert node.count(server.slot, REQUESTS) == 21
    node.blocks = 3
    assert node.cells(server.slot)[REQUESTS] == node.count(server.slot, REQUESTS) == 33
    assert node.cells(0) == [0] * COLUMNS


def test_a_removed_server_is_shown_while_it_has_sessions(make_pool: Make, make_snapshot: Make, counts: Counts) -> None:
    node = NodeState(make_snapshot(make_pool("web", "web1", "web2")), counts=counts)
    cell = counts.row(slots(node.effective())["web/web1"]) + ACTIVE
    counts.cells[cell] = 3
    node.reload(make_snapshot(make_pool("web", "web2")))
    rows = {row.name: row for row in Operator(node).rows()}
    assert (rows["web1"].state, rows["web1"].sessions) == ("draining", 3)
    counts.cells[cell] = 0
    assert [row.name for row in Operator(node).rows()] == ["web2"]


def test_a_pool_struct_is_untouched_but_for_rows(make_pool: Make, make_snapshot: Make) -> None:
    pool: Pool = make_pool("web", "web1", queue=7, slow_start=3.0)
    found = NodeState(make_snapshot(pool)).effective().pools[0]
    bare = [msgspec.structs.replace(server, slot=0) for server in found.servers]
    assert msgspec.structs.replace(found, slot=0, servers=tuple(bare)) == pool
