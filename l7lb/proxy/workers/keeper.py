"""The keeper: the one small process that keeps privileges, and the parent of the node's other processes.

    python -m l7lb.proxy.workers.keeper --directory DIR --config FILE [--user UID:GID:GROUPS] --peer FD

It opens, holds and hands out listening sockets, holds the counts and (opaque) the last snapshot, starts the workers,
the state process and the directory process, and starts them again when they die, with or without a supervisor. It reads
nothing from the network and decides nothing about traffic. Standard library only, one thread, one loop.

**Who may speak to it**: ``keeper.sock`` in DIR accepts root, the keeper's own user and the node's user, and none of
the workers. Packets are those of :mod:`l7lb.proxy.workers.channel`; a request has ``id`` and ``op``, its reply the same
``id`` and perhaps ``error``; a packet with ``event`` is news. A peer has a role:

    ``supervisor``  one at most. Without one for ``without_supervisor`` seconds everything drains and ends.
    ``candidate``   a new supervisor that has read its configuration; ``take-over`` asks the old one to ``yield``.
    ``waiter``      what an old one becomes: it hears how the new one fares, and answers for it to its own parent.

**New code**: ``upgrade`` first tries it in a child (``--trial``), then replaces the program in this process (execve),
with all descriptors kept and what must be remembered in a memfd. Children, sockets and peers notice nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

from l7lb.core.unixpath import short_path
from l7lb.proxy import counts
from l7lb.proxy.workers import channel, listening, logs, privileges
from l7lb.proxy.workers.children import (
    DIRECTORIES,
    KEEPER_SOCKET,
    STATE,
    SUPERVISOR,
    TRIAL,
    WORKER,
    Child,
    program,
    spawn,
)
from l7lb.proxy.workers.herd import Bind, Herd, Wanted
from l7lb.proxy.workers.requests import REQUESTS, ROLELESS, Peer, Refused, Request

log = logging.getLogger("l7lb.keeper")

PEERS = 8
TRIAL_TIME = 20.0  # seconds
MEMORY = 4 * 1024 * 1024  # bytes that are remembered over a change of code, at most


class Keeper:
    """See the module."""

    def __init__(
        self, directory: Path, config: str, user: privileges.User | None, listener: socket.socket, counts: int
    ) -> None:
        self.directory = directory
        self.config = config
        self.user = user
        self.listener = listener
        self.counts = counts
        self.selector = selectors.DefaultSelector()
        self.peers: list[Peer] = []
        self.herd = Herd(counts, self._watch, self._leaving, self._ended)
        self.without_supervisor = 3600.0
        self.alone_since = time.monotonic()
        self.log_options = ("info", "text")
        self.taking: tuple[Peer, int] | None = None  # a candidate, and the number of its request
        self.upgrading: tuple[Peer, int] | None = None
        self.selector.register(listener, selectors.EVENT_READ, self._accept)

    def set_log(self, level: str, kind: str) -> None:
        """How the keeper writes its lines."""
        self.log_options = level, kind
        logs.configure("keeper", level, kind)

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until all is ended."""
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        self.selector.register(wake, selectors.EVENT_READ, lambda: wake.recv(64))
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: self.herd.end(self.herd.wanted.drain, time.monotonic()))
        while not self._over():
            now = time.monotonic()
            pauses = [self.herd.advance(now), self._alone(now), self._trial_over(now)]
            timeout = min((pause for pause in pauses if pause is not None), default=None)
            for key, _ in self.selector.select(timeout):
                if key.fd in self.selector.get_map():  # an event before it may have closed it
                    key.data()
        with contextlib.suppress(OSError):
            os.unlink(self.directory / KEEPER_SOCKET)
        log.info("all processes have ended, and so does the keeper")

    def _over(self) -> bool:
        return self.herd.ending and not any(child.kind in (WORKER, STATE, DIRECTORIES) for child in self.herd.children)

    def _alone(self, now: float) -> float | None:
        """Without a supervisor for too long, drain; returns the seconds that are left."""
        if self.herd.ending or self.in_role("supervisor"):
            self.alone_since = now
            return None
        if not self.peers and not self.herd.children and not self.herd.wanted.count:
            self.herd.end(0.0, now)  # the supervisor has gone before it wanted anything
            return 0.0
        left = self.alone_since + self.without_supervisor - now
        if left <= 0:
            log.warning("no supervisor for %.0f s: all workers drain and end", self.without_supervisor)
            self.herd.end(self.herd.wanted.drain, now)
            return 0.0
        return left

    # --- children -------------------------------------------------------------------------------------------------

    def _watch(self, child: Child) -> None:
        self.selector.register(child.watch(), selectors.EVENT_READ, partial(self._child_ended, child))
        if child.control is not None:
            self.selector.register(child.control, selectors.EVENT_READ, partial(self._child_speaks, child))
        self.tell("supervisor", {"event": "started", **child.describe()})

    def _child_ended(self, child: Child) -> None:
        self.selector.unregister(child.pidfd)
        self._listen_no_more(child)
        self.herd.remove(child, time.monotonic())

    def _leaving(self, child: Child) -> None:
        self.tell("supervisor", {"event": "leaving", **child.describe()})

    def _ended(self, child: Child, code: int | None) -> None:
        event = {"event": "ended", "code": code, **child.describe()}
        self.tell("supervisor", event)
        if child.kind == SUPERVISOR:
            self.tell("waiter", event)
        elif child.kind == TRIAL:
            self._tried(code)

    def _child_speaks(self, child: Child) -> None:
        assert child.control is not None
        try:
            packet, descriptors = channel.receive(child.control)
        except BlockingIOError:
            return
        except channel.BrokenChannel:
            self._listen_no_more(child)
            return
        channel.close_all(descriptors)
        if packet.get("op") == "ready" and not child.ready:
            child.ready = True
            self.tell("supervisor", {"event": "ready", **child.describe()})
        elif packet.get("op") == "leaving" and not child.leaving:  # somebody has told it to
            self.herd.let_go(child, time.monotonic() + self.herd.wanted.retire, told=True)

    def _listen_no_more(self, child: Child) -> None:
        if child.control is not None and child.control.fileno() in self.selector.get_map():
            self.selector.unregister(child.control)

    # --- peers ----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError as error:
            log.warning("a connection can't be accepted: %s", error)
            return
        pid, uid = channel.peer(sock)
        allowed = {0, os.geteuid()} | ({self.user.uid} if self.user else set())
        ours = any(child.pid == pid and child.kind != SUPERVISOR for child in self.herd.children)
        if uid not in allowed or ours or len(self.peers) >= PEERS:
            log.warning("process %d of user %d is refused at %s", pid, uid, KEEPER_SOCKET)
            sock.close()
            return
        self.add_peer(Peer(sock, pid, uid))

    def add_peer(self, peer: Peer) -> None:
        """Listen to one more peer."""
        peer.sock.setblocking(False)
        self.peers.append(peer)
        self.selector.register(peer.sock, selectors.EVENT_READ, partial(self._peer_speaks, peer))

    def in_role(self, role: str) -> Peer | None:
        """A peer in that role."""
        return next((peer for peer in self.peers if peer.role == role), None)

    def tell(self, role: str, event: channel.Packet) -> None:
        """Tell all in that role."""
        for peer in [peer for peer in self.peers if peer.role == role]:
            self.send(peer, event)

    def send(self, peer: Peer, packet: channel.Packet, descriptors: list[int] | None = None) -> None:
        """Send to one, which is dropped if it doesn't read: when it connects again it hears of everything."""
        try:
            channel.send(peer.sock, packet, descriptors or ())
        except (BlockingIOError, channel.BrokenChannel):
            self._lose(peer)

    def _lose(self, peer: Peer) -> None:
        if peer not in self.peers:
            return
        self.peers.remove(peer)
        self.selector.unregister(peer.sock)
        peer.sock.close()
        if peer.role == "supervisor" and not self.herd.ending:
            log.warning("the supervisor (%d) is gone; the workers go on", peer.pid)
            self.grant()

    def grant(self) -> None:
        """Make the candidate that waits for it the supervisor."""
        if self.taking is not None:
            peer, number = self.taking
            self.taking = None
            if peer in self.peers:
                peer.role = "supervisor"
                for child in self.herd.of_kind(SUPERVISOR):
                    child.ready = child.ready or child.pid == peer.pid
                self.send(peer, {"id": number})

    def _peer_speaks(self, peer: Peer) -> None:
        try:
            packet, descriptors = channel.receive(peer.sock)
        except BlockingIOError:
            return
        except channel.BrokenChannel:
            self._lose(peer)
            return
        request = Request(self, peer, packet, descriptors)
        try:
            name = request.text("op")
            if name not in REQUESTS:
                raise Refused(f"unknown request {name!r}")
            if peer.role != "supervisor" and name not in ROLELESS:
                raise Refused(f"{name}: only the supervisor may ask for that")
            answer = REQUESTS[name](request)
        except (Refused, listening.BindProblem) as error:
            answer = {"error": str(error)}, []
        except (LookupError, TypeError, ValueError, ArithmeticError, OSError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}, []
        channel.close_all(descriptor for descriptor in descriptors if descriptor not in request.kept)
        if answer is not None:
            self.send(peer, {"id": packet.get("id"), **answer[0]}, answer[1])

    # --- new code -------------------------------------------------------------------------------------------------

    def upgrade(self, peer: Peer, number: int) -> None:
        """Try the installed code, then become it."""
        if self.upgrading is not None:
            raise Refused("an upgrade is on its way already")
        memory = self.save(peer, number)
        try:
            pid = spawn(program("l7lb.proxy.workers.keeper", "--trial", "--resume", str(memory)), (memory,))
        finally:
            os.close(memory)
        self.upgrading = peer, number
        self.herd.add(Child(TRIAL, pid, started=time.monotonic()))

    def _trial_over(self, now: float) -> float | None:
        for child in self.herd.of_kind(TRIAL):
            if now - child.started > TRIAL_TIME:
                child.signal(signal.SIGKILL)
            return TRIAL_TIME
        return None

    def _tried(self, code: int | None) -> None:
        assert self.upgrading is not None
        peer, number = self.upgrading
        self.upgrading = None
        problem = f"the new keeper's trial ended with {code}"
        if code == 0:
            memory = self.save(peer, number)
            held = [memory, *self._held()]
            for descriptor in held:
                os.set_inheritable(descriptor, True)
            command = program("l7lb.proxy.workers.keeper", "--resume", str(memory))
            try:
                os.execv(command[0], command)  # noqa: S606 - a fixed command; wake-up pair and selector close
            except OSError as error:
                problem = f"the new keeper can't be started: {error}"
            for descriptor in held:
                os.set_inheritable(descriptor, False)
            os.close(memory)
        self.send(peer, {"id": number, "error": problem})

    def _held(self) -> list[int]:
        held = [self.listener.fileno(), self.counts, *(peer.sock.fileno() for peer in self.peers)]
        if self.herd.snapshot >= 0:
            held.append(self.herd.snapshot)
        held += [sock.fileno() for bind in self.herd.binds.values() for sock in bind.sockets]
        return held + [child.control.fileno() for child in self.herd.children if child.control is not None]

    def save(self, peer: Peer, number: int) -> int:
        """What the next program needs to go on, as a memfd; the peer is the one that gets the reply."""
        herd = self.herd
        state = {
            "directory": str(self.directory),
            "config": self.config,
            "user": str(self.user) if self.user else "",
            "log": self.log_options,
            "without_supervisor": self.without_supervisor,
            "listener": self.listener.fileno(),
            "counts": self.counts,
            "snapshot": herd.snapshot,
            "wanted": vars(herd.wanted),
            "ending": herd.ending,
            "binds": [
                {**bind.describe(), "sockets": [s.fileno() for s in bind.sockets]} for bind in herd.binds.values()
            ],
            "children": [child.save() for child in herd.children if child.kind != TRIAL],
            "peers": [{"sock": p.sock.fileno(), "pid": p.pid, "uid": p.uid, "role": p.role} for p in self.peers],
            "reply": {"sock": peer.sock.fileno(), "id": number},
        }
        return channel.memory("l7lb-keeper", json.dumps(state).encode())


def resume(state: channel.Packet) -> Keeper:
    """The keeper that :meth:`Keeper.save` described, with its descriptors."""
    user = privileges.User.parse(state["user"]) if state["user"] else None
    listener = socket.socket(fileno=state["listener"])
    keeper = Keeper(Path(state["directory"]), state["config"], user, listener, state["counts"])
    keeper.set_log(*state["log"])
    keeper.without_supervisor = state["without_supervisor"]
    herd = keeper.herd
    herd.snapshot, herd.ending, herd.wanted = state["snapshot"], state["ending"], Wanted(**state["wanted"])
    for saved in state["binds"]:
        sockets = [socket.socket(fileno=descriptor) for descriptor in saved["sockets"]]
        herd.open(Bind(**{**saved, "sockets": sockets}))
    for saved in state["peers"]:
        peer = Peer(**{**saved, "sock": socket.socket(fileno=saved["sock"])})
        keeper.add_peer(peer)
    for saved in state["children"]:
        herd.add(Child.restore(saved))
    for descriptor in keeper._held():
        os.set_inheritable(descriptor, False)
    reply = state["reply"]
    for peer in keeper.peers:
        if peer.sock.fileno() == reply["sock"]:
            keeper.send(peer, {"id": reply["id"]})
    return keeper


def listen(directory: Path, user: privileges.User | None) -> socket.socket:
    """The keeper's own socket, for its own and the node's user. Raises OSError."""
    path = str(directory / KEEPER_SOCKET)
    listening.remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with short_path(path) as short:
        sock.bind(short)
    os.chmod(path, 0o600)
    if user is not None:
        os.chown(path, user.uid, user.gid)
    sock.listen(PEERS)
    sock.setblocking(False)
    return sock


def begin(options: argparse.Namespace) -> Keeper:
    """A new keeper, for the supervisor at the other end of ``--peer``. Raises OSError."""
    user = privileges.User.parse(options.user) if options.user else None
    directory = Path(options.directory)
    keeper = Keeper(directory, options.config, user, listen(directory, user), counts.create())
    keeper.log_options = options.log_level, options.log_format
    sock = socket.socket(fileno=options.peer)
    sock.set_inheritable(False)
    keeper.add_peer(Peer(sock, *channel.peer(sock)))
    return keeper


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="l7lb keeper")
    parser.add_argument("--directory")
    parser.add_argument("--config", default="")
    parser.add_argument("--user", default="")
    parser.add_argument("--peer", type=int)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    parser.add_argument("--resume", type=int)
    parser.add_argument("--trial", action="store_true")
    options = parser.parse_args(arguments)
    # A terminal's ^C and hang-up go to the whole process group; what they mean is the supervisor's to say.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if options.resume is not None:
        state = json.loads(channel.content(options.resume, MEMORY))
        os.close(options.resume)
        if options.trial:
            return 0 if Wanted(**state["wanted"]) and state["children"] is not None else 1
        keeper = resume(state)
    else:
        logs.configure("keeper", options.log_level, options.log_format)
        privileges.raise_file_limit()
        try:
            keeper = begin(options)
        except OSError as error:
            log.error("the keeper can't start: %s: %s", error.filename or options.directory, error.strerror)
            return 1
    keeper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
