"""From the configuration and what happened since to the snapshot that workers get: a function without state.

What can change a pool's servers after the configuration was compiled: an operator added or removed one, changed a
weight or a state; a host name stands for other addresses. All of that is applied here, in that order, so that what
a worker runs can always be computed again from its causes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from l7lb.control import slots as naming
from l7lb.control.overrides import Overrides
from l7lb.core.snapshot import Address, Limit, Listener, Pool, Server, Snapshot

Key = tuple[str, str]  # the pool's name, the server's


@dataclass(frozen=True)
class Answer:
    """What a host name stands for now; ``why`` says what is wrong, if something is."""

    name: str = ""
    addresses: tuple[str, ...] = ()
    why: str = ""


UNRESOLVED = Answer(why="its name is not resolved yet")


@dataclass(frozen=True)
class Absent:
    """A server that is configured and can't be used, since its name has no address."""

    pool: str
    server: Server
    why: str


def is_host_name(address: Address) -> bool:
    """Whether the address has to be looked up."""
    if address.path:
        return False
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return True
    return False


def declared(pool: Pool, overrides: Overrides) -> list[Server]:
    """The pool's servers before names are looked up: the file's without the removed ones, then the added ones."""
    removed = overrides.removed.get(pool.name, {})
    names = {server.name for server in pool.servers}
    kept = [server for server in pool.servers if server.name not in removed]
    return kept + [server for server in overrides.added.get(pool.name, ()) if server.name not in names]


def compose(configured: Snapshot, overrides: Overrides, answers: Mapping[Key, Answer]) -> tuple[Snapshot, list[Absent]]:
    """The snapshot without slots and version, and the servers that have no address."""
    pools: list[Pool] = []
    absent: list[Absent] = []
    for pool in configured.pools:
        servers: list[Server] = []
        for server in declared(pool, overrides):
            if not is_host_name(server.address):
                servers.append(_overridden(pool.name, server, overrides))
                continue
            answer = answers.get((pool.name, server.name), UNRESOLVED)
            if answer.name != server.address.host:
                answer = UNRESOLVED
            if not answer.addresses:
                absent.append(
                    Absent(pool.name, _overridden(pool.name, server, overrides), answer.why or UNRESOLVED.why)
                )
            servers.extend(_overridden(pool.name, one, overrides) for one in _addresses(server, answer.addresses))
        pools.append(msgspec.structs.replace(pool, servers=tuple(servers)))
    return msgspec.structs.replace(configured, pools=tuple(pools)), absent


def _addresses(server: Server, addresses: tuple[str, ...]) -> list[Server]:
    """One server for each address. The name always has the address in it, so that a second one renames nobody."""
    return [
        msgspec.structs.replace(
            server,
            name=f"{server.name}@{address}",
            address=Address(host=address, port=server.address.port),
            origin=server.name,
            host=server.address.host,
        )
        for address in addresses
    ]


def _overridden(pool: str, server: Server, overrides: Overrides) -> Server:
    """With the operator's state and weight: those of this very address before those of its name."""
    state, weight = server.state, server.weight
    for name in (server.origin, server.name):
        override = overrides.of(pool, name) if name else None
        if override is not None:
            state = override.state or state
            weight = override.weight if override.weight >= 0 else weight
    if state == server.state and weight == server.weight:
        return server
    return msgspec.structs.replace(server, state=state, weight=weight)


def forget_strangers(configured: Snapshot, overrides: Overrides) -> list[str]:
    """Drop overrides of servers that the configuration no longer has; returns what was dropped, in words."""
    notes: list[str] = []
    pools = {pool.name: pool for pool in configured.pools}
    for pool_name, added in list(overrides.added.items()):
        names = {server.name for server in pools[pool_name].servers} if pool_name in pools else None
        kept = [server for server in added if names is not None and server.name not in names]
        reason = "its pool is gone" if names is None else "the configuration has it now"
        dropped = [server.name for server in added if server not in kept]
        notes.extend(f"{pool_name}/{name}, added at run time, is forgotten: {reason}" for name in dropped)
        overrides.added[pool_name] = kept
    for pool_name, removed in overrides.removed.items():
        names = {server.name for server in pools[pool_name].servers} if pool_name in pools else set()
        for name in [name for name in removed if name not in names]:
            del removed[name]  # it is what the operator wanted
    for pool_name, servers in overrides.servers.items():
        known = {server.name for server in declared(pools[pool_name], overrides)} if pool_name in pools else set()
        for name in [name for name in servers if name not in known and name.rpartition("@")[0] not in known]:
            del servers[name]
            notes.append(f"{pool_name}/{name}: its state and weight set at run time are forgotten: no such server")
    overrides.tidy()
    return notes


# --- names and rows ---------------------------------------------------------------------------------------------


def index(snapshot: Snapshot) -> dict[Key, Server]:
    """Every server by its names."""
    return {(pool.name, server.name): server for pool in snapshot.pools for server in pool.servers}


def slot_names(snapshot: Snapshot) -> list[tuple[str, int]]:
    """Every name that has a row in the counts, and the row it has."""
    found = [(naming.listener_name(listener.name), listener.slot) for listener in snapshot.listeners]
    for listener in snapshot.listeners:
        found.extend((naming.limit_name(limit.name), limit.slot) for limit in limits_of_listener(listener))
    for pool in snapshot.pools:
        found.append((naming.pool_name(pool.name), pool.slot))
        found.extend((naming.server_name(pool.name, server.name), server.slot) for server in pool.servers)
    return found


def limits_of_listener(listener: Listener) -> list[Limit]:
    """The rate limits of a listener and its rules."""
    return [*listener.limits, *(limit for route in listener.routes for limit in route.limits)]


def with_slots(snapshot: Snapshot, slots: dict[str, int], version: int) -> Snapshot:
    """The snapshot with these rows and this version."""
    replace = msgspec.structs.replace

    def counted(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
        return tuple(replace(limit, slot=slots[naming.limit_name(limit.name)]) for limit in limits)

    listeners = tuple(
        replace(
            listener,
            slot=slots[naming.listener_name(listener.name)],
            limits=counted(listener.limits),
            routes=tuple(
                replace(route, limits=counted(route.limits)) if route.limits else route for route in listener.routes
            ),
        )
        for listener in snapshot.listeners
    )
    pools = tuple(
        replace(
            pool,
            slot=slots[naming.pool_name(pool.name)],
            servers=tuple(
                replace(server, slot=slots[naming.server_name(pool.name, server.name)]) for server in pool.servers
            ),
        )
        for pool in snapshot.pools
    )
    return replace(snapshot, version=version, listeners=listeners, pools=pools)
