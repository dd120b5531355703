"""Users: who the processes of a node run as.

The keeper starts its children with its own privileges, and each gives them up once its code is loaded and before it
touches anything from outside: so the program may be installed where the unprivileged user can't read it. Standard
library only.
"""

from __future__ import annotations

import grp
import os
import pwd
import resource
from dataclasses import dataclass

_SET_DUMPABLE = 4  # prctl(2)
_SET_NO_NEW_PRIVILEGES = 38

FILES = 1_048_576  # open files that a privileged keeper asks for


class UnknownUser(Exception):
    """The configuration names a user or group that this machine doesn't know."""


@dataclass(frozen=True)
class User:
    """A user's numbers, with the groups beside the first one."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def __str__(self) -> str:
        """As one word, for a command line: ``65534:65534:65534,4``."""
        return f"{self.uid}:{self.gid}:{','.join(str(group) for group in self.groups)}"

    @classmethod
    def parse(cls, word: str) -> User:
        """The reverse of ``str``; raises ValueError."""
        uid, gid, groups = word.split(":")
        return cls(int(uid), int(gid), tuple(int(group) for group in groups.split(",") if group))


def find(name: str, group: str | None = None) -> User:
    """The user of that name, with another first group where one is named. Raises UnknownUser."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UnknownUser(f"there is no user {name!r} on this machine") from None
    gid = entry.pw_gid
    if group:
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise UnknownUser(f"there is no group {group!r} on this machine") from None
    return User(entry.pw_uid, gid, tuple(os.getgrouplist(name, gid)))


def drop(user: User) -> None:
    """Become that user for good. Raises OSError where it can't, and RuntimeError where it could be undone."""
    import ctypes  # here, since it may need memory that is executable, which a hardened service forbids

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    os.setgroups(list(user.groups))
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if user.uid != 0:
        try:
            os.setuid(0)
        except PermissionError:
            pass
        else:
            raise RuntimeError("privileges could be taken back after they were dropped")
    prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    prctl(_SET_DUMPABLE, 1, 0, 0, 0)  # as after an exec: /proc/PID belongs to the user, core dumps are possible


def raise_file_limit() -> int:
    """Allow as many open files as may be; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(hard, FILES), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (ValueError, OSError):  # not privileged, or more than the kernel has (fs.nr_open)
            continue
        return wanted
    return soft
