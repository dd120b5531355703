"""A node's place in the file system: the directory of its sockets, who may write there, and that it has it alone.

The lock is on the directory itself (flock(2)): it needs no file, and dies with its process.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from l7lb.config import NodeSettings
from l7lb.core.errors import L7lbError
from l7lb.core.snapshot import Snapshot
from l7lb.persistence.roster import SUFFIX as ROSTER
from l7lb.proxy.workers.children import DIRECTORIES_SOCKET, KEEPER_SOCKET, NODE_SOCKET, STATE_SOCKET
from l7lb.proxy.workers.privileges import User


class StartProblem(L7lbError):
    """The node can't start; the text says why."""


class Place:
    """The directory of a node's sockets, and the lock on it."""

    def __init__(self, settings: NodeSettings) -> None:
        self.admin = settings.admin_socket
        self.directory = settings.admin_socket.parent
        self.keeper = self.directory / KEEPER_SOCKET
        self.node = self.directory / NODE_SOCKET
        self._lock = -1

    def prepare(self, settings: NodeSettings, snapshot: Snapshot, user: User | None) -> None:
        """Make the directories that the configuration names, for that user. Raises StartProblem."""
        sockets = (STATE_SOCKET, f"{STATE_SOCKET}{ROSTER}", DIRECTORIES_SOCKET)
        files = [self.admin, self.keeper, self.node, *(self.directory / name for name in sockets)]
        files += [Path(address.path) for one in snapshot.listeners for address in one.bind if address.path]
        if snapshot.access_log is not None and snapshot.access_log.path != "-":
            files.append(Path(snapshot.access_log.path))
        if settings.state is not None:
            files.append(settings.state / "tables")
        for directory in dict.fromkeys(path.parent for path in files):
            try:
                _make(directory, user)
                if user is not None:
                    _give(directory, files, user)
            except OSError as error:
                raise StartProblem(f"the directory {directory} can't be made: {error.strerror}") from None

    def lock(self) -> None:
        """Be the only supervisor here. Raises StartProblem."""
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StartProblem(f"the directory {self.directory} can't be opened: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno != errno.EWOULDBLOCK:
                raise StartProblem(f"the directory {self.directory} can't be locked: {error.strerror}") from None
            raise StartProblem(
                f"process {holder} runs this node already (its sockets are in {self.directory}); "
                "`l7lb reload` gives it a changed configuration, SIGUSR2 new code"
            ) from None
        self._lock = descriptor

    def unlock(self) -> None:
        """Let another supervisor in."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _make(directory: Path, user: User | None) -> None:
    """Make the directory and what is missing above it, and give them to the user."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    if not missing and not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    for path in reversed(missing):
        path.mkdir(mode=0o755, exist_ok=True)
        if user is not None:
            os.chown(path, user.uid, user.gid)


def _give(directory: Path, files: list[Path], user: User) -> None:
    """Give a directory to the user that root used before, if nothing is in it but what this node puts there."""
    if os.stat(directory).st_uid != 0 or user.uid == 0:
        return
    ours = {path.name for path in files if path.parent == directory} | {path.parent.name for path in files}
    inside = list(directory.iterdir())
    if all(path.name.removesuffix(".corrupt") in ours or path.name == "overrides.json" for path in inside):
        for path in (directory, *inside):
            os.chown(path, user.uid, user.gid, follow_symlinks=False)


def _holder(descriptor: int) -> str:
    """The number of the process that holds the lock, as /proc/locks shows it (proc(5)); ``another`` if it doesn't."""
    inode = str(os.fstat(descriptor).st_ino)
    try:
        with open("/proc/locks", encoding="ascii") as lines:
            for line in lines:
                words = line.split()
                if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                    return words[4]
    except OSError:
        pass
    return "another"
