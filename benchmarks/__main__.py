"""The command: ``python -m benchmarks [CASE...] [--rounds N] [--seconds S] [--quick] [--only PEER,...]``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import peers
from benchmarks.cases import CASES, Plan, summary
from benchmarks.processes import BenchmarkError, Cores, raise_file_limit
from benchmarks.results import Results


def arguments() -> argparse.Namespace:
    """The command line."""
    listing = "\n".join(f"  {name:<12} {summary(name)}" for name in CASES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="l7lb beside HAProxy and nginx; exits 1 where a ratio is beyond its limit.",
        epilog=f"cases:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="alternations (default 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default 4)")
    parser.add_argument("--idle", type=int, default=10_000, help="idle clients of the memory case")
    parser.add_argument("--only", default="", help="peers, with commas: l7lb, haproxy, nginx, and variants")
    parser.add_argument("--bare", action="store_true", help="l7lb's data path alone, without supervisor and keeper")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one short round, limits are not judged")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    given = parser.parse_args()
    unknown = [name for name in given.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    return given


def run(given: argparse.Namespace) -> Results:
    """Run the chosen cases. Raises BenchmarkError."""
    plan = Plan(
        rounds=1 if given.quick else given.rounds,
        seconds=1.0 if given.quick else given.seconds,
        idle=min(given.idle, 1000) if given.quick else given.idle,
        bare=given.bare,
        only=frozenset(name for name in given.only.split(",") if name),
    )
    results = Results()
    allowed = raise_file_limit()
    if plan.idle + 1000 > allowed:
        raise BenchmarkError(
            f"{plan.idle} idle clients don't fit into {allowed} file descriptors: ulimit -n, or --idle"
        )
    with tempfile.TemporaryDirectory(prefix="l7lb-bench-") as folder:
        Path(folder).chmod(0o755)  # started by root, nginx reads the large file as nobody
        site, group = peers.servers(Path(folder), Cores.of_this_machine())
        with group:
            for name in given.cases or CASES:
                started = time.monotonic()
                CASES[name](site, plan, results)
                print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return results


def main() -> int:
    """The command's exit status."""
    given = arguments()
    try:
        results = run(given)
    except BenchmarkError as problem:
        print(f"benchmark: {problem}", file=sys.stderr)
        return 2
    print(results.table())
    if given.json:
        figures = [
            {"case": case, "peer": one.name, "unit": one.unit, "values": one.values} for case, one in results.figures
        ]
        ratios = [
            {"case": one.case, "peer": one.peer, "values": one.values, "limit": one.limit, "good": one.good}
            for one in results.ratios
        ]
        given.json.write_text(json.dumps({"figures": figures, "ratios": ratios}, indent=1) + "\n")
    return 0 if given.quick or results.good else 1


if __name__ == "__main__":
    sys.exit(main())
