"""What a decision costs: the rule for a request, and the server of a pool, in microseconds of CPU time.

    python -m benchmarks.decisions [--quick]

Routing: a listener with 10 rules beside one with 10,000 of the same mix (exact and wildcard hosts, path prefixes, pairs
of both). ``usual`` asks for 500 different things again and again, as clients do, so that they are remembered; ``all
new`` never asks twice, so that each is looked up in the index and pays for its misses in the processor's caches. Exits
1 where, in the usual case, 10,000 rules cost more than 1.2 times what 10 do, or where ``all new`` adds more to a
request than a fifth of the ``REQUEST`` microseconds that one takes as a whole.

Rate limits: one limit, for 500 sources, paths or all together, with nothing to tell other workers.

Balancing: pools of 10 and 1,000 servers of weights 1 to 3 with some work in progress; choosing, taking and giving back.

On a shared virtual machine that had other work, with CPython 3.11, the least of some rounds, in microseconds:

    the rule, usual: 0.16 with 10 rules, 0.16 with 10,000; all new: 2.3 with 10, 4.3 with 10,000
    the server, with 10 and with 1,000 in the pool: round-robin 2.2 2.7, least-connections 3.8 5.4, random-of-two 2.2
    2.8, latency 4.0 5.0, first 1.2 1.3, hash 1.5 2.2, hash with bounded load 5.0 6.6
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from l7lb.core.facts import Facts
from l7lb.core.servers import PoolState, ServerState
from l7lb.core.snapshot import Address, Balance, FactName, Limit, Listener, Match, Pool, Route, Server, ToPool
from l7lb.limits.buckets import Buckets
from l7lb.limits.gate import Bound, Gate
from l7lb.routing import Router
from l7lb.routing.balance import ALGORITHMS, make_balancer

LIMIT = 1.2
REQUEST = 40.0  # microseconds of CPU time that a whole request takes (`make bench`)
SIZES = (10, 10_000)
SERVERS = (10, 1000)
ROUNDS = 9
USUAL = 500
NEW = 20_000


class Cost(NamedTuple):
    """Microseconds for one decision: the median of the rounds, and the least and greatest."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:7.2f} ({self.least:.2f} to {self.most:.2f})"


def timed(work: Callable[[], None], decisions: int) -> float:
    """Microseconds of CPU time for one decision."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / decisions * 1e6


def cost(samples: Sequence[float]) -> Cost:
    """The summary of the rounds."""
    return Cost(statistics.median(samples), min(samples), max(samples))


# --- routing ---------------------------------------------------------------------------------------------------------


def rule(number: int) -> Match:
    """The condition of a rule: four kinds in turn."""
    kind = number % 4
    if kind == 0:
        return Match(host=(f"shop{number}.example.com",))
    if kind == 1:
        return Match(host=(f"*.tenant{number}.example.org",))
    if kind == 2:
        return Match(path=(f"/service{number}/*",))
    return Match(host=(f"www{number}.example.net",), path=(f"/app{number}/*", f"/app{number}"))


def listener(size: int) -> Listener:
    """A listener with so many rules, the last of them for everything else."""
    routes = [
        Route(number=number + 1, where="", match=rule(number) if number + 1 < size else None, action=ToPool("web"))
        for number in range(size)
    ]
    return Listener(name="web", protocol="http", bind=(), routes=tuple(routes))


def request(number: int, tail: int) -> Facts:
    """A request that the rule of that number matches."""
    facts = Facts("http", "web", "192.0.2.1")
    facts.method = b"GET"
    host = (b"shop%d.example.com", b"eu.tenant%d.example.org", b"api%d.example.com", b"www%d.example.net")
    path = (b"/a/b/%d", b"/index/%d", b"/service%d/users/%d", b"/app%d/view/%d")
    kind = number % 4
    facts.host = host[kind] % (tail % 20 if kind == 2 else number)
    facts.path = path[kind] % ((number, tail) if kind > 1 else tail)
    return facts


def requests(size: int, count: int, chance: random.Random) -> list[Facts]:
    """So many different requests over all the rules."""
    return [request(chance.randrange(size - 1), tail) for tail in range(count)]


def routing(rounds: int = ROUNDS, usual: int = USUAL, new: int = NEW) -> dict[tuple[str, int], Cost]:
    """The cost of finding the rule: by kind of traffic and number of rules, measured in turn."""
    chance = random.Random(1)
    routers = {size: Router(listener(size), seed=1) for size in SIZES}
    samples: dict[tuple[str, int], list[float]] = {}
    known = {size: requests(size, usual, chance) for size in SIZES}
    for number in range(rounds + 1):
        for size, router in routers.items():
            repeat = max(1, new // usual)
            ask(router, known[size], 1)
            taken = {
                "usual": timed(lambda: ask(router, known[size], repeat), usual * repeat),  # noqa: B023
            }
            fresh = requests(size, new, random.Random(number * 1_000_003 + size))
            taken["all new"] = timed(lambda: ask(router, fresh, 1), new)  # noqa: B023
            if number:  # the first round warms up
                for kind, microseconds in taken.items():
                    samples.setdefault((kind, size), []).append(microseconds)
    return {key: cost(found) for key, found in samples.items()}


def ask(router: Router, asked: Sequence[Facts], repeat: int) -> None:
    """Route all of them, again and again."""
    route = router.route
    for _ in range(repeat):
        for facts in asked:
            route(facts)


# --- balancing -------------------------------------------------------------------------------------------------------


def settings(algorithm: str) -> list[tuple[str, Balance]]:
    """An algorithm's name and settings; the hash also with bounded load."""
    if algorithm != "hash":
        return [(algorithm, Balance(algorithm))]
    path = FactName("path")
    return [("hash", Balance("hash", path)), ("hash, bounded", Balance("hash", path, 1.25))]


def balancing(rounds: int = ROUNDS, decisions: int = 5000) -> dict[tuple[str, int], Cost]:
    """The cost of choosing, taking and giving back: by algorithm and number of servers."""
    found: dict[tuple[str, int], Cost] = {}
    asked = requests(100, 500, random.Random(1))
    for algorithm in ALGORITHMS:
        for name, balance in settings(algorithm):
            for size in SERVERS:
                found[name, size] = cost([serve(balance, size, asked, decisions) for _ in range(rounds)])
    return found


def serve(balance: Balance, size: int, asked: Sequence[Facts], decisions: int) -> float:
    """Microseconds for one request's part: twice as many are in progress as there are servers."""
    servers = tuple(
        Server(name=f"web{number}", address=Address("127.0.0.1", 80), weight=1 + number % 3, max_connections=500)
        for number in range(size)
    )
    pool = PoolState(Pool(name="web", servers=servers, balance=balance), [ServerState("web", one) for one in servers])
    balancer = make_balancer(pool, 1)
    running: list[ServerState] = []

    def work(count: int) -> None:
        for number in range(count):
            server = balancer.choose(asked[number % len(asked)], number / 20_000)
            if server is None:
                raise RuntimeError("a pool of open servers has none to give")
            server.active += 1
            balancer.taken(server)
            running.append(server)
            if len(running) > 2 * size:
                old = running[number % len(running)]
                running[number % len(running)] = running[-1]
                running.pop()
                old.active -= 1
                balancer.released(old, 0.01)

    work(4 * size)
    return timed(lambda: work(decisions), decisions)


# --- the command -----------------------------------------------------------------------------------------------------


# --- rate limits -----------------------------------------------------------------------------------------------------


def limiting(rounds: int = ROUNDS, decisions: int = 50_000) -> dict[str, Cost]:
    """The cost of a rate limit: what is admitted, and what is refused, of 500 sources; and by a header's value."""
    asked = requests(100, 500, random.Random(1))
    for number, facts in enumerate(asked):
        facts.source = f"192.0.{number // 250}.{number % 250}"
    found: dict[str, Cost] = {}
    for name, key, rate in (
        ("source, admitted", "source", 1e6),
        ("source, refused", "source", 1e-6),
        ("path, admitted", "path", 1e6),
        ("listener, admitted", "listener", 1e6),
    ):
        limit = Limit(name="web", of="requests", key=FactName(key), rate=rate, burst=1e6 if rate > 1 else 1.0)
        samples = []
        for _ in range(rounds):
            buckets = Buckets("web", limit.rate, limit.burst, 100_000, 0.0)
            gate = Gate([Bound(limit, buckets)])
            admit(gate, asked, 1)
            samples.append(timed(lambda: admit(gate, asked, decisions // len(asked)), decisions))  # noqa: B023
        found[name] = cost(samples)
    return found


def admit(gate: Gate, asked: Sequence[Facts], repeat: int) -> None:
    """Ask the gate for all of them, again and again."""
    for number in range(repeat):
        for facts in asked:
            gate.wait(facts, number * 1e-3)


def report(
    rules: dict[tuple[str, int], Cost], servers: dict[tuple[str, int], Cost], limits: dict[str, Cost]
) -> tuple[str, bool]:
    """The table, and whether the limits are kept."""
    few, many = SIZES
    lines = ["the rule for a request, us: median (least to most)"]
    good = True
    for kind in ("usual", "all new"):
        low, high = rules[kind, few], rules[kind, many]
        ratio = high.least / low.least
        kept = ratio <= LIMIT if kind == "usual" else high.least - low.least <= (LIMIT - 1) * REQUEST
        good = good and kept
        lines.append(
            f"  {kind:<8} {few} rules {low}   {many} rules {high}   ratio {ratio:.2f}{'' if kept else '  TOO MUCH'}"
        )
    lines.append("the server for a request, taken and given back, us")
    for (name, size), taken in servers.items():
        lines.append(f"  {name:<18} {size:>5} servers {taken}")
    lines.append("a rate limit's decision, us")
    lines.extend(f"  {name:<30} {taken}" for name, taken in limits.items())
    return "\n".join(lines), good


def main() -> int:
    """The command's exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description="What a decision costs.")
    parser.add_argument("--quick", action="store_true", help="a smoke run: the limits are not judged")
    quick = parser.parse_args().quick
    if quick:
        table, good = report(routing(1, 50, 500), balancing(1, 200), limiting(1, 500))
    else:
        table, good = report(routing(), balancing(), limiting())
    print(table)
    return 0 if good or quick else 1


if __name__ == "__main__":
    sys.exit(main())
