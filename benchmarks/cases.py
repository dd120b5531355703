"""The cases: each measures all peers in turn, round by round, and says what it is held to."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks import load, passthrough, peers, tls
from benchmarks.peers import Site
from benchmarks.processes import BenchmarkError, Group
from benchmarks.results import Results

Values = dict[str, list[float]]


@dataclass(frozen=True)
class Plan:
    """How much to measure, and of whom."""

    rounds: int
    seconds: float
    idle: int  # keep-alive clients of the memory case
    bare: bool
    only: frozenset[str]  # names of peers; empty: all


def keep_alive(site: Site, plan: Plan, results: Results) -> None:
    """Small requests over kept connections, with routing and the cookie."""
    cost, rate = _small(site, plan, _equals(site, plan), (), 50)
    results.add("keep-alive", "us CPU/request", cost)
    results.add("keep-alive", "requests/s", rate)
    _compare_equals(results, "keep-alive CPU", cost, haproxy=1.3, nginx=1.0)


def close(site: Site, plan: Plan, results: Results) -> None:
    """A connection for each small request."""
    cost, rate = _small(site, plan, _equals(site, plan), ("Connection: close",), 50)
    results.add("connection a request", "us CPU/request", cost)
    results.add("connection a request", "requests/s", rate)
    _compare_equals(results, "connection a request CPU", cost, haproxy=1.5)


def bodies(site: Site, plan: Plan, results: Results) -> None:
    """Answers of 10 MB; HAProxy as it is by default, and told to splice."""
    groups = _chosen(site, plan)
    if not plan.only or "haproxy-splice" in plan.only:
        groups.append(peers.haproxy(site, "haproxy-splice", "option splice-response"))
    cost: Values = {}
    with _running(groups):
        for _ in range(plan.rounds):
            for group in groups:
                before = group.cpu()
                done = _checked(
                    group, load.wrk(group.port, site.cores.load, plan.seconds, connections=8, path="/large")
                )
                gigabytes = done.requests * peers.LARGE / 1e9
                cost.setdefault(group.name, []).append((group.cpu() - before) / gigabytes * 1000)
    results.add("10 MB bodies", "ms CPU/GB", cost)
    results.compare("10 MB bodies CPU", cost, "l7lb", "haproxy", 0.5)
    results.compare("10 MB bodies CPU", cost, "l7lb", "haproxy-splice", 1.1)
    results.compare("10 MB bodies CPU", cost, "l7lb", "nginx")


def latency(site: Site, plan: Plan, results: Results) -> None:
    """p50 and p99 at half of what each can carry at most."""
    groups = _chosen(site, plan)
    p50: Values = {}
    p99: Values = {}
    half: Values = {}
    with _running(groups):
        peaks: Values = {}
        for _ in range(min(3, plan.rounds)):
            for group in groups:
                headers = (f"Cookie: {load.sticky_cookie(group.port)}",)
                found = load.wrk(group.port, site.cores.load, plan.seconds, 20, headers=headers, urls=site.urls).rate
                peaks.setdefault(group.name, []).append(found)
        rates = {name: median(found) / 2 for name, found in peaks.items()}
        for _ in range(plan.rounds):
            for group in groups:
                done = load.h2load(
                    group.port,
                    site.cores.load,
                    plan.seconds,
                    rates[group.name],
                    site.folder,
                    load.sticky_cookie(group.port),
                )
                _checked(group, done)
                p50.setdefault(group.name, []).append(done.p50 * 1e6)
                p99.setdefault(group.name, []).append(done.p99 * 1e6)
                half.setdefault(group.name, []).append(done.rate)
    results.add("half of its peak", "requests/s", half)
    results.add("p50 at half of its peak", "us", p50)
    results.add("p99 at half of its peak", "us", p99)
    results.compare("p50 at half of its peak", p50, "l7lb", "haproxy")
    results.compare("p99 at half of its peak", p99, "l7lb", "haproxy", 2.0)


def memory(site: Site, plan: Plan, results: Results) -> None:
    """What an idle keep-alive client costs, by the growth of PSS over many of them."""
    sizes: Values = {}
    for group in _chosen(site, plan):
        with group:
            sizes[group.name] = [load.idle_connections(group, plan.idle)]
    results.add(f"idle client, of {plan.idle:,}", "bytes PSS", sizes)
    results.compare("idle client memory", sizes, "l7lb", "haproxy")
    if "l7lb" in sizes:
        results.compare("idle client memory", {**sizes, "2 KiB": [2048.0]}, "l7lb", "2 KiB", 1.0)


def passed_through(site: Site, plan: Plan, results: Results) -> None:
    """TLS passed through by its name: 10 MB bodies, and a connection a request; HAProxy in mode tcp, and splicing."""
    bulk: Values = {}
    speed: Values = {}
    plain: Values = {}
    cost: Values = {}
    rate: Values = {}
    with passthrough.started(site, plan.bare, plan.only, splice=True) as groups:
        for _ in range(plan.rounds):
            for group in groups:
                found = passthrough.bulk(group, site.cores.load, plan.seconds)
                bulk.setdefault(group.name, []).append(found[0])
                speed.setdefault(group.name, []).append(found[1])
                found = passthrough.bulk(group, site.cores.load, plan.seconds, "http")
                plain.setdefault(group.name, []).append(found[0])
        for _ in range(plan.rounds):
            for group in groups:
                if group.name != "haproxy-splice":
                    found = passthrough.connections(group, site.cores.load, plan.seconds)
                    cost.setdefault(group.name, []).append(found[0])
                    rate.setdefault(group.name, []).append(found[1])
    results.add("passthrough, 10 MB bodies", "ms CPU/GB", bulk)
    results.add("passthrough, 10 MB bodies", "GB/s", speed)
    results.add("passthrough, 10 MB in the clear", "ms CPU/GB", plain)
    results.add("passthrough, a connection a request", "us CPU/connection", cost)
    results.add("passthrough, a connection a request", "connections/s", rate)
    results.compare("passthrough 10 MB bodies CPU", bulk, "l7lb", "haproxy")
    results.compare("passthrough 10 MB bodies CPU", bulk, "l7lb", "haproxy-splice", 1.1)
    results.compare("passthrough 10 MB in the clear CPU", plain, "l7lb", "haproxy", 0.5)
    results.compare("passthrough 10 MB in the clear CPU", plain, "l7lb", "haproxy-splice", 1.1)
    results.compare("passthrough connection CPU", cost, "l7lb", "haproxy")


def tls_ended(site: Site, plan: Plan, results: Results) -> None:
    """TLS ended here: full and resumed handshakes, requests over kept connections, 10 MB bodies."""
    full: Values = {}
    resumed: Values = {}
    kept: Values = {}
    bulk: Values = {}
    rates: dict[str, Values] = {"full": {}, "resumed": {}, "kept": {}}
    core, seconds = site.cores.load, plan.seconds
    with tls.started(site, plan.bare, plan.only) as groups:
        for _ in range(plan.rounds):
            for group in groups:
                for kind, values in (("full", full), ("resumed", resumed)):
                    cost, rate = tls.handshakes(group, core, seconds, kind == "resumed")
                    values.setdefault(group.name, []).append(cost)
                    rates[kind].setdefault(group.name, []).append(rate)
        for _ in range(plan.rounds):
            for group in groups:
                cost, rate = tls.requests(group, core, seconds, urls=site.urls)
                kept.setdefault(group.name, []).append(cost)
                rates["kept"].setdefault(group.name, []).append(rate)
                bulk.setdefault(group.name, []).append(tls.bodies(group, core, seconds))
    results.add("TLS, full handshake", "us CPU/connection", full)
    results.add("TLS, full handshake", "connections/s", rates["full"])
    results.add("TLS, resumed handshake", "us CPU/connection", resumed)
    results.add("TLS, resumed handshake", "connections/s", rates["resumed"])
    results.add("TLS, keep-alive", "us CPU/request", kept)
    results.add("TLS, keep-alive", "requests/s", rates["kept"])
    results.add("TLS, 10 MB bodies", "ms CPU/GB", bulk)
    results.compare("TLS full handshake CPU", full, "l7lb", "haproxy", 1.3)
    results.compare("TLS resumed handshake CPU", resumed, "l7lb", "haproxy", 1.3)
    results.compare("TLS keep-alive CPU", kept, "l7lb", "haproxy", 1.15)
    results.compare("TLS 10 MB bodies CPU", bulk, "l7lb", "haproxy")


def tls_memory(site: Site, plan: Plan, results: Results) -> None:
    """What an idle client with TLS costs, by the growth of PSS over many of them."""
    sizes: Values = {}
    count = min(plan.idle, 4000)  # the benchmark holds the other ends
    for group in (tls.l7lb(site, plan.bare), tls.haproxy(site)):
        if not plan.only or group.name in plan.only:
            with group:
                sizes[group.name] = [tls.idle_client(group, count)]
    results.add(f"idle client with TLS, of {count:,}", "bytes PSS", sizes)
    results.compare("idle client with TLS, memory", sizes, "l7lb", "haproxy")
    if "l7lb" in sizes:
        results.compare("idle client with TLS, memory", {**sizes, "18 KiB": [18 * 1024.0]}, "l7lb", "18 KiB", 1.0)


def rules(site: Site, plan: Plan, results: Results) -> None:
    """10,000 rules of host and path beside 10; the request matches the last."""
    few = peers.l7lb(site, "l7lb", rules=10, bare=plan.bare)
    many = peers.l7lb(site, "l7lb-10000-rules", rules=10_000, bare=plan.bare)
    cost: Values = {}
    with _running([few, many]):
        headers = tuple(f"Cookie: {load.sticky_cookie(group.port)}" for group in (few, many))
        for _ in range(plan.rounds):
            for group, header in zip((few, many), headers, strict=True):
                _measure(site, plan, group, (header,), 50, cost, {})
    results.add("rules", "us CPU/request", cost)
    results.compare("10,000 rules to 10", cost, "l7lb-10000-rules", "l7lb", 1.2)


def workers(site: Site, plan: Plan, results: Results) -> None:
    """Two workers carry nearly twice what one does."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 4:
        results.notes.append(f"two workers: not measured, it takes 4 cores and there are {len(cores)}")
        return
    one, two = peers.l7lb(site, "l7lb-1"), peers.l7lb(site, "l7lb-2", workers=2)
    rate: Values = {}
    for group in (one, two):
        group.command = ["taskset", "-c", f"{cores[0]},{cores[1]}", *group.command]
    with _running([one, two]):
        for _ in range(plan.rounds):
            for group in (one, two):
                done = _checked(group, load.wrk(group.port, cores[-1], plan.seconds, 100, urls=site.urls))
                rate.setdefault(group.name, []).append(done.rate)
    results.add("workers", "requests/s", rate)
    results.compare("two workers to one", rate, "l7lb-2", "l7lb-1", 1.8, at_least=True)


def _small(
    site: Site, plan: Plan, groups: list[Group], headers: tuple[str, ...], connections: int
) -> tuple[Values, Values]:
    cost: Values = {}
    rate: Values = {}
    with _running(groups):
        cookies = {group.name: f"Cookie: {load.sticky_cookie(group.port)}" for group in groups}
        for group in groups:  # to warm up
            load.wrk(group.port, site.cores.load, min(1.0, plan.seconds), connections, urls=site.urls)
        for _ in range(plan.rounds):
            for group in groups:
                _measure(site, plan, group, (cookies[group.name], *headers), connections, cost, rate)
    return cost, rate


def _measure(
    site: Site, plan: Plan, group: Group, headers: tuple[str, ...], connections: int, cost: Values, rate: Values
) -> None:
    before = group.cpu()
    done = load.wrk(group.port, site.cores.load, plan.seconds, connections, headers=headers, urls=site.urls)
    _checked(group, done)
    cost.setdefault(group.name, []).append((group.cpu() - before) / done.requests * 1e6)
    rate.setdefault(group.name, []).append(done.rate)


def _checked(group: Group, done: load.Load) -> load.Load:
    if done.errors or not done.requests:
        raise BenchmarkError(f"{group.name}: {done.errors} of {done.requests} requests failed")
    return done


def _chosen(site: Site, plan: Plan) -> list[Group]:
    makers: dict[str, Callable[[], Group]] = {
        "l7lb": lambda: peers.l7lb(site, bare=plan.bare),
        "haproxy": lambda: peers.haproxy(site),
        "nginx": lambda: peers.nginx(site),
    }
    return [make() for name, make in makers.items() if not plan.only or name in plan.only]


def _equals(site: Site, plan: Plan) -> list[Group]:
    """The pairs that do equal work, neighbours in time: with X-Forwarded-For alone, and with all of l7lb's headers."""
    makers: dict[str, Callable[[], Group]] = {
        "l7lb-plain": lambda: peers.l7lb(site, "l7lb-plain", bare=plan.bare, forwarded=peers.PLAIN),
        "haproxy": lambda: peers.haproxy(site),
        "nginx": lambda: peers.nginx(site),
        "l7lb": lambda: peers.l7lb(site, bare=plan.bare),
        "haproxy-headers": lambda: peers.haproxy(site, "haproxy-headers", headers=peers.HAPROXY_HEADERS),
        "nginx-headers": lambda: peers.nginx(site, "nginx-headers", headers=peers.NGINX_HEADERS),
    }
    return [make() for name, make in makers.items() if not plan.only or name in plan.only]


def _compare_equals(
    results: Results, what: str, cost: Values, haproxy: float | None = None, nginx: float | None = None
) -> None:
    results.compare(what, cost, "l7lb-plain", "haproxy", haproxy)
    results.compare(what, cost, "l7lb-plain", "nginx", nginx)
    results.compare(what, cost, "l7lb", "haproxy-headers", haproxy)
    results.compare(what, cost, "l7lb", "nginx-headers", nginx)
    results.compare(what, cost, "l7lb", "haproxy")  # unequal work, for information
    results.compare(what, cost, "l7lb", "nginx")


@contextlib.contextmanager
def _running(groups: list[Group]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for group in groups:
            stack.enter_context(group)
        yield


def http2(site: Site, plan: Plan, results: Results) -> None:
    """Small requests over HTTP/2 without TLS, 100 streams on each of 4 connections; reported, without a limit."""
    makers: dict[str, Callable[[], Group]] = {
        "l7lb": lambda: peers.l7lb(site, bare=plan.bare),
        "haproxy": lambda: peers.haproxy(site),  # it changes to HTTP/2 by the preface
    }
    groups = [make() for name, make in makers.items() if not plan.only or name in plan.only]
    cost: Values = {}
    rate: Values = {}
    with _running(groups):
        for _ in range(plan.rounds):
            for group in groups:
                before = group.cpu()
                done = _checked(group, load.streams(group.port, site.cores.load, plan.seconds, 100))
                cost.setdefault(group.name, []).append((group.cpu() - before) / done.requests * 1e6)
                rate.setdefault(group.name, []).append(done.rate)
    results.add("HTTP/2", "us CPU/request", cost)
    results.add("HTTP/2", "requests/s", rate)
    results.compare("HTTP/2 CPU", cost, "l7lb", "haproxy")


CASES: dict[str, Callable[[Site, Plan, Results], None]] = {
    "keep-alive": keep_alive,
    "close": close,
    "bodies": bodies,
    "latency": latency,
    "memory": memory,
    "passthrough": passed_through,
    "tls": tls_ended,
    "tls-memory": tls_memory,
    "http2": http2,
    "rules": rules,
    "workers": workers,
}


def summary(case: str) -> str:
    """What a case measures, in a line."""
    return re.sub(r"\s+", " ", CASES[case].__doc__ or "").strip()
