"""What an entry costs in memory: measured in a process of its own, by the pages that it really uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIMIT = 250  # bytes an entry

SCRIPT = """
import sys
from l7lb.core.keys import digest
from l7lb.persistence.table import Table

def used():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024

entries = int(sys.argv[1])
table = Table("web/header/x-user", 1800.0, entries, origin=1)
before = used()
for number in range(entries):
    table.put(digest(b"%d" % number), "web%d" % (number % 100), number * 1e-4)
fresh = (used() - before) / entries
for number in range(2 * entries):  # all are replaced, twice
    table.put(digest(b"n%d" % number), "web%d" % (number % 100), 1000.0 + number * 1e-4)
assert len(table) == entries
print(fresh, (used() - before) / entries)
"""


def measure(entries: int) -> tuple[float, float]:
    command = [sys.executable, "-c", SCRIPT, str(entries)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(output[0]), float(output[1])


def check(entries: int) -> None:
    fresh, used = measure(entries)
    assert 50.0 < fresh < LIMIT
    assert 50.0 < used < LIMIT


def test_an_entry_is_small() -> None:
    check(50_000)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_entries_are_small() -> None:
    check(1_000_000)
