from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog

from l7lb.control import admin as module
from l7lb.control.admin import AdminServer
from l7lb.control.client import AdminClient, AdminError
from l7lb.control.node import NodeState
from l7lb.core.errors import ConfigurationError, Problem
from l7lb.core.snapshot import Health

pytestmark = pytest.mark.asyncio
Make = Callable[..., Any]


class Node:
    """A node whose admin socket is open, and a client of it."""

    def __init__(self, state: NodeState, supervisor: Any, path: Path) -> None:
        self.state = state
        self.supervisor = supervisor
        self.client = AdminClient(path, 10.0)
        self.server = AdminServer(path, state, supervisor)

    async def get(self, what: str, **query: object) -> Any:
        return await asyncio.to_thread(self.client.get, what, **query)

    async def post(self, verb: str, **fields: object) -> Any:
        with structlog.testing.capture_logs() as self.logs:
            return await asyncio.to_thread(self.client.post, verb, **fields)

    async def refused(self, verb: str, **fields: object) -> str:
        with pytest.raises(AdminError) as caught:
            await self.post(verb, **fields)
        return str(caught.value)

    async def raw(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self.client.path))
        writer.write(data)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


@pytest_asyncio.fixture
async def node(make_pool: Make, make_snapshot: Make, supervisor: Any, tmp_path: Path) -> AsyncIterator[Node]:
    configured = make_snapshot(
        make_pool("web", "web1", "web2", health=Health(kind="tcp")),
        make_pool("api", "api1"),
        file=str(tmp_path / "l7lb.yaml"),
    )
    made = Node(NodeState(configured, tmp_path / "state"), supervisor, tmp_path / "admin.sock")
    await made.server.start()
    yield made
    await made.server.stop()


# --- to see -------------------------------------------------------------------------------------------------------


async def test_status_and_sessions_are_the_supervisors(node: Node) -> None:
    assert (await node.get("status"))["node"] == "lb1"
    (row,) = await node.get("sessions")
    assert {key: row[key] for key in ("protocol", "client", "pool", "server", "mailbox", "since")} == {
        "protocol": "http",
        "client": "192.0.2.7:40000",
        "pool": "web",
        "server": "web1",
        "mailbox": "",
        "since": "2026-01-01T00:00:00Z",
    }


async def test_servers_have_the_shape_that_programs_rely_on(node: Node) -> None:
    node.state.set_health("web", "web2", False, "connect refused (3 of 3 checks)")
    rows = await node.get("servers")
    keys = ("pool", "name", "address", "state", "weight", "sessions", "why")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("web", "web1", "127.0.0.1:9001", "up", 1, 0, "never checked yet"),
        ("web", "web2", "127.0.0.1:9002", "down", 1, 0, "connect refused (3 of 3 checks)"),
        ("api", "api1", "127.0.0.1:9001", "up", 1, 0, ""),
    ]
    assert [row["name"] for row in await node.get("servers", pool="api")] == ["api1"]
    with pytest.raises(AdminError, match="no pool apx: did you mean api"):
        await node.get("servers", pool="apx")


@pytest.mark.parametrize("limit", ["0", "-1", "x", "100001", "9" * 30, "1.5", "²"])
async def test_a_senseless_limit_is_refused(node: Node, limit: str) -> None:
    with pytest.raises(AdminError, match="limit is a number from 1 to 100000"):
        await node.get("sessions", limit=limit)


# --- to change ----------------------------------------------------------------------------------------------------


async def test_verbs_change_the_node_and_are_logged_with_who_it_was(node: Node) -> None:
    assert (await node.post("drain", server="web1"))["done"].startswith("web/web1 drains")
    assert node.logs == [
        {
            "event": "web/web1 drains: it keeps the users it has and gets no new ones",
            "log_level": "info",
            "by_pid": os.getpid(),
            "by_user": os.getuid(),
        }
    ]
    assert (await node.get("servers"))[0]["state"] == "draining"
    await node.post("undrain", server="web1")
    await node.post("disable", server="web/web2")
    await node.post("weight", server="api1", weight=5)
    states = [(row["state"], row["weight"]) for row in await node.get("servers")]
    assert states == [("up", 1), ("disabled", 1), ("up", 5)]
    await node.post("enable", server="web2")
    await node.post("weight", server="api1", weight=None)
    assert [(row["state"], row["weight"]) for row in await node.get("servers")] == [("up", 1)] * 3


async def test_a_server_is_added_and_removed(node: Node) -> None:
    await node.post("add-server", pool="api", name="api9", address="[::1]:80", weight=3, max_connections=7, backup=True)
    await node.post("add-server", pool="api", name="sock", address="unix:run/x.sock")
    rows = {row["name"]: row for row in await node.get("servers", pool="api")}
    assert (rows["api9"]["address"], rows["api9"]["weight"], rows["api9"]["max_connections"]) == ("[::1]:80", 3, 7)
    assert rows["sock"]["address"] == f"unix:{node.client.path.parent}/run/x.sock"
    await node.post("add-server", pool="api", name="mx3", address="10.0.0.3", ports={"imap4": 143, "pop3": 110})
    found = next(row for row in await node.get("servers", pool="api") if row["name"] == "mx3")
    assert (found["address"], found["ports"]) == ("10.0.0.3:143", {"imap4": 143, "pop3": 110})
    await node.post("remove-server", server="api/api9")
    assert "api9" not in {row["name"] for row in await node.get("servers")}


@pytest.mark.parametrize(
    ("verb", "fields", "words"),
    [
        ("drain", {"server": "wbe1"}, "no server wbe1: did you mean web1?"),
        ("drain", {}, "Object missing required field `server`"),
        ("drain", {"server": 1}, "Expected `str`, got `int`"),
        ("drain", {"server": "web1", "force": True}, "unknown field `force`"),
        ("weight", {"server": "web1", "weight": 70_000}, "a weight is from 0 to 65535, not 70000"),
        ("weight", {"server": "web1", "weight": "1"}, "Expected `int | null`, got `str`"),
        ("add-server", {"pool": "web", "name": "web1", "address": "10.0.0.1:80"}, "already has a server web1"),
        ("add-server", {"pool": "web", "name": "web9", "address": "10.0.0.1"}, "has no port"),
        ("add-server", {"pool": "web", "name": "web9"}, "web/web9 needs an address"),
        ("add-server", {"pool": "web", "name": "web9", "send_proxy": "v3"}, "'v3' is no version of the PROXY protocol"),
        ("add-server", {"pool": "web", "name": "a/b", "address": "10.0.0.1:80"}, "'a/b' is not a server's name"),
        ("add-server", {"pool": "web", "name": "a@b", "address": "10.0.0.1:80"}, "'a@b' is not a server's name"),
        ("add-server", {"pool": "web", "name": "", "address": "10.0.0.1:80"}, "'' is not a server's name"),
        ("add-server", {"pool": "web", "name": "w9", "address": "h:80", "weight": -1}, "a weight is from 0"),
        (
            "add-server",
            {"pool": "web", "name": "w9", "address": "h", "ports": {"imap4": 0}},
            "ports are from 1 to 65535",
        ),
        ("add-server", {"pool": "web", "name": "w9", "address": "h:80", "ports": {"imap4": 1}}, "is not an IP address"),
        ("add-server", {"pool": "web", "name": "w9", "ports": {"imap4": 1}}, "the host is missing"),
        ("dance", {}, "404: Not Found"),
    ],
)
async def test_what_is_wrong_is_said_in_plain_words(node: Node, verb: str, fields: dict[str, Any], words: str) -> None:
    before = node.state.effective()
    assert words in await node.refused(verb, **fields)
    assert node.state.effective() is before


async def test_a_reload_tells_notes_or_problems(node: Node) -> None:
    node.supervisor.reloads = [
        ["web/web1 stays removed"],
        ConfigurationError([Problem("l7lb.yaml", 3, 5, "pools", "x")]),
    ]
    assert (await node.post("reload"))["notes"] == ["web/web1 stays removed"]
    with pytest.raises(AdminError, match="the old one stays") as caught:
        await node.post("reload")
    assert caught.value.details == ("l7lb.yaml:3:5: pools: x",)


async def test_a_fault_of_our_own_is_no_traceback_for_the_operator(node: Node) -> None:
    node.supervisor.reloads = [ZeroDivisionError("x")]
    assert await node.refused("reload") == "a fault in l7lb itself: its log says more"
    assert node.logs[-1]["log_level"] == "error"


async def test_shutdown(node: Node) -> None:
    await node.post("shutdown")
    assert node.supervisor.ended


# --- a running node explains --------------------------------------------------------------------------------------


async def test_explain_sees_the_servers_as_they_are(node: Node) -> None:
    answer = await node.post("explain", protocol="http", url="http://example.org/")
    assert (answer["pool"], answer["server"]) == ("web", "web1")
    node.state.set_health("web", "web1", False, "connect refused")
    answer = await node.post("explain", protocol="http", url="http://example.org/")
    assert answer["server"] == "web2"
    await node.post("disable", server="web2")
    answer = await node.post("explain", protocol="http", url="http://example.org/")
    assert answer["server"] == ""
    assert answer["outcome"] == "to pool web, which has no server for it: 503"
    assert [line.split(": ")[1].split(",")[0] for line in answer["servers"]] == ["down", "disabled"]


# --- the socket ---------------------------------------------------------------------------------------------------


async def test_only_the_owner_may_connect_and_the_socket_goes_with_the_node(node: Node) -> None:
    assert stat.S_IMODE(node.client.path.stat().st_mode) == 0o600
    await node.server.stop()
    assert not node.client.path.exists()
    assert [path.name for path in node.client.path.parent.glob("admin*")] == []


async def test_a_stale_socket_is_replaced_and_a_successors_is_left_alone(
    node: Node, make_pool: Make, make_snapshot: Make, supervisor: Any
) -> None:
    path = node.client.path
    second = AdminServer(path, NodeState(make_snapshot(make_pool("new", "new1"))), supervisor)
    await second.start()
    await node.server.stop()
    assert [row["pool"] for row in await node.get("servers")] == ["new"]
    await second.stop()
    assert not path.exists()


async def test_a_file_in_the_sockets_place_is_not_overwritten(
    make_pool: Make, make_snapshot: Make, supervisor: Any, tmp_path: Path
) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match="is no socket"):
        await AdminServer(path, NodeState(make_snapshot(make_pool("web", "web1"))), supervisor).start()
    assert path.read_text() == "precious"
    assert [found.name for found in tmp_path.iterdir()] == ["admin.sock"]


async def test_a_path_longer_than_the_kernels_address(
    make_pool: Make, make_snapshot: Make, supervisor: Any, tmp_path: Path
) -> None:
    path = tmp_path / ("d" * 120) / "run" / "admin.sock"
    made = Node(NodeState(make_snapshot(make_pool("web", "web1"))), supervisor, path)
    await made.server.start()
    try:
        assert len(await made.get("servers")) == 1
    finally:
        await made.server.stop()


async def test_a_body_beyond_the_limit_is_refused(node: Node) -> None:
    assert "Maximum request body size 65536 exceeded" in await node.refused("drain", server="x" * 70_000)


async def test_what_is_no_json_or_no_http_harms_nobody(node: Node) -> None:
    head = b"POST /v1/drain HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
    answer = await node.raw(head + b"\xff{]x")
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert b"can't be understood" in answer
    assert b" 400 " in (await node.raw(b"\x00\x01\x02\r\n\r\n")).split(b"\r\n")[0]
    assert (await node.get("status"))["node"] == "lb1"


async def test_a_slow_body_ends_with_its_time(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ", 0.05)
    answer = await node.raw(b"POST /v1/drain HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 40\r\n\r\n{")
    assert b"the request did not arrive in time" in answer


async def test_a_silent_client_is_cut_off_and_too_many_are_not_let_in(
    make_pool: Make, make_snapshot: Make, supervisor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.2)
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    path = tmp_path / "admin.sock"
    server = AdminServer(path, NodeState(make_snapshot(make_pool("web", "web1"))), supervisor)
    await server.start()
    try:
        silent = [await asyncio.open_unix_connection(str(path)) for _ in range(3)]
        async with asyncio.timeout(5):
            assert await silent[2][0].read() == b""
            assert not silent[0][0].at_eof()
            assert [await reader.read() for reader, _ in silent[:2]] == [b"", b""]
        for _, writer in silent:
            writer.close()
    finally:
        await server.stop()


# --- the client ---------------------------------------------------------------------------------------------------


async def test_the_client_says_what_is_wrong_with_the_socket(tmp_path: Path) -> None:
    def words(path: Path) -> str:
        with pytest.raises(AdminError) as caught:
            AdminClient(path, 0.1).get("status")
        return str(caught.value)

    none = tmp_path / "none.sock"
    assert words(none) == f"there is no socket at {none}: is l7lb running? `l7lb serve --config FILE` starts it"
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(stale))
    assert words(stale).startswith(f"nobody listens at {stale}: is l7lb running?")
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert words(plain / "x").startswith("there is no socket at")
    with socket.socket(socket.AF_UNIX) as listening:
        hangs = tmp_path / "hangs.sock"
        listening.bind(str(hangs))
        listening.listen()
        assert words(hangs) == f"l7lb did not answer at {hangs} within 0.1 s"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0\r\n\r\n", "is not l7lb"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{x", "is not l7lb"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n[]", "status 500"),
        (b"", "closed the connection without an answer"),
    ],
)
async def test_the_client_knows_who_is_not_l7lb(tmp_path: Path, answer: bytes, words: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    path = tmp_path / "x.sock"
    async with await asyncio.start_unix_server(serve, str(path)):
        with pytest.raises(AdminError, match=words):
            await asyncio.to_thread(AdminClient(path, 5.0).get, "status")
