"""An IMAP machine between a client that says what a test has it say, and a server that answers by a table.

The rig does what the proxy would: it finds servers, carries out handshakes, and hands the machine whatever is said, in
pieces of ``step`` bytes. ``seen`` is everything that came out, neighbouring bytes of one side joined, so that two runs
with different pieces can be compared.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from l7lb.core.actions import (
    CLIENT,
    SERVER,
    Action,
    Close,
    Finished,
    NeedServer,
    Release,
    StartServerTls,
    StartTls,
    ToClient,
    ToServer,
    Tunnel,
)
from l7lb.core.contracts import Assignment, Choice, Entry, Handshake, Peer
from l7lb.core.errors import Failure
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Addresses, Listener, ListenerTls, Pool, Route, Server, ToPool
from l7lb.protocols.imap4.spec import sessions
from l7lb.protocols.mail.facts import MailFacts
from l7lb.protocols.mail.login import LoginSession
from l7lb.protocols.mail.record import MailFlow

RULES = Addresses(recipient_delimiter="+", default_domain="example.com")
BEFORE = "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN AUTH=XOAUTH2 AUTH=OAUTHBEARER"
BEHIND = "IMAP4rev1 SASL-IR ID ENABLE IDLE SORT UNAUTHENTICATE LITERAL+ QUOTA"


class Imap:
    """A server. ``answers`` replaces its answer to a command by name (``GREETING`` and ``CHALLENGE`` are names, too):
    bytes with ``%`` for the tag, or None to close; ``before``/``behind`` are its capabilities around the login.
    """

    def __init__(
        self,
        before: str = BEFORE,
        behind: str = BEHIND,
        told: bool = True,
        password: bytes = b"secret",
        **answers: bytes | None,
    ) -> None:
        self.before = before
        self.behind = behind
        self.told = told  # it says in its greeting and its OK what it can do
        self.password = password
        self.answers = answers
        self.got: list[bytes] = []  # its commands, whole
        self.credentials: list[bytes] = []
        self.buffer = bytearray()
        self.tls = False
        self.command = bytearray()
        self.asked = b""  # the tag of a challenge that is open
        self.name = ""  # of its mechanism
        self.logged_in = False

    def answer(self, name: str, usual: bytes, tag: bytes = b"*") -> bytes | None:
        if name not in self.answers:
            return usual.replace(b"%", tag)
        chosen = self.answers[name]
        return None if chosen is None else chosen.replace(b"%", tag)

    def greet(self) -> bytes | None:
        able = f"[CAPABILITY {self.before}] " if self.told else ""
        return self.answer("GREETING", f"* OK {able}ready\r\n".encode())

    def received(self, data: bytes) -> list[bytes | None]:
        """What it says to this; None: it closes."""
        self.buffer += data
        said: list[bytes | None] = []
        while self.buffer and not self.logged_in:
            found = re.search(rb"\{(\d+)(\+?)\}\r\n\Z", self.command)
            if found is not None:
                size = int(found[1])
                if len(self.buffer) < size:
                    break
                self.command += self.buffer[:size]
                del self.buffer[:size]
            end = self.buffer.find(b"\r\n")
            if end < 0:
                break
            self.command += self.buffer[: end + 2]
            del self.buffer[: end + 2]
            found = re.search(rb"\{(\d+)(\+?)\}\r\n\Z", self.command)
            if found is not None:
                if not found[2]:
                    said.append(b"+ go on\r\n")
                continue
            whole, self.command = bytes(self.command), bytearray()
            said.append(self.carry_out(whole[:-2]))
        return said

    def carry_out(self, line: bytes) -> bytes | None:
        self.got.append(line)
        if self.asked:
            tag, self.asked = self.asked, b""
            return self.judge(tag, base64.b64decode(line), "CHALLENGED")
        tag, _, rest = line.partition(b" ")
        name, _, rest = rest.partition(b" ")
        if name == b"CAPABILITY":
            able = self.behind if self.logged_in or self.credentials else self.before
            return self.answer("CAPABILITY", f"* CAPABILITY {able}\r\n% OK done\r\n".encode(), tag)
        if name == b"STARTTLS":
            return self.answer("STARTTLS", b"% OK begin\r\n", tag)
        if name == b"ID":
            return self.answer("ID", b'* ID ("name" {7}\r\nDove\r\nt)\r\n% OK done\r\n', tag)
        if name == b"LOGIN":
            return self.judge(tag, rest, "LOGIN")
        assert name == b"AUTHENTICATE", line
        mechanism, _, initial = rest.partition(b" ")
        self.name = mechanism.decode()
        if not initial:
            self.asked = tag
            return self.answer("CHALLENGE", b"+ \r\n", tag)
        return self.judge(tag, base64.b64decode(initial), "AUTHENTICATE")

    def judge(self, tag: bytes, proof: bytes, name: str) -> bytes | None:
        if name == "CHALLENGED" and self.credentials:
            return self.answer("REFUSAL", b"% NO [AUTHENTICATIONFAILED] no\r\n", tag)
        self.credentials.append(proof)
        if name in self.answers:
            return self.answer(name, b"", tag)
        if self.password not in proof:
            if self.name in ("XOAUTH2", "OAUTHBEARER"):
                self.asked = tag
                return b"+ eyJzdGF0dXMiOiI0MDEifQ==\r\n"
            return self.answer("REFUSAL", b"% NO [AUTHENTICATIONFAILED] no\r\n", tag)
        self.logged_in = self.told
        able = f"[CAPABILITY {self.behind}] " if self.told else ""
        return self.answer("WELCOME", f"% OK {able}Logged in\r\n".encode(), tag)


class Rig:
    """``servers`` answer NeedServer in turn: a server, or the failure that the proxy tells; the last one stays.

    ``mode`` is the listener's TLS: "", starttls or implicit; ``server_tls`` what is wanted with servers.
    """

    def __init__(
        self,
        *servers: Imap | Failure,
        step: int = 1 << 30,
        mode: str = "implicit",
        server_tls: str = "",
        entry: Entry | None = None,
        client_address: str = "id",
        login_as: str = "typed",
        handshake: Handshake | None = None,
        **settings: Any,
    ) -> None:
        listener = Listener(
            name="imap",
            protocol="imap4",
            bind=(),
            routes=(),
            tls=ListenerTls(certificates=(), mode=mode, client_certificate="optional") if mode else None,
            settings={"hostname": "lb1", **settings},
            addresses=RULES,
        )
        self.servers = list(servers) or [Imap()]
        self.server: Imap | None = None
        self.step = step
        self.server_tls = server_tls
        self.entry = entry
        self.peer = Peer("192.0.2.7", 5000, "192.0.2.1", 143, tls=mode == "implicit")
        self.peer.handshake = handshake
        self.pool = PoolState(
            Pool(name="mail", servers=(), login_as=login_as, client_address={"imap4": client_address}), []
        )
        self.now = 100.0
        self.seen: list[tuple[str, bytes]] = []
        self.tunnel = False
        self.shaking = False
        self.busy = False
        self.inbox: list[tuple[Imap, bytes | None]] = []  # what servers have said
        self.closed = False
        self.released: list[Release] = []
        self.finished: Finished | None = None
        self.facts: list[MailFacts] = []
        session = sessions(listener)(self.peer, self.now)
        assert isinstance(session, LoginSession)
        self.session = session
        self.run(session.start(self.now))

    def note(self, what: str, data: bytes = b"") -> None:
        if self.seen and what in ("client", "server") and self.seen[-1][0] == what:
            data = self.seen.pop()[1] + data
        self.seen.append((what, data))

    @property
    def said(self) -> bytes:
        """All that the client was told."""
        return b"".join(data for what, data in self.seen if what == "client")

    @property
    def told(self) -> bytes:
        """All that servers were told."""
        return b"".join(data for what, data in self.seen if what == "server")

    def client(self, data: bytes) -> bytes:
        """The client sends; returns what it is told."""
        before = len(self.said)
        for at in range(0, len(data), self.step):
            self.run(self.session.received(CLIENT, data[at : at + self.step], self.now))
        return self.said[before:]

    def run(self, actions: list[Action]) -> None:
        """Carry these out, and then whatever servers say to them."""
        self._carry_out(actions)
        while self.inbox and not self.busy:
            self.busy = True
            self._deliver(*self.inbox.pop(0))
            self.busy = False

    def _carry_out(self, actions: list[Action]) -> None:
        for number, action in enumerate(actions):
            if isinstance(action, ToClient):
                self.note("client", action.data)
            elif isinstance(action, ToServer):
                self.note("server", action.data)
                if self.server is not None:
                    self.serve(self.server, self.server.received(action.data))
            elif isinstance(action, Finished):
                self.finished = action
            elif isinstance(action, Release):
                self.released.append(action)
                self.server = None
            elif isinstance(action, Tunnel):
                self.note("tunnel")
                self.tunnel = True
            elif isinstance(action, Close):
                self.note("abort" if action.abort else "close")
                self.closed = True
            else:
                self.note(type(action).__name__)
                assert number == len(actions) - 1 or not isinstance(action, (NeedServer, StartTls, StartServerTls))
                self.rare(action)

    def rare(self, action: Action) -> None:
        if isinstance(action, StartTls):
            self.peer.tls = True
            self.run(self.session.secured(self.now))
        elif isinstance(action, StartServerTls):
            assert self.server is not None
            self.shaking = True  # done once the server has said what it says in the clear
        elif isinstance(action, NeedServer):
            assert isinstance(action.facts, MailFacts)
            self.facts.append(action.facts)
            chosen = self.servers.pop(0) if len(self.servers) > 1 else self.servers[0]
            if isinstance(chosen, Failure):
                self.run(self.session.failed(chosen, None, self.now))
            else:
                self.connect(chosen)

    def connect(self, server: Imap) -> None:
        choice = Choice(Route(number=1, where="", match=None, action=ToPool("mail")), "mail")
        state = ServerState("mail", Server(name="mx1", address=Address("192.0.2.9", 143)))
        assignment = Assignment(choice, self.pool, state)
        assignment.entry = self.entry
        assignment.server_tls = self.server_tls
        self.server = server
        self.run(self.session.connected(assignment, self.now))
        self.serve(server, [server.greet()])

    def serve(self, server: Imap, answers: list[bytes | None]) -> None:
        """The server says these, as long as the session has it."""
        self.inbox += [(server, answer) for answer in answers]
        self.run([])

    def _deliver(self, server: Imap, answer: bytes | None) -> None:
        if answer is None:
            if self.server is server:
                self._carry_out(self.session.ended(SERVER, self.now, False))
            return
        for at in range(0, len(answer), self.step):
            if self.server is not server:
                return
            self._carry_out(self.session.received(SERVER, answer[at : at + self.step], self.now))
        if self.shaking and self.server is server:
            self.shaking, server.tls = False, True
            self._carry_out(self.session.server_secured(self.now))

    def later(self, seconds: float) -> None:
        """So much time goes by; the deadline comes if it is within it."""
        self.now += seconds
        if self.session.deadline and self.session.deadline <= self.now:
            self.run(self.session.expired(self.now, None, 0.0))

    def record(self) -> MailFlow:
        assert self.finished is not None
        assert isinstance(self.finished.subject, MailFlow)
        return self.finished.subject
