"""The supervisor's knowledge of its node, without a socket or a task: what is configured, what an operator said since,
what names stand for, how the servers are; and from these the snapshot and the health that workers get.

Three voices speak about a server, and none overwrites another:

- the **configuration** and the **operator** (:mod:`l7lb.control.operator`) decide weight and state. An operator's
  words are kept in ``<state>/overrides.json`` and outlive a restart and a reload;
- **checks** decide whether it is healthy. A server that was never checked is used, since a node that starts must not
  refuse its first clients; its first check decides alone;
- **outliers** are ejected for a while, whatever the checks say.

A change is told to all who subscribed. They must only note it and act later: a burst of changes comes one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from l7lb.control import overrides as store
from l7lb.control import slots as naming
from l7lb.control.effective import (
    UNRESOLVED,
    Absent,
    Answer,
    Key,
    compose,
    declared,
    forget_strangers,
    index,
    is_host_name,
    slot_names,
    with_slots,
)
from l7lb.control.overrides import Overrides
from l7lb.control.slots import NoRowLeft, Slots
from l7lb.control.ticket_secrets import TicketSecrets, with_ticket_keys
from l7lb.control.verdicts import Part, Verdict, combine
from l7lb.core.errors import L7lbError
from l7lb.core.messages import ALL_SESSIONS, ServerHealth, SessionRow, Wanted
from l7lb.core.snapshot import Server, Snapshot
from l7lb.proxy.counts import COLUMNS, ROWS, Counts

STRIDE = ROWS * COLUMNS  # cells from a worker's block to the next one's


class SupervisorView(Protocol):
    """What the admin API and the metrics need of the supervisor beside :class:`NodeState`."""

    def status(self) -> dict[str, Any]:
        """The node's state, as ``l7lb status --json`` prints it.

        ``node``, ``version`` (of the program), ``state`` (``starting`` until a worker has applied a snapshot,
        ``serving``, ``draining``), ``supervisor`` {``pid``, ``since``}, ``keeper`` {``pid``}, ``workers`` [{``pid``,
        ``index``, ``connections``, ``snapshot``: the version it runs, ``since``}], ``listeners`` [{``name``,
        ``protocol``, ``bind``: [text]}], ``reload`` {``time``: unix seconds, ``ok``, ``problems``: [text]}: the last
        one, the start included. Every ``since`` is RFC 3339.
        """
        ...

    async def sessions(self, limit: int, wanted: Wanted = ALL_SESSIONS) -> list[SessionRow]:
        """What is in progress in all workers, so many rows at most."""
        ...

    async def reload(self) -> list[str]:
        """Read the configuration again; returns what an operator should know. Raises ConfigurationError."""
        ...

    async def in_force(self) -> None:
        """Wait until all workers use what the node's state says now, for a moment at most."""
        ...

    async def shutdown(self) -> None:
        """Begin to drain; returns at once."""
        ...


@dataclass(frozen=True)
class Change:
    """What has changed: the snapshot (take it by ``effective()``), and the health of these servers.

    Workers must get the snapshot before the health, since it may name new servers.
    """

    snapshot: bool
    health: tuple[ServerHealth, ...] = ()


@dataclass(frozen=True)
class Ejection:
    """Passive health took the server at that address out until then (monotonic seconds)."""

    until: float
    why: str
    address: str


def rfc3339() -> str:
    """Now, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class NodeState:
    """See the module. Not thread-safe: one loop owns it.

    ``blocks`` is how many workers' blocks of the counts were ever used; the supervisor raises it when a worker with
    a higher index says hello. ``counts`` may be set later, and replaced. ``warnings`` is what went wrong at the start.
    """

    def __init__(
        self,
        configured: Snapshot,
        state: Path | None = None,
        counts: Counts | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], str] = rfc3339,
    ) -> None:
        self.configured = configured
        self.counts = counts
        self.blocks = max(1, configured.workers)
        self.clock = clock
        self.wall = wall
        self.warnings: list[str] = []
        self.overrides = Overrides()
        self.absent: list[Absent] = []
        self._directory = state
        self._subscribers: list[Callable[[Change], None]] = []
        self.ticket_secrets = TicketSecrets(time.time)
        self._slots = Slots()
        self._answers: dict[Key, Answer] = {}
        self._verdicts: dict[Key, Verdict] = {}
        self._offers: dict[Key, dict[str, tuple[str, ...]]] = {}
        self._ejections: dict[Key, Ejection] = {}
        self._since: dict[Key, float] = {}  # from when slow start counts
        self._told: dict[Key, ServerHealth] = {}
        self._gone: dict[Key, Server] = {}  # removed, and perhaps still with sessions
        if state is not None:
            try:
                self.overrides = store.load(state)
            except L7lbError as error:
                self.warnings.append(str(error))
        self._effective = self._composed(1)
        self._servers = index(self._effective)
        self.warnings.extend(forget_strangers(self.configured, self.overrides))
        self._note_health()

    # --- what workers get -----------------------------------------------------------------------------------------

    def effective(self) -> Snapshot:
        """The snapshot in force; the same object until something changes."""
        return self._effective

    def health_messages(self) -> list[ServerHealth]:
        """All that a worker needs to hear of servers' health when it connects, after the snapshot.

        Silent about servers that are still to be checked: a worker that was there before this supervisor knows more.
        """
        return list(self._told.values())

    def adopt(self, snapshot: Snapshot) -> None:
        """Workers run this snapshot already, from a supervisor before us: its rows, addresses and version go on.

        Call it before all else. Where nothing has changed since, the version stays the same. Raises NoRowLeft.
        """
        self._slots.adopt(dict(slot_names(snapshot)))
        if snapshot.ticket_secrets:
            self.ticket_secrets = TicketSecrets(time.time)  # what was made here has made no ticket yet
            self.ticket_secrets.learn(snapshot.ticket_secrets)
        self.blocks = max(self.blocks, snapshot.workers)
        names = self.host_names()
        for pool in snapshot.pools:
            for server in pool.servers:
                key = pool.name, server.origin
                if key in names:
                    known = self._answers.get(key, UNRESOLVED).addresses
                    self._answers[key] = Answer(names[key], (*known, server.address.host))
        self._effective = self._composed(snapshot.version)
        if self._effective != snapshot:
            self._effective = msgspec.structs.replace(self._effective, version=snapshot.version + 1)
        self._servers = index(self._effective)
        self._note_health()

    def subscribe(self, subscriber: Callable[[Change], None]) -> None:
        """Call it at every change, for as long as this state lives."""
        self._subscribers.append(subscriber)

    def reload(self, configured: Snapshot) -> list[str]:
        """Put a new configuration into force; returns what an operator should know.

        Health, ejections, overrides and counts of servers that are still there carry over. Raises NoRowLeft, and
        changes nothing then.
        """
        before, self.configured = self.configured, configured
        try:
            self.changed()
        except NoRowLeft:
            self.configured = before
            raise
        self.blocks = max(self.blocks, configured.workers)
        notes = forget_strangers(self.configured, self.overrides)
        if notes:
            notes.extend(self.save())
        for pool, names in self.overrides.removed.items():
            notes.extend(f"{pool}/{name} stays removed by operator since {since}" for name, since in names.items())
        return notes

    def renew(self, change: Callable[[Snapshot], Snapshot]) -> None:
        """What the configuration's files hold has changed, and nothing that was said about them."""
        self.configured = change(self.configured)
        self.changed()

    def turn_tickets(self) -> bool:
        """Make a new secret for session tickets if it is time, and tickets are made; returns whether it was."""
        return bool(self._effective.ticket_secrets) and self.ticket_secrets.turn() and self.changed()

    # --- what is known --------------------------------------------------------------------------------------------

    def server(self, pool: str, name: str) -> Server | None:
        """A server in force."""
        return self._servers.get((pool, name))

    def host_names(self) -> dict[Key, str]:
        """The servers whose address is a host name, and that name."""
        return {
            (pool.name, server.name): server.address.host
            for pool in self.configured.pools
            for server in declared(pool, self.overrides)
            if is_host_name(server.address)
        }

    def answer(self, pool: str, server: str) -> Answer:
        """What a server's host name was last said to stand for."""
        return self._answers.get((pool, server), UNRESOLVED)

    def verdict(self, pool: str, server: str) -> Verdict | None:
        """What the checks say; None before the first one."""
        return self._verdicts.get((pool, server))

    def healthy(self, pool: str, server: str) -> bool:
        """Whether the checks let it be used."""
        verdict = self._verdicts.get((pool, server))
        return verdict is None or verdict.healthy

    def healthy_for(self, pool: str, server: str, protocol: str) -> bool:
        """What the checks of that protocol alone say, and the same as :meth:`healthy` where there are none."""
        verdict = self._verdicts.get((pool, server))
        if verdict is None:
            return True
        part = verdict.parts.get(protocol)
        return verdict.healthy if part is None else part.healthy

    def down(self, pool: str, server: str) -> tuple[str, ...]:
        """The protocols for which a healthy server is not to be used."""
        verdict = self._verdicts.get((pool, server))
        return verdict.down if verdict is not None else ()

    def ejection(self, pool: str, server: str) -> Ejection | None:
        """Whether, until when and why it is ejected."""
        return self._ejections.get((pool, server))

    def is_open(self, pool: str, server: Server, protocol: str = "") -> bool:
        """Whether new users are sent to it, of that protocol where one is named."""
        key = pool, server.name
        usable = server.state == "enabled" and server.weight > 0 and key not in self._ejections
        return usable and self.healthy(*key) and protocol not in self.down(*key)

    def since(self, pool: str, server: str) -> float:
        """The monotonic time from which its slow start counts, 0.0 for one that was there from the start."""
        return self._since.get((pool, server), 0.0)

    def leaving(self) -> list[tuple[str, Server]]:
        """Servers that were removed, with the slot that may still count their sessions."""
        retired = self._slots.retired()
        found = []
        for (pool, name), server in self._gone.items():
            slot = retired.get(naming.server_name(pool, name))
            if slot is not None:
                found.append((pool, msgspec.structs.replace(server, slot=slot)))
        return found

    def count(self, slot: int, column: int) -> int:
        """A cell of the counts summed over the workers; 0 before there are counts, and for row 0."""
        return self.counts.total(slot, column, self.blocks) if self.counts is not None and slot else 0

    def cells(self, slot: int) -> list[int]:
        """A whole row of the counts summed over the workers."""
        if self.counts is None or not slot:
            return [0] * COLUMNS
        cells, start = self.counts.cells, slot * COLUMNS
        rows = (cells[start + block : start + block + COLUMNS] for block in range(0, self.blocks * STRIDE, STRIDE))
        return [sum(column) for column in zip(*rows, strict=True)]

    # --- what checks and look-ups say -----------------------------------------------------------------------------

    def set_health(self, pool: str, server: str, healthy: bool, why: str, protocol: str = "") -> bool:
        """The checks' verdict, on one protocol where these are checked one by one. Returns whether it differs from what
        held before (an unchecked server is healthy).
        """
        config = self._servers.get((pool, server))
        if config is None:
            return False
        key = pool, server
        was, was_for = self.healthy(*key), self.healthy_for(pool, server, protocol)
        first = key not in self._verdicts
        verdict = Verdict(healthy, why, str(config.address))
        if protocol:
            health = next(one.health for one in self._effective.pools if one.name == pool)
            if health is None:
                return False
            verdict = combine(self._verdicts.get(key), verdict.address, {protocol: Part(healthy, why)}, health, config)
        self._verdicts[key] = verdict
        if verdict.healthy and not was:
            self._since[key] = self.clock()
        if first or protocol or healthy != was:
            self._tell(False, [key])
        return healthy != was_for

    def set_offers(self, pool: str, server: str, protocol: str, offers: tuple[str, ...]) -> None:
        """What a check heard of the server's extensions in that protocol; workers are told where that has changed."""
        key = pool, server
        if key in self._servers and self._offers.get(key, {}).get(protocol) != offers:
            self._offers[key] = {**self._offers.get(key, {}), protocol: offers}
            self._tell(False, [key])

    def set_ejected(self, pool: str, server: str, seconds: float, why: str = "") -> None:
        """Take it out for so long; 0: put it back."""
        config = self._servers.get((pool, server))
        if config is None:
            return
        key = pool, server
        if seconds > 0:
            self._ejections[key] = Ejection(self.clock() + seconds, why, str(config.address))
        elif self._ejections.pop(key, None) is not None:
            self._since[key] = self.clock()
        self._tell(False, [key])

    def set_answer(self, pool: str, server: str, answer: Answer) -> bool:
        """What a server's host name stands for now; without addresses the last ones stay, with the new ``why``.

        Returns whether its addresses have changed.
        """
        key = pool, server
        before = self.answer(pool, server)
        kept = answer.addresses or (before.addresses if before.name == answer.name else ())
        self._answers[key] = Answer(answer.name, kept, answer.why)
        if not kept:
            self.absent = [
                Absent(one.pool, one.server, answer.why) if (one.pool, one.server.name) == key else one
                for one in self.absent
            ]
        if kept == before.addresses and answer.name == before.name:
            return False
        try:
            return self.changed()
        except NoRowLeft as error:
            self._answers[key] = Answer(answer.name, before.addresses, str(error))
            return False

    # --- for the operator's verbs ---------------------------------------------------------------------------------

    def changed(self) -> bool:
        """Something that decides the snapshot has changed: compose it again, carry over what is known, tell all.

        Returns whether the snapshot differs. Raises NoRowLeft; the snapshot stays the old one then.
        """
        after = self._composed(self._effective.version)
        if after == self._effective:
            return False
        old = self._servers
        self._effective = msgspec.structs.replace(after, version=after.version + 1)
        self._servers = index(self._effective)
        self._mark_newcomers(old)
        for key in old.keys() - self._servers.keys():
            self._gone[key] = old[key]
            self._since.pop(key, None)
        self._forget()
        self._tell(True)
        return True

    def save(self) -> list[str]:
        """Keep the overrides; returns what went wrong, in words, since they are in force all the same."""
        if self._directory is None:
            return ["without `state:` in the configuration it is forgotten when the supervisor restarts"]
        try:
            store.save(self._directory, self.overrides)
        except OSError as error:
            return [f"it could not be kept for a restart: {self._directory / store.FILE}: {error.strerror or error}"]
        return []

    # --- inside ---------------------------------------------------------------------------------------------------

    def _composed(self, version: int) -> Snapshot:
        """The effective snapshot, with rows; raises NoRowLeft."""
        bare, absent = compose(self.configured, self.overrides, self._answers)
        assigned = self._slots.assign([name for name, _ in slot_names(bare)], self.counts)
        self.absent = absent
        return with_ticket_keys(with_slots(bare, assigned, version), self.ticket_secrets)

    def _mark_newcomers(self, old: dict[Key, Server]) -> None:
        """Slow start counts from now for a server that joined, moved or was enabled, not for a whole new pool."""
        pools = {pool for pool, _ in old}
        now = self.clock()
        for key, server in self._servers.items():
            known = old.get(key)
            if known is None:
                self._gone.pop(key, None)
                if key[0] in pools:
                    self._since[key] = now
            elif known.address != server.address or (known.state == "disabled" and server.state != "disabled"):
                self._since[key] = now

    def _forget(self) -> None:
        """Drop what was said of addresses that are gone, and of pools that are checked no more."""
        pools = {pool.name: pool for pool in self._effective.pools}

        def stale(key: Key, address: str) -> bool:
            server = self._servers.get(key)
            return server is None or str(server.address) != address

        self._verdicts = {
            key: verdict
            for key, verdict in self._verdicts.items()
            if not stale(key, verdict.address) and pools[key[0]].health is not None
        }
        self._ejections = {
            key: ejection
            for key, ejection in self._ejections.items()
            if not stale(key, ejection.address) and pools[key[0]].outliers is not None
        }
        names = self.host_names()
        self._answers = {key: answer for key, answer in self._answers.items() if key in names}
        retired = self._slots.retired()
        self._gone = {key: server for key, server in self._gone.items() if naming.server_name(*key) in retired}

    def _note_health(self, keys: list[Key] | None = None) -> list[ServerHealth]:
        """Bring ``_told`` up to date, for these servers or for all; returns what is new in it."""
        if keys is None:
            self._told = {key: message for key, message in self._told.items() if key in self._servers}
            self._offers = {key: offers for key, offers in self._offers.items() if key in self._servers}
        checked = {pool.name for pool in self._effective.pools if pool.health is not None}
        fresh: list[ServerHealth] = []
        for key in self._servers if keys is None else keys:
            before = self._told.get(key)
            ejected = key in self._ejections
            since = self._since.get(key, 0.0)
            if before is None and key[0] in checked and key not in self._verdicts and not ejected and not since:
                continue
            offers = self._offers.get(key, {})
            message = ServerHealth(*key, self.healthy(*key), ejected, since, self.down(*key), offers)
            if message != before:
                self._told[key] = message
                fresh.append(message)
        return fresh

    def _tell(self, snapshot: bool, keys: list[Key] | None = None) -> None:
        health = self._note_health(keys)
        if snapshot or health:
            change = Change(snapshot, tuple(health))
            for subscriber in self._subscribers:
                subscriber(change)
