"""A toy protocol with mailboxes, workers that serve it in this process, and their state process.

A client says ``LOGIN MAILBOX``, is told ``+SERVER`` by the session or ``-FAILURE``, and then speaks with the server. It
may say ``FIND MAILBOX`` before, and ``DROP MAILBOX``.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from l7lb.core.actions import CLIENT, Action, Close, Forget, Locate, NeedServer, Release, Side, ToClient, Tunnel
from l7lb.core.contracts import Assignment, Choice, Entry, Location, Peer, ProtocolSpec, Session, SessionFactory
from l7lb.core.directory import Answer, Question
from l7lb.core.errors import Failure
from l7lb.core.facts import Facts
from l7lb.core.mailbox import canonical
from l7lb.core.messages import ServerHealth
from l7lb.core.snapshot import (
    Address,
    Addresses,
    Balance,
    Listener,
    MailboxKey,
    Pool,
    Retries,
    Route,
    Server,
    Snapshot,
    Tables,
    ToPool,
)
from l7lb.persistence import Tables as StickyTables
from l7lb.persistence.link import StateLink
from l7lb.persistence.state import StateProcess, listen
from l7lb.protocols.http.spec import SPEC as HTTP
from l7lb.proxy.counts import Counts, create
from l7lb.proxy.runtime import Runtime
from l7lb.testing.servers import ScriptedServer

PATIENCE = 20.0
WEBMAIL: dict[str, Any] = {"mailbox": {"kind": "header", "name": "x-user"}}
RULES = Addresses(default_domain="example.com")


class Toy(Session):
    """See the module."""

    def __init__(self, protocol: str, peer: Peer) -> None:
        super().__init__()
        self.protocol = protocol
        self.peer = peer
        self.held = b""
        self.asked = False
        self.facts: list[Facts] = []

    def start(self, now: float) -> list[Action]:
        return []

    def make(self, typed: bytes) -> Facts:
        facts = Facts(self.protocol, self.protocol, self.peer.client)
        facts.address = facts.mailbox = canonical(typed, RULES)
        return facts

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        assert side is CLIENT
        self.held += data
        line, end, rest = self.held.partition(b"\n")
        if not end or self.asked:
            return []
        self.held = rest
        word, _, name = line.partition(b" ")
        if word == b"FIND":
            self.facts.append(self.make(name))
            return [Locate(self.facts[-1])]
        if word == b"DROP":
            found = next(facts for facts in self.facts if facts.mailbox == canonical(name, RULES))
            return [Forget(found), ToClient(b"dropped\n")]
        self.asked = True
        return [NeedServer(self.make(name), fresh=True)]

    def connected(self, assignment: Assignment, now: float) -> list[Action]:
        user = assignment.entry.user if assignment.entry is not None else b""
        return [ToClient(b"+%s %s\n" % (assignment.server.name.encode(), user)), Tunnel(60.0)]

    def located(self, location: Location, now: float) -> list[Action]:
        if location.server is None:
            assert location.failure is not None
            return [ToClient(b"-%s\n" % location.failure.label.encode())]
        return [ToClient(b"@%s\n" % location.server.name.encode())]

    def failed(self, failure: Failure, choice: Choice | None, now: float) -> list[Action]:
        return [ToClient(b"-%s\n" % failure.label.encode()), Close()]

    def dismissed(self, why: str, now: float) -> list[Action]:
        return [ToClient(b"*%s\n" % why.encode()), Release(False), Close()]

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        return [Release(False), Close(abort=True)]

    def describe(self) -> dict[str, str]:
        return {}

    def draining(self, now: float, patient: bool) -> list[Action]:
        return []


def toy(protocol: str) -> ProtocolSpec:
    """The toy under a mail protocol's name."""

    def sessions(listener: Listener) -> SessionFactory:
        return lambda peer, now: Toy(protocol, peer)

    return ProtocolSpec(protocol, sessions, "")


class Book:
    """A directory of a few lines."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.failing = False
        self.missing = self.unknown_server = self.server_down = "refuse"
        self.questions: list[Question] = []

    def ask(self, names: tuple[str, ...], question: Question, done: Callable[[Answer], None]) -> Callable[[], None]:
        self.questions.append(question)
        entry = self.entries.get(question.address)
        answer = Answer("failed" if self.failing else "found" if entry is not None else "missing", entry)
        answer.missing, answer.unknown_server, answer.server_down = self.missing, self.unknown_server, self.server_down
        return asyncio.get_running_loop().call_soon(done, answer).cancel


class Worker:
    """A worker's data path in this process, with its link to the state process."""

    def __init__(self, path: Path, snapshot: Snapshot, book: Book, protocols: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        tables = StickyTables(Tables())
        self.link = StateLink(tables, path)
        self.runtime = Runtime(
            loop,
            {protocol: HTTP if protocol == "http" else toy(protocol) for protocol in protocols},
            Counts(create()),
            tables,
            lambda result: None,
            directories=book,
            claims=self.link.claims,
        )
        self.runtime.apply(snapshot)
        self.sockets: dict[str, socket.socket] = {}
        for listener in snapshot.listeners:
            sock = self.sockets[listener.name] = socket.create_server(("127.0.0.1", 0))
            sock.setblocking(False)
            self.runtime.accept_from(str(listener.bind[0]), sock)
        self.task = loop.create_task(self.link.run())

    def judge(self, server: str, healthy: bool) -> None:
        self.runtime.server_health(ServerHealth("mail", server, healthy, False, 0.0))

    async def close(self) -> None:
        self.runtime.close()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        for sock in self.sockets.values():
            sock.close()


class Client:
    """One client; ``server`` is where it is."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, line: str) -> str:
        self.writer.write(line.encode() + b"\n")
        return await self.line()

    async def line(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return (await self.reader.readline()).decode().strip()

    async def login(self, mailbox: str) -> str:
        return await self.say(f"LOGIN {mailbox}")

    def close(self) -> None:
        """Reset: a tunnel whose client just ends goes on until its server ends too."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Scene:
    """Servers a, b and c; workers; a state process at ``path``."""

    def __init__(self, path: Path, servers: dict[str, ScriptedServer]) -> None:
        self.path = path
        self.servers = servers
        self.workers: list[Worker] = []
        self.clients: list[Client] = []
        self.book = Book()
        self.protocols: Sequence[str] = ("imap4", "pop3")
        self.expire = 900.0
        self.directory: tuple[str, ...] = ()
        self.settings: dict[str, int | float] = {}
        self.states: dict[str, str] = {}
        self.process: StateProcess | None = None
        self._running: asyncio.Task[bool] | None = None

    def snapshot(self) -> Snapshot:
        persistence = (MailboxKey(self.expire),) if self.expire >= 0.0 else ()
        servers = tuple(
            Server(name=name, address=server.address, slot=10 + number, state=self.states.get(name, "enabled"))
            for number, (name, server) in enumerate(self.servers.items())
        )
        pool = Pool(
            name="mail",
            servers=servers,
            balance=Balance("first"),
            persistence=persistence,
            retries=Retries(attempts=2),
            slot=2,
        )
        listeners = tuple(
            Listener(
                name=protocol,
                protocol=protocol,
                bind=(Address("127.0.0.1", 1000 + number),),
                routes=(Route(number=1, where="", match=None, action=ToPool("mail"), directory=self.directory),),
                settings=dict(WEBMAIL if protocol == "http" else self.settings),
                addresses=RULES,
                slot=3 + number,
            )
            for number, protocol in enumerate(self.protocols)
        )
        return Snapshot(node="lb1", version=1, listeners=listeners, pools=(pool,))

    def worker(self) -> Worker:
        made = Worker(self.path, self.snapshot(), self.book, self.protocols)
        self.workers.append(made)
        return made

    async def connect(self, worker: int = 0, protocol: str = "imap4") -> Client:
        address = self.workers[worker].sockets[protocol].getsockname()
        client = Client(*await asyncio.open_connection(*address))
        self.clients.append(client)
        return client

    async def login(self, mailbox: str, worker: int = 0, protocol: str = "imap4") -> tuple[Client, str]:
        client = await self.connect(worker, protocol)
        return client, await client.login(mailbox)

    def judge(self, server: str, healthy: bool) -> None:
        for worker in self.workers:
            worker.judge(server, healthy)

    async def begin(self) -> None:
        """Start the state process."""
        listening = listen(self.path)
        self.process = StateProcess(listening, None, 10_000)
        self._running = asyncio.get_running_loop().create_task(self.process.run())
        self._running.add_done_callback(lambda _: listening.close())

    async def end(self) -> None:
        """End it."""
        if self._running is not None and self.process is not None:
            self.process.ending.set()
            await self._running
            self._running = None

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.002)

    def open(self) -> int:
        """Sessions and mailboxes on the move that the state process knows."""
        assert self.process is not None
        return len(self.process.mailboxes.engine.pools())

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for client in self.clients:
            client.close()
        for worker in self.workers:
            await worker.close()
        await self.end()


@asynccontextmanager
async def mailbox_scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Three servers and a state process."""
    async with (
        ScriptedServer("a") as a,
        ScriptedServer("b") as b,
        ScriptedServer("c") as c,
        Scene(tmp_path / "state.sock", {"a": a, "b": b, "c": c}) as scene,
    ):
        yield scene
