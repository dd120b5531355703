"""The secrets that session ticket keys are derived from: made here, changed by the clock, the same for all workers.

Time is cut into periods, counted from the epoch, so that nodes agree on them. The newest secret makes tickets; the one
before still opens those that it made, so that a change costs no client a handshake, and no ticket lives longer than two
periods. They travel in the snapshot, which the keeper holds: they outlive workers, reloads, the supervisor and an
upgrade. They are never written to a disk, so a node that was ended and started begins anew, and what was recorded
before can't be opened with what the node holds now.

Each listener has keys of its own, derived with its name and its client CA: a ticket that an open listener gave never
opens at one that asks for certificates (CVE-2025-23419).

A cluster shares them by :meth:`TicketSecrets.secrets` and :meth:`TicketSecrets.learn`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from l7lb.core.snapshot import Listener, Snapshot, TicketSecret

PERIOD = 12 * 3600  # seconds
KEPT = 2
SECRET_BYTES = 32
KEY_BYTES = 80


class TicketSecrets:
    """A node's secrets, the newest first; ``clock`` is the time of day in seconds since the epoch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._secrets: tuple[TicketSecret, ...] = ()

    @property
    def secrets(self) -> tuple[TicketSecret, ...]:
        """Those in use; the first one is made when it is first asked for."""
        if not self._secrets:
            self.turn()
        return self._secrets

    def learn(self, others: Iterable[TicketSecret]) -> bool:
        """Take over what another process or node made; of two for one period the smaller wins, so that all agree.

        Returns whether anything has changed.
        """
        before = self._secrets
        best: dict[int, TicketSecret] = {}
        for one in (*before, *others):
            known = best.get(one.since)
            if len(one.secret) == SECRET_BYTES and (known is None or one.secret < known.secret):
                best[one.since] = one
        self._secrets = tuple(best[since] for since in sorted(best, reverse=True)[:KEPT])
        return self._secrets != before

    def turn(self) -> bool:
        """Make a new secret if its period has begun; returns whether it has."""
        since = int(self._clock()) // PERIOD * PERIOD
        if self._secrets and self._secrets[0].since >= since:
            return False
        self._secrets = (TicketSecret(since, os.urandom(SECRET_BYTES)), *self._secrets)[:KEPT]
        return True


def with_ticket_keys(snapshot: Snapshot, source: TicketSecrets) -> Snapshot:
    """The snapshot with the ticket keys of its listeners, if any of them ends TLS."""
    if not any(listener.tls is not None and listener.tls.session_tickets for listener in snapshot.listeners):
        return snapshot
    secrets = source.secrets
    listeners = tuple(_keyed(listener, secrets) for listener in snapshot.listeners)
    return msgspec.structs.replace(snapshot, listeners=listeners, ticket_secrets=secrets)


def _keyed(listener: Listener, secrets: tuple[TicketSecret, ...]) -> Listener:
    tls = listener.tls
    if tls is None or not tls.session_tickets:
        return listener
    digest = Hash(SHA256())
    digest.update(tls.client_ca)
    about = b"l7lb session tickets 1\0%b\0%b" % (listener.name.encode(), digest.finalize())
    keys = tuple(HKDF(SHA256(), KEY_BYTES, None, about).derive(one.secret) for one in secrets)
    return msgspec.structs.replace(listener, tls=msgspec.structs.replace(tls, ticket_keys=keys))
