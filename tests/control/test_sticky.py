"""`l7lb table`: an operator looks into the sticky tables and changes them, over real sockets, in every worker at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, generate_latest

from l7lb.control.admin import AdminServer
from l7lb.control.client import AdminClient, AdminError
from l7lb.control.collector import Collector, Gathered
from l7lb.control.node import NodeState
from l7lb.control.sticky import StickyTables, show_limited
from l7lb.control.tables import limits, rendered, sticky_entries, sticky_tables
from l7lb.core.facts import Facts
from l7lb.core.snapshot import HeaderKey, LearnedCookie, Pool, SourceKey, TlsSessionKey
from l7lb.core.snapshot import Tables as Limits
from l7lb.persistence import Tables, make_stickiness
from l7lb.persistence import pins as pins_module
from l7lb.persistence import state as state_module
from l7lb.persistence.link import StateLink
from l7lb.persistence.messages import Hold, Spent
from l7lb.persistence.state import StateProcess, listen

pytestmark = pytest.mark.asyncio
Make = Callable[..., Any]
KEYS = (LearnedCookie("SID"), HeaderKey("X-User"), TlsSessionKey(), SourceKey(prefix4=24))


class Request(Facts):
    def __init__(self, source: str, user: str = "") -> None:
        super().__init__("http", "web", source)
        self.user = user

    def header(self, name: bytes) -> list[bytes]:
        return [self.user.encode()] if self.user and name == b"x-user" else []


class Worker:
    """A worker's tables, with the stickiness of a pool."""

    def __init__(self, pool: Pool, path: Path) -> None:
        self.tables = Tables(Limits(1000))
        self.stickiness = make_stickiness(pool, self.tables)
        assert self.stickiness is not None
        self.link = StateLink(self.tables, path)
        self.task = asyncio.get_running_loop().create_task(self.link.run())

    def find(self, request: Request) -> str | None:
        assert self.stickiness is not None
        found = self.stickiness.find(request, time.monotonic())
        return found[0] if found is not None else None

    def use(self, request: Request, server: str) -> None:
        assert self.stickiness is not None
        self.stickiness.chosen(request, server, time.monotonic())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Scene:
    """A state process, two workers, and the admin socket."""

    def __init__(self, tmp_path: Path, pools: list[Pool], node: NodeState) -> None:
        self.path = tmp_path / "state.sock"
        self.save = tmp_path / "tables"
        self.pools = pools
        self.node = node
        self.client = AdminClient(tmp_path / "admin.sock", 20.0)
        self.server = AdminServer(tmp_path / "admin.sock", node, None)  # type: ignore[arg-type]
        self.workers: list[Worker] = []
        self.state: StateProcess | None = None

    async def start(self) -> None:
        self.listening = listen(self.path)
        self.state = StateProcess(self.listening, self.save, 1000)
        self.state.load()
        self.running = asyncio.get_running_loop().create_task(self.state.run())
        self.workers = [Worker(self.pools[0], self.path) for _ in range(2)]
        for worker in self.workers:
            await asyncio.wait_for(worker.link.synced.wait(), 10)
        while len(self.state.workers) < 2:
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        for worker in self.workers:
            await worker.stop()
        assert self.state is not None
        self.state.ending.set()
        await self.running
        self.listening.close()

    async def get(self, what: str, **query: object) -> Any:
        return await asyncio.to_thread(self.client.get, what, **query)

    async def post(self, verb: str, **fields: object) -> str:
        return (await asyncio.to_thread(self.client.post, verb, **fields))["done"]

    async def refused(self, verb: str, **fields: object) -> str:
        with pytest.raises(AdminError) as caught:
            await self.post(verb, **fields)
        return str(caught.value)

    async def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end
            await asyncio.sleep(0.005)


@pytest_asyncio.fixture
async def scene(make_pool: Make, make_snapshot: Make, tmp_path: Path) -> AsyncIterator[Scene]:
    pools = [make_pool("web", "web1", "web2", persistence=KEYS), make_pool("api", "api1", persistence=(SourceKey(),))]
    made = Scene(tmp_path, pools, NodeState(make_snapshot(*pools)))
    await made.start()
    await made.server.start()
    yield made
    await made.server.stop()
    await made.stop()


async def test_tables_are_listed_with_what_they_hold(scene: Scene) -> None:
    one, other = scene.workers
    for number in range(5):
        one.use(Request(f"10.0.{number}.1"), "web1")
    await scene.until(lambda: other.find(Request("10.0.4.1")) == "web1")
    rows = {row["table"]: row for row in await scene.get("tables")}
    assert set(rows) == {"web/source", "web/header/x-user", "web/application_cookie/SID", "web/tls_session"}
    row = rows["web/source"]
    assert (row["entries"], row["size"], row["pins"], row["evicted"]) == (5, 1000, 0, 0)
    assert row["memory"] == 5 * 190
    assert row["hits"] >= 1
    text = rendered(sticky_tables(list(rows.values())), 200, False)
    assert "web/source" in text
    assert "EVICTED" in text


async def test_an_entry_is_found_by_its_key_in_the_user_s_words(scene: Scene) -> None:
    one, other = scene.workers
    one.use(Request("10.0.1.7", "anna"), "web1")
    await scene.until(lambda: other.find(Request("10.0.9.9", "anna")) == "web1")
    (entry,) = (await scene.get("table", table="web/source", key="10.0.1.99"))["entries"]
    assert (entry["key"], entry["server"], entry["pinned"]) == ("10.0.1.0", "web1", False)
    assert 0 < entry["expires"] <= 1800
    (entry,) = (await scene.get("table", table="web/header/x-user", key="anna"))["entries"]
    assert entry["key"].startswith("digest:")
    assert (await scene.get("table", table="web/header/x-user", key=entry["key"]))["entries"][0]["server"] == "web1"
    assert (await scene.get("table", table="web/header/x-user", key="bob"))["entries"] == []
    assert "web1" in rendered(sticky_entries({"entries": [entry], "more": True}), 120, False)


async def test_entries_of_a_server_up_to_a_limit(scene: Scene) -> None:
    one = scene.workers[0]
    for number in range(30):
        one.use(Request(f"10.0.{number}.1"), "web1" if number < 20 else "web2")
    await scene.until(lambda: scene.workers[1].find(Request("10.0.29.1")) == "web2")
    found = await scene.get("table", table="web/source", server="web2")
    assert (len(found["entries"]), found["more"]) == (10, False)
    found = await scene.get("table", table="web/source", server="web1", limit=7)
    assert (len(found["entries"]), found["more"]) == (7, True)


async def test_a_deletion_is_in_every_worker_before_it_is_answered(scene: Scene) -> None:
    one, other = scene.workers
    one.use(Request("10.0.1.1"), "web1")
    one.use(Request("10.0.2.1"), "web1")
    await scene.until(lambda: other.find(Request("10.0.2.1")) == "web1")
    assert await scene.post("table-delete", table="web/source", key="10.0.1.1") == "1 entry is deleted from web/source"
    assert [worker.find(Request("10.0.1.1")) for worker in scene.workers] == [None, None]
    assert one.find(Request("10.0.2.1")) == "web1"
    assert await scene.post("table-delete", table="web/source", key="10.0.1.1") == "web/source has no entry of 10.0.1.1"


async def test_all_entries_of_a_server_are_deleted(scene: Scene) -> None:
    one, other = scene.workers
    for number in range(200):
        one.use(Request(f"10.{number}.1.1"), "web1" if number % 2 else "web2")
    await scene.until(lambda: other.find(Request("10.199.1.1")) == "web1")
    done = await scene.post("table-delete", table="web/source", server="web1")
    assert done == "100 entries are deleted from web/source"
    for worker in scene.workers:
        assert sum(worker.find(Request(f"10.{number}.1.1")) == "web2" for number in range(200)) == 100
        assert sum(worker.find(Request(f"10.{number}.1.1")) == "web1" for number in range(200)) == 0


async def test_a_pin_goes_before_what_is_learned_in_every_worker_at_once(scene: Scene) -> None:
    one, other = scene.workers
    done = await scene.post("table-pin", table="web/source", key="10.0.1.1", server="web2")
    assert done == "10.0.1.1 is pinned to web/web2 in web/source until it is deleted"
    assert [worker.find(Request("10.0.1.1")) for worker in scene.workers] == ["web2", "web2"]
    one.use(Request("10.0.1.1"), "web1")  # the pinned one was down
    await scene.until(lambda: other.tables.get("web/source").users("web1") == 1)  # type: ignore[union-attr]
    assert [worker.find(Request("10.0.1.1")) for worker in scene.workers] == ["web2", "web2"]
    (entry,) = (await scene.get("table", table="web/source", key="10.0.1.1"))["entries"]
    assert (entry["server"], entry["pinned"], entry["expires"]) == ("web2", True, -1.0)
    assert next(row for row in await scene.get("tables") if row["table"] == "web/source")["pins"] == 1
    await scene.post("table-delete", table="web/source", key="10.0.1.1")
    assert [worker.find(Request("10.0.1.1")) for worker in scene.workers] == [None, None]


async def test_a_pin_for_a_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.post("table-pin", table="web/source", key="10.0.1.1", server="web2", seconds=3600.0)
    (entry,) = (await scene.get("table", table="web/source", key="10.0.1.1"))["entries"]
    assert 3580 < entry["expires"] <= 3600
    assert scene.workers[0].find(Request("10.0.1.1")) == "web2"
    later = time.time() + 3601
    monkeypatch.setattr(pins_module.time, "time", lambda: later)
    assert scene.workers[0].find(Request("10.0.1.1")) is None
    assert (await scene.get("table", table="web/source"))["entries"] == []


async def test_a_pin_survives_a_reload_a_restart_and_new_workers(scene: Scene) -> None:
    await scene.post("table-pin", table="web/source", key="10.0.1.1", server="web2")
    for worker in scene.workers:  # a reload makes the new stickiness before the old one goes
        worker.stickiness = make_stickiness(scene.pools[0], worker.tables)
        assert worker.find(Request("10.0.1.1")) == "web2"
    await scene.stop()
    await scene.start()
    assert [worker.find(Request("10.0.1.1")) for worker in scene.workers] == ["web2", "web2"]


@pytest.mark.parametrize(
    ("verb", "fields", "words"),
    [
        ("table-pin", {"table": "web/source", "key": "10.0.1.1", "server": "wbe1"}, "did you mean web1?"),
        ("table-pin", {"table": "web/source", "key": "anna", "server": "web1"}, "anna is not an address"),
        ("table-pin", {"table": "web/sauce", "key": "10.0.1.1", "server": "web1"}, "did you mean web/source?"),
        ("table-pin", {"table": "web/tls_session", "key": "xyz", "server": "web1"}, "hexadecimal digits, not as xyz"),
        (
            "table-pin",
            {"table": "web/source", "key": "10.1.1.1", "server": "web1", "seconds": 1e12},
            "3650 days at most",
        ),
        ("table-delete", {"table": "web/source"}, "say either the key of an entry, or the server"),
        ("table-delete", {"table": "web/source", "key": "10.0.0.1", "server": "web1"}, "say either the key"),
        ("table-delete", {"table": "web", "key": "x"}, "web has several tables: say web/application_cookie/SID"),
        ("table-delete", {"table": "api", "key": "10.0.0.1"}, "no worker has told of a table api/source yet"),
    ],
)
async def test_what_can_t_be_is_refused(scene: Scene, verb: str, fields: dict[str, Any], words: str) -> None:
    assert words in await scene.refused(verb, **fields)


async def test_pins_are_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l7lb.persistence.asking.PINS", 2)
    for number in range(2):
        await scene.post("table-pin", table="web/source", key=f"10.0.{number}.1", server="web1")
    words = await scene.refused("table-pin", table="web/source", key="10.0.7.1", server="web1")
    assert "there are 2 pins in this table already" in words
    await scene.post("table-delete", table="web/source", key="10.0.0.1")
    await scene.post("table-pin", table="web/source", key="10.0.7.1", server="web1")


async def test_a_worker_that_does_not_confirm_is_told_of(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "CONFIRM", 0.1)
    monkeypatch.setattr(scene.workers[0].link, "_apply", lambda message: None)
    done = await scene.post("table-pin", table="web/source", key="10.0.1.1", server="web2")
    assert done.endswith("; 1 workers have not confirmed it")


async def test_without_a_state_process_it_says_so(scene: Scene) -> None:
    scene.path.rename(scene.path.with_suffix(".away"))
    assert "the state process does not answer" in await scene.refused(
        "table-delete", table="web/source", key="10.0.0.1"
    )
    scene.path.with_suffix(".away").rename(scene.path)


async def test_who_is_at_a_limit_is_shown(scene: Scene) -> None:
    assert scene.state is not None
    scene.state.spending.hold(Hold("web/slow", 0.5, 4.0, 100))
    scene.state.spending.hold(Hold("web/key", 0.5, 10.0, 100))
    spent = [("web/slow", b"\xc0\x00\x02\x07", 4), ("web/key", b"\xff" * 15, 2)]
    scene.state.spending.spent(Spent(1, 1, spent), lambda _: None)
    first, second = await scene.get("limits")
    assert (first["limit"], first["burst"], first["rate"]) == ("web/slow", 4.0, 0.5)
    assert 1.0 < first["wait"] <= 2.0
    assert (second["key"], second["wait"]) == ("digest:" + "ff" * 15, 0.0)
    assert len(await scene.get("limits", limit=1)) == 1
    assert "web/slow" in rendered(limits([first, second]), 100, False)
    assert show_limited(b"\xc0\x00\x02\x07", True) == "192.0.2.7"
    assert show_limited(b"/login", False) == "/login"


async def test_tables_are_in_the_metrics(scene: Scene) -> None:
    scene.workers[0].use(Request("10.0.1.1"), "web1")
    await scene.until(lambda: scene.workers[1].find(Request("10.0.1.1")) == "web1")
    sticky = StickyTables(scene.node, scene.path)
    numbers = Gathered("lb1", "serving", 1, tables=await sticky.tables())
    registry = CollectorRegistry()
    registry.register(Collector(numbers))
    text = generate_latest(registry).decode()
    assert 'l7lb_table_entries{table="web/source"} 1.0' in text
    assert 'l7lb_table_hits_total{table="web/source"} ' in text
    assert 'l7lb_table_evicted_total{table="web/source"} 0.0' in text


async def test_what_is_listed_is_json(scene: Scene) -> None:
    assert json.dumps(await scene.get("tables"))


async def test_explain_knows_the_tables_and_the_pins(scene: Scene) -> None:
    async def explained(source: str, *headers: list[str]) -> tuple[str, str]:
        asked = {"protocol": "http", "url": "http://example.org/", "source": source, "headers": list(headers)}
        answer = await asyncio.to_thread(scene.client.post, "explain", **asked)
        return answer["server"], answer["why"]

    one, other = scene.workers
    one.use(Request("10.0.1.1", "anna"), "web2")
    one.use(Request("10.0.2.1"), "web1")
    await scene.until(lambda: other.find(Request("10.0.2.1")) == "web1")
    assert await explained("10.9.9.9", ["X-User", "anna"]) == ("web2", "the header keeps this user on web2")
    assert await explained("10.0.1.200") == ("web2", "the source keeps this user on web2")
    assert (await explained("10.9.9.9"))[1].startswith("web1: round-robin")
    await scene.post("table-pin", table="web/source", key="10.0.2.1", server="web2", seconds=60.0)
    assert await explained("10.0.2.1") == ("web2", "the source keeps this user on web2")
    assert one.find(Request("10.0.2.1")) == "web2"


async def test_explain_refuses_a_source_that_is_none(scene: Scene) -> None:
    assert await scene.refused("explain", protocol="http", url="http://example.org/", source="no") == (
        "no is not an address"
    )
