"""The pins of mailboxes that nobody has open: a table for each pool, which is saved, listed and changed as all are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from l7lb.core.keys import digest
from l7lb.persistence.table import KEY_LIMIT, MAX_TTL, Table

SUFFIX = "/mailbox"

log = logging.getLogger("l7lb.state")


def table_name(pool: str) -> str:
    """The table of a pool's mailboxes."""
    return pool + SUFFIX


def table_key(mailbox: bytes) -> bytes:
    """What stands for a mailbox in the table: its name, or a digest of one that is too long."""
    return mailbox if len(mailbox) <= KEY_LIMIT else digest(mailbox)


class TablePins:
    """See :class:`l7lb.persistence.mailboxes.Pins`; ``make`` makes a table of that name and time to live."""

    def __init__(self, tables: Mapping[str, Table], make: Callable[[str, float], Table]) -> None:
        self._tables = tables
        self._make = make

    def get(self, pool: str, mailbox: bytes, now: float) -> str:
        """The server, empty where none is remembered."""
        table = self._tables.get(table_name(pool))
        return (table.get(table_key(mailbox), now) or "") if table is not None else ""

    def put(self, pool: str, mailbox: bytes, server: str, expire: float, now: float) -> None:
        """Remember it for so long; the table of a pool has one time for all."""
        name = table_name(pool)
        table = self._tables.get(name)
        try:
            if table is None:
                table = self._make(name, min(expire, MAX_TTL) or 1.0)
            elif expire and table.ttl != min(expire, MAX_TTL):
                table.ttl = min(expire, MAX_TTL)
            table.put(table_key(mailbox), server, now)
        except ValueError as error:
            log.warning("the server of a mailbox in %s can't be remembered: %s", pool, error)

    def delete(self, pool: str, mailbox: bytes, now: float) -> None:
        """Forget it."""
        table = self._tables.get(table_name(pool))
        if table is not None:
            table.delete(table_key(mailbox), now)
