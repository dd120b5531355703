"""What a supervisor can ask of the keeper: one function a request. Standard library only.

Whoever asks may have fewer privileges than the keeper: so numbers are checked, paths are only those of the sockets to
listen at, and no request names a program. A function returns the reply and the descriptors beside it, or None when
the reply comes later; it raises Refused or BindProblem with the text for whom it concerns.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from l7lb import __version__
from l7lb.proxy import counts
from l7lb.proxy.workers import channel, listening, logs
from l7lb.proxy.workers.children import STATE, SUPERVISOR, Child, program, spawn
from l7lb.proxy.workers.herd import Bind

if TYPE_CHECKING:
    from l7lb.proxy.workers.keeper import Keeper

PROTOCOL = 2  # grows when the packets change; ``hello`` and ``upgrade`` stay as they are for ever
BINDS = 1024
LONGEST = 1e9  # seconds
HIGHEST = 2**31 - 1

Answer = tuple[channel.Packet, list[int]] | None


class Refused(Exception):
    """A request that can't be met; the text goes to who asked."""


@dataclass(eq=False)
class Peer:
    """A supervisor's connection."""

    sock: socket.socket
    pid: int
    uid: int
    role: str = ""


@dataclass
class Request:
    """A packet, who sent it, and the descriptors beside it; those not in ``kept`` are closed afterwards."""

    keeper: Keeper
    peer: Peer
    packet: channel.Packet
    descriptors: list[int]
    kept: set[int] = field(default_factory=set)

    @property
    def number(self) -> int:
        """What the reply repeats."""
        return self.integer("id", 0, 2**53)

    def integer(self, name: str, least: int, most: int) -> int:
        """A field that is a whole number between these. Raises Refused."""
        value = self.packet.get(name)
        if not isinstance(value, int) or not least <= value <= most:
            raise Refused(f"{name} is a whole number from {least} to {most}, not {value!r}")
        return value

    def seconds(self, name: str) -> float:
        """A field that is a time. Raises Refused."""
        value = self.packet.get(name)
        if not isinstance(value, int | float) or not 0 <= value <= LONGEST:
            raise Refused(f"{name} is a time from 0 to {LONGEST:g} seconds, not {value!r}")
        return float(value)

    def text(self, name: str) -> str:
        """A field that is a text, or "" where it is missing."""
        return str(self.packet.get(name) or "")


def hello(request: Request) -> Answer:
    """Take a role, and hear of everything; the counts and the snapshot come beside the reply."""
    keeper, herd = request.keeper, request.keeper.herd
    role = request.text("role")
    if role not in ("supervisor", "candidate", "waiter"):
        raise Refused(f"no role {role!r}")
    other = keeper.in_role("supervisor")
    state = {
        "version": __version__,
        "protocol": PROTOCOL,
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "user": str(keeper.user) if keeper.user else "",
        "supervisor": other.pid if other else 0,
        "generation": herd.wanted.generation,
        "count": herd.wanted.count,
        "ending": herd.ending,
        "binds": [bind.describe() for bind in herd.binds.values()],
        "children": [child.describe() for child in herd.children],
    }
    if role == "supervisor" and other is not None and other is not request.peer:
        return {"error": f"process {other.pid} supervises this node already", **state}, []
    request.peer.role = role
    return state, [keeper.counts] + ([herd.snapshot] if herd.snapshot >= 0 else [])


def settings(request: Request) -> Answer:
    """How workers, the state process and the directory process are started, and the times."""
    keeper = request.keeper
    level, kind = request.text("log_level"), request.text("log_format")
    if level not in logs.LEVELS or kind not in logs.KINDS:
        raise Refused(f"no log level {level!r}, or no log format {kind!r}")
    keeper.set_log(level, kind)
    keeper.without_supervisor = request.seconds("without_supervisor")
    wanted = keeper.herd.wanted
    wanted.drain, wanted.retire = request.seconds("drain"), request.seconds("retire")
    common = ["--directory", str(keeper.directory), "--log-level", level, "--log-format", kind]
    if keeper.user is not None:
        common += ["--user", str(keeper.user)]
    wanted.options = [*common, "--without-supervisor", str(keeper.without_supervisor)]
    wanted.state = [*common, "--size", str(request.integer("size", 1, HIGHEST))]
    wanted.directories = list(common) if request.packet.get("directories") else None
    if request.text("save"):
        wanted.state += ["--save", request.text("save")]
    return {}, []


def open_bind(request: Request) -> Answer:
    """Listen at an address, or hold the sockets that come beside the request; the reply has copies."""
    keeper, packet = request.keeper, request.packet
    key, host, path = request.text("key"), request.text("host"), request.text("path")
    port, backlog = request.integer("port", 0, 65_535), request.integer("backlog", 1, HIGHEST)
    shared = bool(packet["shared"]) or bool(path)
    if key in keeper.herd.binds:
        raise Refused(f"{key} is open already")
    if len(keeper.herd.binds) >= BINDS:
        raise Refused(f"more than {BINDS} addresses")
    if request.descriptors:
        sockets = _given(request.descriptors)
        request.kept.update(request.descriptors)
    else:
        owner = (keeper.user.uid, keeper.user.gid) if keeper.user else None
        count = request.integer("count", 1, counts.WORKERS)
        beside = bool(packet["beside"])
        sockets = listening.open_sockets(host, port, path, backlog=backlog, count=count, beside=beside, owner=owner)
    bind = Bind(key, host, port, path, backlog, shared, sockets)
    keeper.herd.open(bind)
    return {"port": bind.real_port}, [sock.fileno() for sock in sockets]


def _given(descriptors: list[int]) -> list[socket.socket]:
    """Listening sockets that somebody else has opened. Raises Refused."""
    found: list[socket.socket] = []
    try:
        for descriptor in descriptors:
            found.append(socket.socket(fileno=descriptor))
            if not found[-1].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise OSError
            found[-1].setblocking(False)
    except OSError:
        for sock in found:
            sock.detach()  # whoever brought it closes it
        raise Refused("a descriptor is not a listening socket") from None
    return found


def _known(request: Request) -> str:
    key = request.text("key")
    if key not in request.keeper.herd.binds:
        raise Refused(f"{key!r} is not open")
    return key


def close_bind(request: Request) -> Answer:
    """Listen no more."""
    request.keeper.herd.close(_known(request))
    return {}, []


def sockets(request: Request) -> Answer:
    """Copies of a bind's sockets."""
    bind = request.keeper.herd.binds[_known(request)]
    return {"port": bind.real_port}, [sock.fileno() for sock in bind.sockets]


def snapshot(request: Request) -> Answer:
    """Hold this snapshot for workers and supervisors to come; so many ``rows`` of the counts are in use."""
    herd = request.keeper.herd
    rows = request.integer("rows", 0, counts.ROWS)
    if len(request.descriptors) != 1:
        raise Refused("a snapshot is one descriptor")
    (descriptor,) = request.descriptors
    request.kept.add(descriptor)
    if herd.snapshot >= 0:
        os.close(herd.snapshot)
        rows = max(rows, herd.wanted.rows)
    herd.snapshot, herd.wanted.rows = descriptor, rows
    return {}, []


def want(request: Request) -> Answer:
    """So many workers, of that generation."""
    herd = request.keeper.herd
    count, generation = request.integer("count", 1, counts.WORKERS), request.integer("generation", 0, HIGHEST)
    for bind in herd.binds.values():
        bind.grow(count)
    herd.wanted.count, herd.wanted.generation = count, generation
    return {}, []


def adopt(request: Request) -> Answer:
    """Take over the state process of a keeper that is gone."""
    keeper, pid = request.keeper, request.integer("pid", 0, HIGHEST)
    owner = keeper.user.uid if keeper.user else os.geteuid()
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        mine = os.stat(f"/proc/{pid}").st_uid == owner and b"l7lb.app" in command and STATE.encode() in command
    except OSError:
        mine = False
    if not mine or any(keeper.herd.of_kind(STATE)):
        raise Refused(f"{pid} is not a state process without a keeper")
    keeper.herd.add(Child(STATE, pid, started=time.monotonic()))
    return {}, []


def drain(request: Request) -> Answer:
    """The end of the node; ``status`` is what the supervisor will exit with."""
    keeper, seconds, status = request.keeper, request.seconds("seconds"), request.integer("status", 0, 255)
    keeper.herd.end(seconds, time.monotonic())
    keeper.tell("waiter", {"event": "ending", "status": status})
    return {}, []


def start_supervisor(request: Request) -> Answer:
    """Start a supervisor from the installed code, to take over from the one that asks."""
    keeper = request.keeper
    if any(not child.ready for child in keeper.herd.of_kind(SUPERVISOR)):
        raise Refused("a new supervisor is starting already")
    options = ["--config", keeper.config, "--replace"]
    if keeper.user is not None:
        options += ["--user", str(keeper.user)]
    child = Child(SUPERVISOR, spawn(program("l7lb.app", SUPERVISOR, *options)), started=time.monotonic())
    keeper.herd.add(child)
    return {"pid": child.pid}, []


def take_over(request: Request) -> Answer:
    """Ask the old supervisor to yield; the reply comes when it has, or is gone."""
    keeper = request.keeper
    keeper.taking = request.peer, request.number
    if keeper.in_role("supervisor") is None:
        keeper.grant()
    else:
        keeper.tell("supervisor", {"event": "yield", "pid": request.peer.pid})
    return None


def yield_role(request: Request) -> Answer:
    """The old supervisor has let go of everything, and waits."""
    request.peer.role = "waiter"
    request.keeper.grant()
    return {}, []


def started(request: Request) -> Answer:
    """The supervisor serves: waiters hear whom they wait for now."""
    request.keeper.tell("waiter", {"event": "supervises", "pid": request.peer.pid})
    return {}, []


def upgrade(request: Request) -> Answer:
    """Replace the keeper's program by the installed code; the reply comes from the new one."""
    request.keeper.upgrade(request.peer, request.number)
    return None


REQUESTS: dict[str, Callable[[Request], Answer]] = {
    "hello": hello,
    "settings": settings,
    "open": open_bind,
    "close": close_bind,
    "sockets": sockets,
    "snapshot": snapshot,
    "want": want,
    "adopt": adopt,
    "drain": drain,
    "start-supervisor": start_supervisor,
    "take-over": take_over,
    "yield": yield_role,
    "started": started,
    "upgrade": upgrade,
}
ROLELESS = ("hello", "take-over")  # what those who don't supervise may ask
