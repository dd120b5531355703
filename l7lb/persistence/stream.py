"""The stream of a node's changes to its sticky tables, for other nodes. Sans-io: a carrier brings messages to and fro.

A node that follows another says :class:`Want` for each table: after which of its sequence numbers it wants changes. The
other sends :class:`Batch` after batch. Carriers may lose, double, delay and reorder; nothing is kept for them:

===========================  ==========================================  ==============================================
what comes                   means                                       what is done
===========================  ==========================================  ==============================================
follows our position         the next changes                            merged; the position goes on
reaches no further           it was there before                         merged, which changes nothing
begins behind our position   something is missing between                merged; wanted again from our position
another incarnation          the node's state process is another one     wanted whole
since ``ALL``                a part of the whole table                   merged; when all parts were there in their
                                                                         order the position is where they began
===========================  ==========================================  ==============================================

What a table's journal no longer reaches back to is taught whole. A batch without changes goes out at every ``tick``, so
that the loss of the last one shows as well.

**Order of writings over nodes.** In a node versions are ticks of the monotonic clock, which other nodes don't share. On
the way they are ticks of the wall clock, by an offset that stays the same for a process's life; who writes after a
greater version takes the next one up (a hybrid logical clock), so that clocks need to agree to a minute only, and the
last writer wins everywhere by the same rule: time, then process, then server. A deletion is a change like all others,
and is remembered as long as an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from l7lb.persistence.messages import ALL, CHUNK, NAME_LIMIT
from l7lb.persistence.table import KEY_LIMIT, MAX_TTL, Delta, Table

TABLES = 8192


class Want(msgspec.Struct, tag="want"):
    """Go on after this sequence number of that incarnation, or (``ALL``) with that part of the whole table."""

    incarnation: int
    table: str
    position: int
    part: int = 0


class Batch(msgspec.Struct, tag="batch"):
    """Changes of a table from the sequence number ``since`` up to ``reaches``; times are of the wall clock.

    With ``since`` ``ALL`` all that is in the part ``part`` of ``parts``, and ``reaches`` the number where this began.
    """

    node: str
    incarnation: int
    table: str
    ttl: float
    since: int
    reaches: int
    deltas: list[Delta]
    part: int = 0
    parts: int = 0


class Outlet:
    """What one other node is sent. ``offset`` is the wall clock's lead over the monotonic one, in ticks.

    ``ours`` says whether a process belongs to this node: changes of others come from theirs, and from here only when a
    table is told whole. ``tables`` is looked at whenever something is sent.
    """

    def __init__(
        self, node: str, incarnation: int, tables: dict[str, Table], offset: int, ours: Callable[[int], bool]
    ) -> None:
        self.node = node
        self.incarnation = incarnation
        self._tables = tables
        self._offset = offset
        self._ours = ours
        self._sent: dict[str, int] = {}
        self._teaching: dict[str, tuple[int, int]] = {}  # where it began, and the next part

    def want(self, want: Want) -> None:
        """The other node has got so far."""
        table = self._tables.get(want.table)
        if table is None:
            return
        known = want.incarnation == self.incarnation
        teaching = self._teaching.get(want.table)
        if known and want.position != ALL and table.since(want.position, 0) is not None:
            self._sent[want.table] = want.position
            self._teaching.pop(want.table, None)
        elif known and want.position == ALL and teaching is not None and 0 <= want.part < table.parts:
            self._teaching[want.table] = (teaching[0], want.part)
        else:
            self._teaching[want.table] = (table.sequence, 0)

    def take(self, most: int = 64) -> list[Batch]:
        """So many batches at most; call again while they are that many, and whenever a table has changed."""
        found: list[Batch] = []
        for name, table in list(self._tables.items()):
            while len(found) < most:
                batch = self._next(name, table)
                if batch is None:
                    break
                found.extend(batch)
        for name in self._sent.keys() - self._tables.keys():
            del self._sent[name]
        return found

    def tick(self) -> list[Batch]:
        """Where each table is, without changes; about once a second."""
        return [
            self._batch(table, self._sent[name], self._sent[name], [])
            for name, table in self._tables.items()
            if name in self._sent
        ]

    def _next(self, name: str, table: Table) -> list[Batch] | None:
        if name not in self._sent and name not in self._teaching:
            self._teaching[name] = (table.sequence, 0)
        teaching = self._teaching.get(name)
        if teaching is not None:
            return self._part(table, *teaching)
        sent = self._sent[name]
        if sent == table.sequence:
            return None
        found = table.since(sent, CHUNK)
        if found is None:
            self._teaching[name] = (table.sequence, 0)
            return []
        deltas, reaches = found
        self._sent[name] = reaches
        return [self._batch(table, sent, reaches, [delta for delta in deltas if self._ours(delta[3])])]

    def _part(self, table: Table, began: int, part: int) -> list[Batch]:
        deltas = table.part(part)
        if part + 1 < table.parts:
            self._teaching[table.name] = (began, part + 1)
        else:
            del self._teaching[table.name]
            self._sent[table.name] = began
        batch = self._batch(table, ALL, began, deltas)
        batch.part, batch.parts = part, table.parts
        return [batch]

    def _batch(self, table: Table, since: int, reaches: int, deltas: Iterable[Delta]) -> Batch:
        moved = [(key, server, ticks + self._offset, origin) for key, server, ticks, origin in deltas]
        return Batch(self.node, self.incarnation, table.name, table.ttl, since, reaches, moved)


class Inlet:
    """What comes from one other node. ``table`` gives a table by name and time to live; ``changed`` hears of news."""

    def __init__(
        self, table: Callable[[str, float], Table], offset: int, changed: Callable[[Table], None] = lambda _: None
    ) -> None:
        self.incarnation = 0
        self.positions: dict[str, int] = {}
        self.refused = 0  # batches that no l7lb sends, or for tables beyond the limit
        self._parts: dict[str, tuple[int, int]] = {}  # where a teaching began, and the next part
        self._table = table
        self._offset = offset
        self._changed = changed

    def wants(self) -> list[Want]:
        """What to say when the carrier has connected, and now and then: how far all tables are."""
        names = dict.fromkeys((*self.positions, *self._parts))
        return [self._want(name) for name in names]

    def receive(self, batch: Batch, now: float) -> Want | None:
        """Take a batch; returns what must be sent again, if anything is missing."""
        if batch.incarnation != self.incarnation:
            self.incarnation = batch.incarnation
            self.positions.clear()
            self._parts.clear()
        try:
            self._merge(batch, now)
        except ValueError:
            self.refused += 1
            return None
        if batch.since == ALL:
            return self._taught(batch)
        position = self.positions.get(batch.table, ALL)
        if position == ALL or batch.since > position:
            return self._want(batch.table)
        self.positions[batch.table] = max(position, batch.reaches)
        return None

    def _merge(self, batch: Batch, now: float) -> None:
        """Raises ValueError for what can't be."""
        known = batch.table in self.positions or batch.table in self._parts
        if not 0 < len(batch.table) <= NAME_LIMIT or (not known and len(self.positions) >= TABLES):
            raise ValueError("a table with an impossible name, or too many")
        if not 0.0 < batch.ttl <= MAX_TTL or any(
            len(key) > KEY_LIMIT or len(server) > NAME_LIMIT for key, server, _, _ in batch.deltas
        ):
            raise ValueError("an impossible change")
        if not batch.deltas:
            return
        table = self._table(batch.table, batch.ttl)
        moved = [(key, server, ticks - self._offset, origin) for key, server, ticks, origin in batch.deltas]
        if table.merge(moved, now):
            self._changed(table)

    def _taught(self, batch: Batch) -> Want | None:
        began, expected = self._parts.get(batch.table, (batch.reaches, 0))
        if batch.reaches != began:
            if batch.reaches < began or batch.part:
                return None if batch.reaches < began else Want(self.incarnation, batch.table, ALL)
            began, expected = batch.reaches, 0  # it begins anew
        if batch.part > expected:
            self._parts[batch.table] = (began, expected)
            return Want(self.incarnation, batch.table, ALL, expected)
        if batch.part < expected:
            return None
        if batch.part + 1 < batch.parts:
            self._parts[batch.table] = (began, expected + 1)
            return None
        self._parts.pop(batch.table, None)
        self.positions[batch.table] = max(self.positions.get(batch.table, ALL), began)
        return None

    def _want(self, name: str) -> Want:
        position = self.positions.get(name, ALL)
        return Want(self.incarnation, name, position, self._parts.get(name, (0, 0))[1] if position == ALL else 0)
