"""What can only be told from several sections together.

Each check looks at the sections that are valid, whatever is wrong with the others.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterable

from l7lb.config.addresses import parse_bind, resolve
from l7lb.config.document import Path
from l7lb.config.listeners import Listener
from l7lb.config.model import Configuration
from l7lb.config.pools import Pool, Server
from l7lb.config.routes import Route, Share
from l7lb.config.section import Reading
from l7lb.config.wording import choice, quoted

ROWS = 16_384  # listeners, pools and servers together: the rows of the shared counts


def check_all(reading: Reading) -> None:
    """Add everything found to the reading."""
    for check in (_pools_exist, _rule_order, _listener_names, _server_names, _binds, _size):
        check(reading)


def _pools_exist(reading: Reading) -> None:
    """Every pool that a rule names is there, also where that pool itself has errors."""
    pools = reading.root.get("pools")
    known = [str(name) for name in pools] if isinstance(pools, dict) else []
    for route in reading.each(Route):
        if route.pool is not None and route.pool not in known:
            reading.problem((*route.place, "pool"), _unknown_pool(route.pool, known))
    for share in reading.each(Share):
        if share.pool not in known:
            reading.problem((*share.place, "pool"), _unknown_pool(share.pool, known))


def _unknown_pool(name: str, known: list[str]) -> str:
    if not known:
        return f"the pool {quoted(name)} is not known: there are no pools"
    return choice("the pool", name, known)


def _rule_order(reading: Reading) -> None:
    """Rules behind one that takes everything are never reached; nor is one whose match was there before."""
    by_listener: dict[Path, list[Route]] = {}
    for route in reading.each(Route):
        by_listener.setdefault(route.place[:-1], []).append(route)
    for routes in by_listener.values():
        routes.sort(key=lambda route: route.place[-1])
        all_taken: Route | None = None
        seen: dict[str, Route] = {}
        for route in routes:
            if all_taken is not None:
                line = reading.line(all_taken.place)
                reading.problem(
                    route.place, f"is never reached: the rule in line {line} takes everything; put that last"
                )
                continue
            if route.match is None:
                all_taken = route
                continue
            same = seen.setdefault(route.match.model_dump_json(), route)
            if same is not route:
                reading.warning(route.place, f"is never reached: line {reading.line(same.place)} has the same match")


def _listener_names(reading: Reading) -> None:
    _twice(reading, ((listener.name, (*listener.place, "name")) for listener in reading.each(Listener)), "listener")


def _server_names(reading: Reading) -> None:
    by_pool: dict[Path, list[Server]] = {}
    for server in reading.each(Server):
        by_pool.setdefault(server.place[:-1], []).append(server)
    for servers in by_pool.values():
        _twice(reading, ((server.name, (*server.place, "name")) for server in servers), "server of this pool")
        addresses: dict[str, Server] = {}
        for server in servers:
            first = addresses.setdefault(server.address, server)
            if first is not server:
                message = f"{server.address} is also the address of {first.name} in line {reading.line(first.place)}"
                reading.warning((*server.place, "address"), message)


def _twice(reading: Reading, names: Iterable[tuple[str, Path]], what: str) -> None:
    seen: dict[str, Path] = {}
    for name, path in names:
        first = seen.setdefault(name, path)
        if first is not path:
            message = f"a {what} in line {reading.line(first)} is named {quoted(name)} already: names differ"
            reading.problem(path, message)


def _binds(reading: Reading) -> None:
    seen: dict[str, Path] = {}
    for listener in reading.each(Listener):
        for number, text in enumerate(listener.bind):
            address = resolve(parse_bind(text), reading.base)
            path = (*listener.place, "bind", number)
            if not address.path and address.port == 0:
                continue
            first = seen.setdefault(str(address), path)
            if first is not path:
                reading.problem(path, f"{text} is bound in line {reading.line(first)} already: give it once")


def _size(reading: Reading) -> None:
    count = sum(isinstance(section, Listener | Pool | Server) for section in reading.sections)
    if count > ROWS:
        message = f"{count:,} listeners, pools and servers together are more than the {ROWS:,} that a node can count"
        reading.problem(("pools",), message, key=True)


def check_unused(configuration: Configuration, reading: Reading) -> None:
    """Pools that no rule leads to, and checks whose protocol is therefore unknown."""
    used = {name for listener in configuration.listeners for name in listener.pools()}
    for name, pool in configuration.pools.items():
        if name in used:
            continue
        if pool.health and pool.health.protocol:
            message = "no rule leads to this pool, so that the protocol to check is not known: use http or tcp"
            reading.problem(("pools", name, "health", "protocol"), message, key=True)
        else:
            reading.warning(("pools", name), "no rule leads to this pool", key=True)


def check_account(configuration: Configuration, reading: Reading) -> None:
    """The user and group exist; a mistake for root, who would change to them, a warning for others."""
    as_root = os.geteuid() == 0
    look_ups: tuple[tuple[str, str | None, Callable[[str], object]], ...] = (
        ("user", configuration.user, pwd.getpwnam),
        ("group", configuration.group, grp.getgrnam),
    )
    for key, name, look_up in look_ups:
        if name is None:
            continue
        try:
            look_up(name)
        except (KeyError, ValueError):
            report = reading.problem if as_root else reading.warning
            report((key,), f"this system has no {key} {quoted(name)}")
    if configuration.group is not None and configuration.user is None:
        reading.warning(("group",), "has no effect without user")
    elif configuration.user is not None and not as_root:
        reading.warning(("user",), "has no effect: only root can change to another user")
