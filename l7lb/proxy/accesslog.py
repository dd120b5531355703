"""The access log: one line a request, gathered and written a few times a second, opened again after rotation."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Callable

import msgspec

from l7lb.core.record import AccessRecord
from l7lb.core.snapshot import AccessLog

FLUSH_BYTES = 64 * 1024
FLUSH_SECONDS = 0.1
BLOCKED_SECONDS = 0.01  # between tries while the reader does not keep up
NEWLINE = 10
MAX_PENDING = 4 * 1024 * 1024  # bytes kept for a reader that does not keep up; beyond it lines are dropped and counted

SPECIAL = re.compile(r'[\x00-\x1f\x7f-\x9f"\\]')

log = logging.getLogger("l7lb.access")


def timestamp(now: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC with milliseconds."""
    whole = int(now)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((now - whole) * 1000):03d}Z"


def formatter(pattern: str) -> Callable[[AccessRecord], bytes]:
    """A record's line: JSON, or a format string with the record's fields in braces."""
    if pattern == "json":
        encoder = msgspec.json.Encoder()
        return lambda record: encoder.encode(record) + b"\n"

    def line(record: AccessRecord) -> bytes:
        fields = {
            name: _plain(value) if isinstance(value, str) else value
            for name, value in msgspec.structs.asdict(record).items()
        }
        return (pattern.format_map(fields) + "\n").encode("utf-8", "replace")

    return line


def _plain(text: str) -> str:
    """A client's text as it may stand in a line: without quotes, backslashes and control characters of its own."""
    return SPECIAL.sub(lambda match: f"\\x{ord(match[0]):02x}", text) if SPECIAL.search(text) else text


class AccessLogWriter:
    """Appends to a file, or to standard output for ``-``. Lines of several workers don't mix: each write is whole.

    It never waits for a reader that is slow; what exceeds MAX_PENDING then, and what a full disk does not take, is
    dropped and counted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, config: AccessLog) -> None:
        self.config = config
        self.dropped = 0
        self._loop = loop
        self._format = formatter(config.format)
        self._lines: list[bytes] = []
        self._pending = bytearray()  # what could not be written yet
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._fd = -1
        self._socket: socket.socket | None = None  # standard output, where it is one
        self._failing = False
        self._torn = False  # the last line that was written is not whole
        self.reopen()

    def write(self, record: AccessRecord) -> None:
        """Add a line; its time is now."""
        record.time = timestamp(time.time())
        line = self._format(record)
        if self._size > MAX_PENDING:
            self.dropped += 1
            return
        self._lines.append(line)
        self._size += len(line)
        if self._size >= FLUSH_BYTES and not self._pending:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what has been gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._size or self._fd < 0:
            return
        pending = self._pending
        if self._torn and not pending:
            pending += b"\n"
        pending += b"".join(self._lines)
        self._lines.clear()
        try:
            count = self._write(pending)
        except BlockingIOError:
            count = 0
        except OSError as problem:
            self._lost(problem)
            return
        if count:
            self._failing = False
            self._torn = pending[count - 1] != NEWLINE
            del pending[:count]
        self._size = len(pending)
        if pending:
            self._timer = self._loop.call_later(BLOCKED_SECONDS, self.flush)

    def _write(self, data: bytearray) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._fd, data)

    def _lost(self, problem: OSError) -> None:
        """Drop what can't be written: a full disk must not fill the memory as well."""
        self.dropped += self._pending.count(b"\n") - self._pending.startswith(b"\n")
        if not self._failing:
            self._failing = True
            log.error("access log %s: %s; lines are lost", self.config.path, problem.strerror)
        self._pending.clear()
        self._size = 0

    def reopen(self) -> None:
        """Open the file again, by its name; raises OSError only at the first time."""
        if self.config.path == "-":
            if self._fd < 0:
                self._open_output()
            return
        self.flush()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            os.makedirs(os.path.dirname(self.config.path) or ".", exist_ok=True)
            opened = os.open(self.config.path, flags, 0o640)
        except OSError as problem:
            if self._fd < 0:
                raise
            log.error("access log %s: %s; the open one goes on", self.config.path, problem.strerror)
            return
        if self._fd > 2:
            os.close(self._fd)
        self._fd = opened

    def _open_output(self) -> None:
        """Open standard output for ourselves, so that a slow reader does not stop the worker, and that its other users
        don't find it non-blocking. A socket can't be opened again, but it has a way to write without waiting.
        """
        try:
            self._fd = os.open("/proc/self/fd/1", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self._fd = os.dup(1)
            if stat.S_ISSOCK(os.fstat(self._fd).st_mode):
                self._socket = socket.socket(fileno=self._fd)

    def close(self) -> None:
        """Write the rest and close."""
        self.flush()
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        elif self._fd > 2:
            os.close(self._fd)
        self._fd = -1
