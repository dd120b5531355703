"""A directory in a text file, kept in memory and read again when it changes.

A new file takes effect when it has been left alone for a second, so that one that is being written isn't read half,
and only as a whole: where a line can't be understood the old one goes on, and the log says which line. A file that is
gone leaves what was read from it.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from l7lb.core.contracts import Entry
from l7lb.core.directory import FOUND, MISSING, Question
from l7lb.core.snapshot import FileSource
from l7lb.routing.directory.file_table import FileTable, check_columns
from l7lb.routing.directory.source import Result, failed, log

LOOK = 1.0  # seconds between two looks at the file

Stamp = tuple[int, int, int, int]


class FileDirectory:
    """See the module. Raises ValueError for columns that can't be."""

    def __init__(self, name: str, config: FileSource, look: float = LOOK) -> None:
        check_columns(config.columns)
        self.table: FileTable | None = None
        self._name = name
        self._config = config
        self._path = Path(config.path)
        self._look = look
        self._why = f"{config.path} was not read yet"
        self._read = asyncio.Event()  # it was tried once
        self._stamp: Stamp | None = None  # of what was read or refused
        self._task = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        seen = self._stamp_now()
        while True:
            if seen != self._stamp:
                self._stamp = seen
                await self._load(seen)
            self._read.set()
            await asyncio.sleep(self._look)
            now = self._stamp_now()
            while now != seen:  # somebody may be writing
                seen = now
                await asyncio.sleep(self._look)
                now = self._stamp_now()

    def _stamp_now(self) -> Stamp | None:
        try:
            found = os.stat(self._path)
        except OSError as error:
            self._refused(error.strerror or str(error))
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev

    async def _load(self, stamp: Stamp | None) -> None:
        if stamp is None:
            return
        try:
            table = await asyncio.to_thread(self._parse)
        except (OSError, ValueError) as error:
            self._refused(getattr(error, "strerror", None) or str(error))
            return
        if self._stamp_now() != stamp:
            self._stamp = None  # it changed meanwhile
            return
        self.table = table
        self._why = ""
        log.info("directory %s: %d addresses from %s", self._name, len(table), self._path)

    def _parse(self) -> FileTable:
        return FileTable(self._path.read_bytes(), self._config.columns, self._config.separator)

    def _refused(self, why: str) -> None:
        text = f"{self._path} can't be used: {why}"
        if text != self._why:
            self._why = text
            goes_on = "; what was read before goes on" if self.table is not None else ""
            log.error("directory %s: %s%s", self._name, text, goes_on)

    def known(self, question: Question) -> Result | None:
        """See Source."""
        if self.table is None:
            return failed(self._why) if self._read.is_set() else None
        return self._found(self.table, question)

    @staticmethod
    def _found(table: FileTable, question: Question) -> Result:
        """The entry of the address, of its short name, or of its whole domain."""
        entry: Entry | None = table.find(question.address)
        if entry is None and question.user != question.address:
            entry = table.find(question.user)
        if entry is None:
            at = question.address.rfind(b"@")
            entry = table.find(question.address[at:]) if at > 0 else None
        return Result(FOUND, entry) if entry is not None else Result(MISSING)

    async def find(self, question: Question) -> Result:
        """See Source."""
        await self._read.wait()
        return self.known(question) or failed(self._why)

    def key(self, question: Question) -> bytes | None:
        """See Source: a table in memory needs no other beside it."""
        return None

    def size(self) -> int:
        """See Source."""
        return len(self.table) if self.table is not None else 0

    async def close(self) -> None:
        """See Source."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
