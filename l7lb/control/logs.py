"""The control plane's log: structlog to standard error, in the format of :mod:`l7lb.proxy.workers.logs`."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from l7lb.proxy.workers import logs


class Lines:
    """Where lines go. One that can't be written is lost and nothing else: the reader of a pipe may be gone."""

    def msg(self, line: str) -> None:
        """Write one line."""
        try:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass

    debug = info = warning = error = critical = msg


class Renderer:
    """The last processor."""

    def __init__(self, kind: str, process: str) -> None:
        self.kind = kind
        self.process = process

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> str:
        """The event as one line; ``exc_info`` was made ``exception`` before."""
        fields: dict[str, Any] = dict(event)
        text = str(fields.pop("event", ""))
        return logs.render(self.kind, self.process, name.replace("exception", "error"), text, fields, time.time())


def configure(level: str, kind: str, process: str = "supervisor") -> None:
    """Set up structlog, and the stdlib's logging for the libraries in use."""
    logs.configure(process, level, kind)
    structlog.configure(
        processors=[structlog.processors.format_exc_info, Renderer(kind, process)],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lambda *_: Lines(),
        cache_logger_on_first_use=False,
    )
