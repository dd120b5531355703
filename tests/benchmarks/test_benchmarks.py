"""The benchmarks' own arithmetic, and a smoke run of each case; figures are what ``make bench`` is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT))

from benchmarks.peers import find  # noqa: E402
from benchmarks.processes import BenchmarkError, Cores, Group  # noqa: E402
from benchmarks.results import Results  # noqa: E402


def test_ratios_are_judged_by_their_median() -> None:
    results = Results()
    values = {"l7lb": [10.0, 12.0, 30.0], "haproxy": [10.0, 10.0, 10.0], "l7lb-2": [18.0, 18.0, 18.0]}
    results.add("case", "us", values)
    results.compare("good", values, "l7lb", "haproxy", 1.3)
    assert results.good
    results.compare("nobody", values, "l7lb", "nginx", 0.1)
    results.compare("for information", values, "l7lb", "haproxy")
    results.compare("at least", values, "l7lb-2", "haproxy", 1.8, at_least=True)
    assert results.good
    results.compare("bad", values, "l7lb", "haproxy", 1.1)
    assert not results.good
    table = results.table()
    assert "1.20  [1.00 .. 3.00]  <= 1.3 ok" in table
    assert "<= 1.1 BEYOND THE LIMIT" in table
    assert ">= 1.8 ok" in table


def test_what_can_not_be_measured_is_said() -> None:
    with pytest.raises(BenchmarkError, match="no-such-program is not installed"):
        find("no-such-program")
    group = Group("short-lived", ["true"], min(os.sched_getaffinity(0)), Path("/tmp"), port=1)
    with pytest.raises(BenchmarkError, match="short-lived ended with 0"):
        group.start()


def test_one_core_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with pytest.raises(BenchmarkError, match="one core is not enough"):
        Cores.of_this_machine()


def installed(program: str) -> bool:
    try:
        return bool(find(program))
    except BenchmarkError:
        return False


@pytest.mark.serial
@pytest.mark.timeout(180)
def test_every_case_runs(tmp_path: Path) -> None:
    missing = [name for name in ("nginx", "haproxy", "wrk", "h2load", "taskset") if not installed(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--idle", "200", "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert {one["peer"] for one in figures["figures"]} >= {"l7lb", "haproxy", "nginx", "haproxy-splice"}
    assert all(value > 0 for one in figures["figures"] for value in one["values"])
