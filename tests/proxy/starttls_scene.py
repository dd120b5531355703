"""A toy protocol that knows TLS on request on both sides, and a node that speaks it.

The client says ``STARTTLS``, ``SERVER`` (get one), ``TUNNEL``, or anything, which is answered by itself. The server
greets with a line, answers ``STARTTLS`` with a line, and is then told ``READY``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from proxy_scene import config
from tls_scene import issued, write, write_ca

from l7lb.core.actions import (
    CLIENT,
    SERVER,
    Action,
    Close,
    NeedServer,
    Release,
    Side,
    StartServerTls,
    StartTls,
    ToClient,
    ToServer,
    Tunnel,
)
from l7lb.core.contracts import Assignment, Choice, Peer, ProtocolSpec, Session, SessionFactory
from l7lb.core.errors import Failure
from l7lb.core.facts import Facts
from l7lb.core.snapshot import Listener, ServerTls, Snapshot
from l7lb.testing.node import load

EVENTS: list[str] = []  # what the sessions of a test were told, besides bytes


class Toy(Session):
    """One client."""

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self.peer = peer
        self.buffers = {CLIENT: b"", SERVER: b""}
        self.assignment: Assignment | None = None
        self.greeted = False

    def start(self, now: float) -> list[Action]:
        return [ToClient(b"hello\r\n")]

    def received(self, side: Side, data: bytes, now: float) -> list[Action]:
        self.buffers[side] += data
        actions: list[Action] = []
        while b"\r\n" in self.buffers[side] and not (actions and isinstance(actions[-1], (NeedServer, StartTls))):
            line, _, self.buffers[side] = self.buffers[side].partition(b"\r\n")
            actions += self.client_line(line) if side is CLIENT else self.server_line(line)
        return actions

    def client_line(self, line: bytes) -> list[Action]:
        if line == b"STARTTLS":
            return [Close()] if self.buffers[CLIENT] else [ToClient(b"go\r\n"), StartTls()]
        if line == b"SERVER":
            return [NeedServer(Facts("imap4", "web", self.peer.client), fresh=True)]
        if line == b"TUNNEL":
            return [Tunnel(60.0)]
        return [ToClient(line + b"\r\n")]

    def server_line(self, line: bytes) -> list[Action]:
        assert self.assignment is not None
        if self.assignment.server_tls == "starttls":
            if self.greeted:
                return [Release(False), Close()] if self.buffers[SERVER] else [StartServerTls()]
            self.greeted = True
            return [ToServer(b"STARTTLS\r\n")]
        return [ToClient(b"greeting " + line + b" " + self.assignment.server_tls.encode() + b"\r\n")]

    def connected(self, assignment: Assignment, now: float) -> list[Action]:
        self.assignment = assignment
        return []

    def secured(self, now: float) -> list[Action]:
        assert self.peer.handshake is not None
        EVENTS.append(f"secured {self.peer.tls} {self.peer.handshake.sni.decode()}")
        return []

    def server_secured(self, now: float) -> list[Action]:
        assert self.assignment is not None
        EVENTS.append(f"server secured {self.assignment.server_tls}")
        return [ToServer(b"READY\r\n"), ToClient(b"ready\r\n")]

    def failed(self, failure: Failure, choice: Choice | None, now: float) -> list[Action]:
        EVENTS.append(failure.label)
        return [ToClient(failure.label.encode() + b"\r\n"), Close()]

    def ended(self, side: Side, now: float, error: bool) -> list[Action]:
        EVENTS.append(f"ended {side.name} {error}")
        return [Release(False), Close()]

    def dismissed(self, why: str, now: float) -> list[Action]:
        EVENTS.append(f"dismissed {why}")
        return [ToClient(b"bye " + why.encode() + b"\r\n"), Release(False), Close()]

    def moved(self, side: Side, count: int, now: float) -> list[Action]:
        return []

    def draining(self, now: float, patient: bool) -> list[Action]:
        return [Close()]

    def describe(self) -> dict[str, str]:
        return {}


def sessions(listener: Listener) -> SessionFactory:
    return lambda peer, now: Toy(peer)


PROTOCOLS = {"imap4": ProtocolSpec("imap4", sessions, "")}


def snapshot(folder: Path, server_mode: str = "", client_mode: str = "starttls", **pool: Any) -> Snapshot:
    """A node's configuration; ``server_mode`` is how web1 is spoken to, "" in the clear."""
    certificates = [write(folder, "example.com", issued("example.com"))]
    made = load(config({"tls": {"certificates": certificates}}, **pool))
    tls = ServerTls(server_name="web1.example.com", ca=Path(write_ca(folder)).read_bytes(), mode=server_mode)
    listener = made.listeners[0]
    assert listener.tls is not None
    replace = msgspec.structs.replace
    client_tls = replace(listener.tls, mode=client_mode, alpn=())
    servers = tuple(replace(one, tls=tls if server_mode else None) for one in made.pools[0].servers)
    return replace(
        made,
        listeners=(replace(listener, protocol="imap4", tls=client_tls, settings={}, routes=listener.routes[1:]),),
        pools=(replace(made.pools[0], servers=servers),),
    )
