"""The HTTP machine on a bench: tests feed events and read what it asks for.

Every action is written down as a short word or its bytes, so that a conversation reads from top to bottom. It also
holds to what each conversation must hold to: nothing follows Close, nothing goes to a server that is not held.
"""

from __future__ import annotations

import re

from l7lb.core.actions import (
    Action,
    Close,
    Finished,
    Learn,
    NeedServer,
    Release,
    Side,
    Splice,
    ToClient,
    ToServer,
    Tunnel,
)
from l7lb.core.contracts import Assignment, Choice, Peer
from l7lb.core.dates import Dates
from l7lb.core.errors import Failure
from l7lb.core.record import AccessRecord
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import (
    Address,
    Listener,
    Pool,
    PoolTimeouts,
    Redirect,
    Respond,
    Retries,
    Route,
    Server,
    ToPool,
)
from l7lb.protocols.http.machine import HttpMachine, Shared
from l7lb.protocols.http.settings import HttpSettings

CLIENT, SERVER = Side.CLIENT, Side.SERVER
OWN_LINES = re.compile(rb"(?m)^(?:X-Forwarded-\w+|Forwarded|X-Request-ID|Via): [^\r]*\r\n")
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def plain(data: bytes) -> bytes:
    """Without the lines that l7lb adds to every message."""
    return OWN_LINES.sub(b"", data)


class Bench:
    """``did`` holds what the machine asked for since it was last looked at (:meth:`seen`)."""

    def __init__(
        self,
        *,
        retries: Retries = Retries(attempts=0),  # noqa: B008 - immutable
        route: Route | None = None,
        tls: bool = False,
        client: str = "192.0.2.1",
        http_version: str = "1.1",
        **settings: object,
    ) -> None:
        self.route = route or Route(number=1, where="here", match=None, action=ToPool("web"))
        listener = Listener(
            name="web",
            protocol="http",
            bind=(Address("127.0.0.1", 80),),
            routes=(self.route,),
            settings=dict(settings),
        )
        server = Server(name="web1", address=Address("127.0.0.1", 1))
        pool = Pool(
            name="web",
            servers=(server,),
            retries=retries,
            http_version=http_version,
            timeouts=PoolTimeouts(response_header=30.0, response_body=40.0),
        )
        self.server = ServerState("web", server)
        self.pool = PoolState(pool, [self.server])
        self.now = 1000.0
        self.dates = Dates()  # which nobody tells, unless a test does
        shared = Shared(listener.name, HttpSettings.of(listener), self.dates)
        self.machine = HttpMachine(shared, Peer(client, 4711, "127.0.0.1", 8080, tls), self.now)
        self.did: list[object] = []
        self.to_client = b""
        self.to_server = b""
        self.needs = 0
        self.need: NeedServer | None = None
        self.finished: list[Finished] = []
        self.held = False
        self.closed = ""
        self.run(self.machine.start(self.now))

    # --- events

    def client(self, data: bytes) -> Bench:
        """The client sends."""
        return self.run(self.machine.received(CLIENT, data, self.now))

    def answer(self, data: bytes) -> Bench:
        """The server sends."""
        return self.run(self.machine.received(SERVER, data, self.now))

    def end(self, side: Side, error: bool = False) -> Bench:
        """One side ends its stream, or resets the connection."""
        return self.run(self.machine.ended(side, self.now, error))

    def connect(self, reused: bool = False, set_cookie: bytes = b"", learns: bool = False) -> Bench:
        """A server is there."""
        assert self.need is not None
        self.need = None
        choice = Choice(self.route, "web")
        assignment = Assignment(choice, self.pool, self.server)
        assignment.reused = reused
        assignment.set_cookie = set_cookie
        assignment.learns = learns
        self.held = True
        return self.run(self.machine.connected(assignment, self.now))

    def answer_here(self, location: bytes = b"") -> Bench:
        """The rule answers itself."""
        self.need = None
        choice = Choice(self.route, None)
        choice.location = location
        assert isinstance(self.route.action, (Respond, Redirect))
        return self.run(self.machine.answered(choice, self.now))

    def fail(self, failure: Failure) -> Bench:
        """There is no server."""
        self.need = None
        return self.run(self.machine.failed(failure, Choice(self.route, "web"), self.now))

    def move(self, side: Side, count: int) -> Bench:
        """The proxy has moved so many bytes."""
        return self.run(self.machine.moved(side, count, self.now))

    def wait(self, seconds: float, blocked: Side | None = None, progress: float = 0.0) -> Bench:
        """Time passes; the machine is told when its deadline has come."""
        self.now += seconds
        if self.machine.deadline and self.machine.deadline <= self.now:
            self.run(self.machine.expired(self.now, blocked, progress))
        return self

    def drain(self, patient: bool = False) -> Bench:
        """The node ends, or only this process of it."""
        return self.run(self.machine.draining(self.now, patient))

    # --- what came of it

    def run(self, actions: list[Action]) -> Bench:
        for number, action in enumerate(actions):
            assert not self.closed, f"{action} after {self.closed}"
            if isinstance(action, NeedServer):
                assert number == len(actions) - 1
            self.did.append(self.word(action))
        return self

    def word(self, action: Action) -> object:
        if isinstance(action, ToClient):
            assert action.data
            self.to_client += action.data
            return plain(action.data)
        if isinstance(action, ToServer):
            assert action.data
            assert self.held, "bytes for a server that is not held"
            self.to_server += action.data
            return ("server", plain(action.data))
        if isinstance(action, NeedServer):
            self.held = False
            self.needs += 1
            self.need = action
            return "need" if action.again is None else f"again {action.again.label}" + " fresh" * action.fresh
        if isinstance(action, Release):
            self.held = False
            words = ["release", "keep" if action.reusable else "close"]
            return " ".join(words + ([action.failure.label] if action.failure else []))
        if isinstance(action, Finished):
            self.finished.append(action)
            return f"finished {action.status} {action.ended}"
        if isinstance(action, Splice):
            return f"splice {action.source.name.lower()} {action.count}"
        if isinstance(action, Tunnel):
            return "tunnel"
        if isinstance(action, Learn):
            return ("learn", *action.set_cookies)
        assert isinstance(action, Close)
        self.closed = "abort" if action.abort else "linger" if action.linger else "close"
        return self.closed

    def seen(self) -> list[object]:
        """What the machine asked for since the last look."""
        did, self.did = self.did, []
        return did

    @property
    def record(self) -> AccessRecord:
        """The last request's access record."""
        last = self.finished[-1]
        return last.subject.record(last.ended, last.elapsed)
