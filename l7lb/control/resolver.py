"""Servers that are named by DNS: each name is looked up again when its answer expires, each address is a server.

The hosts file is asked first, then the name servers of resolv.conf, by dnspython and not by getaddrinfo in a thread:
the answer's time to live is known, a name server that hangs holds no thread, and a look-up can be given up. A look-up
that fails keeps the last answer, and is repeated soon, then less often. What the operator reads says what went wrong.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver
import structlog

from l7lb.control.effective import Answer, Key
from l7lb.control.node import Change, NodeState
from l7lb.core.errors import L7lbError

TTL_FLOOR = 5.0  # seconds; also the first pause after a failure, and for names of the hosts file
TTL_CEILING = 300.0
RETRY_CEILING = 60.0
LIFETIME = 5.0  # seconds of one look-up, all name servers and repetitions together
CONCURRENCY = 16
ADDRESSES = 64  # of one name
HOSTS_LIMIT = 4 * 1024 * 1024  # bytes of the hosts file

log = structlog.get_logger("l7lb.resolver")


class LookupFailed(L7lbError):
    """A name could not be looked up; the text says why, and ``partial`` what was found all the same."""

    def __init__(self, why: str, partial: tuple[str, ...] = ()) -> None:
        super().__init__(why)
        self.partial = partial


@dataclass(frozen=True)
class Found:
    """A name's addresses, and for how many seconds they hold."""

    addresses: tuple[str, ...]
    ttl: float


Lookup = Callable[[str], Awaitable[Found]]


class SystemLookup:
    """The hosts file, then DNS as resolv.conf says."""

    def __init__(self, hosts: Path = Path("/etc/hosts"), resolver: dns.asyncresolver.Resolver | None = None) -> None:
        self._hosts = hosts
        self._resolver = resolver

    async def __call__(self, name: str) -> Found:
        """Look a name up. Raises LookupFailed."""
        local = await asyncio.to_thread(in_hosts, self._hosts, name)
        if not local and name.rstrip(".").lower() == "localhost":
            local = ("127.0.0.1", "::1")  # RFC 6761, section 6.3
        if local:
            return Found(ordered(local), TTL_FLOOR)
        try:
            # Made anew each time: resolv.conf changes while a node runs.
            resolver = self._resolver
            if resolver is None:
                resolver = await asyncio.to_thread(dns.asyncresolver.Resolver)
        except (dns.exception.DNSException, OSError) as error:
            raise LookupFailed(f"no name server is configured: {error}") from None
        results = await asyncio.gather(
            *(self._ask(resolver, name, kind) for kind in (dns.rdatatype.A, dns.rdatatype.AAAA))
        )
        addresses = ordered(address for found, _, _ in results for address in found)
        problems = [problem for _, _, problem in results if problem]
        if problems:
            raise LookupFailed(problems[0], addresses)
        if not addresses:
            raise LookupFailed("the name has no address")
        return Found(addresses, min(ttl for found, ttl, _ in results if found))

    async def _ask(
        self, resolver: dns.asyncresolver.Resolver, name: str, kind: dns.rdatatype.RdataType
    ) -> tuple[list[str], float, str]:
        """One type's addresses, their time to live, and what went wrong."""
        try:
            answer = await resolver.resolve(name, kind, search=True, lifetime=LIFETIME, raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN:
            return [], 0.0, "the name does not exist"
        except dns.resolver.LifetimeTimeout:
            return [], 0.0, f"no name server answered within {LIFETIME:g} s"
        except dns.resolver.NoNameservers:
            return [], 0.0, "no name server gave an answer"
        except (dns.exception.DNSException, OSError) as error:
            return [], 0.0, f"look-up failed: {' '.join(str(error).split())[:120] or type(error).__name__}"
        if answer.rrset is None:
            return [], 0.0, ""
        return [item.address for item in answer.rrset], float(answer.rrset.ttl), ""


def in_hosts(path: Path, name: str) -> tuple[str, ...]:
    """The addresses that a hosts file gives a name; none where it can't be read. Blocks."""
    try:
        with path.open("rb") as file:
            text = file.read(HOSTS_LIMIT).decode("utf-8", "replace")
    except OSError:
        return ()
    wanted = name.rstrip(".").lower()
    found = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if wanted in (word.lower() for word in words[1:]):
            found.append(words[0])
    return tuple(found)


def ordered(addresses: Iterable[str]) -> tuple[str, ...]:
    """Each address once, in the usual form, IPv4 first, in a fixed order; what is no address is dropped."""
    unique = set()
    for address in addresses:
        try:
            unique.add(ipaddress.ip_address(address))
        except ValueError:
            continue
    found = sorted(unique, key=lambda address: (address.version, int(address)))
    return tuple(str(address) for address in found[:ADDRESSES])


class Resolver:
    """One task a host name; see the module."""

    def __init__(self, node: NodeState, lookup: Lookup | None = None, rng: random.Random | None = None) -> None:
        self._node = node
        self._lookup = lookup or SystemLookup()
        self._random = rng or random.Random()
        self._turns = asyncio.Semaphore(CONCURRENCY)
        self._tasks: dict[Key, tuple[str, asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._running = False
        node.subscribe(self._changed)

    async def start(self) -> None:
        """Begin to look names up; returns when every name was tried once or LIFETIME is over.

        A node whose servers have names then starts with servers.
        """
        first = [asyncio.create_task(self._once(key, name)) for key, name in self._node.host_names().items()]
        if first:
            _, late = await asyncio.wait(first, timeout=LIFETIME + 1)
            for task in late:
                task.cancel()
            await asyncio.gather(*first, return_exceptions=True)
        self._running = True
        self._reconcile(dict.fromkeys(self._node.host_names(), TTL_FLOOR))

    async def stop(self) -> None:
        """End all look-ups."""
        self._running = False
        for key in list(self._tasks):
            self._end(key)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _changed(self, change: Change) -> None:
        if self._running and self._names_differ():
            self._reconcile({})

    def _names_differ(self) -> bool:
        return self._node.host_names() != {key: name for key, (name, _) in self._tasks.items()}

    def _reconcile(self, delays: dict[Key, float]) -> None:
        wanted = self._node.host_names()
        for key, (name, _) in list(self._tasks.items()):
            if wanted.get(key) != name:
                self._end(key)
        for key, name in wanted.items():
            if key not in self._tasks:
                task = asyncio.create_task(self._watch(key, name, delays.get(key, 0.0)), name=f"resolve {name}")
                self._tasks[key] = name, task

    def _end(self, key: Key) -> None:
        _, task = self._tasks.pop(key)
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _watch(self, key: Key, name: str, delay: float) -> None:
        failures = 0
        await asyncio.sleep(delay)
        while True:
            ttl = await self._once(key, name)
            failures = failures + 1 if ttl is None else 0
            pause = min(TTL_FLOOR * 2 ** min(failures - 1, 10), RETRY_CEILING) if ttl is None else ttl
            await asyncio.sleep(min(max(pause, TTL_FLOOR), TTL_CEILING) * self._random.uniform(1.0, 1.1))

    async def _once(self, key: Key, name: str) -> float | None:
        """Look the name up and tell NodeState; returns the time to live, None for a failure."""
        label = "/".join(key)
        before = self._node.answer(*key)
        async with self._turns:
            try:
                found = await self._lookup(name)
                answer, ttl = Answer(name, found.addresses), found.ttl
            except LookupFailed as error:
                # Half an answer is used only where there is none yet: it must not take servers out.
                why = f"{name}: {error}"
                answer, ttl = Answer(name, before.addresses or error.partial, why), None
        changed = self._node.set_answer(*key, answer)
        if answer.why and answer.why != before.why:
            kept = f"; it keeps {len(answer.addresses)} known address(es)" if answer.addresses else ""
            log.warning(f"{label} is not resolved: {answer.why}{kept}", pool=key[0], server=key[1], name=name)
        elif changed or (before.why and not answer.why):
            log.info(f"{label} is at {', '.join(answer.addresses)}", pool=key[0], server=key[1], name=name)
        return ttl
