"""A mail session up to its login, between a client and a server that say what a test has them say."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from l7lb.core.actions import (
    CLIENT,
    SERVER,
    Action,
    Close,
    Finished,
    LoginFailed,
    NeedServer,
    Release,
    StartServerTls,
    StartTls,
    ToClient,
    ToServer,
    Tunnel,
)
from l7lb.core.contracts import Assignment, Choice, ClientCertificate, Entry, Handshake, Peer, ProtocolSpec
from l7lb.core.errors import Failure
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Addresses, Listener, ListenerTls, Pool, Route, Server, ToPool
from l7lb.protocols.mail.facts import MailFacts
from l7lb.protocols.mail.login import LoginSession

Step = tuple[Any, ...]
NUMBERS = count(1)  # no two listeners have one name, so that none knows what another has learned


class Bench:
    """One connection. ``did`` is what the session asked for, in short; what it says in a row is one entry, ``C:`` to
    the client and ``S:`` to the server.
    """

    def __init__(self, spec: ProtocolSpec, tls: str = "", pool: dict[str, Any] | None = None, **settings: Any) -> None:
        self.spec = spec
        listener = Listener(
            name=f"in{next(NUMBERS)}",
            protocol=spec.name,
            bind=(Address("127.0.0.1", 0),),
            routes=(),
            tls=ListenerTls(certificates=(), mode=tls, client_certificate="optional") if tls else None,
            addresses=Addresses(recipient_delimiter="+", default_domain="example.com"),
            settings={"cleartext": "always"} | settings,
        )
        self.factory = spec.sessions(listener)
        self.pool = pool or {}
        self.server_tls = ""
        self.entry: Entry | None = None
        self.handshake: Handshake | None = None
        self.open(tls == "implicit")

    def open(self, tls: bool = False) -> Bench:
        """Another client of the same listener."""
        self.now = 100.0
        self.did: list[str] = []
        self.facts: MailFacts | None = None
        self.finished: list[Finished] = []
        self.peer = Peer("192.0.2.1", 4711, "192.0.2.9", 110, tls)
        self.peer.handshake = self.handshake if tls else None
        session = self.factory(self.peer, self.now)
        assert isinstance(session, LoginSession)
        self.session = session
        return self.take(session.start(self.now))

    def take(self, actions: list[Action]) -> Bench:
        for action in actions:
            if isinstance(action, (ToClient, ToServer)):
                assert action.data
                who = "C: " if isinstance(action, ToClient) else "S: "
                text = action.data.decode("latin-1").replace("\r\n", "|")
                if self.did and self.did[-1].startswith(who):
                    self.did[-1] += text
                else:
                    self.did.append(who + text)
            elif isinstance(action, NeedServer):
                assert action.fresh
                assert isinstance(action.facts, MailFacts)
                self.facts = action.facts
                self.did.append(f"need {action.facts.mailbox.decode('utf-8', 'backslashreplace')}")
            elif isinstance(action, Finished):
                self.finished.append(action)
                self.did.append(f"finished {action.ended}")
            elif isinstance(action, Release):
                words = ["release", *(["reset"] if action.abort else [])]
                self.did.append(" ".join([*words, *([action.failure.label] if action.failure else [])]))
            elif isinstance(action, Close):
                self.did.append("abort" if action.abort else "close")
            elif isinstance(action, (LoginFailed, StartTls, StartServerTls, Tunnel)):
                self.did.append(type(action).__name__)
            else:
                raise AssertionError(action)
        return self

    def client(self, data: bytes) -> Bench:
        return self.take(self.session.received(CLIENT, data, self.now))

    def server(self, data: bytes) -> Bench:
        return self.take(self.session.received(SERVER, data, self.now))

    def connect(self, name: str = "mx1") -> Bench:
        config = Server(name=name, address=Address("127.0.0.1", 1))
        state = ServerState("mail", config)
        choice = Choice(Route(number=1, where="", match=None, action=ToPool("mail")), "mail")
        pool = PoolState(Pool(name="mail", servers=(config,), **self.pool), [state])
        assignment = Assignment(choice, pool, state)
        assignment.entry = self.entry
        assignment.server_tls = self.server_tls
        return self.take(self.session.connected(assignment, self.now))

    def secured(self) -> Bench:
        """The client's handshake is done."""
        self.peer.tls = True
        self.peer.handshake = self.handshake
        return self.take(self.session.secured(self.now))

    def server_secured(self) -> Bench:
        return self.take(self.session.server_secured(self.now))

    def failed(self, failure: Failure) -> Bench:
        return self.take(self.session.failed(failure, None, self.now))

    def ended(self, side: str, error: bool = False) -> Bench:
        return self.take(self.session.ended(CLIENT if side == "client" else SERVER, self.now, error))

    def late(self) -> Bench:
        """The deadline comes, if there is one."""
        if not self.session.deadline:
            return self
        self.now = self.session.deadline + 0.1
        return self.take(self.session.expired(self.now, None, 0.0))

    def dismissed(self, why: str = "moved") -> Bench:
        return self.take(self.session.dismissed(why, self.now))

    def draining(self, patient: bool = False) -> Bench:
        return self.take(self.session.draining(self.now, patient))

    def certified(self, name: str) -> Bench:
        """Clients show a certificate of this name from now on."""
        self.handshake = Handshake()
        self.handshake.certificate = ClientCertificate(name, f"CN={name}", verified=True)
        return self

    def run(self, *steps: Step) -> Bench:
        """Each step is a method's name and its arguments."""
        for name, *arguments in steps:
            getattr(self, name)(*arguments)
        return self

    def seen(self) -> list[str]:
        did, self.did = self.did, []
        return did


def splits(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    """The same steps with one sending cut in two, at every place; and all cut into single bytes."""
    for at, (name, *arguments) in enumerate(steps):
        if name in ("client", "server"):
            data = arguments[0]
            for cut in range(1, len(data)):
                yield (*steps[:at], (name, data[:cut]), (name, data[cut:]), *steps[at + 1 :])
    pieces: list[Step] = []
    for name, *arguments in steps:
        if name in ("client", "server"):
            pieces += [(name, bytes([byte])) for byte in arguments[0]]
        else:
            pieces.append((name, *arguments))
    yield tuple(pieces)
