"""A client's connection that speaks SMTP, submission or LMTP, with scripted servers, all sans-io.

:class:`Bench` does what the proxy does with a session's actions, in the same order. Its servers answer by a script; each
notes what it was told. ``where`` says which server a mailbox is on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from l7lb.core.actions import (
    CLIENT,
    SERVER,
    Action,
    Close,
    Finished,
    Forget,
    Locate,
    LoginFailed,
    Multiplex,
    NeedServer,
    OnStream,
    OpenStream,
    Release,
    StartServerTls,
    StartTls,
    ToClient,
    ToServer,
)
from l7lb.core.contracts import Assignment, Choice, Entry, Location, Multiplexer, Peer, Session
from l7lb.core.errors import Failure
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Addresses, Listener, ListenerTls, Pool, Route, Server, ServerTls, ToPool
from l7lb.protocols.lmtp.spec import SPEC as LMTP
from l7lb.protocols.smtp.spec import SMTP, SUBMISSION

SPECS = {spec.name: spec for spec in (SMTP, SUBMISSION, LMTP)}
EHLO = b"250-there\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250-DSN\r\n250-CHUNKING\r\n250 SMTPUTF8\r\n"
AUTH = EHLO.replace(b"250 SMTPUTF8", b"250-AUTH PLAIN LOGIN XOAUTH2\r\n250 SMTPUTF8")
XCLIENT = EHLO.replace(b"250 SMTPUTF8", b"250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN\r\n250 SMTPUTF8")
STARTTLS = EHLO.replace(b"250 SMTPUTF8", b"250-STARTTLS\r\n250 SMTPUTF8")
LOSE = b"<lose>"  # in a script: the server is lost in place of this reply
SILENT = b"<silent>"

Script = dict[bytes, Any]


class FakeServer:
    """One connection to a server: answers by ``script``, by the command's verb (``.`` for a message's end).

    A value is a reply, several that are used up one after the other, LOSE, or SILENT.
    """

    def __init__(self, name: str, script: Script) -> None:
        self.name = name
        self.script = script
        self.commands: list[bytes] = []
        self.message = b""
        self.messages: list[bytes] = []
        self.accepted = 0
        self.buffer = b""
        self.mode = ""
        self.left = 0
        self.last = False
        self.lost = False
        self.end = ""

    def answer(self, verb: bytes, usual: bytes) -> bytes:
        found = self.script.get(verb, usual)
        if isinstance(found, list):
            found = found.pop(0) if found else usual
        if found == LOSE:
            self.lost = True
            return b""
        return b"" if found == SILENT else bytes(found)

    def greet(self) -> bytes:
        return self.answer(b"", b"220 there\r\n")

    def take(self, data: bytes) -> bytes:
        """What it says to that."""
        self.buffer += data
        said = b""
        while not self.lost:
            if self.mode == "data":
                end = (b"\r\n" + self.buffer).find(b"\r\n.\r\n")
                if end < 0:
                    return said
                self.messages.append(self.buffer[:end])
                self.buffer = self.buffer[end + 3 :]
                self.mode = ""
                said += self.final()
            elif self.mode == "chunk":
                taken, self.buffer = self.buffer[: self.left], self.buffer[self.left :]
                self.message += taken
                self.left -= len(taken)
                if self.left:
                    return said
                self.mode = ""
                if self.last:
                    self.messages.append(self.message)
                    said += self.final()
                else:
                    said += self.answer(b"BDAT", b"250 chunk\r\n")
            else:
                line, end_of_line, rest = self.buffer.partition(b"\r\n")
                if not end_of_line:
                    return said
                self.buffer = rest
                said += self.command(line)
        return said

    def final(self) -> bytes:
        if self.commands[0].startswith(b"LHLO"):
            count, self.accepted = self.accepted, 0
            return b"".join(self.answer(b".", b"250 stored by %s\r\n" % self.name.encode()) for _ in range(count))
        self.accepted = 0
        return self.answer(b".", b"250 stored by %s\r\n" % self.name.encode())

    def command(self, line: bytes) -> bytes:
        self.commands.append(line)
        verb = line.split(b" ")[0].upper()
        if verb in (b"EHLO", b"LHLO"):
            return self.answer(verb, EHLO)
        if verb == b"RCPT":
            said = self.answer(verb, b"250 recipient\r\n")
            self.accepted += said.startswith(b"2")
            return said
        if verb == b"DATA":
            said = self.answer(verb, b"354 go on\r\n")
            self.mode = "data" if said.startswith(b"354") else ""
            return said
        if verb == b"BDAT":
            words = line.split()
            self.left, self.last = int(words[1]), len(words) > 2
            self.mode = "chunk"
            return b""
        usual = {b"QUIT": b"221 bye\r\n", b"STARTTLS": b"220 go on\r\n", b"XCLIENT": b"220 again\r\n"}
        usual[b"AUTH"] = b"235 in\r\n"
        return self.answer(verb, usual.get(verb, b"250 fine\r\n"))


class Bench:
    """See the module. ``scripts`` are by server's name; the servers that were connected to are in ``servers``."""

    def __init__(
        self,
        protocol: str = "smtp",
        *,
        scripts: dict[str, Script] | None = None,
        settings: dict[str, Any] | None = None,
        where: Callable[[bytes], str | Failure] = lambda mailbox: mailbox[:1].decode(),
        client_address: str = "none",
        server_tls: ServerTls | None = None,
        starttls: bool = False,
        peer: Peer | None = None,
        entry: Entry | None = None,
        login_as: str = "typed",
        certificates: bool = False,
    ) -> None:
        self.scripts = scripts or {}
        self.where = where
        self.entry = entry
        self.server_tls = server_tls
        names = sorted({"a", "b", *self.scripts})
        addresses = {name: Address("192.0.2.1", 1000 + number) for number, name in enumerate(names)}
        config = Pool(
            name="mail",
            servers=tuple(Server(name=name, address=addresses[name], tls=server_tls) for name in names),
            client_address={protocol: client_address},
            login_as=login_as,
        )
        self.pool = PoolState(config, [ServerState("mail", server) for server in config.servers])
        self.route = Route(number=1, where="routes[0]", match=None, action=ToPool("mail"))
        tls = None
        if starttls or certificates:
            asked = "optional" if certificates else ""
            tls = ListenerTls(certificates=(), mode="starttls" if starttls else "implicit", client_certificate=asked)
        listener = Listener(
            name="mx",
            protocol=protocol,
            bind=(),
            routes=(self.route,),
            tls=tls,
            settings={"hostname": "proxy.example", **(settings or {})},
            addresses=Addresses(default_domain="example.com", recipient_delimiter="+"),
        )
        self.peer = peer or Peer("198.51.100.7", 4711, "192.0.2.80", 25, tls=protocol == "submission")
        self.factory = SPECS[protocol].sessions(listener)
        self.now = 100.0
        self.begin()

    def begin(self) -> None:
        """A new connection to the same listener."""
        self.said = b""
        self.servers: list[FakeServer] = []
        self.by_number: dict[int, FakeServer] = {}
        self.streams: dict[int, Session] = {}
        self.records: list[Finished] = []
        self.claims: list[bytes] = []
        self.failed_logins = 0
        self.closed = ""
        self.securing = False
        self.silent = False  # nobody says where mailboxes are
        self.held: set[str] = set()  # servers whose words wait
        self.waiting: list[tuple[int, bytes]] = []
        session = self.factory(self.peer, self.now)
        assert isinstance(session, Multiplexer)
        self.session = session
        self.run(self.session.start(self.now))

    # --- what the proxy does --------------------------------------------------------------------------------------

    def run(self, actions: Sequence[Action]) -> None:
        self._carry_out(actions)
        self.settle()

    def settle(self) -> None:
        while not self.closed and not self.securing:
            actions = self.session.output(65536, self.now)
            if not actions:
                return
            self._carry_out(actions)

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if self.closed:
                return
            if isinstance(action, ToClient):
                self.said += action.data
            elif isinstance(action, Multiplex):
                self._carry_out(self.session.received(CLIENT, b"", self.now))
            elif isinstance(action, OpenStream):
                self.streams[action.number] = action.session
                self.on_stream(action.number, action.actions)
            elif isinstance(action, OnStream):
                if action.number in self.streams:
                    self.on_stream(action.number, action.actions)
            elif isinstance(action, Locate):
                if not self.silent:
                    self.locate(action)
            elif isinstance(action, Forget):
                if action.facts.mailbox in self.claims:
                    self.claims.remove(action.facts.mailbox)
            elif isinstance(action, LoginFailed):
                self.failed_logins += 1
            elif isinstance(action, StartTls):
                assert action is actions[-1]
                self.securing = True
            elif isinstance(action, Finished):
                self.records.append(action)
            elif isinstance(action, Close):
                self.closed = "reset" if action.abort else "closed"
                for number in list(self.streams):
                    self.drop(number, "closed")
            else:
                raise AssertionError(action)

    def locate(self, action: Locate) -> None:
        found = self.where(action.facts.mailbox)
        choice = Choice(self.route, "mail")
        if isinstance(found, Failure):
            location = Location(action.facts, choice, failure=found)
        else:
            self.claims.append(action.facts.mailbox)
            location = Location(action.facts, choice, self.pool, self.pool.by_name[found])
        self._carry_out(self.session.located(location, self.now))

    def on_stream(self, number: int, actions: Sequence[Action]) -> None:
        for action in actions:
            session = self.streams.get(number)
            if session is None:
                return
            if isinstance(action, NeedServer):
                self.connect(number, session, action)
            elif isinstance(action, ToServer):
                server = self.by_number[number]
                self.hear(number, server.take(action.data))
            elif isinstance(action, Finished):
                self.records.append(action)
            elif isinstance(action, Release):
                if number in self.by_number:
                    self.by_number[number].end = "reset" if action.abort else "closed"
            elif isinstance(action, Close):
                self.drop(number, "")
            elif isinstance(action, StartServerTls):
                self.by_number[number].buffer = b""
                self.on_stream(number, session.server_secured(self.now))
            else:
                raise AssertionError(action)

    def connect(self, number: int, session: Session, need: NeedServer) -> None:
        assert need.fresh
        found = self.where(need.facts.mailbox)
        choice = Choice(self.route, "mail")
        if isinstance(found, Failure):
            self.on_stream(number, session.failed(found, choice, self.now))
            return
        assignment = Assignment(choice, self.pool, self.pool.by_name[found])
        assignment.entry = self.entry
        assignment.server_tls = self.server_tls.mode if self.server_tls is not None else ""
        server = FakeServer(found, dict(self.scripts.get(found, {})))
        self.servers.append(server)
        self.by_number[number] = server
        flow: Any = session
        flow.taking(True)
        self.on_stream(number, session.connected(assignment, self.now))
        self.hear(number, server.greet())

    def hear(self, number: int, said: bytes) -> None:
        """The server said that, and perhaps went away."""
        server = self.by_number[number]
        if server.name in self.held:
            self.waiting.append((number, said))
            return
        session = self.streams.get(number)
        if said and session is not None:
            self.on_stream(number, session.received(SERVER, said, self.now))
        session = self.streams.get(number)
        if server.lost and session is not None:
            self.on_stream(number, session.ended(SERVER, self.now, True))

    def drop(self, number: int, how: str) -> None:
        self.streams.pop(number, None)
        server = self.by_number.get(number)
        if server is not None and how and not server.end:
            server.end = how

    # --- what a test does -----------------------------------------------------------------------------------------

    def send(self, data: bytes) -> bytes:
        """What the client sends; returns what it is told."""
        before = len(self.said)
        if not self.closed:
            self.run(self.session.received(CLIENT, data, self.now))
        return self.said[before:]

    def split(self, data: bytes, sizes: Sequence[int]) -> bytes:
        """The same in pieces of these sizes, the last one's again and again."""
        before, at, sizes = len(self.said), 0, list(sizes)
        while at < len(data):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            self.send(data[at : at + size])
            at += size
        return self.said[before:]

    def release(self, name: str) -> None:
        """Let a server that was held speak."""
        self.held.discard(name)
        waiting, self.waiting = self.waiting, []
        for number, said in waiting:
            self.hear(number, said)
        self.settle()

    def lose(self, index: int) -> None:
        """A server's connection is lost."""
        server = self.servers[index]
        number = next(each for each, one in self.by_number.items() if one is server)
        if number in self.streams:
            self.on_stream(number, self.streams[number].ended(SERVER, self.now, True))
        self.settle()

    def gone(self, error: bool = True) -> None:
        """The client is gone."""
        self.run(self.session.ended(CLIENT, self.now, error))

    def codes(self, said: bytes) -> list[bytes]:
        """The codes of the replies in it."""
        return [line[:3] for line in said.split(b"\r\n") if line and line[3:4] == b" "]
