"""What can only be told from several sections together.

Mistakes are looked for in the data as it was written, so that they are found whatever else is wrong there; what is
only doubtful, in the sections that are valid.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from typing import Any

from l7lb.config.addresses import parse_bind, resolve
from l7lb.config.document import Items, Mapping, Path
from l7lb.config.limits import Limit
from l7lb.config.listeners import Listener
from l7lb.config.model import Admin, Configuration
from l7lb.config.pools import Pool, Server
from l7lb.config.routes import ACTIONS, Route
from l7lb.config.section import Reading
from l7lb.config.wording import choice, quoted

ROWS = 16_383  # listeners, limits, pools and servers together: the rows of the shared counts


def check_all(reading: Reading) -> None:
    """Add everything found to the reading."""
    listeners = _mappings(reading.root.get("listeners"))
    _names_once(reading, listeners, "listener")
    for listener in listeners:
        rules = _mappings(listener.get("routes"))
        _pools_exist(reading, rules)
        _directories_exist(reading, rules)
        _last_takes_all(reading, rules)
    pools = reading.root.get("pools")
    for pool in pools.values() if isinstance(pools, Mapping) else ():
        if isinstance(pool, Mapping):
            _names_once(reading, _mappings(pool.get("servers")), "server of this pool")
    _same_matches(reading)
    _same_addresses(reading)
    _binds(reading)
    _size(reading)


def _mappings(items: Any) -> list[Mapping]:
    """The mappings of a list in the file. Their own types are checked elsewhere."""
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, Items) else []


def _names_once(reading: Reading, items: list[Mapping], what: str) -> None:
    seen: dict[str, Path] = {}
    for item in items:
        name = item.get("name")
        if not isinstance(name, str):
            continue
        first = seen.setdefault(name, item.path)
        if first is not item.path:
            line = reading.line((*first, "name"))
            reading.problem(
                (*item.path, "name"), f"a {what} in line {line} is named {quoted(name)} already: names differ"
            )


def _pools_exist(reading: Reading, rules: list[Mapping]) -> None:
    known = _names(reading, "pools")
    for rule in rules:
        for place in (rule, *_mappings(rule.get("split"))):
            name = place.get("pool")
            if isinstance(name, str) and name not in known:
                reading.problem((*place.path, "pool"), _unknown("the pool", name, known))


def _directories_exist(reading: Reading, rules: list[Mapping]) -> None:
    known = _names(reading, "directories")
    for rule in rules:
        given = rule.get("directory")
        names = given if isinstance(given, list) else [given]
        for number, name in enumerate(names):
            place = (*rule.path, "directory", number) if isinstance(given, list) else (*rule.path, "directory")
            if not isinstance(name, str):
                continue
            if name not in known:
                reading.problem(place, _unknown("the directory", name, known))
            elif name in names[:number]:
                reading.problem(place, f"{quoted(name)} has been asked already: name it once")


def _names(reading: Reading, key: str) -> list[str]:
    """The names in a mapping at the top of the file."""
    found = reading.root.get(key)
    return list(found) if isinstance(found, Mapping) else []


def _unknown(what: str, name: str, known: list[str]) -> str:
    return choice(what, name, known) if known else f"{what} {quoted(name)} is not known: there are none"


def _last_takes_all(reading: Reading, rules: list[Mapping]) -> None:
    """Rules behind one without a match are never reached."""
    taken: Mapping | None = None
    for rule in rules:
        if taken is not None:
            line = reading.line(taken.path)
            reading.problem(rule.path, f"is never reached: the rule in line {line} takes everything; put that last")
        elif rule.get("match") is None and any(rule.get(action) is not None for action in ACTIONS):
            taken = rule


def _same_matches(reading: Reading) -> None:
    """Warn of rules whose match was there before."""
    seen: dict[tuple[Path, str], Route] = {}
    for route in reading.each(Route):
        if route.match is not None:
            same = seen.setdefault((route.place[:-1], route.match.model_dump_json()), route)
            if same is not route:
                reading.warning(route.place, f"is never reached: line {reading.line(same.place)} has the same match")


def _same_addresses(reading: Reading) -> None:
    """Warn of servers that are one."""
    seen: dict[tuple[Path, str], Server] = {}
    for server in reading.each(Server):
        for key, address in server.addresses():
            same = seen.setdefault((server.place[:-1], str(address)), server)
            if same is not server:
                message = f"{address} is also the address of {same.name} in line {reading.line(same.place)}"
                reading.warning((*server.place, key), message)
                break


def _binds(reading: Reading) -> None:
    seen: dict[str, Path] = {}
    for admin in reading.each(Admin):
        if admin.metrics:
            seen[str(parse_bind(admin.metrics))] = (*admin.place, "metrics")
        seen[f"unix:{reading.base / admin.socket}"] = (*admin.place, "socket")
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
    count = sum(isinstance(section, Limit | Listener | Pool | Server) for section in reading.sections)
    if count > ROWS:
        message = (
            f"{count:,} listeners, limits, pools and servers together are more than the {ROWS:,} that a node can count"
        )
        reading.problem(("pools",), message, key=True)


def check_shown(configuration: Configuration, reading: Reading) -> None:
    """Persistence keys and hashes by what none of the pool's protocols shows; looked for once all else is right."""
    if reading.problems:
        return
    for name, pool in configuration.pools.items():
        listeners = [listener for listener in configuration.listeners if name in listener.pools()]
        if not listeners:
            continue
        shown = {word for listener in listeners for word in listener.showing()}
        kinds = sorted({listener.kind for listener in listeners})
        who = f"{kinds[0]}, the protocol of this pool," if len(kinds) == 1 else f"none of {', '.join(kinds)}"
        for key in pool.keys_in_order():
            kind = str(key.compiled().__struct_config__.tag)
            if kind not in shown:
                place = key.place or ("pools", name, "persistence")
                reading.problem(place, f"{who} shows {'no' if len(kinds) == 1 else 'a'} {kind}: use source")
        fact = pool.balance.compiled().hash_on
        if fact is not None and fact.kind not in shown:
            message = f"{who} shows {'no' if len(kinds) == 1 else 'a'} {fact.kind}: hash something else, such as source"
            reading.problem(("pools", name, "balance"), message)


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
    asked = {name for route in reading.each(Route) for name in route.directory or ()}
    for name in configuration.directories:
        if name not in asked:
            reading.warning(("directories", name), "no rule asks this directory", key=True)


def _is_us(user: str) -> bool:
    """Whether this process has become that user already: a supervisor that reads its file again."""
    try:
        return pwd.getpwnam(user).pw_uid == os.geteuid()
    except (KeyError, ValueError):
        return False


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
    elif configuration.user is not None and not as_root and not _is_us(configuration.user):
        reading.warning(("user",), "has no effect: only root can change to another user")
