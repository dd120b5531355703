"""Which row of the shared counts belongs to which name.

A name keeps its row for as long as it is configured, and after that until somebody else needs the row: a server that
is removed and added again goes on counting where it stopped, so that a counter never falls. A row that held, or may
have held, another name's numbers is cleared before it is given away, and never while work is still counted in it.

Row 0 is nobody's: a snapshot that never passed through here has all its slots at 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from l7lb.core.errors import L7lbError
from l7lb.proxy.counts import ACTIVE, ROWS, WAITING, Counts

LARGEST = ROWS - 1  # rows that can be given away


class NoRowLeft(L7lbError):
    """More listeners, limits, pools and servers than the shared counts have rows for."""


class Slots:
    """The map from name to row. Names are unique over listeners, limits, pools and servers: see the functions below."""

    def __init__(self, rows: int = ROWS) -> None:
        self._rows = rows
        self._used: dict[str, int] = {}
        self._retired: dict[str, int] = {}  # oldest first
        self._next = 1
        self._unknown: list[int] = []  # rows below _next that a supervisor before us may have used

    def adopt(self, used: dict[str, int]) -> None:
        """Take over the rows of a snapshot that workers run already; what lies between them may be dirty."""
        self._used = {name: slot for name, slot in used.items() if 0 < slot < self._rows}
        self._retired = {}
        taken = set(self._used.values())
        # Rows above the highest one may be dirty too: a larger configuration may have come and gone.
        self._unknown = [slot for slot in range(self._rows - 1, 0, -1) if slot not in taken]
        self._next = self._rows

    def assign(self, names: Iterable[str], counts: Counts | None) -> dict[str, int]:
        """Rows for exactly these names; all others are retired. Raises NoRowLeft, and changes nothing then."""
        wanted = list(dict.fromkeys(names))
        if len(wanted) > self._rows - 1:
            raise NoRowLeft(
                f"{len(wanted)} listeners, limits, pools and servers are more than the {self._rows - 1} that can be "
                "counted"
            )
        before = dict(self._used), dict(self._retired)
        keep = set(wanted)
        for name in [name for name in self._used if name not in keep]:
            self._retired[name] = self._used.pop(name)
        try:
            for name in wanted:
                if name not in self._used:
                    self._used[name] = self._retired.pop(name) if name in self._retired else self._free(counts)
        except NoRowLeft:
            self._used, self._retired = before
            raise
        return {name: self._used[name] for name in wanted}

    def retired(self) -> dict[str, int]:
        """Names that are gone, and the rows that still hold their numbers."""
        return dict(self._retired)

    def _free(self, counts: Counts | None) -> int:
        if self._next < self._rows:
            slot = self._next
            self._next += 1
            return slot
        for place in range(len(self._unknown) - 1, -1, -1):
            slot = self._unknown[place]
            if not _busy(slot, counts):
                del self._unknown[place]
                return _cleared(slot, counts)
        for name, slot in self._retired.items():
            if not _busy(slot, counts):
                del self._retired[name]
                return _cleared(slot, counts)
        raise NoRowLeft("every row of the counts is in use, some by servers that were removed and still have sessions")


def _busy(slot: int, counts: Counts | None) -> bool:
    return counts is not None and any(counts.total(slot, column) for column in (ACTIVE, WAITING))


def _cleared(slot: int, counts: Counts | None) -> int:
    if counts is not None:
        counts.clear_row(slot)
    return slot


def listener_name(name: str) -> str:
    """A listener's name among the slots."""
    return f"listener {name}"


def limit_name(name: str) -> str:
    """A rate limit's name among the slots."""
    return f"limit {name}"


def pool_name(name: str) -> str:
    """A pool's name among the slots."""
    return f"pool {name}"


def server_name(pool: str, server: str) -> str:
    """A server's name among the slots."""
    return f"server {pool}/{server}"
