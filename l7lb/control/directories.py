"""An operator's question to the node's directories: `l7lb directory ask`.

The directory process that answers the workers answers here too, with what it remembers; so what is shown is what a
login would meet. Passwords are not shown, only that there are some.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from l7lb.control.names import suggestion
from l7lb.control.node import NodeState
from l7lb.control.operator import Refused
from l7lb.core.contracts import Entry
from l7lb.core.directory import Answer, Question, named_server
from l7lb.core.errors import UnknownName
from l7lb.core.mailbox import canonical, short_name
from l7lb.core.snapshot import Addresses, Directory, Route, Snapshot
from l7lb.routing.directory.link import DirectoryLink, ask_numbers
from l7lb.routing.directory.messages import DirectoryNumbers

LONGEST = 1024  # bytes of an address
PATIENCE = 2.0  # seconds for numbers


class Said(msgspec.Struct):
    """What one directory says; ``server`` is its word, ``known`` the pools' servers that it means."""

    directory: str
    status: str
    mailbox: str = ""
    server: str = ""
    known: list[str] = []
    user: str = ""
    password: bool = False
    master_user: str = ""
    seconds: float = 0.0
    why: str = ""


class Asked(msgspec.Struct):
    """What was asked, in its canonical form, and what each directory says."""

    address: str
    user: str
    answers: list[Said]


class NodeDirectories:
    """Asks the directory process at that socket."""

    def __init__(self, node: NodeState, socket_path: Path) -> None:
        self._node = node
        self._path = socket_path

    async def numbers(self) -> list[DirectoryNumbers]:
        """How the directories are; none where there are none, or their process is just being replaced."""
        if not self._node.effective().directories:
            return []
        try:
            return await ask_numbers(self._path, PATIENCE)
        except OSError:
            return []

    async def ask(self, typed: str, names: Sequence[str] = ()) -> Asked:
        """Ask each of these directories, or all, whatever the others say. Raises UnknownName, Refused."""
        snapshot = self._node.effective()
        chosen = self._chosen(snapshot, names)
        if not 0 < len(typed.encode()) <= LONGEST:
            raise Refused(f"an address has 1 to {LONGEST} bytes")
        rules = next((one.addresses for one in snapshot.listeners if _asks(one.routes)), Addresses())
        address = canonical(typed.encode(), rules)
        question = Question(address, short_name(address, rules), typed.encode(), "smtp")
        async with self._linked(chosen) as link:
            answers = await asyncio.gather(*(self._one(link, one.name, question) for one in chosen))
        for said in answers:
            said.known = self._known(snapshot, said.server) if said.server else []
        return Asked(_text(address), _text(question.user), answers)

    async def answer(self, directories: Sequence[Directory], question: Question) -> Answer:
        """What these directories, asked in this order as a worker asks them, say."""
        async with self._linked(directories) as link:
            return await self._said(link, tuple(one.name for one in directories), question)

    @asynccontextmanager
    async def _linked(self, directories: Sequence[Directory]) -> AsyncIterator[DirectoryLink]:
        link = DirectoryLink(asyncio.get_running_loop(), self._path)
        link.use(tuple(directories))
        running = asyncio.ensure_future(link.run())
        try:
            yield link
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    @staticmethod
    async def _said(link: DirectoryLink, names: tuple[str, ...], question: Question) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        link.ask(names, question, future.set_result)
        return await future

    @staticmethod
    def _chosen(snapshot: Snapshot, names: Sequence[str]) -> list[Directory]:
        known = {one.name: one for one in snapshot.directories}
        if not known:
            raise Refused("the configuration has no directories")
        for name in names:
            if name not in known:
                raise UnknownName(f"no directory {name}: {suggestion(name, known)}")
        return [known[name] for name in names] if names else list(known.values())

    async def _one(self, link: DirectoryLink, name: str, question: Question) -> Said:
        began = time.monotonic()
        answer = await self._said(link, (name,), question)
        entry = answer.entry or Entry()
        return Said(
            directory=name,
            status=answer.status,
            mailbox=_text(entry.mailbox),
            server=entry.server,
            user=_text(entry.user),
            password=bool(entry.password),
            master_user=_text(entry.master_user),
            seconds=time.monotonic() - began,
            why=answer.why,
        )

    @staticmethod
    def _known(snapshot: Snapshot, server: str) -> list[str]:
        found = ((pool.name, named_server(server, pool.servers, "")) for pool in snapshot.pools)
        return [f"{pool}/{one.name}" for pool, one in found if one is not None]


def _asks(routes: Sequence[Route]) -> bool:
    return any(route.directory for route in routes)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
