"""The access log: one line a request, gathered and written a few times a second, opened again after rotation."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

import msgspec

from l7lb.core.record import AccessRecord
from l7lb.core.snapshot import AccessLog

FLUSH_BYTES = 64 * 1024
FLUSH_SECONDS = 0.1
MAX_PENDING = 4 * 1024 * 1024  # bytes kept for a reader that does not keep up; beyond it lines are dropped and counted

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
    return lambda record: (pattern.format_map(msgspec.structs.asdict(record)) + "\n").encode("utf-8", "replace")


class AccessLogWriter:
    """Appends to a file, or to standard output for ``-``. Lines of several workers don't mix: each write is whole."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: AccessLog) -> None:
        self.config = config
        self.dropped = 0
        self._loop = loop
        self._format = formatter(config.format)
        self._lines: list[bytes] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._fd = -1
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
        if self._size >= FLUSH_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what has been gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lines or self._fd < 0:
            return
        data = b"".join(self._lines)
        try:
            count = os.write(self._fd, data)
        except BlockingIOError:
            count = 0
        except OSError as problem:
            log.error("access log %s: %s", self.config.path, problem.strerror)
            count = len(data)  # a full disk must not fill the memory as well
        rest = data[count:]
        self._lines = [rest] if rest else []
        self._size = len(rest)
        if rest:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self.flush)

    def reopen(self) -> None:
        """Open the file again, by its name; raises OSError only at the first time."""
        if self.config.path == "-":
            self._fd = 1
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

    def close(self) -> None:
        """Write the rest and close."""
        self.flush()
        if self._timer is not None:
            self._timer.cancel()
        if self._fd > 2:
            os.close(self._fd)
        self._fd = -1
