"""``l7lb top``: the servers live, with rates, until q or Ctrl-C."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from l7lb.control import tables
from l7lb.control.client import AdminClient, AdminError

Totals = dict[tuple[str, str], tuple[int, int]]  # pool and server: requests and errors so far


class Rates:
    """Requests and errors a second, from the counters of two moments."""

    def __init__(self) -> None:
        self._before: Totals = {}
        self._at = 0.0

    def feed(self, rows: Sequence[Mapping[str, Any]], now: float) -> dict[tuple[str, str], tuple[float, float]]:
        """The rates since the call before; none for servers that were not there then."""
        totals: Totals = {(row["pool"], row["name"]): (row["requests"], row["errors"]) for row in rows}
        seconds = now - self._at
        found = {}
        for key, (requests, errors) in totals.items():
            if key in self._before and seconds > 0:
                before = self._before[key]
                found[key] = (max(0, requests - before[0]) / seconds, max(0, errors - before[1]) / seconds)
        self._before, self._at = totals, now
        return found


def picture(
    status: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    rates: Mapping[tuple[str, str], tuple[float, float]],
    height: int = 0,
) -> RenderableType:
    """One picture; ``height`` lines at most, 0: all."""
    connections = sum(worker["connections"] for worker in status["workers"])
    head = Text.assemble(
        (str(status["node"]), "bold"),
        ": ",
        tables.state(status["state"]),
        f", {len(status['workers'])} workers, {connections} connections",
    )
    total = sum(rate for rate, _ in rates.values())
    if rates:
        head.append(f", {total:.0f} requests/s")
    room = max(1, height - 4) if height else len(rows)
    body = []
    for row in rows[:room]:
        rate = rates.get((row["pool"], row["name"]))
        shown = ("", "") if rate is None else (f"{rate[0]:.0f}", f"{rate[1]:.0f}")
        name = f"{row['pool']}/{row['name']}"
        body.append((name, tables.state(row["state"]), row["weight"], row["sessions"], *shown, row["why"]))
    columns = ("server", "state", "weight", "sessions", "req/s", "err/s", "why")
    parts: list[RenderableType] = [head, Text(), tables.Columns(columns, body, right=columns[2:6])]
    if len(rows) > room:
        parts.append(Text(f"... and {len(rows) - room} more", "dim"))
    return Group(*parts)


def run(client: AdminClient, interval: float, once: bool) -> None:
    """Show it. Raises AdminError when the node can't be asked at the start; later that is shown."""
    rates = Rates()

    def look(height: int = 0) -> RenderableType:
        rows = client.get("servers")
        return picture(client.get("status"), rows, rates.feed(rows, time.monotonic()), height)

    if once:
        tables.show(look())
        return
    if not sys.stdout.isatty():
        raise AdminError("top needs a terminal; `l7lb top --once` prints one picture")
    console = Console(highlight=False)
    first = look(console.height)
    with Live(first, console=console, screen=True, auto_refresh=False) as live, keys() as descriptor:
        try:
            while not wait_for_key(descriptor, interval):
                try:
                    live.update(look(console.height), refresh=True)
                except AdminError as error:
                    live.update(Text(str(error), "bold red"), refresh=True)
        except KeyboardInterrupt:
            pass  # Ctrl-C is the other way to end it


@contextmanager
def keys() -> Iterator[int | None]:
    """Standard input without line editing, where it is a terminal; Ctrl-C still interrupts."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def wait_for_key(descriptor: int | None, seconds: float) -> bool:
    """Wait; returns whether q was pressed, or the terminal is gone."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if descriptor is None:
            time.sleep(left)
        elif select.select([descriptor], [], [], left)[0]:
            pressed = os.read(descriptor, 64)
            if not pressed or b"q" in pressed.lower():
                return True
    return False
