"""What a configuration says to the supervisor, beside the snapshot that the workers get."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from l7lb.core.errors import Problem
from l7lb.core.snapshot import Address, Snapshot


@dataclass(frozen=True)
class MoveHook:
    """What runs between the end of a mailbox's sessions and its switch to another server, ``timeout`` seconds at most.

    ``{mailbox}``, ``{pool}``, ``{from}`` and ``{to}`` stand in the command's arguments.
    """

    command: tuple[str, ...]
    timeout: float = 30.0


@dataclass(frozen=True)
class NodeSettings:
    """The node's own settings. Paths are absolute, times are seconds."""

    file: Path
    node: str
    admin_socket: Path
    metrics: Address | None = None
    state: Path | None = None
    user: str | None = None
    group: str | None = None
    log_level: str = "info"
    log_format: str = "text"  # or json
    without_supervisor: float = 3600.0  # how long workers go on without one
    drain: float = 30.0
    move_hook: MoveHook | None = None


@dataclass(frozen=True)
class Loaded:
    """A configuration that works, with what an operator should look at all the same."""

    snapshot: Snapshot
    settings: NodeSettings
    warnings: list[Problem] = field(default_factory=list)
