"""The keeper's children: how each kind is started, and what is remembered of one.

The command lines are fixed here; a caller chooses numbers and nothing else, since the keeper may have privileges that
its caller has not. Standard library only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from typing import Any

from l7lb.proxy.counts import WORKERS
from l7lb.proxy.workers import channel

WORKER = "worker"
STATE = "state"
DIRECTORIES = "directories"
SUPERVISOR = "supervisor"
TRIAL = "trial"  # of the keeper's own new code, before it replaces itself

# The sockets of a node, beside its admin socket.
KEEPER_SOCKET = "keeper.sock"
NODE_SOCKET = "node.sock"  # the supervisor's, for its workers
STATE_SOCKET = "state.sock"
DIRECTORIES_SOCKET = "directories.sock"

FIRST_PAUSE = 0.1  # seconds before a child that died young is started again; doubled each time
LONGEST_PAUSE = 10.0
YOUNG = 10.0  # seconds


@dataclass
class Child:
    """A process. ``index`` is the worker's share of the listening sockets, ``block`` its part of the counts.

    ``served`` is what it was told to accept from: the sockets' numbers for each bind. ``kill_at`` and ``told`` belong
    to one that is to end: when it is killed, and whether it knows.
    """

    kind: str
    pid: int
    index: int = 0
    block: int = 0
    generation: int = 0
    started: float = 0.0
    ready: bool = False
    kill_at: float = 0.0
    told: bool = False
    control: socket.socket | None = None
    served: dict[str, frozenset[int]] = field(default_factory=dict)
    pidfd: int = -1

    @property
    def leaving(self) -> bool:
        """Whether it is to end."""
        return self.kill_at > 0.0

    def describe(self) -> dict[str, Any]:
        """What a supervisor hears of it."""
        names = ("kind", "pid", "index", "block", "generation", "started", "ready", "leaving")
        return {name: getattr(self, name) for name in names}

    def save(self) -> dict[str, Any]:
        """What the keeper's next code needs to go on with it."""
        names = ("kind", "pid", "index", "block", "generation", "started", "ready", "kill_at", "told")
        saved = {name: getattr(self, name) for name in names}
        saved["control"] = -1 if self.control is None else self.control.fileno()
        saved["served"] = {key: sorted(slots) for key, slots in self.served.items()}
        return saved

    @classmethod
    def restore(cls, saved: dict[str, Any]) -> Child:
        """The reverse of :meth:`save`, in the new code of the same process."""
        values = dict(saved)
        control = values.pop("control")
        values["control"] = None if control < 0 else socket.socket(fileno=control)
        values["served"] = {key: frozenset(slots) for key, slots in values["served"].items()}
        return cls(**values)

    def watch(self) -> int:
        """A descriptor that becomes readable when it ends (pidfd_open(2)). Raises ProcessLookupError."""
        self.pidfd = os.pidfd_open(self.pid)
        return self.pidfd

    def signal(self, number: int) -> None:
        """Send a signal; one that has ended is no error. The pidfd keeps its number from being another's."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    def reap(self) -> int | None:
        """Its exit code, negative for a signal; None where it was not our child. Closes what it held."""
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            code = None
        os.close(self.pidfd)
        if self.control is not None:
            self.control.close()
        return code


def program(module: str, *arguments: str) -> list[str]:
    """A command line for this interpreter; ``-P`` keeps the working directory out of the module path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Ours, without what systemd meant for one process alone."""
    private = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")
    return {name: value for name, value in os.environ.items() if name not in private}


def spawn(command: list[str], descriptors: tuple[int, ...] = ()) -> int:
    """Start a process that inherits these descriptors beside the standard ones; returns its number.

    It is posix_spawn and not subprocess: that module reaps children behind one's back.
    """
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    try:
        return os.posix_spawn(command[0], command, environment())
    finally:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)


def start_worker(options: list[str], index: int, block: int, generation: int, now: float) -> Child:
    """A worker, with the keeper's end of its control channel. Raises OSError."""
    ours, theirs = channel.pair()
    with theirs:
        numbers = ["--index", str(index), "--block", str(block), "--control", str(theirs.fileno())]
        try:
            pid = spawn(program("l7lb.app", WORKER, *numbers, *options), (theirs.fileno(),))
        except OSError:
            ours.close()
            raise
    ours.setblocking(False)
    return Child(WORKER, pid, index, block, generation, now, control=ours)


def free_block(children: list[Child]) -> int | None:
    """A part of the counts that no living worker writes; None when all are taken."""
    taken = {child.block for child in children if child.kind == WORKER}
    return next((block for block in range(WORKERS) if block not in taken), None)


class Pauses:
    """When a child may be started again: at once after a long life, later and later after short ones."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, int], float] = {}
        self._failures: dict[tuple[str, int], int] = {}

    def ended(self, child: Child, now: float) -> float:
        """It has ended unasked; returns the pause in seconds."""
        key = child.kind, child.index
        if now - child.started >= YOUNG:
            self._failures.pop(key, None)
            return 0.0
        failures = self._failures[key] = min(self._failures.get(key, -1) + 1, 16)
        pause = 0.0 if failures == 0 else min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
        self._until[key] = now + pause
        return pause

    def until(self, kind: str, index: int) -> float:
        """Not before this (monotonic seconds)."""
        return self._until.get((kind, index), 0.0)
