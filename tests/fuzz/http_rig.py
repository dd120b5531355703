"""The HTTP machine on a bench: bytes in from both sides in any pieces, everything it does written down.

It stands in for the proxy: routes every request to one server, moves what is to be spliced, and reads from a side only
while the machine wants it. Each request that reaches the server is read by h11, which is stricter than most servers:
what it can't read, or what follows a request's end, the machine should never have sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import h11

from l7lb.core.actions import Action, Close, Finished, NeedServer, Release, Side, Splice, ToClient, ToServer, Tunnel
from l7lb.core.contracts import Assignment, Choice, Peer
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Listener, Pool, Retries, Route, Server, ToPool
from l7lb.protocols.http.spec import SPEC

POOL = Pool(
    name="web",
    servers=(Server(name="web1", address=Address("127.0.0.1", 1)),),
    retries=Retries(attempts=0),
)
ROUTE = Route(number=1, where="test", match=None, action=ToPool("web"))
LISTENER = Listener(name="web", protocol="http", bind=(Address("127.0.0.1", 2),), routes=(ROUTE,))
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
VARYING = re.compile(rb"(?i)(?<=\r\nx-request-id: )[^\r]*")

Split = Callable[[bytes], Sequence[bytes]]


def whole(data: bytes) -> Sequence[bytes]:
    """All in one piece."""
    return [data]


def cut(positions: Sequence[int]) -> Split:
    """Cut at these positions; those beyond the end don't count."""

    def split(data: bytes) -> Sequence[bytes]:
        places = [0, *sorted({at for at in positions if 0 < at < len(data)}), len(data)]
        return [data[start:end] for start, end in pairwise(places)]

    return split


@dataclass(frozen=True)
class Seen:
    """A request as the server got it; ``complete`` if its body came to its end."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    complete: bool


@dataclass
class Outcome:
    """What came of it. Two runs over the same bytes in other pieces must be equal."""

    to_client: bytes = b""
    to_server: list[bytes] = field(default_factory=list)
    requests: list[Seen] = field(default_factory=list)
    endings: list[tuple[int, str]] = field(default_factory=list)
    closed: str = ""


class Rig:
    """One client's connection. ``answer`` is what the server says to every complete request."""

    def __init__(self, answer: bytes = ANSWER, split: Split = whole, answer_ends: bool = False) -> None:
        self.machine = SPEC.sessions(LISTENER)(Peer("127.0.0.1", 40000, "127.0.0.1", 80), 0.0)
        self.outcome = Outcome()
        self.answer = answer
        self.answer_ends = answer_ends
        self.split = split
        self.waiting: dict[Side, list[bytes]] = {Side.CLIENT: [], Side.SERVER: []}
        self.ends: dict[Side, bool] = {Side.CLIENT: False, Side.SERVER: False}
        self.splices: dict[Side, int] = {Side.CLIENT: 0, Side.SERVER: 0}
        self.tunnel = False
        self.held = False
        self.server = h11.Connection(h11.SERVER)
        self.run(self.machine.start(0.0))

    def client(self, data: bytes, end: bool = True) -> Outcome:
        """Everything that the client sends, and whether it then ends its half."""
        self.waiting[Side.CLIENT] += self.split(data)
        self.ends[Side.CLIENT] = end
        while self.step():
            pass
        self.outcome.to_client = VARYING.sub(b"*", self.outcome.to_client)
        self.outcome.to_server = [VARYING.sub(b"*", data) for data in self.outcome.to_server]
        return self.outcome

    def step(self) -> bool:
        """Deliver one piece; False where nothing is left to deliver."""
        if self.outcome.closed:
            return False
        for side in (Side.SERVER, Side.CLIENT):
            if side is Side.SERVER and not self.held:
                continue
            wanted = self.machine.wants_client if side is Side.CLIENT else self.machine.wants_server
            if self.splices[side] or self.tunnel:
                if self.waiting[side]:
                    self.move(side)
                    return True
            elif self.waiting[side] and wanted:
                self.run(self.machine.received(side, self.waiting[side].pop(0), 0.0))
                return True
            if not self.waiting[side] and self.ends[side] and (wanted or self.tunnel):
                self.ends[side] = False
                self.run(self.machine.ended(side, 0.0, False))
                return True
        return False

    def move(self, side: Side) -> None:
        piece = self.waiting[side].pop(0)
        limit = self.splices[side]
        if limit > 0:
            piece, rest = piece[:limit], piece[limit:]
            if rest:
                self.waiting[side].insert(0, rest)
            self.splices[side] -= len(piece)
        self.sent(side.CLIENT if side is Side.SERVER else Side.SERVER, piece)
        self.run(self.machine.moved(side, len(piece), 0.0))

    def run(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, ToClient):
                self.sent(Side.CLIENT, action.data)
            elif isinstance(action, ToServer):
                self.sent(Side.SERVER, action.data)
            elif isinstance(action, NeedServer):
                self.connect()
            elif isinstance(action, Release):
                self.release()
            elif isinstance(action, Splice):
                self.splices[action.source] = action.count
            elif isinstance(action, Tunnel):
                self.tunnel = True
            elif isinstance(action, Finished):
                self.outcome.endings.append((action.status, action.ended))
            elif isinstance(action, Close):
                self.outcome.closed = "abort" if action.abort else "close"

    def connect(self) -> None:
        server = ServerState("web", POOL.servers[0])
        assignment = Assignment(Choice(ROUTE, "web"), PoolState(POOL, [server]), server)
        self.server = h11.Connection(h11.SERVER)
        self.outcome.to_server.append(b"")
        self.held = True
        self.waiting[Side.SERVER] = []
        self.ends[Side.SERVER] = False
        self.run(self.machine.connected(assignment, 0.0))

    def release(self) -> None:
        self.held = False
        self.splices = {Side.CLIENT: 0, Side.SERVER: 0}

    def sent(self, side: Side, data: bytes) -> None:
        """Bytes that the machine sends, or lets through."""
        assert isinstance(data, bytes)
        if side is Side.CLIENT:
            self.outcome.to_client += data
            return
        assert self.held, f"bytes for a server that was given back: {data!r}"
        self.outcome.to_server[-1] += data
        if not self.tunnel:
            self.server.receive_data(data)
            self.read_request()

    def read_request(self) -> None:
        requests = self.outcome.requests
        while True:
            event = self.server.next_event()
            if isinstance(event, h11.Request):
                headers = tuple((name, value) for name, value in event.headers if name != b"x-request-id")
                requests.append(Seen(event.method, event.target, headers, b"", False))
            elif isinstance(event, h11.Data):
                last = requests[-1]
                requests[-1] = Seen(last.method, last.target, last.headers, last.body + bytes(event.data), False)
            elif isinstance(event, h11.EndOfMessage):
                last = requests[-1]
                requests[-1] = Seen(last.method, last.target, last.headers, last.body, True)
                self.waiting[Side.SERVER] += self.split(self.answer)
                self.ends[Side.SERVER] = self.answer_ends
            else:
                break
        if requests and requests[-1].complete:
            assert self.server.trailing_data[0] == b"", "bytes after the request's end"
