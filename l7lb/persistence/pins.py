"""An operator's pins: what goes before all that is learned.

The pins of a table are a table of their own beside it, so that they are shared, saved, taught and deleted as all
entries are. They don't expire by disuse. What names a pin's server also says until when it holds, in seconds of the
wall clock, so that it means the same after a reboot.
"""

from __future__ import annotations

import time

SUFFIX = "#pins"
PINS = 10_000  # of one table


def pins_name(table: str) -> str:
    """The name of the table that holds a table's pins."""
    return table + SUFFIX


def write_pin(server: str, until: float) -> str:
    """What stands for a pin in the table of pins; ``until`` 0.0: for ever. No server's name has a space."""
    return f"{server} {until:.3f}" if until else server


def read_pin(value: str) -> tuple[str, float]:
    """The server of a pin and until when it holds; 0.0: for ever."""
    server, _, until = value.partition(" ")
    return server, float(until) if until else 0.0


def pinned_server(value: str | None) -> str | None:
    """The server of a pin that still holds."""
    if not value:
        return None
    server, until = read_pin(value)
    return None if until and time.time() >= until else server
