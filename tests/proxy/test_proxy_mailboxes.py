"""Sessions with mailboxes: directory, claim, server, and what ends them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from mailbox_scene import Client, Scene, mailbox_scene

from l7lb.core.contracts import Entry
from l7lb.persistence import claims as claims_module
from l7lb.persistence import mailboxes as engine_module
from l7lb.testing.servers import ScriptedServer
from l7lb.testing.wire import Wire

pytestmark = pytest.mark.asyncio

MOVES = "*the mailbox moves to another server"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "REST", 0.01)
    monkeypatch.setattr(claims_module, "PATIENCE", 0.3)


async def test_all_protocols_and_workers_meet_on_one_server(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        scene.worker()
        scene.worker()
        client, answer = await scene.login("Anna")
        assert answer == "+a"
        scene.workers[1].runtime.dispatcher.pools["mail"].state.by_name["a"].ejected = True  # new users go elsewhere
        other, answer = await scene.login("anna@example.com", 1, "pop3")
        assert answer == "+a"
        _, answer = await scene.login("ben", 1)
        assert answer == "+b"
        client.close()
        other.close()


async def test_the_end_of_a_session_gives_its_claim_back(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        worker = scene.worker()
        client, _ = await scene.login("anna")
        assert scene.open() == 1
        client.close()
        await scene.until(lambda: not scene.open() and len(worker.link.claims) == 0)


async def test_a_client_that_leaves_while_it_waits_leaves_nothing(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        worker = scene.worker()
        await scene.until(lambda: worker.link.claims.connected)
        assert scene.process is not None
        engine = scene.process.mailboxes.engine
        engine.move(("mail", b"anna@example.com"), 900.0, 10.0, asyncio.get_running_loop().time(), lambda ready: None)
        client = await scene.connect()
        client.writer.write(b"LOGIN anna\n")
        await scene.until(lambda: len(worker.link.claims) == 1)
        client.close()
        await scene.until(lambda: not worker.runtime.connections and len(worker.link.claims) == 0)
        engine.abort(("mail", b"anna@example.com"), 0.0)
        await scene.until(lambda: not scene.open())


async def test_a_down_server_s_sessions_end_before_its_mailbox_moves(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        scene.worker()
        scene.worker()
        client, answer = await scene.login("anna")
        assert answer == "+a"
        first = await scene.servers["a"].accept()
        scene.judge("a", False)
        other = await scene.connect(1)
        assert await other.login("anna") == "+b"
        assert await client.line() == MOVES
        assert await first.read() == b""
        first.close()


async def test_a_session_that_can_not_connect_goes_elsewhere_alone(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        worker = scene.worker()
        scene.servers["a"].refuse()
        _, answer = await scene.login("anna")
        assert answer == "+b"
        assert scene.process is not None
        row = scene.process.mailboxes.engine.row(("mail", b"anna@example.com"), 0.0)
        assert row is not None
        assert row.server == "b"
        assert row.sessions == 1
        scene.servers["b"].refuse()
        _, answer = await scene.login("anna")
        assert answer == "-connect-refused"
        assert len(worker.link.claims) == 1


async def test_a_mailbox_stays_on_a_server_that_drains(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        worker = scene.worker()
        await scene.login("anna")
        scene.states["a"] = "draining"
        worker.runtime.apply(scene.snapshot())
        _, answer = await scene.login("anna")
        assert answer == "+a"
        _, answer = await scene.login("ben")
        assert answer == "+b"


async def test_a_disabled_server_s_mailboxes_move(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        worker = scene.worker()
        client, _ = await scene.login("anna")
        scene.states["a"] = "disabled"
        worker.runtime.apply(scene.snapshot())
        _, answer = await scene.login("anna")
        assert answer == "+b"
        assert await client.line() == MOVES


async def test_a_server_that_is_no_longer_there(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        worker = scene.worker()
        client, _ = await scene.login("anna")
        del scene.servers["a"]
        worker.runtime.apply(scene.snapshot())
        _, answer = await scene.login("anna")
        assert answer == "+b"
        assert await client.line() == MOVES


async def test_without_a_server_a_login_fails(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        worker = scene.worker()
        _client, _ = await scene.login("anna")
        for server in "abc":
            scene.judge(server, False)
        _, answer = await scene.login("anna")
        assert answer == "-mailbox-server"
        _, answer = await scene.login("ben")
        assert answer == "-no-server"
        assert len(worker.link.claims) == 1


async def test_without_a_state_process_a_login_fails_after_a_while(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        worker = scene.worker()
        _client, _ = await scene.login("anna")
        await scene.end()
        _, answer = await scene.login("anna")
        assert answer == "-no-state"
        await scene.begin()
        scene.worker()
        await scene.until(lambda: worker.link.claims.connected)
        scene.judge("a", True)
        _, answer = await scene.login("anna", 1)
        assert answer == "+a"


# --- directories


async def test_a_directory_names_mailbox_server_and_user(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        scene.directory = ("people",)
        entry = scene.book.entries[b"anna@example.com"] = Entry(b"store-7", "c")
        entry.user = b"master"
        scene.worker()
        _, answer = await scene.login("Anna")
        assert answer == "+c master"
        question = scene.book.questions[0]
        assert (question.address, question.user, question.protocol) == (b"anna@example.com", b"anna", "imap4")
        assert question.client == "127.0.0.1"
        assert scene.process is not None
        assert scene.process.mailboxes.engine.row(("mail", b"store-7"), 0.0) is not None


async def test_aliases_of_a_mailbox_meet(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        scene.directory = ("people",)
        scene.book.entries[b"anna@example.com"] = scene.book.entries[b"a@example.com"] = Entry(b"anna")
        scene.worker()
        assert (await scene.login("anna"))[1] == "+a"
        scene.workers[0].runtime.dispatcher.pools["mail"].state.by_name["a"].ejected = True
        assert (await scene.login("a", 0, "pop3"))[1] == "+a"


async def test_what_directories_do_not_know(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        scene.directory = ("people",)
        book = scene.book
        scene.worker()
        assert (await scene.login("anna"))[1] == "-no-mailbox"
        book.missing = "pool"
        assert (await scene.login("anna"))[1] == "+a"
        book.entries[b"ben@example.com"] = Entry(b"", "x")
        assert (await scene.login("ben"))[1] == "-mailbox-server"
        book.unknown_server = "pool"
        assert (await scene.login("ben"))[1] == "+a"
        book.failing = True
        assert (await scene.login("ben"))[1] == "-directory"


async def test_a_directory_s_server_that_is_down(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        scene.directory = ("people",)
        scene.book.entries[b"anna@example.com"] = Entry(b"", "c")
        scene.worker()
        scene.servers["c"].refuse()
        assert (await scene.login("anna"))[1] == "-connect-refused"
        scene.judge("c", False)
        assert (await scene.login("anna"))[1] == "-mailbox-server"
        scene.book.server_down = "pool"
        client, answer = await scene.login("anna")
        assert answer == "+a"
        scene.servers["c"].listen()
        scene.judge("c", True)
        assert (await scene.login("anna"))[1] == "+c"
        assert await client.line() == MOVES


# --- limits


async def test_a_mailbox_and_an_address_have_so_many_sessions(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        scene.settings = {"sessions_per_mailbox": 2, "sessions_per_address": 3}
        scene.expire = -1.0  # also in a pool without pins
        scene.worker()
        first, answer = await scene.login("anna")
        assert answer == "+a"
        assert (await scene.login("anna", 0, "pop3"))[1] == "+a"
        assert (await scene.login("anna"))[1] == "-session-limit"
        assert (await scene.login("ben"))[1] == "+a"
        assert (await scene.login("carl"))[1] == "-session-limit"
        first.close()
        await scene.until(lambda: len(scene.workers[0].link.claims) == 2)
        assert (await scene.login("carl"))[1] == "+a"


# --- web mail


REQUEST = "GET /inbox HTTP/1.1\r\nHost: a\r\nX-User: anna\r\n\r\n"
UPGRADE = REQUEST.replace("\r\n\r\n", "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def head(client: Client) -> str:
    async with asyncio.timeout(20):
        return (await client.reader.readuntil(b"\r\n\r\n")).decode()


async def test_web_mail_goes_to_its_mailbox_s_server(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        scene.protocols = ("imap4", "http")
        worker = scene.worker()
        await scene.login("anna")
        scene.workers[0].runtime.dispatcher.pools["mail"].state.by_name["a"].ejected = True
        await scene.servers["a"].accept()
        web = await scene.connect(0, "http")
        server: Wire | None = None
        for _ in range(2):
            web.writer.write(REQUEST.encode())
            server = server or await scene.servers["a"].accept()
            await server.until(b"\r\n\r\n")
            assert len(worker.link.claims) == 2
            await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert (await head(web)).startswith("HTTP/1.1 200")
            await web.reader.readexactly(2)
            await scene.until(lambda: len(worker.link.claims) == 1)
        web.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")  # that is nobody's: it goes where it may
        nobody = await scene.servers["b"].accept()
        await nobody.until(b"\r\n\r\n")
        assert len(worker.link.claims) == 1


async def test_web_mail_ends_where_its_mailbox_moves(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        scene.protocols = ("imap4", "http")
        scene.worker()
        asking, talking = await scene.connect(0, "http"), await scene.connect(0, "http")
        asking.writer.write(REQUEST.encode())
        await (await scene.servers["a"].accept()).until(b"\r\n\r\n")
        talking.writer.write(UPGRADE.encode())
        server = await scene.servers["a"].accept()
        await server.until(b"\r\n\r\n")
        await server.send(SWITCHED)
        assert (await head(talking)).startswith("HTTP/1.1 101")
        scene.judge("a", False)
        _, answer = await scene.login("anna")
        assert answer == "+b"
        assert (await head(asking)).startswith("HTTP/1.1 503")
        assert await server.read() == b""


# --- without a connection


async def test_mailboxes_are_located_and_held(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        worker = scene.worker()
        client = await scene.connect()
        assert await client.say("FIND anna") == "@a"
        assert await client.say("FIND ben") == "@a"
        assert len(worker.link.claims) == 2
        assert await client.say("DROP ben") == "dropped"
        await scene.until(lambda: len(worker.link.claims) == 1)
        assert await client.login("anna") == "+a"
        scene.judge("a", False)
        _, answer = await scene.login("anna")
        assert answer == "+b"
        assert await client.line() == MOVES
        await scene.until(lambda: len(worker.link.claims) == 1)


async def test_a_mailbox_without_a_server_is_not_located(tmp_path: Path) -> None:
    async with mailbox_scene(tmp_path) as scene:
        scene.worker()
        for server in "abc":
            scene.judge(server, False)
        client = await scene.connect()
        assert await client.say("FIND anna") == "-no-server"
        assert scene.open() == 0


# --- all together


class Watch:
    """Which server has which mailbox's connections open, as the servers themselves see it."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.open: dict[str, int] = dict.fromkeys(scene.servers, 0)
        self.overlaps: list[dict[str, int]] = []
        self.most = 0
        self.tasks = [asyncio.ensure_future(self.serve(name, server)) for name, server in scene.servers.items()]

    async def serve(self, name: str, server: ScriptedServer) -> None:
        handlers: set[asyncio.Task[None]] = set()
        while True:
            wire = await server.accept()
            handlers.add(asyncio.ensure_future(self.handle(name, wire)))

    async def handle(self, name: str, wire: Wire) -> None:
        try:
            self.open[name] += 1
            self.look()
            while await wire.read():
                pass
        except OSError:
            pass
        finally:
            self.open[name] -= 1
            wire.close()

    def look(self) -> None:
        self.most = max(self.most, sum(self.open.values()))
        if sum(1 for count in self.open.values() if count) > 1:
            self.overlaps.append(dict(self.open))

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()


@pytest.mark.parametrize("seed", range(4))
async def test_fifty_logins_during_a_server_s_death_never_overlap(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    async with mailbox_scene(tmp_path) as scene:
        scene.protocols = ("imap4", "pop3", "submission", "lmtp", "managesieve", "smtp")
        for _ in range(4):
            scene.worker()
        await scene.until(lambda: all(worker.link.claims.connected for worker in scene.workers))
        watch = Watch(scene)
        answers: list[str] = []
        over = asyncio.Event()

        async def user() -> None:
            while not over.is_set():
                client, answer = await scene.login("anna", chance.randrange(4), chance.choice(scene.protocols))
                answers.append(answer)
                await asyncio.sleep(chance.random() * 0.05)
                client.close()

        async def killer() -> None:
            for name in ("a", "b"):
                await scene.until(lambda name=name: answers.count(f"+{name}") > 20)
                scene.servers[name].refuse()
                for worker in scene.workers:  # they hear of it one after the other
                    await asyncio.sleep(chance.random() * 0.02)
                    worker.judge(name, False)
            await scene.until(lambda: answers.count("+c") > 20)
            if seed % 2:
                await scene.end()
                await scene.begin()
                reached = len(answers)
                await scene.until(lambda: len(answers) > reached + 50)
            over.set()

        await asyncio.gather(killer(), *(user() for _ in range(50)))
        watch.close()
        assert not watch.overlaps
        assert watch.most > 5
        assert set(answers) <= {"+a", "+b", "+c", "-connect-refused", "-mailbox-server", ""}
