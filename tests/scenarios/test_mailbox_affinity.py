"""A node with its processes: one mailbox's sessions, in all protocols and workers, while servers and processes die.

The servers are small ones in this process, since they must say at every moment who has the mailbox open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import pytest
from scenario_node import Node, free_port, l7lb, wait_for

pytestmark = pytest.mark.scenario

PROTOCOLS = ("imap4", "pop3", "lmtp")
PATIENCE = 60.0

CONFIG = """\
addresses: {default_domain: example.com}
x-login: &login {cleartext: always, sessions: {per_mailbox: 1000, per_address: 10000}}
listeners:
  - {name: imap, protocol: imap4, bind: ["127.0.0.1:IMAP"], login: *login, routes: [{pool: mail}]}
  - {name: pop3, protocol: pop3, bind: ["127.0.0.1:POP3"], login: *login, routes: [{pool: mail}]}
  - {name: lmtp, protocol: lmtp, bind: ["127.0.0.1:LMTP"], routes: [{pool: mail}]}
pools:
  mail:
    balance: {hash: mailbox}
    persistence: {mailbox: {expire: 1m}}
    health: {protocol: {}, interval: 200ms, timeout: 1s, rise: 1, fall: 1, scope: server}
    servers:
SERVERS
"""


class Store:
    """Which server has which mailbox open, and whether two ever had."""

    def __init__(self) -> None:
        self.open: dict[bytes, dict[str, int]] = {}
        self.overlaps: list[tuple[bytes, dict[str, int]]] = []
        self.most = 0

    def enter(self, mailbox: bytes, server: str) -> None:
        held = self.open.setdefault(mailbox, {})
        held[server] = held.get(server, 0) + 1
        there = {name: count for name, count in held.items() if count}
        self.most = max(self.most, sum(there.values()))
        if len(there) > 1:
            self.overlaps.append((mailbox, there))

    def leave(self, mailbox: bytes, server: str) -> None:
        self.open[mailbox][server] -= 1


class Server:
    """IMAP4, POP3 and LMTP of a few words. ``die``: it takes no connection more, and those it has hang."""

    def __init__(self, name: str, store: Store) -> None:
        self.name = name
        self.store = store
        self.ports = {protocol: free_port() for protocol in PROTOCOLS}
        self.listening: list[socket.socket] = []
        self.talks: set[asyncio.Task[None]] = set()
        self.dead = False

    async def start(self) -> None:
        self.dead = False
        for protocol, port in self.ports.items():
            listening = socket.create_server(("127.0.0.1", port))
            listening.setblocking(False)
            self.listening.append(listening)
            asyncio.get_running_loop().add_reader(listening, self._accept, listening, getattr(self, protocol))

    def die(self) -> None:
        self.dead = True
        for listening in self.listening:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        self.listening.clear()

    def _accept(self, listening: socket.socket, talk: Callable[..., Awaitable[None]]) -> None:
        connection, _ = listening.accept()
        task = asyncio.ensure_future(self._serve(connection, talk))
        self.talks.add(task)
        task.add_done_callback(self.talks.discard)

    async def _serve(self, connection: socket.socket, talk: Callable[..., Awaitable[None]]) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        held: list[bytes] = []
        try:
            await talk(reader, writer, held)
        except (OSError, EOFError, ValueError):
            pass
        finally:
            for mailbox in held:
                self.store.leave(mailbox, self.name)
            writer.close()

    def enter(self, mailbox: bytes, held: list[bytes]) -> None:
        held.append(mailbox)
        self.store.enter(mailbox, self.name)

    async def line(self, reader: asyncio.StreamReader) -> bytes:
        line = await reader.readline()
        if not line:
            raise EOFError
        while self.dead:  # it hangs, and sees only the connection's end
            if not await reader.read(1000):
                raise EOFError
        return line.rstrip()

    async def imap4(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: list[bytes]) -> None:
        writer.write(b"* OK [CAPABILITY IMAP4rev1] ready\r\n")
        while True:
            tag, word, *rest = (await self.line(reader)).split(b" ")
            if word.upper() == b"CAPABILITY":
                writer.write(b"* CAPABILITY IMAP4rev1\r\n")
            elif word.upper() == b"LOGIN":
                self.enter(rest[0].strip(b'"'), held)
            writer.write(tag + b" OK done\r\n")

    async def pop3(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: list[bytes]) -> None:
        writer.write(b"+OK ready\r\n")
        user = b""
        while True:
            word, _, rest = (await self.line(reader)).partition(b" ")
            if word == b"CAPA":
                writer.write(b"+OK\r\nUSER\r\n.\r\n")
                continue
            if word == b"USER":
                user = rest
            elif word == b"PASS":
                self.enter(user, held)
            writer.write(b"+OK\r\n")
            if word == b"QUIT":
                return

    async def lmtp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: list[bytes]) -> None:
        writer.write(b"220 ready\r\n")
        while True:
            line = await self.line(reader)
            word = line[:4].upper()
            if word == b"LHLO":
                writer.write(b"250-here\r\n250 PIPELINING\r\n")
                continue
            if word == b"RCPT":
                self.enter(line.partition(b"<")[2].partition(b"@")[0], held)
            if word == b"DATA":
                writer.write(b"354 go on\r\n")
                while await self.line(reader) != b".":
                    pass
            writer.write(b"250 2.0.0 done\r\n" if word != b"QUIT" else b"221 bye\r\n")
            if word == b"QUIT":
                return


class Users:
    """Fifty that log in again and again; ``answers`` has what they were told, by protocol."""

    def __init__(self, ports: dict[str, int], seed: int) -> None:
        self.ports = ports
        self.chance = random.Random(seed)
        self.good = 0
        self.bad: list[bytes] = []
        self.over = False

    async def one(self) -> None:
        while not self.over:
            protocol = self.chance.choice(PROTOCOLS)
            try:
                async with asyncio.timeout(PATIENCE):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[protocol])
                    try:
                        answer = await getattr(self, protocol)(reader, writer)
                        if answer:
                            self.good += 1
                        await asyncio.sleep(self.chance.random() * 0.1)
                    finally:
                        writer.close()
            except (OSError, EOFError):
                self.bad.append(protocol.encode())
            await asyncio.sleep(self.chance.random() * 0.05)

    async def imap4(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await reader.readline()
        writer.write(b"a LOGIN anna secret\r\n")
        while (line := await reader.readline()).startswith(b"*"):
            pass
        return line.startswith(b"a OK")

    async def pop3(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await reader.readline()
        writer.write(b"USER anna\r\n")
        await reader.readline()
        writer.write(b"PASS secret\r\n")
        return (await reader.readline()).startswith(b"+OK")

    async def lmtp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await reader.readline()
        writer.write(b"LHLO me\r\n")
        while (await reader.readline())[3:4] == b"-":
            pass
        writer.write(b"MAIL FROM:<a@b.c>\r\n")
        await reader.readline()
        writer.write(b"RCPT TO:<anna@example.com>\r\n")
        if not (await reader.readline()).startswith(b"250"):
            return False
        writer.write(b"DATA\r\n")
        if not (await reader.readline()).startswith(b"354"):
            return False
        writer.write(b"Subject: x\r\n\r\nhello\r\n.\r\n")
        return (await reader.readline()).startswith(b"250")


class Site:
    """Servers and users in a thread's loop; the test kills from outside."""

    def __init__(self, ports: dict[str, int], seed: int) -> None:
        self.store = Store()
        self.servers = {name: Server(name, self.store) for name in ("mx1", "mx2", "mx3")}
        self.users = Users(ports, seed)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self) -> Self:
        self.thread.start()
        for server in self.servers.values():
            self.run(server.start())
        return self

    def __exit__(self, *exc: object) -> None:
        self.users.over = True

        async def end() -> None:
            # The node has gone, so that all of them come to their end by themselves.
            for server in self.servers.values():
                server.die()
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=PATIENCE)
            await self.loop.shutdown_asyncgens()

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def run(self, work: Awaitable[None]) -> None:
        async def do() -> None:
            await work

        asyncio.run_coroutine_threadsafe(do(), self.loop).result(PATIENCE)

    def call(self, what: Callable[[], object]) -> None:
        async def do() -> None:
            what()

        self.run(do())

    def begin(self, count: int) -> None:
        self.call(lambda: [self.loop.create_task(self.users.one()) for _ in range(count)])

    def more(self, number: int) -> None:
        """Wait until so many more logins went well."""
        goal = self.users.good + number
        wait_for(lambda: self.users.good >= goal, f"{number} more logins", PATIENCE)

    def where(self) -> str:
        """The server that has the mailbox open."""
        return wait_for(
            lambda: next((name for name, count in self.store.open.get(b"anna", {}).items() if count), ""), "a session"
        )


def process(node: Node, word: str) -> int:
    """The node's process of that kind."""
    for pid in node.members():
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
                return pid
    raise AssertionError(f"no process {word}")


def test_a_mailbox_is_on_one_server_whatever_dies(tmp_path: Path) -> None:
    ports = {protocol: free_port() for protocol in PROTOCOLS}
    with Site(ports, seed=7) as site:
        servers = "\n".join(
            f"      - {{name: {name}, host: 127.0.0.1, ports: {{"
            + ", ".join(f"{protocol}: {port}" for protocol, port in server.ports.items())
            + "}}"
            for name, server in site.servers.items()
        )
        text = CONFIG.replace("SERVERS", servers)
        for word, protocol in (("IMAP", "imap4"), ("POP3", "pop3"), ("LMTP", "lmtp")):
            text = text.replace(f"127.0.0.1:{word}", f"127.0.0.1:{ports[protocol]}")
        with Node(tmp_path, text, workers=3) as node:
            site.begin(50)
            site.more(100)
            first = site.where()
            site.call(site.servers[first].die)  # those who have it open hang
            wait_for(lambda: site.where() != first, "the mailbox to move")
            site.more(100)
            os.kill(next(iter(node.workers().values())), signal.SIGKILL)
            site.more(100)
            os.kill(process(node, "state"), signal.SIGKILL)
            site.more(100)
            second = site.where()
            os.kill(process(node, "state"), signal.SIGKILL)
            site.call(site.servers[second].die)  # both at once
            wait_for(lambda: site.where() not in (first, second), "the mailbox to move")
            site.more(100)
            site.run(site.servers[first].start())
            wait_for(lambda: " up " in next(row for row in l7lb(node, "servers").splitlines() if first in row), "it")
            assert f"to mail/{first}" in l7lb(node, "move", "anna", first)
            site.more(100)
            assert site.where() == first
            assert site.store.most > 5
            assert not site.store.overlaps
