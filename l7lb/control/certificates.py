"""Certificates that another program renews: their files are looked at every second and read again when they have
changed and stayed so until the next look.

A pair that is broken or does not fit is refused with a line that says why, and the old one goes on; nothing else of the
configuration is read. Also here: the day by day warning of certificates that are about to expire, and the change of the
session tickets' secrets, which happens in the same turn.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import structlog

from l7lb.config.certificates import Unusable, read_ca, read_pair
from l7lb.control.node import NodeState
from l7lb.core.snapshot import KeyPair, Listener, Pool, Server, Snapshot

LOOK = 1.0  # seconds
SOON = 14 * 86400.0  # seconds before the end, from which on a warning comes
REMIND = 86400.0

log = structlog.get_logger("l7lb.certificates")

Signature = tuple[tuple[int, int, int], ...]  # of files: inode, size, time of the last change


@dataclass(frozen=True)
class Expiry:
    """When a certificate of a listener ends; ``name`` is the first that it is for, or its file."""

    listener: str
    name: str
    expires: float  # seconds since the epoch


def expiries(snapshot: Snapshot) -> list[Expiry]:
    """All certificates of the listeners."""
    return [
        Expiry(listener.name, pair.names[0] if pair.names else os.path.basename(pair.certificate_file), pair.expires)
        for listener in snapshot.listeners
        if listener.tls is not None
        for pair in listener.tls.certificates
    ]


class Certificates:
    """See the module. ``start`` and ``stop`` belong to one loop."""

    def __init__(self, node: NodeState, look: float = LOOK) -> None:
        self._node = node
        self._look = look
        self._seen: dict[tuple[str, ...], Signature] = {}
        self._settling: dict[tuple[str, ...], Signature] = {}  # changed a moment ago
        self._reminded: dict[Expiry, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look."""
        self._note_all()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                self.turn()
            except Exception:
                log.exception("looking at the certificates has failed")
            await asyncio.sleep(self._look)

    def turn(self) -> None:
        """Look once: at the files, at the clock."""
        pairs, authorities = self._changed()
        if pairs or authorities:
            self._node.renew(lambda snapshot: renewed(snapshot, pairs, authorities))
        if self._node.turn_tickets():
            log.debug("session tickets are made with a new key")
        self._warn()

    def _note_all(self) -> None:
        """What is configured was read just now."""
        for files in _files(self._node.configured):
            self._seen.setdefault(files, signature(files))

    def _changed(self) -> tuple[dict[tuple[str, ...], KeyPair], dict[str, bytes]]:
        """What has changed on the disk, and can be used."""
        pairs: dict[tuple[str, ...], KeyPair] = {}
        authorities: dict[str, bytes] = {}
        wanted = set(_files(self._node.configured))
        self._seen = {files: seen for files, seen in self._seen.items() if files in wanted}
        for files in wanted:
            now = signature(files)
            before = self._seen.setdefault(files, now)
            settled = self._settling.pop(files, None) == now
            if now == before:
                continue
            if not settled:
                self._settling[files] = now  # it may be half written, or the key still the old one
                continue
            self._seen[files] = now
            try:
                if len(files) == 1:
                    content, doubts = read_ca(files[0])
                    authorities[files[0]] = content
                else:
                    found = read_pair(files[0], files[1], files[2])
                    pairs[files], doubts = found.pair, found.doubts
            except Unusable as error:
                log.error("a changed certificate is refused, the old one goes on", file=error.file, error=str(error))
                continue
            log.info("a certificate was renewed", file=files[0])
            for doubt in doubts:
                log.warning(doubt, file=files[0])
        return pairs, authorities

    def _warn(self) -> None:
        now = time.time()
        current = expiries(self._node.configured)
        self._reminded = {one: said for one, said in self._reminded.items() if one in current}
        for one in current:
            if one.expires - now < SOON and now - self._reminded.get(one, 0.0) >= REMIND:
                self._reminded[one] = now
                days = (one.expires - now) / 86400
                words = f"expires in {days:.0f} days" if days >= 1 else "expires today" if days > 0 else "has expired"
                log.warning(f"the certificate for {one.name} {words}", listener=one.listener)


def signature(files: tuple[str, ...]) -> Signature:
    """What tells that files have changed; a missing file is all zeros."""
    found = []
    for file in files:
        try:
            status = os.stat(file)
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _key(pair: KeyPair) -> tuple[str, ...]:
    return pair.certificate_file, pair.key_file, pair.ocsp_file


def _files(snapshot: Snapshot) -> Iterator[tuple[str, ...]]:
    """The files of each pair, and those of certificate authorities by themselves."""
    for listener in snapshot.listeners:
        if listener.tls is not None:
            yield from (_key(pair) for pair in listener.tls.certificates)
            if listener.tls.client_ca_file:
                yield (listener.tls.client_ca_file,)
    for pool in snapshot.pools:
        for server in pool.servers:
            if server.tls is not None:
                if server.tls.certificate is not None:
                    yield _key(server.tls.certificate)
                if server.tls.ca_file:
                    yield (server.tls.ca_file,)


def renewed(snapshot: Snapshot, pairs: dict[tuple[str, ...], KeyPair], authorities: dict[str, bytes]) -> Snapshot:
    """The snapshot with these contents in place of those that it has."""
    replace = msgspec.structs.replace

    def listener(one: Listener) -> Listener:
        tls = one.tls
        if tls is None:
            return one
        certificates = tuple(pairs.get(_key(pair), pair) for pair in tls.certificates)
        client_ca = authorities.get(tls.client_ca_file, tls.client_ca)
        return replace(one, tls=replace(tls, certificates=certificates, client_ca=client_ca))

    def server(one: Server) -> Server:
        tls = one.tls
        if tls is None:
            return one
        own = tls.certificate
        own = pairs.get(_key(own), own) if own is not None else None
        return replace(one, tls=replace(tls, certificate=own, ca=authorities.get(tls.ca_file, tls.ca)))

    def pool(one: Pool) -> Pool:
        return replace(one, servers=tuple(server(each) for each in one.servers))

    return replace(
        snapshot,
        listeners=tuple(listener(one) for one in snapshot.listeners),
        pools=tuple(pool(one) for one in snapshot.pools),
    )
