"""What stickiness costs: a decision with a million entries, an entry in memory, and the longest pause.

    python benchmarks/sticky.py [--entries 1000000]

Prints a table. Exits 1 where an entry takes more than 250 bytes, or the inserted cookie more than 10 us a request
(a machine that does other work at the time can be several times slower than an idle one; 1 to 2 us is usual).
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from l7lb.core.facts import Facts
from l7lb.core.keys import address_key, digest
from l7lb.core.snapshot import (
    Address,
    HeaderKey,
    InsertedCookie,
    LearnedCookie,
    PersistenceKey,
    Pool,
    Server,
    SourceKey,
)
from l7lb.core.snapshot import Tables as Limits
from l7lb.persistence import Tables, make_stickiness
from l7lb.persistence.table import Table

BYTES_LIMIT = 250.0
COOKIE_LIMIT = 10.0  # microseconds
SERVERS = 1000
REQUESTS = 20_000
ROUNDS = 5


class Request(Facts):
    """A request whose cookie or header is known already: what the protocol's parser costs is not counted."""

    __slots__ = ("values",)

    def __init__(self, source: str, value: bytes) -> None:
        super().__init__("http", "web", source)
        self.values = (value,) if value else ()

    def cookie(self, name: bytes) -> Sequence[bytes]:
        return self.values

    def header(self, name: bytes) -> Sequence[bytes]:
        return self.values


def used() -> int:
    """Bytes of this process's share of memory."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024


def microseconds(work: Callable[[], None], count: int) -> float:
    """The median of some rounds, for one of ``count``."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times) / count * 1e6


def pool(key: PersistenceKey) -> Pool:
    servers = tuple(Server(name=f"web{number}", address=Address("127.0.0.1", 80)) for number in range(SERVERS))
    return Pool(name="web", servers=servers, persistence=(key,))


def address(number: int) -> str:
    return f"{10 + (number >> 24)}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def decision(key: PersistenceKey, tables: Tables, requests: list[Request], server: str, now: float) -> float:
    """Cost of ``find`` and ``chosen`` together, for requests that are known to belong to ``server``."""
    stickiness = make_stickiness(pool(key), tables)
    assert stickiness is not None
    for request in requests:
        stickiness.chosen(request, server, now)
    find, chosen = stickiness.find, stickiness.chosen
    assert isinstance(key, InsertedCookie) or find(requests[0], now) is not None

    def work() -> None:
        for request in requests:
            find(request, now)
            chosen(request, server, now)

    return microseconds(work, len(requests))


def fill(table: Table, keys: Iterable[bytes], start: float) -> tuple[float, float]:
    """Put keys in; returns microseconds for each, and the longest of them in milliseconds."""
    longest = total = 0.0
    count = 0
    clock = time.thread_time
    for number, key in enumerate(keys):
        before = clock()
        table.put(key, f"web{number % SERVERS}", start + number * 1e-5)
        took = clock() - before
        total += took
        longest = max(longest, took)
        count += 1
    return total / count * 1e6, longest * 1e3


def measure(entries: int) -> tuple[list[tuple[str, str]], bool]:
    """All rows of the table, and whether the limits hold."""
    rows: list[tuple[str, str]] = []
    tables = Tables(Limits(entries))
    source = tables.table("web/source", 1800.0)
    gc.collect()
    gc.freeze()  # as workers do after their start
    before = used()
    cost, longest = fill(source, (address_key(address(number), 32, 64) or b"" for number in range(entries)), 1.0)
    address_key.cache_clear()
    gc.collect()
    size = (used() - before) / entries
    rows += [
        (f"bytes an entry, {len(source):,} IPv4 addresses", f"{size:.0f}"),
        ("put, new key (us)", f"{cost:.2f}"),
        ("  the longest (ms)", f"{longest:.2f}"),
    ]
    now = 20.0
    some = random.Random(1).sample(range(entries), min(REQUESTS, entries))
    rows += [("find + chosen, source, known user (us)", f"{by_source(tables, some, now):.2f}")]
    header = tables.table("web/header/x-user", 1800.0)
    before = used()
    fill(header, (digest(b"user-%d" % number) for number in range(entries)), 1.0)
    digest.cache_clear()
    size = max(size, (used() - before) / entries)
    rows.append(("bytes an entry, header or application cookie", f"{(used() - before) / entries:.0f}"))
    users = [Request("", b"user-%d" % number) for number in some]
    rows.append(("find + chosen, header (us)", f"{decision(HeaderKey('x-user'), tables, users, 'web1', now):.2f}"))
    rows += turnover(header, entries, before)
    cookie_cost = by_cookie(now)
    rows.append((f"find + chosen, inserted cookie, {SERVERS:,} servers (us)", f"{cookie_cost:.2f}"))
    rows.append(("find + chosen, application cookie (us)", f"{by_session(tables, now):.2f}"))
    del some, users
    start = time.process_time()
    gc.collect()
    rows.append(("a full garbage collection (ms)", f"{(time.process_time() - start) * 1e3:.1f}"))
    return rows, size <= BYTES_LIMIT and cookie_cost <= COOKIE_LIMIT


def by_source(tables: Tables, some: list[int], now: float) -> float:
    return decision(SourceKey(), tables, [Request(address(number), b"") for number in some], "web1", now)


def by_cookie(now: float) -> float:
    key = InsertedCookie("L7LB")
    stickiness = make_stickiness(pool(key), Tables(Limits(1)))
    assert stickiness is not None
    value = stickiness.chosen(Request("192.0.2.1", b""), "web1", now).partition(b";")[0].partition(b"=")[2]
    return decision(key, Tables(Limits(1)), [Request("192.0.2.1", value)] * REQUESTS, "web1", now)


def by_session(tables: Tables, now: float) -> float:
    key = LearnedCookie("SID")
    stickiness = make_stickiness(pool(key), tables)
    assert stickiness is not None
    sessions = [b"%032x" % number for number in range(REQUESTS)]
    for session in sessions:
        stickiness.answered([b"SID=" + session + b"; Path=/; HttpOnly"], "web1", now)
    return decision(key, tables, [Request("", session) for session in sessions], "web1", now)


def turnover(table: Table, entries: int, before: int) -> list[tuple[str, str]]:
    """A full table in which all users are replaced; then they expire."""
    cost, longest = fill(table, (digest(b"new-%d" % number) for number in range(entries)), 100.0)
    digest.cache_clear()
    rows = [
        ("put, new key into a full table (us)", f"{cost:.2f}"),
        ("  the longest (ms)", f"{longest:.2f}"),
        ("bytes an entry, after all were replaced", f"{(used() - before) / entries:.0f}"),
    ]
    deltas = [delta for index in range(table.parts) for delta in table.part(index)][:REQUESTS]
    other = Table(table.name, table.ttl, entries, origin=9)
    start = time.process_time()
    other.merge(deltas, 200.0)
    rows.append(("merge a change of another worker (us)", f"{(time.process_time() - start) / len(deltas) * 1e6:.2f}"))
    longest = 0.0
    waiting = True
    while len(table) and waiting:
        start = time.thread_time()
        waiting = table.tick(10_000.0)
        longest = max(longest, time.thread_time() - start)
    rows.append(("the longest tick while all expire (ms)", f"{longest * 1e3:.2f}"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    rows, good = measure(parser.parse_args().entries)
    for what, value in rows:
        print(f"{what:<56} {value:>8}")
    if not good:
        print(f"beyond a limit: {BYTES_LIMIT:.0f} bytes an entry, {COOKIE_LIMIT:.0f} us for the cookie")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
