"""An LDAP directory: servers in their order, a few connections at the same time, each in a thread of its own.

ldap3 blocks, and a server may hang in any way: so the time is kept here, where nothing blocks. A connection whose
time is over is cut from here, which wakes its thread; whoever asked has its answer by then.

Exactly one entry is an answer. None is *missing*. Several are a temporary failure, since either may be the wrong one,
and so is every error: a server that is out of order must not make mail bounce.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from l7lb.core.contracts import Entry
from l7lb.core.directory import FOUND, MISSING, Question
from l7lb.core.snapshot import LdapSource
from l7lb.routing.directory.ldap_line import Found, LdapLine, LdapProblem
from l7lb.routing.directory.source import Rest, Result, digest, failed

_PLACE = re.compile(r"\{(address|user)\}")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789@._-")


def escape(value: bytes) -> str:
    r"""The value as it may stand in a filter: all but the plainest octets as ``\xx`` (RFC 4515 section 3)."""
    return "".join(chr(octet) if octet in _PLAIN else f"\\{octet:02x}" for octet in value)


def fill(template: str, question: Question) -> str:
    """The filter for a question. What is put in is not looked at for places again."""
    values = {"address": question.address, "user": question.user}
    return _PLACE.sub(lambda place: escape(values[place[1]]), template)


def judge(found: Found, attributes: dict[str, str]) -> Result:
    """The answer that these entries make; ``attributes`` says which holds what."""
    if not found.entries and not found.more:
        return Result(MISSING)
    if len(found.entries) != 1 or found.more:
        return failed(f"several entries: {', '.join(name for name, _ in found.entries)}")
    name, values = found.entries[0]
    entry = Entry()
    for what, attribute in attributes.items():
        given = values.get(attribute.lower(), [])
        if len(given) > 1:
            # Their order means nothing, and two names of a store would be two stores.
            return failed(f"{name} has several values of {attribute}")
        if given and what == "server":
            entry.server = given[0].decode("utf-8", "replace").strip()
        elif given:
            setattr(entry, what, given[0])
    return Result(FOUND, entry)


class Job:
    """One search at one server. ``over``: nobody waits for it any more."""

    def __init__(self, url: str, text: str, future: asyncio.Future[Found]) -> None:
        self.url = url
        self.text = text
        self.future = future
        self.over = False


class Lane:
    """A thread with its connections, one to each server that it was sent to. ``free`` is called in the loop."""

    def __init__(self, make: Callable[[str], LdapLine], free: Callable[[Lane], None]) -> None:
        self._make = make
        self._free = free
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lines: dict[str, LdapLine] = {}
        self._job: Job | None = None
        threading.Thread(target=self._work, name="l7lb-ldap", daemon=True).start()

    def search(self, url: str, text: str) -> asyncio.Future[Found]:
        """Ask that server. The future raises LdapProblem."""
        self._job = Job(url, text, self._loop.create_future())
        self._jobs.put(self._job)
        return self._job.future

    def cut(self) -> None:
        """Its time is over: break its connection, so that the thread comes back."""
        if self._job is not None:
            self._job.over = True
            line = self._lines.get(self._job.url)
            if line is not None:
                line.cut()

    def end(self) -> None:
        """End the thread."""
        self.cut()
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            found: Found | LdapProblem
            try:
                line = self._lines.get(job.url)
                if line is None:
                    line = self._lines[job.url] = self._make(job.url)
                found = line.search(job.text, lambda job=job: job.over)  # type: ignore[misc]
            except LdapProblem as problem:
                found = problem
            except Exception as error:  # noqa: BLE001 - whatever the library raises ends this search alone
                found = LdapProblem(f"{type(error).__name__}: {error}", True)
            try:
                self._loop.call_soon_threadsafe(self._done, job, found)
            except RuntimeError:
                break  # the loop is closed
        for line in self._lines.values():
            line.close()

    def _done(self, job: Job, found: Found | LdapProblem) -> None:
        self._job = None
        if not job.future.done():
            if isinstance(found, LdapProblem):
                job.future.set_exception(found)
            else:
                job.future.set_result(found)
        self._free(self)


class Lanes:
    """So many lanes at most, made when they are needed; the one used last is used first, so that few are kept warm."""

    def __init__(self, make: Callable[[str], LdapLine], most: int) -> None:
        self._make = make
        self._most = max(1, most)
        self._all: list[Lane] = []
        self._idle: list[Lane] = []
        self._waiting: deque[asyncio.Future[Lane]] = deque()

    async def take(self) -> Lane:
        """A lane; it comes back by itself when its search is over."""
        if self._idle:
            return self._idle.pop()
        if len(self._all) < self._most:
            lane = Lane(self._make, self._free)
            self._all.append(lane)
            return lane
        future: asyncio.Future[Lane] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._free(future.result())
            elif future in self._waiting:
                self._waiting.remove(future)
            raise

    def _free(self, lane: Lane) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(lane)
                return
        self._idle.append(lane)

    def end(self) -> None:
        """End all threads."""
        for lane in self._all:
            lane.end()


class LdapDirectory:
    """See the module. Raises ValueError for what can't work."""

    def __init__(self, config: LdapSource, clock: Callable[[], float]) -> None:
        if config.bind_dn and not config.bind_password:
            # A server would take that for an anonymous bind, and say yes (RFC 4513 section 5.1.2).
            raise ValueError("bind_dn needs a password that is not empty")
        self._config = config
        self._secret = os.urandom(16)
        self._rests = [Rest(url, clock) for url in config.urls]
        context = self._context(config)
        self._lanes = Lanes(lambda url: LdapLine(url, config, context), config.connections)

    @staticmethod
    def _context(config: LdapSource) -> ssl.SSLContext | None:
        if not config.start_tls and not any(url.lower().startswith("ldaps:") for url in config.urls):
            return None
        context = ssl.create_default_context(cadata=config.ca.decode() if config.ca else None)
        if not config.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def known(self, question: Question) -> Result | None:
        """See Source."""
        return None

    def key(self, question: Question) -> bytes | None:
        """See Source."""
        return digest(self._secret, question.address, question.user)

    async def find(self, question: Question) -> Result:
        """See Source."""
        text = fill(self._config.filter, question)
        whys = []
        for rest in self._rests:
            if not rest.may(self._config.timeout):
                whys.append(f"{rest.name} is left alone ({rest.why})" if rest.why else f"{rest.name} is tried")
                continue
            try:
                found = await self._ask(rest.name, text)
            except LdapProblem as problem:
                whys.append(f"{rest.name}: {problem}")
                if problem.server:
                    rest.failed(str(problem))
                else:
                    rest.answered()
                continue
            rest.answered()
            return judge(found, self._config.attributes)
        return failed("; ".join(whys))

    async def _ask(self, url: str, text: str) -> Found:
        """One server's entries. Raises LdapProblem."""
        lane = await self._lanes.take()
        try:
            async with asyncio.timeout(self._config.timeout):
                return await lane.search(url, text)
        except TimeoutError:
            lane.cut()
            raise LdapProblem(f"no answer within {self._config.timeout:g} s", True) from None
        except asyncio.CancelledError:
            lane.cut()
            raise

    def size(self) -> int:
        """See Source."""
        return 0

    async def close(self) -> None:
        """See Source."""
        self._lanes.end()
