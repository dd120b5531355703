"""One directory with its cache: the same question is asked once however many wait for its answer, and not for ever."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence

from l7lb.core.directory import FAILED, FOUND, MISSING, REFUSED, Question
from l7lb.core.snapshot import Directory, FileSource, HttpSource, LdapSource
from l7lb.routing.directory.cache import Cache
from l7lb.routing.directory.messages import DirectoryNumbers, budget
from l7lb.routing.directory.source import LINES, Result, Source, failed

log = logging.getLogger("l7lb.directories")

FLIGHTS = 4096  # questions of one directory that wait for different answers


def make_source(directory: Directory, clock: Callable[[], float] = time.monotonic) -> Source:
    """The directory's own part. The libraries are loaded when they are needed first. Raises ValueError."""
    match directory.source:
        case LdapSource() as ldap:
            from l7lb.routing.directory.ldap import LdapDirectory

            return LdapDirectory(ldap, clock)
        case FileSource() as file:
            from l7lb.routing.directory.file import FileDirectory

            return FileDirectory(directory.name, file)
        case HttpSource() as http:
            from l7lb.routing.directory.http import HttpDirectory

            return HttpDirectory(http, clock)


class Lookup:
    """See the module."""

    def __init__(self, directory: Directory, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = directory.name
        self._source = source
        self._clock = clock
        self._limit = budget(directory)
        self._cache = Cache(directory.ttl, directory.negative_ttl, directory.size, clock())
        self._flights: dict[bytes, asyncio.Task[Result]] = {}
        self._logged = -LINES
        self._answers = dict.fromkeys((FOUND, MISSING, REFUSED, FAILED), 0)
        self._asked = 0
        self._seconds = 0.0

    @property
    def numbers(self) -> DirectoryNumbers:
        """How it is."""
        entries = len(self._cache) + self._source.size()
        return DirectoryNumbers(self.name, dict(self._answers), self._asked, self._seconds, entries)

    def count(self, result: Result) -> None:
        """Somebody got that answer."""
        self._answers[result.status] += 1

    def known(self, question: Question) -> Result | None:
        """The answer, where it is known without waiting."""
        found = self._source.known(question)
        if found is None:
            key = self._source.key(question)
            if key is not None:
                found = self._cache.get(key, self._clock())
        return found

    async def find(self, question: Question) -> Result:
        """The answer. Who gives up waiting for it stops nobody else's."""
        result = await self._find(question)
        self.count(result)
        return result

    async def _find(self, question: Question) -> Result:
        known = self.known(question)
        if known is not None:
            return known
        key = self._source.key(question)
        flight = self._flights.get(key) if key is not None else None
        if flight is None:
            if len(self._flights) >= FLIGHTS:
                return self._noted(failed(f"{FLIGHTS} questions wait already"))
            # Without a key it is nobody else's question.
            place = key if key is not None else os.urandom(17)
            flight = asyncio.ensure_future(self._fly(question, key))
            self._flights[place] = flight
            flight.add_done_callback(lambda _: self._flights.pop(place, None))
        return await asyncio.shield(flight)

    async def _fly(self, question: Question, key: bytes | None) -> Result:
        began = self._clock()
        self._asked += 1
        try:
            async with asyncio.timeout(self._limit):
                result = await self._source.find(question)
        except TimeoutError:
            result = failed(f"no answer within {self._limit:g} s")
        except Exception as error:  # a fault of ours or of a library must not be taken for a missing mailbox
            log.exception("directory %s: a fault", self.name)
            result = failed(f"{type(error).__name__}: {error}")
        self._seconds += self._clock() - began
        if key is not None:
            self._cache.put(key, result, self._clock())
        return self._noted(result)

    def _noted(self, result: Result) -> Result:
        """A failure is worth a line, but not each of thousands."""
        if result.status == FAILED:
            now = self._clock()
            if now - self._logged >= LINES:
                self._logged = now
                log.warning("directory %s can't answer: %s", self.name, result.why)
        return result

    async def close(self) -> None:
        """End what is asked, and let go of everything."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self._source.close()


def chain_known(chain: Sequence[Lookup], question: Question) -> tuple[Result, str] | None:
    """As :func:`chain_find`, where all is known that is needed."""
    consulted: list[tuple[Lookup, Result]] = []
    for lookup in chain:
        result = lookup.known(question)
        if result is None:
            return None
        consulted.append((lookup, result))
        if result.status != MISSING:
            break
    for lookup, result in consulted:
        lookup.count(result)
    return (consulted[-1][1], consulted[-1][0].name) if consulted else None


async def chain_find(chain: Sequence[Lookup], question: Question) -> tuple[Result, str]:
    """Ask one after the other until one doesn't miss the address; returns what it says and its name.

    One that can't answer ends the search: the entry may be there, and the next one's would be another.
    """
    found: tuple[Result, str] = failed("no such directory"), ""
    for lookup in chain:
        found = await lookup.find(question), lookup.name
        if found[0].status != MISSING:
            break
    return found
