"""Workers that claim mailboxes at a state process, over the socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sticky_helpers import Nodes, Processes, running, until

from l7lb.core.errors import Failure
from l7lb.persistence import claims as claims_module
from l7lb.persistence.claims import Claims
from l7lb.persistence.exchange import receive
from l7lb.persistence.mailbox_messages import AskMailboxes, Claim, Held, ToldMailboxes
from l7lb.persistence.messages import PROTOCOL, frame, from_state
from l7lb.persistence.roster import Roster, began
from l7lb.persistence.state import StateProcess

pytestmark = pytest.mark.asyncio


class Session:
    """One that claims."""

    def __init__(self, claims: Claims, mailbox: bytes = b"anna") -> None:
        self.claims = claims
        self.mailbox = mailbox
        self.number = claims.number()
        self.server = ""
        self.failures: list[Failure | None] = []
        self.told: list[tuple[str, bool]] = []

    def claim(self, server: str, lost: str = "", down: bool = False) -> Session:
        held = Held(self.number, "mail", self.mailbox, server, "imap4", "192.0.2.1", 900.0)
        self.claims.claim(self, Claim(held, lost=lost, down=down))
        return self

    def end(self) -> None:
        self.server = ""
        self.claims.end(self.number)

    def granted(self, server: str) -> None:
        self.server = server

    def denied(self, failure: Failure | None) -> None:
        self.failures.append(failure)

    def dismissed(self, why: str, moving: bool) -> None:
        self.told.append((why, moving))
        self.end()


async def ask(path: Path, question: AskMailboxes) -> ToldMailboxes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(frame(question))
    told = from_state.decode(await receive(reader))
    writer.close()
    assert isinstance(told, ToldMailboxes)
    return told


async def test_two_workers_agree_on_a_mailbox_s_server(state: StateProcess, nodes: Nodes) -> None:
    one, other = nodes(), nodes()
    first = Session(one.link.claims).claim("a")
    await until(lambda: first.server == "a")
    second = Session(other.link.claims).claim("b")
    await until(lambda: second.server == "a")


async def test_a_mailbox_moves_when_its_server_is_down(state: StateProcess, nodes: Nodes) -> None:
    one, other = nodes(), nodes()
    first = Session(one.link.claims).claim("a")
    await until(lambda: first.server == "a")
    second = Session(other.link.claims).claim("b", lost="a", down=True)
    await until(lambda: second.server == "b")
    assert first.told == [("the mailbox moves to another server", True)]
    assert first.server == ""


async def test_without_a_state_process_a_claim_fails_in_time(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "PATIENCE", 0.05)
    session = Session(nodes().link.claims).claim("a")
    await until(lambda: session.failures == [Failure.NO_STATE])
    assert len(session.claims) == 0


async def test_a_claim_waits_for_a_state_process(nodes: Nodes, socket_path: Path) -> None:
    session = Session(nodes().link.claims).claim("a")
    async with running(socket_path):
        await until(lambda: session.server == "a")


async def test_the_next_state_process_learns_what_is_open(nodes: Nodes, socket_path: Path) -> None:
    one, other = nodes(), nodes()
    async with running(socket_path):
        first = Session(one.link.claims).claim("a")
        await until(lambda: first.server == "a" and other.link.claims.connected)
    await until(lambda: not one.link.claims.connected and not other.link.claims.connected)
    async with running(socket_path) as state:  # it has no roster, and so waits for nobody
        await until(lambda: bool(state.mailboxes.engine.pools()))
        second = Session(other.link.claims).claim("b")
        await until(lambda: second.server == "a")


async def test_a_worker_s_end_ends_its_sessions(state: StateProcess, nodes: Nodes) -> None:
    one, other = nodes(), nodes()
    first = Session(one.link.claims).claim("a")
    await until(lambda: first.server == "a")
    await one.stop()
    await until(lambda: not state.mailboxes.engine.pools())
    second = Session(other.link.claims).claim("b", lost="a", down=True)
    await until(lambda: second.server == "b")


async def test_an_operator_moves_kicks_and_finds(state: StateProcess, nodes: Nodes, socket_path: Path) -> None:
    session = Session(nodes().link.claims).claim("a")
    await until(lambda: session.server == "a")
    told = await ask(socket_path, AskMailboxes(PROTOCOL, "find", "mail", server="a"))
    assert [(row.mailbox, row.server, row.sessions) for row in told.rows] == [(b"anna", "a", 1)]
    told = await ask(socket_path, AskMailboxes(PROTOCOL, "move", "mail", [b"no-such", b"anna"]))
    assert (told.problem, told.count, told.rows[0].server) == ("", 1, "a")
    waiting = Session(session.claims).claim("a")
    told = await ask(socket_path, AskMailboxes(PROTOCOL, "switch", "mail", [b"anna"], "b"))
    assert not told.problem
    await until(lambda: waiting.server == "b")
    told = await ask(socket_path, AskMailboxes(PROTOCOL, "kick", "", [b"anna"]))
    assert told.count == 1
    await until(lambda: waiting.told == [("an operator ended the session", False)])
    told = await ask(socket_path, AskMailboxes(PROTOCOL, "find", "", [b"anna"]))
    assert [(row.server, row.sessions) for row in told.rows] == [("b", 0)]
    told = await ask(socket_path, AskMailboxes(PROTOCOL, "forget", "mail", server="b"))
    assert told.count == 1
    assert not (await ask(socket_path, AskMailboxes(PROTOCOL, "find", "", [b"anna"]))).rows


async def test_many_sessions_are_told_in_parts(nodes: Nodes, socket_path: Path) -> None:
    one = nodes()
    async with running(socket_path):
        sessions = [Session(one.link.claims, b"%d" % number).claim("a") for number in range(1000)]
        await until(lambda: all(session.server == "a" for session in sessions))
    async with running(socket_path) as state:
        await until(lambda: sum(1 for _ in state.mailboxes.engine.on_server("mail", "a")) == 1000)


WORKER = """
import asyncio, sys
sys.path[:0] = sys.argv[3:]
from test_claims import Session
from sticky_helpers import Node, until
from pathlib import Path

async def main():
    node = Node(Path(sys.argv[1]))
    node.start()
    session = Session(node.link.claims).claim(sys.argv[2])
    await until(lambda: session.server)
    print(session.server, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_new_state_process_waits_for_a_worker_that_lives(
    nodes: Nodes, socket_path: Path, tmp_path: Path, start_state: Processes
) -> None:
    here = Path(__file__).parent
    process = start_state("--socket", socket_path)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(socket_path), "a", str(here)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert worker.stdout is not None
        assert (await asyncio.to_thread(worker.stdout.readline)).strip() == "a"
        roster = socket_path.with_name("state.sock.workers")
        assert [worker.pid, began(worker.pid)] in json.loads(roster.read_text())
        os.kill(worker.pid, signal.SIGSTOP)
        process.kill()
        process.wait()
        start_state("--socket", socket_path)
        session = Session(nodes().link.claims).claim("b")
        await until(lambda: session.claims.connected)
        await asyncio.sleep(0.2)  # that nothing comes can only be waited for
        assert not session.server
        assert not session.failures
        os.kill(worker.pid, signal.SIGCONT)
        await until(lambda: session.server == "a")
        worker.kill()
        worker.wait()
        other = Session(session.claims).claim("b", lost="a", down=True)
        await until(lambda: other.server == "b")
    finally:
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()


async def test_a_worker_that_died_is_not_waited_for(nodes: Nodes, socket_path: Path, start_state: Processes) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    roster = socket_path.with_name("state.sock.workers")
    roster.write_text(json.dumps([[gone.pid, began(gone.pid)], [1, 0], [os.getpid(), 5]]))
    start_state("--socket", socket_path)
    session = Session(nodes().link.claims).claim("b")
    await until(lambda: session.claims.connected)
    assert not session.server
    gone.kill()
    gone.communicate()
    await until(lambda: session.server == "b")


async def test_a_broken_roster_is_no_reason_to_wait(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    path.write_text("[[1,")
    assert Roster(path).load() == set()
    assert Roster(tmp_path / "none").load() == set()
    assert began(2**22 + 1) == 0


async def test_the_roster_goes_with_the_last_worker(tmp_path: Path) -> None:
    path = tmp_path / "workers"
    roster = Roster(path)
    with subprocess.Popen(["sleep", "60"]) as process:
        roster.came(process.pid)
        roster.close()
        assert path.exists()  # it lives on, and the next state process must wait for it
        assert Roster(path).load() == {(process.pid, began(process.pid))}
        process.kill()
    roster.close()
    assert not path.exists()
