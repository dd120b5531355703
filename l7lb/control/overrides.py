"""What an operator changed at run time, and the file that keeps it over a restart.

States and weights, servers added and removed: all that the configuration file does not say. The file is written whole
to a temporary name and renamed, so that a crash leaves the old or the new one. A file that can't be read is set aside,
never overwritten: it is the only record of what somebody decided.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from l7lb.core.errors import L7lbError
from l7lb.core.snapshot import Server

FILE = "overrides.json"
LIMIT = 16 * 1024 * 1024  # bytes of the file
ENTRIES = 10_000  # overrides, and servers added or removed, of one node


class Override(msgspec.Struct, omit_defaults=True):
    """An operator's word on one server; ``state`` "" and ``weight`` -1: the configuration's holds. Times RFC 3339."""

    state: str = ""
    state_since: str = ""
    weight: int = -1
    weight_since: str = ""
    drain_rate: float = 0.0  # of a server that drains: mailboxes that leave it in a second; 0.0: when they end

    @property
    def empty(self) -> bool:
        """Whether it says nothing."""
        return not self.state and self.weight < 0


class Overrides(msgspec.Struct):
    """All of an operator's words, by pool and server."""

    servers: dict[str, dict[str, Override]] = {}
    added: dict[str, list[Server]] = {}
    removed: dict[str, dict[str, str]] = {}  # the server's name, since when

    def of(self, pool: str, server: str) -> Override | None:
        """The override of one server."""
        return self.servers.get(pool, {}).get(server)

    def put(self, pool: str, server: str, override: Override) -> None:
        """Set it, or forget it if it says nothing."""
        if not override.empty:
            self.servers.setdefault(pool, {})[server] = override
        else:
            self.servers.get(pool, {}).pop(server, None)

    def tidy(self) -> None:
        """Drop empty pools, so that the file shows what is in force and nothing else."""
        self.servers = {pool: servers for pool, servers in self.servers.items() if servers}
        self.added = {pool: servers for pool, servers in self.added.items() if servers}
        self.removed = {pool: servers for pool, servers in self.removed.items() if servers}

    def size(self) -> int:
        """How many entries there are."""
        return (
            sum(map(len, self.servers.values()))
            + sum(map(len, self.added.values()))
            + sum(map(len, self.removed.values()))
        )


def load(directory: Path) -> Overrides:
    """Read the file; nothing where there is none. Raises L7lbError where it can't be used, after setting it aside."""
    path = directory / FILE
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except FileNotFoundError:
        return Overrides()
    except OSError as error:
        raise L7lbError(f"{path}: {error.strerror}: states and weights set at run time are not known") from None
    try:
        if len(data) > LIMIT:
            raise msgspec.DecodeError(f"larger than {LIMIT} bytes")
        return msgspec.json.decode(data, type=Overrides)
    except msgspec.DecodeError as error:
        aside = path.with_suffix(".json.unreadable")
        try:
            path.replace(aside)
        except OSError as problem:
            raise L7lbError(f"{path}: {error}; it can't be set aside either: {problem.strerror}") from None
        raise L7lbError(f"{path}: {error}; it was set aside as {aside.name}, no override is in force") from None


def save(directory: Path, overrides: Overrides) -> None:
    """Write the file; raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f"{FILE}.new"
    data = msgspec.json.format(msgspec.json.encode(overrides), indent=2)
    with temporary.open("wb") as file:
        file.write(data + b"\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / FILE)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)  # the rename itself
    finally:
        os.close(descriptor)
