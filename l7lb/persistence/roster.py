"""Which workers the state process has met, in a file: the next one waits for those that still live.

A worker is its process number and the time that the process began, so that another process of the same number is not
taken for it.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

MOST = 1024  # workers in the file
SUFFIX = ".workers"  # of its name, behind the name of the state process's socket

Process = tuple[int, int]  # its number, and when it began

log = logging.getLogger("l7lb.state")


def began(pid: int) -> int:
    """When a living process began, in the kernel's ticks since its start (proc(5)); 0 where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[19]) if fields[0] not in (b"Z", b"X") else 0
    except (OSError, ValueError, IndexError):
        return 0


class Roster:
    """The file at ``path``; None: nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._present: dict[int, int] = {}

    def load(self) -> set[Process]:
        """The workers that live, as the state process before us wrote them."""
        if self._path is None:
            return set()
        try:
            rows = json.loads(self._path.read_bytes()[: 64 * MOST])
            found = {(int(pid), int(start)) for pid, start in rows}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s can't be read: %s", self._path, error)
            return set()
        living = {(pid, start) for pid, start in found if pid != os.getpid() and start and began(pid) == start}
        self._present = dict(living)
        return living

    def came(self, pid: int) -> None:
        """A worker has joined."""
        start = began(pid)
        if start and self._present.get(pid) != start and len(self._present) < MOST:
            self._present[pid] = start
            self._write()

    def went(self, pid: int) -> None:
        """A worker's process has ended."""
        if self._present.pop(pid, None) is not None:
            self._write()

    def close(self) -> None:
        """This state process ends: nothing is kept where no worker lives on."""
        self._present = {pid: start for pid, start in self._present.items() if began(pid) == start}
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        if not self._present:
            self._path.unlink(missing_ok=True)
            return
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(json.dumps(sorted(self._present.items())))
            os.replace(new, self._path)
        except OSError as error:
            log.warning("%s can't be written: %s", self._path, error)
