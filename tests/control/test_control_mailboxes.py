"""An operator's words on mailboxes, through the admin socket to a state process, with workers' claims."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_asyncio

from l7lb.config import MoveHook
from l7lb.control.admin import AdminServer
from l7lb.control.client import AdminClient, AdminError
from l7lb.control.node import NodeState
from l7lb.control.operator import Operator
from l7lb.core.errors import Failure
from l7lb.core.snapshot import Address, Addresses, Listener, MailboxKey, Route, Snapshot, ToPool
from l7lb.core.snapshot import Tables as Limits
from l7lb.persistence import Tables
from l7lb.persistence import mailboxes as engine_module
from l7lb.persistence.link import StateLink
from l7lb.persistence.mailbox_messages import Claim, Held
from l7lb.persistence.state import StateProcess, listen

pytestmark = pytest.mark.asyncio
PATIENCE = 20.0


class Session:
    """One that claims, and ends when it is told to unless it is stubborn."""

    def __init__(self, scene: Scene, mailbox: bytes, *, stubborn: bool = False) -> None:
        self.scene = scene
        self.mailbox = mailbox
        self.stubborn = stubborn
        self.server = ""
        self.told: list[str] = []
        self.number = 0

    def claim(self, server: str, *, fixed: bool = False) -> Session:
        claims = self.scene.link.claims
        self.number = claims.number()
        held = Held(self.number, "mail", self.mailbox, server, "imap4", "192.0.2.1", 900.0)
        claims.claim(self, Claim(held, fixed))
        return self

    def granted(self, server: str) -> None:
        self.server = server

    def denied(self, failure: Failure | None) -> None:
        self.told.append("denied")

    def dismissed(self, why: str, moving: bool) -> None:
        self.told.append(why)
        if not self.stubborn:
            self.server = ""
            self.scene.link.claims.end(self.number)


class Scene:
    """A state process, a worker's link, an admin server."""

    def __init__(self, path: Path, node: NodeState, supervisor: Any) -> None:
        self.path = path
        self.node = node
        self.hook: MoveHook | None = None
        self.supervisor = supervisor
        self.client = AdminClient(path / "admin.sock", PATIENCE)

    async def __aenter__(self) -> Self:
        self.listening = listen(self.path / "state.sock")
        self.state = StateProcess(self.listening, None, 1000)
        self.running = asyncio.ensure_future(self.state.run())
        self.link = StateLink(Tables(Limits(1000)), self.path / "state.sock")
        self.linking = asyncio.ensure_future(self.link.run())
        self.admin = AdminServer(self.path / "admin.sock", self.node, self.supervisor, lambda: self.hook)
        await self.admin.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.admin.stop()
        self.linking.cancel()
        await asyncio.gather(self.linking, return_exceptions=True)
        self.state.ending.set()
        await self.running
        self.listening.close()

    async def login(self, mailbox: bytes, server: str, *, fixed: bool = False, stubborn: bool = False) -> Session:
        session = Session(self, mailbox, stubborn=stubborn).claim(server, fixed=fixed)
        await self.until(lambda: session.server or session.told)
        return session

    async def post(self, verb: str, **fields: object) -> str:
        return str((await asyncio.to_thread(self.client.post, verb, **fields))["done"])

    async def refused(self, verb: str, **fields: object) -> str:
        with pytest.raises(AdminError) as caught:
            await self.post(verb, **fields)
        return str(caught.value)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.002)

    def server(self, mailbox: bytes) -> str:
        row = self.state.mailboxes.engine.row(("mail", mailbox), asyncio.get_running_loop().time())
        return row.server if row is not None else ""


@pytest_asyncio.fixture
async def scene(
    tmp_path: Path, make_pool, make_snapshot, supervisor, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    monkeypatch.setattr(engine_module, "REST", 0.01)
    pools = make_pool("mail", "mx1", "mx2", persistence=(MailboxKey(),)), make_pool("web", "web1")
    listener = Listener(
        name="imap",
        protocol="imap4",
        bind=(Address("127.0.0.1", 1143),),
        routes=(Route(number=1, where="", match=None, action=ToPool("mail")),),
        addresses=Addresses(default_domain="example.com", recipient_delimiter="+"),
    )
    snapshot: Snapshot = make_snapshot(*pools, listeners=(listener,))
    async with Scene(tmp_path, NodeState(snapshot, tmp_path / "saved"), supervisor) as made:
        await made.until(lambda: made.link.claims.connected)
        yield made


async def test_a_mailbox_is_moved_by_any_of_its_names(scene: Scene) -> None:
    session = await scene.login(b"anna@example.com", "mx1")
    told = await scene.post("move", mailbox="Anna+lists", server="mx2")
    assert told == "anna@example.com moved from mx1 to mail/mx2; 1 session was ended"
    assert session.told == ["the mailbox moves to another server"]
    assert (await scene.login(b"anna@example.com", "mx1")).server == "mx2"
    assert await scene.post("move", mailbox="anna", server="mail/mx2") == "anna@example.com is on mail/mx2 already"


async def test_a_mailbox_that_nobody_has_open_is_moved(scene: Scene) -> None:
    told = await scene.post("move", mailbox="ben", server="mx2")
    assert told == "ben@example.com moved from no server to mail/mx2; 0 sessions were ended"
    assert (await scene.login(b"ben@example.com", "mx1")).server == "mx2"


async def test_what_can_not_be_moved(scene: Scene) -> None:
    assert "no server mx3" in await scene.refused("move", mailbox="anna", server="mx3")
    assert "does not keep mailboxes on one server" in await scene.refused("move", mailbox="anna", server="web1")
    await scene.post("disable", server="mail/mx2")
    assert "mail/mx2 is disabled" in await scene.refused("move", mailbox="anna", server="mx2")


async def test_logins_wait_for_the_hook_and_a_hook_that_fails_changes_nothing(scene: Scene, tmp_path: Path) -> None:
    await scene.login(b"anna@example.com", "mx1")
    go, said = tmp_path / "go", tmp_path / "said"
    program = (
        "import pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(' '.join(sys.argv[2:]))\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.005)\n"
    )
    scene.hook = MoveHook(
        (sys.executable, "-c", program, str(said), "{mailbox}", "{from}>{to}", "{pool}", "a b"), PATIENCE
    )
    moving = asyncio.ensure_future(scene.post("move", mailbox="anna", server="mx2"))
    await scene.until(lambda: said.exists() and said.read_text())
    assert said.read_text() == "anna@example.com mx1>mx2 mail a b"
    waiting = Session(scene, b"anna@example.com").claim("mx1")
    assert "it is being moved already" in await scene.refused("move", mailbox="anna", server="mx2")
    assert not waiting.server
    go.touch()
    await moving
    await scene.until(lambda: waiting.server == "mx2")
    scene.hook = MoveHook((sys.executable, "-c", "print('disk full'); exit(3)"), PATIENCE)
    told = await scene.refused("move", mailbox="anna", server="mx1")
    assert told == "the move's hook ended with 3: the mailbox stays; it said: disk full"
    assert (await scene.login(b"anna@example.com", "mx1")).server == "mx2"
    scene.hook = MoveHook((sys.executable, "-c", "import time; time.sleep(60)"), 0.1)
    assert "took more than 0.1 s" in await scene.refused("move", mailbox="anna", server="mx1")
    scene.hook = MoveHook((str(tmp_path / "none"),), 1.0)
    assert "can't be run" in await scene.refused("move", mailbox="anna", server="mx1")
    assert scene.server(b"anna@example.com") == "mx2"


async def test_a_kick_ends_all_sessions_and_moves_nothing(scene: Scene) -> None:
    sessions = [await scene.login(b"anna@example.com", "mx1") for _ in range(3)]
    assert await scene.post("kick", mailbox="anna") == "3 sessions are ended of anna@example.com"
    await scene.until(lambda: all(session.told == ["an operator ended the session"] for session in sessions))
    assert scene.server(b"anna@example.com") == "mx1"
    assert await scene.post("kick", mailbox="nobody") == "nobody has no session"


async def test_a_drain_moves_mailboxes_away_at_its_rate(scene: Scene) -> None:
    for number in range(20):
        await scene.login(b"user%d" % number, "mx1")
    quiet = await scene.login(b"quiet", "mx1")
    scene.link.claims.end(quiet.number)
    fixed = await scene.login(b"fixed", "mx1", fixed=True)
    await scene.login(b"other", "mx2")
    began = asyncio.get_running_loop().time()
    told = await scene.post("drain", server="mail/mx1", rate=50.0)
    assert told.startswith("mail/mx1 drains: it gets no new users, and its mailboxes move away, 50/s")
    engine = scene.state.mailboxes.engine
    await scene.until(lambda: [key[1] for key in engine.on_server("mail", "mx1")] == [b"fixed"])
    assert asyncio.get_running_loop().time() - began > 19 / 50
    assert fixed.server == "mx1"
    assert scene.server(b"quiet") == ""
    assert scene.server(b"other") == "mx2"
    assert (await scene.login(b"user3", "mx2")).server == "mx2"


async def test_a_supervisor_that_begins_goes_on_with_a_drain(scene: Scene, tmp_path: Path) -> None:
    await scene.admin.stop()
    await scene.login(b"anna", "mx1")
    Operator(scene.node).drain("mail/mx1", 100.0)
    again = AdminServer(tmp_path / "admin.sock", NodeState(scene.node.configured, tmp_path / "saved"), scene.supervisor)
    await again.start()
    try:
        await scene.until(lambda: not scene.server(b"anna"))
    finally:
        await again.stop()


async def test_an_undrain_ends_a_drain(scene: Scene) -> None:
    for number in range(10):
        await scene.login(b"user%d" % number, "mx1")
    await scene.post("drain", server="mail/mx1", rate=1.0)
    await scene.post("undrain", server="mail/mx1")
    override = scene.node.overrides.of("mail", "mx1")
    assert override is None or not override.drain_rate
    await scene.until(lambda: all(task.done() for task in scene.admin._drains._tasks.values()))
    assert len(list(scene.state.mailboxes.engine.on_server("mail", "mx1"))) >= 8


async def test_a_rate_needs_mailboxes(scene: Scene) -> None:
    assert "nothing to move at a rate" in await scene.refused("drain", server="web/web1", rate=1.0)
    assert "a rate is from 0" in await scene.refused("drain", server="mail/mx1", rate=-1.0)


async def test_the_table_of_mailboxes_is_shown(scene: Scene) -> None:
    session = await scene.login(b"anna@example.com", "mx1")
    scene.link.claims.end(session.number)
    await scene.until(lambda: not scene.state.mailboxes.engine.pools())
    found = await asyncio.to_thread(scene.client.get, "table", table="mail")
    assert [(row["key"], row["server"]) for row in found["entries"]] == [("anna@example.com", "mx1")]
    assert "l7lb move" in await scene.refused("table-pin", table="mail", key="anna@example.com", server="mx2")
    await scene.post("table-delete", table="mail", key="anna@example.com")
    assert scene.server(b"anna@example.com") == ""


async def test_explain_knows_where_a_mailbox_is(scene: Scene) -> None:
    async def explained() -> tuple[str, str]:
        asked = {"protocol": "imap4", "address": "Anna+lists"}
        answer = await asyncio.to_thread(scene.client.post, "explain", **asked)
        return answer["server"], answer["why"]

    assert (await explained())[1].startswith("mx1: round-robin")
    session = await scene.login(b"anna@example.com", "mx2", stubborn=True)
    assert await explained() == ("mx2", "the mailbox is on mx2, with 1 session")
    moving = asyncio.ensure_future(scene.post("move", mailbox="anna", server="mx1"))
    await scene.until(lambda: session.told)
    assert (await explained())[1].startswith("the mailbox is on mx2, with 1 session, and is being moved: logins wait; ")
    scene.link.claims.end(session.number)
    await moving
    assert await explained() == ("mx1", "the mailbox is on mx1, without a session")
    await scene.post("disable", server="mail/mx1")
    server, why = await explained()
    assert server == "mx2"
    assert why.startswith("the mailbox is on mx1, without a session, which is not in use: it moves; mx2: ")
