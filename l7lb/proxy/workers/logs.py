"""One format for the lines of all processes: text for people, JSON for programs. Standard library only.

The control plane logs through structlog and the rest through logging; both end in :func:`render`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
KINDS = ("text", "json")


def render(kind: str, process: str, level: str, event: str, fields: Mapping[str, Any], now: float) -> str:
    """One line: ``kind`` is ``text`` or ``json``, ``process`` says who speaks, ``now`` is seconds since 1970."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    if kind == "json":
        line = {"time": stamp, "level": level, "process": process, "pid": os.getpid(), "event": event, **fields}
        return json.dumps(line, default=str)
    pairs = "".join(f" {name}={_word(value)}" for name, value in fields.items() if name != "exception")
    text = f"{stamp} {level:<7} {process}[{os.getpid()}] {event}{pairs}"
    return f"{text}\n{fields['exception']}" if "exception" in fields else text


def _word(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(character in text for character in ' "\n\t') else text


class Formatter(logging.Formatter):
    """For stdlib loggers."""

    def __init__(self, kind: str, process: str) -> None:
        super().__init__()
        self.kind = kind
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line; a traceback follows in text, and is a field in JSON."""
        fields: dict[str, Any] = {} if record.name.startswith("l7lb") else {"logger": record.name}
        if record.exc_info:
            fields["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        level = record.levelname.lower()
        return render(self.kind, self.process, level, record.getMessage(), fields, record.created)


def configure(process: str, level: str = "info", kind: str = "text") -> None:
    """Log to standard error in that format; a line that can't be written is lost and nothing else."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(kind, process))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
