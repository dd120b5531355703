"""What every kind of directory is to those that ask it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol

from l7lb.core.contracts import Entry
from l7lb.core.directory import FAILED, FOUND, MISSING, Question

log = logging.getLogger("l7lb.directories")

FIRST_REST = 1.0  # seconds that one that failed is left alone; doubled each time
LONGEST_REST = 15.0
LINES = 1.0  # seconds between two lines of the log about failures of one directory


class Result:
    """What one directory says; ``status``, ``why`` and ``wait`` are those of :class:`l7lb.core.directory.Answer`.

    ``lasting``: it may be remembered.
    """

    __slots__ = ("entry", "lasting", "status", "wait", "why")

    def __init__(
        self, status: str, entry: Entry | None = None, why: str = "", wait: float = 0.0, lasting: bool = True
    ) -> None:
        self.status = status
        self.entry = entry
        self.why = why
        self.wait = wait
        self.lasting = lasting and status in (FOUND, MISSING)


def failed(why: str) -> Result:
    """A temporary failure."""
    return Result(FAILED, why=why)


class Source(Protocol):
    """One directory's own way to find an entry."""

    def known(self, question: Question) -> Result | None:
        """The answer, where it is known without waiting."""
        ...

    async def find(self, question: Question) -> Result:
        """The answer. What goes wrong is a result too; it may be cancelled when its time is over."""
        ...

    def key(self, question: Question) -> bytes | None:
        """What must be the same for two questions to have the same answer; None: it isn't to be remembered."""
        ...

    def size(self) -> int:
        """How many entries it has in memory itself."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


class Rest:
    """A server that failed is left alone for a while, longer each time; then one question tries it for all."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.why = ""
        self._clock = clock
        self._until = 0.0
        self._failed = 0.0
        self._failures = 0

    def may(self, seconds: float) -> bool:
        """Whether to ask it now; one that had failed is everybody else's to leave alone for so many seconds."""
        if not self._failures:
            return True
        now = self._clock()
        if now < self._until:
            return False
        self._until = now + seconds
        return True

    def failed(self, why: str) -> None:
        """It could not answer. What many questions meet at the same time is one failure."""
        now = self._clock()
        if not self._failures:
            log.warning("%s is left alone for a while: %s", self.name, why)
        elif now - self._failed < FIRST_REST / 2:
            return
        self.why, self._failed = why, now
        self._until = now + min(FIRST_REST * 2 ** min(self._failures, 10), LONGEST_REST)
        self._failures += 1

    def answered(self) -> None:
        """It answers."""
        if self._failures:
            log.info("%s answers again", self.name)
        self._failures = 0
        self.why = ""


def digest(secret: bytes, *parts: bytes) -> bytes:
    """A short stand-in for these parts: keys of a cache are many, and passwords must not stay in memory."""
    made = blake2b(digest_size=16, key=secret)
    for part in parts:
        made.update(len(part).to_bytes(4, "big") + part)
    return made.digest()
