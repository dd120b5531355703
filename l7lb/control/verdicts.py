"""What the checks say of one server, which may speak several protocols: each is checked by itself.

Where the pool's ``health: scope`` is ``protocol``, a failed check takes the server out for that protocol alone, and as
a whole once all of them fail; with ``server`` the first that fails takes it out for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from l7lb.core.snapshot import Health, Server


@dataclass(frozen=True)
class Part:
    """What the checks of one protocol say; ``why`` is what an operator reads."""

    healthy: bool
    why: str


@dataclass(frozen=True)
class Verdict:
    """What the checks say of a server at that address; ``why`` is what an operator reads.

    ``parts`` has a server's protocols, where they are checked one by one, and ``down`` those of a healthy server that
    it is not to be used for.
    """

    healthy: bool
    why: str
    address: str
    parts: Mapping[str, Part] = field(default_factory=dict)
    down: tuple[str, ...] = ()


def checked(health: Health, server: Server) -> tuple[str, ...]:
    """The protocols of a server that are checked one by one; none where one check speaks for the whole server."""
    if not server.ports or health.port or health.kind not in ("protocol", "tcp"):
        return ()
    wanted = health.protocols if health.kind == "protocol" else ()
    return tuple(protocol for protocol in wanted or server.ports if protocol in server.ports)


def combine(before: Verdict | None, address: str, news: Mapping[str, Part], health: Health, server: Server) -> Verdict:
    """The verdict on a server when there is news of some of its protocols; those never checked are taken to be well."""
    known = {**(before.parts if before is not None and before.address == address else {}), **news}
    expected = checked(health, server)
    parts = {protocol: known[protocol] for protocol in expected if protocol in known}
    bad = tuple(protocol for protocol, part in parts.items() if not part.healthy)
    healthy = not bad if health.scope == "server" else len(bad) < len(expected)
    return Verdict(healthy, _words(parts, bad), address, parts, bad if healthy else ())


def _words(parts: Mapping[str, Part], bad: tuple[str, ...]) -> str:
    if not bad:
        return f"{', '.join(parts)}: all answer" if len(parts) > 1 else next(iter(parts.values())).why
    reasons = {parts[protocol].why for protocol in bad}
    if len(bad) == len(parts) and len(reasons) == 1:
        return reasons.pop()
    return "; ".join(f"{protocol} is down: {parts[protocol].why}" for protocol in bad)
