"""The node's counts: shared memory with one writer a cell, so that no lock is needed and a crash breaks nothing.

A cell is a signed 64-bit integer at (worker, row, column). A row belongs to a listener, a pool or a server (its
``slot`` in the snapshot); a worker writes its own block only, readers add the blocks up. Gauges (columns below
``GAUGES``) are zeroed when their worker dies; counters stay, so that a sum never falls. The memory is a memfd: pages
that nobody touched cost nothing.
"""

from __future__ import annotations

import mmap
import os

from l7lb.core.tally import BUCKETS, Tally

__all__ = ["BUCKETS", "Counts", "create"]

ROWS = 16_384
COLUMNS = 64
WORKERS = 64
CELL = 8  # bytes
SIZE = WORKERS * ROWS * COLUMNS * CELL

# Gauges.
ACTIVE = 0  # requests or sessions in progress; for a listener: open connections
WAITING = 1  # queued
OPENING = 2  # of a listener: connections that have no session yet
BLOCKS = 3  # in the first block's row 0 alone: how many blocks may be written, set by the keeper
GAUGES = 4

# Counters.
CONNECTIONS = 4  # accepted by a listener, opened to a server
REQUESTS = 5
RECEIVED = 6  # bytes from clients
SENT = 7  # bytes to clients
STATUS_1XX = 8  # .. 12: answers by their first digit
STATUS_2XX = 9
STATUS_3XX = 10
STATUS_4XX = 11
STATUS_5XX = 12
CONNECT_ERRORS = 13
RESPONSE_ERRORS = 14
RETRIES = 15
STICKY = 16  # a persistence key chose the server
REFUSED = 17  # over a limit, malformed, or no server
TIMEOUTS = 18
REUSED = 19  # requests over a kept connection
ABORTED = 20  # by the client
HISTOGRAM = 21  # .. 31: how many answers took at most BUCKETS[i] seconds, not cumulative; the last: longer
OPENING_FAILURES = 32  # .. 43: of a listener, by stage and reason
DURATION = 44  # microseconds that the answers of HISTOGRAM took together
HANDSHAKES = 45  # full TLS handshakes of a listener's clients, or with a server
RESUMED = 46  # those that went on with an earlier session

STAGES = ("proxy", "tls")  # what a connection goes through before its session is made
REASONS = ("timeout", "closed", "malformed", "refused", "unsupported", "certificate")


def opening_failure(stage: str, reason: str) -> int:
    """The column of a failed opening; raises ValueError for names that are none of STAGES and REASONS."""
    return OPENING_FAILURES + STAGES.index(stage) * len(REASONS) + REASONS.index(reason)


def create() -> int:
    """A new block of shared memory for a node; returns its file descriptor."""
    descriptor = os.memfd_create("l7lb-counts", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, SIZE)
    return descriptor


class Counts:
    """The mapped block. ``cells`` is indexed by ``base + slot * COLUMNS + column`` for the own worker."""

    def __init__(self, descriptor: int, worker: int = 0) -> None:
        if not 0 <= worker < WORKERS:
            raise ValueError(f"worker {worker} is not one of {WORKERS}")
        self._map = mmap.mmap(descriptor, SIZE)
        self.cells = memoryview(self._map).cast("q")
        self.worker = worker
        self.base = worker * ROWS * COLUMNS

    @property
    def blocks(self) -> int:
        """How many blocks living workers write, those that leave included; 0 where there is no keeper."""
        return self.cells[BLOCKS]

    @blocks.setter
    def blocks(self, number: int) -> None:
        self.cells[BLOCKS] = number

    def row(self, slot: int) -> int:
        """The index of a row's first cell in the own worker's block."""
        if not 0 <= slot < ROWS:
            raise ValueError(f"slot {slot} is not one of {ROWS}")
        return self.base + slot * COLUMNS

    def total(self, slot: int, column: int, workers: int = WORKERS) -> int:
        """The sum of a cell over all workers."""
        cells = self.cells
        start = slot * COLUMNS + column
        return sum(cells[start + worker * ROWS * COLUMNS] for worker in range(workers))

    def of(self, worker: int, slot: int, column: int) -> int:
        """One worker's cell."""
        return self.cells[worker * ROWS * COLUMNS + slot * COLUMNS + column]

    def clear_gauges(self, worker: int, rows: int = ROWS) -> None:
        """Zero a dead worker's gauges in the first ``rows`` rows."""
        cells = self.cells
        start = worker * ROWS * COLUMNS
        for row in range(start, start + rows * COLUMNS, COLUMNS):
            for column in range(GAUGES):
                if cells[row + column]:
                    cells[row + column] = 0

    def clear_row(self, slot: int) -> None:
        """Zero a row in all workers, before its slot is given to another name."""
        for worker in range(WORKERS):
            row = worker * ROWS * COLUMNS + slot * COLUMNS
            for column in range(COLUMNS):
                if self.cells[row + column]:
                    self.cells[row + column] = 0

    def add(self, row: int, tally: Tally) -> None:
        """Add a tally to the own row that begins at ``row``, and empty it."""
        cells = self.cells
        cells[row + REQUESTS] += tally.requests
        cells[row + RECEIVED] += tally.received
        cells[row + SENT] += tally.sent
        for digit in range(1, 6):
            if tally.statuses[digit]:
                cells[row + STATUS_1XX - 1 + digit] += tally.statuses[digit]
        for offset, count in enumerate(tally.buckets):
            if count:
                cells[row + HISTOGRAM + offset] += count
        cells[row + DURATION] += round(tally.elapsed * 1_000_000)
        cells[row + REUSED] += tally.reused
        cells[row + STICKY] += tally.sticky
        tally.clear()

    def close(self) -> None:
        """Unmap it."""
        self.cells.release()
        self._map.close()
