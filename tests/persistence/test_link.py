"""Workers and a state process in one event loop: what one learns the others know."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import time
from pathlib import Path

import pytest
from sticky_helpers import Nodes, running, until

from l7lb.core.snapshot import Tables as Limits
from l7lb.persistence import exchange
from l7lb.persistence import state as state_module
from l7lb.persistence import table as table_module
from l7lb.persistence.messages import (
    ALL,
    PROTOCOL,
    Changes,
    Follow,
    Join,
    Leave,
    Seen,
    Taught,
    Welcome,
    frame,
    from_state,
)
from l7lb.persistence.state import AlreadyServed, StateProcess, listen
from l7lb.persistence.table import Table

pytestmark = pytest.mark.asyncio


def knows(table: Table, key: bytes, server: str | None) -> bool:
    return table.get(key, time.monotonic()) == server


def put(table: Table, key: bytes, server: str) -> None:
    table.put(key, server, time.monotonic())


async def test_what_one_learns_the_other_knows(state: StateProcess, nodes: Nodes) -> None:
    one, other = nodes(), nodes()
    a, b = one.table(), other.table()
    await until(lambda: one.link.synced.is_set() and other.link.synced.is_set())
    assert one.link.connected
    put(a, b"anna", "web1")
    await until(lambda: knows(b, b"anna", "web1"))
    put(b, b"anna", "web2")
    await until(lambda: knows(a, b"anna", "web2"))
    a.delete(b"anna", time.monotonic())
    await until(lambda: knows(b, b"anna", None))


async def test_changes_are_not_echoed(state: StateProcess, nodes: Nodes) -> None:
    one, other = nodes(), nodes()
    a, b = one.table(), other.table()
    for number in range(50):
        put(a, b"%d" % number, "web1")
    await until(lambda: len(b) == 50)
    assert state.tables["web/source"].sequence == 50
    assert b.sequence == 0


async def test_a_newcomer_is_taught(state: StateProcess, nodes: Nodes) -> None:
    one = nodes(size=20_000)
    a = one.table()
    for number in range(5000):
        put(a, b"%d" % number, f"web{number % 3}")
    await until(lambda: len(state.tables.get("web/source", ())) == 5000)
    late = nodes(size=20_000)
    b = late.table()
    await late.link.synced.wait()
    assert len(b) == 5000
    assert all(knows(b, b"%d" % number, f"web{number % 3}") for number in range(5000))


async def test_without_tables_there_is_nothing_to_wait_for(state: StateProcess, nodes: Nodes) -> None:
    await nodes().link.synced.wait()


async def test_a_table_made_later_is_followed(state: StateProcess, nodes: Nodes) -> None:
    one, other = nodes(), nodes()
    a = one.table("api/source")
    put(a, b"anna", "api1")
    await until(lambda: len(state.tables.get("api/source", ())) == 1)
    await other.link.synced.wait()
    b = other.table("api/source")
    await until(lambda: knows(b, b"anna", "api1"))


async def test_tables_do_not_mix(state: StateProcess, nodes: Nodes) -> None:
    one, other = nodes(), nodes()
    a, b = one.table("web/source"), one.table("api/source")
    c, d = other.table("web/source"), other.table("api/source")
    put(a, b"anna", "web1")
    put(b, b"anna", "api1")
    await until(lambda: knows(c, b"anna", "web1") and knows(d, b"anna", "api1"))


async def test_settings_of_a_reload_reach_the_state_process(state: StateProcess, nodes: Nodes) -> None:
    one = nodes()
    held = one.table(ttl=600.0)
    await until(lambda: "web/source" in state.tables)
    assert held is one.table(ttl=60.0)
    one.tables.resize(Limits(77))
    await until(lambda: state.tables["web/source"].ttl == 60.0 and state.tables["web/source"].size == 77)


async def test_a_table_that_nobody_holds_is_left_and_can_come_again(state: StateProcess, nodes: Nodes) -> None:
    one = nodes()
    held = one.table()
    put(held, b"anna", "web1")
    await until(lambda: len(state.tables.get("web/source", ())) == 1)
    del held
    gc.collect()
    keep = one.table("other")
    await until(lambda: "other" in state.tables)
    assert keep.name == "other"
    (worker,) = state.workers
    await until(lambda: set(worker.following) == {"other", "other#pins"})
    again = one.table()
    await until(lambda: knows(again, b"anna", "web1"))


async def test_a_table_of_the_same_name_is_taught_anew(state: StateProcess, nodes: Nodes) -> None:
    one = nodes()
    held = one.table()
    put(held, b"anna", "web1")
    await until(lambda: len(state.tables.get("web/source", ())) == 1)
    del held
    gc.collect()
    again = one.table()
    await until(lambda: knows(again, b"anna", "web1"))


async def test_a_link_that_was_down_goes_on_where_it_was(state: StateProcess, nodes: Nodes) -> None:
    one, other = nodes(), nodes()
    a, b = one.table(), other.table()
    put(a, b"before", "web1")
    await until(lambda: knows(b, b"before", "web1"))
    await until(lambda: a.since(0, 10) is None)  # it was seen, and left the journal
    await other.stop()
    put(a, b"during", "web2")
    put(b, b"meanwhile", "web3")
    await until(lambda: len(state.tables["web/source"]) == 2)
    other.start()
    await until(lambda: knows(b, b"during", "web2") and knows(a, b"meanwhile", "web3"))


async def test_a_backlog_beyond_the_journal_becomes_a_teaching(
    socket_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "JOURNAL", 100)
    async with running(socket_path):
        one, other = nodes(), nodes()
        a, b = one.table(), other.table()
        await other.link.synced.wait()
        for number in range(1000):
            put(a, b"%d" % number, "web1")
        assert a.since(0, 10) is None
        await until(lambda: len(b) == 1000)


async def test_a_new_state_process_is_taught_by_the_workers(socket_path: Path, nodes: Nodes) -> None:
    one, other = nodes(), nodes()
    a, b = one.table(), other.table()
    for life in range(3):
        async with running(socket_path) as process:
            put(a, b"a%d" % life, "web1")
            put(b, b"b%d" % life, "web2")
            count = 2 * (life + 1) + (life > 0)
            await until(lambda count=count, process=process: len(process.tables.get("web/source", ())) == count)
            await until(lambda count=count: len(a) == len(b) == count)
            late = nodes()
            c = late.table()
            await late.link.synced.wait()
            assert len(c) == count
            await late.stop()
        await until(lambda: not one.link.connected and not other.link.connected)
        put(a, b"alone", "web3")
        assert knows(a, b"alone", "web3")


async def test_long_absence_is_logged_once_and_return_too(
    socket_path: Path, nodes: Nodes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l7lb.persistence.link.PATIENCE", 0.05)
    monkeypatch.setattr("l7lb.persistence.link.MAX_BACKOFF", 0.05)
    caplog.set_level(logging.INFO, "l7lb.persistence")
    one = nodes()
    await until(lambda: len(caplog.records) == 1)
    assert "no state process" in caplog.text
    async with running(socket_path):
        await until(lambda: one.link.connected)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


# --- other sides that misbehave -----------------------------------------------------------------------------


class Raw:
    """A worker by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hear(self) -> object:
        return from_state.decode(await exchange.receive(self.reader))

    async def ends(self) -> bool:
        """Whether the other side closes; what it said before doesn't matter."""
        try:
            async with asyncio.timeout(10.0):
                while await self.reader.read(65536):
                    pass
        except ConnectionError:
            pass
        self.writer.transport.abort()
        return True


async def raw(path: Path, join: bool = True, origin: int = 5) -> Raw:
    client = Raw(*await asyncio.open_unix_connection(str(path)))
    if join:
        await client.say(frame(Join(PROTOCOL, origin, 0)))
        assert isinstance(await client.hear(), Welcome)
    return client


GARBAGE = {
    "garbage": b"GET / HTTP/1.1\r\n\r\n",
    "no MessagePack": b"\x00\x00\x00\x03abc",
    "a state process's word": frame(Welcome(PROTOCOL, 1)),
    "too long": b"\xff\xff\xff\xff",
    "not introduced": frame(Leave("t")),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
async def test_nonsense_ends_the_connection_and_nothing_else(
    state: StateProcess, nodes: Nodes, socket_path: Path, data: bytes
) -> None:
    client = await raw(socket_path, join=False)
    await client.say(data)
    assert await client.ends()
    one, other = nodes(), nodes()
    a, b = one.table(), other.table()
    put(a, b"anna", "web1")
    await until(lambda: knows(b, b"anna", "web1"))


IMPOSSIBLE = {
    "twice introduced": frame(Join(PROTOCOL, 5, 0)),
    "table not held": frame(Changes("t", 1, [])),
    "taught but not held": frame(Taught("t", 1)),
    "no name": frame(Follow("", 1.0, 10, ALL)),
    "long name": frame(Follow("t" * 1025, 1.0, 10, ALL)),
    "no time": frame(Follow("t", 0.0, 10, ALL)),
    "no number": frame(Follow("t", float("nan"), 10, ALL)),
    "no size": frame(Follow("t", 1.0, 0, ALL)),
    "bad change": frame(Follow("t", 1.0, 10, ALL)) + frame(Changes("t", 1, [(b"", "s", 1, 1)])),
}


@pytest.mark.parametrize("data", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
async def test_the_impossible_ends_the_connection(state: StateProcess, socket_path: Path, data: bytes) -> None:
    client = await raw(socket_path)
    await client.say(data)
    assert await client.ends()
    await until(lambda: not state.workers)


async def test_tables_are_limited(state: StateProcess, socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "MAX_TABLES", 3)
    client = await raw(socket_path)
    for number in range(4):
        await client.say(frame(Follow(f"t{number}", 1.0, 10, ALL)))
    assert await client.ends()
    assert len(state.tables) == 3


async def test_workers_are_limited(state: StateProcess, socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "MAX_WORKERS", 1)
    first = await raw(socket_path)
    second = await raw(socket_path, join=False)
    await second.say(frame(Join(PROTOCOL, 6, 0)))
    assert "workers already" in str(await second.hear())
    assert await second.ends()
    first.writer.transport.abort()


async def test_another_protocol_is_refused(state: StateProcess, socket_path: Path) -> None:
    client = await raw(socket_path, join=False)
    await client.say(frame(Join(99, 5, 0)))
    assert f"protocol {PROTOCOL}, not 99" in str(await client.hear())
    assert await client.ends()


async def test_who_says_nothing_is_given_up(
    state: StateProcess, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "STALL", 0.05)
    assert await (await raw(socket_path, join=False)).ends()


async def test_who_does_not_read_is_given_up_and_taught_anew(
    state: StateProcess, nodes: Nodes, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = nodes(size=50_000)
    a = one.table()
    for number in range(30_000):
        put(a, b"%d" % number, "a-server-with-a-long-name-of-some-fifty-characters")
    await until(lambda: len(state.tables.get("web/source", ())) == 30_000)
    monkeypatch.setattr(exchange, "STALL", 0.1)
    slow = socket.socket(socket.AF_UNIX)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(str(socket_path))
    slow.sendall(frame(Join(PROTOCOL, 5, 0)) + frame(Follow("web/source", 600.0, 50_000, ALL)))
    await until(lambda: len(state.workers) == 2)
    await until(lambda: len(state.workers) == 1)
    slow.close()
    other = nodes(size=50_000)
    b = other.table()
    await other.link.synced.wait()
    assert len(b) == 30_000


async def test_the_worker_survives_a_state_process_that_talks_nonsense(socket_path: Path, nodes: Nodes) -> None:
    answers = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame(Seen("t", 1)),
        frame(Welcome(99, 1)),
        frame(Welcome(PROTOCOL, 1)) + frame(Welcome(1, 1)),
        frame(Welcome(PROTOCOL, 1)) + frame(Changes("web/source", ALL, [(b"", "s", 1, 1)])),
        frame(Welcome(PROTOCOL, 1)) + b"\xff\xff\xff\xff",
        b"",
    ]
    served = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await reader.readexactly(4)
        writer.write(answers[served % len(answers)])
        served += 1
        writer.close()

    one = nodes(start=False)
    a = one.table()
    server = await asyncio.start_unix_server(answer, str(socket_path))
    one.start()
    await until(lambda: served >= len(answers))
    server.close()
    socket_path.unlink(missing_ok=True)
    async with running(socket_path) as process:
        put(a, b"anna", "web1")
        await until(lambda: len(process.tables.get("web/source", ())) == 1)


# --- the state process's own housekeeping -------------------------------------------------------------------


async def test_a_table_that_is_empty_and_nobodys_goes(
    socket_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "TICK", 0.01)
    async with running(socket_path) as state:
        one = nodes()
        a = one.table(ttl=0.1)
        put(a, b"anna", "web1")
        await until(lambda: "web/source" in state.tables and len(state.tables["web/source"]) == 1)
        sequence = state.tables["web/source"].sequence
        await one.stop()
        await until(lambda: "web/source" not in state.tables)
        other = nodes()
        b = other.table(ttl=60.0)
        await until(lambda: "web/source" in state.tables)
        assert state.tables["web/source"].sequence == sequence  # no number is used twice
        put(b, b"anna", "web2")
        one.start()
        await until(lambda: knows(a, b"anna", "web2"))


async def test_without_parent_and_workers_it_ends(
    socket_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "TICK", 0.01)
    monkeypatch.setattr(state_module, "ORPHANED", 0.05)
    async with running(socket_path) as state:
        one = nodes()
        await one.link.synced.wait()
        monkeypatch.setattr(state_module.os, "getppid", lambda: 1)
        start = time.monotonic()
        await until(lambda: state._alone_since > start + 0.1)
        assert not state.ending.is_set()  # the worker still needs it
        await one.stop()
        await until(state.ending.is_set)


async def test_without_parent_it_makes_room_for_the_state_process_of_the_next_node(
    socket_path: Path, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(socket_path) as state:
        one = nodes()
        await one.link.synced.wait()
        knocks = 0

        async def receive(reader: asyncio.StreamReader) -> bytes:
            nonlocal knocks
            try:
                return await received(reader)
            finally:
                knocks += 1

        received = state_module.receive
        monkeypatch.setattr(state_module, "receive", receive)
        with pytest.raises(state_module.AlreadyServed):
            state_module.listen(socket_path)
        await until(lambda: knocks > 0)
        await asyncio.sleep(0)
        assert not state.ending.is_set()  # its node is there
        monkeypatch.setattr(state_module.os, "getppid", lambda: 1)
        with pytest.raises(state_module.AlreadyServed):
            state_module.listen(socket_path)
        await until(state.ending.is_set)


async def test_tables_are_saved_at_times_where_something_changed(
    socket_path: Path, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "SAVE_INTERVAL", 0.01)
    path = tmp_path / "tables"
    one = nodes()
    a = one.table()
    async with running(socket_path, path) as state:
        await one.link.synced.wait()
        assert not path.exists()
        put(a, b"anna", "web1")
        await until(lambda: state._saved_changes == 1)
        path.unlink()
        assert await state._save()
        assert not path.exists()  # nothing has changed
        put(a, b"berta", "web1")
        await until(path.exists)


async def test_a_full_disk_is_said_and_tried_again(
    socket_path: Path, nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state_module, "SAVE_INTERVAL", 0.01)
    path = tmp_path / "missing" / "tables"
    one = nodes()
    a = one.table()
    async with running(socket_path, path):
        put(a, b"anna", "web1")
        await until(lambda: "can't be saved" in caplog.text)
        path.parent.mkdir()
        await until(path.exists)


async def test_a_living_socket_is_not_taken(state: StateProcess, socket_path: Path) -> None:
    with pytest.raises(AlreadyServed):
        listen(socket_path)


async def test_a_dead_socket_is_replaced(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path))
    with listen(socket_path):
        assert socket_path.stat().st_mode & 0o777 == 0o600


async def test_a_file_in_the_socket_s_place_is_left_alone(socket_path: Path) -> None:
    socket_path.write_text("precious")
    with pytest.raises(OSError, match="use"):
        listen(socket_path)
    assert socket_path.read_text() == "precious"
