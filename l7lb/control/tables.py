"""What the commands print: plain columns that fit 80 characters on a terminal and are whole in a pipe."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import JustifyMethod

WIDE = 10_000  # columns where nothing is to be cut
GAP = 2  # characters between columns
LAST = 18  # that the last column keeps, while others can give way
NARROWEST = 8
STATE_STYLES = {"up": "green", "down": "bold red", "draining": "yellow", "disabled": "dim", "serving": "green"}


class Columns:
    """A table without lines: a header, and as wide as it must be; those in ``right`` hold numbers.

    Where there is no room for all, the last column gives way first and then the widest; what doesn't fit goes on in
    the next line, so that nothing is ever cut.
    """

    def __init__(self, names: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> None:
        self.names = names
        self.rows = [[cell if isinstance(cell, Text) else Text(_plain(cell)) for cell in row] for row in rows]
        self.right = frozenset(right)

    def widths(self, room: int) -> list[int]:
        """The columns' widths in so many characters."""
        found = [
            max([cell_len(name), *(row[place].cell_len for row in self.rows)]) for place, name in enumerate(self.names)
        ]
        room -= GAP * (len(found) - 1)
        while sum(found) > room:
            others = found[:-1]
            last = max(room - sum(others), min(found[-1], LAST))
            if last < found[-1]:
                found[-1] = last
                continue
            widest = max(range(len(others)), key=others.__getitem__)
            if found[widest] <= NARROWEST:
                break
            found[widest] -= 1
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it."""
        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        for name, width in zip(self.names, self.widths(options.max_width), strict=True):
            right = "right" if name in self.right else "left"
            table.add_column(name.upper(), justify=cast("JustifyMethod", right), overflow="fold", width=width)
        for row in self.rows:
            table.add_row(*row)
        yield table


def state(word: str) -> Text:
    """A state in its colour."""
    return Text(word, STATE_STYLES.get(word, ""))


def servers(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """``l7lb servers``."""
    if not rows:
        return Text("no servers")
    return Columns(
        ("pool", "server", "address", "state", "weight", "sessions", "why"),
        [
            (
                row["pool"],
                row["name"],
                row["address"],
                state(row["state"]),
                row["weight"],
                row["sessions"],
                _server_notes(row),
            )
            for row in rows
        ],
        right=("weight", "sessions"),
    )


def _server_notes(row: Mapping[str, Any]) -> str:
    notes = [row["why"]] if row["why"] else []
    if row.get("backup"):
        notes.append("backup")
    return "; ".join(notes)


def status(found: Mapping[str, Any]) -> RenderableType:
    """``l7lb status``."""
    supervisor = found.get("supervisor") or {}
    head = Text.assemble(
        (str(found["node"]), "bold"),
        ": ",
        state(found["state"]),
        f", l7lb {found['version']}, supervisor {supervisor.get('pid', '?')}",
    )
    parts: list[RenderableType] = [head]
    reload = found.get("reload")
    if reload and not reload.get("ok", True):
        parts.append(Text("the last reload was refused, the configuration before it is in force:", "bold red"))
        parts.extend(Text(f"  {problem}") for problem in reload.get("problems", ()))
    parts += [
        Text(),
        Columns(
            ("listener", "protocol", "bind"),
            [(one["name"], one["protocol"], _joined(one["bind"])) for one in found["listeners"]],
        ),
        Text(),
        Columns(
            ("worker", "pid", "connections", "snapshot", "state"),
            [
                (one.get("index", number), one["pid"], one["connections"], one.get("snapshot", ""), _worker_state(one))
                for number, one in enumerate(found["workers"])
            ],
            right=("worker", "pid", "connections", "snapshot"),
        ),
    ]
    return Group(*parts)


def _worker_state(worker: Mapping[str, Any]) -> str:
    if worker.get("leaving"):
        return "leaving"
    return "ready" if worker.get("ready", True) else "starting"


def sessions(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """``l7lb sessions``."""
    if not rows:
        return Text("no sessions")
    return Columns(
        ("protocol", "client", "pool", "server", "since", "what"),
        [
            (
                row["protocol"],
                row["client"],
                row["pool"],
                row["server"],
                row["since"],
                row.get("mailbox") or row.get("detail", ""),
            )
            for row in rows
        ],
    )


def sticky_tables(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """``l7lb table list``."""
    if not rows:
        return Text("no tables: no persistence key needs one")
    names = ("table", "entries", "size", "memory", "expire", "pins", "hits", "evicted", "expired")
    return Columns(
        names,
        [[_sized(row[name]) if name == "memory" else _amount(name, row[name]) for name in names] for row in rows],
        right=names[1:],
    )


def limits(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """``l7lb limits``."""
    if not rows:
        return Text("nobody has used any of a rate limit's burst")
    return Columns(
        ("limit", "key", "used", "burst", "wait"),
        [
            (
                row["limit"],
                row["key"],
                f"{row['used']:.0f}",
                f"{row['burst']:.0f}",
                f"{row['wait']:.1f}s" if row["wait"] else "",
            )
            for row in rows
        ],
        right=("used", "burst", "wait"),
    )


def directory(found: Mapping[str, Any]) -> RenderableType:
    """``l7lb directory ask``."""
    short = f", or {found['user']}" if found["user"] != found["address"] else ""
    rows = [
        (
            row["directory"],
            row["status"],
            row["mailbox"],
            _directory_server(row),
            f"{row['seconds'] * 1000:.1f}ms",
            _login(row),
        )
        for row in found["answers"]
    ]
    table = Columns(("directory", "status", "mailbox", "server", "time", "why"), rows, right=("time",))
    return Group(Text(f"asked for {found['address']}{short}"), Text(), table)


def _directory_server(row: Mapping[str, Any]) -> str:
    if not row["server"] or row["known"] == [row["server"]]:
        return str(row["server"])
    return f"{row['server']} ({', '.join(row['known']) or 'no pool has it'})"


def _login(row: Mapping[str, Any]) -> str:
    """What else there is to say: how the server is logged in to, or what went wrong."""
    parts = [str(row["why"])] if row["why"] else []
    if row["user"]:
        parts.append(f"logs in as {row['user']}")
    if row["password"]:
        parts.append("with a password of its own")
    if row["master_user"]:
        parts.append(f"by master user {row['master_user']}")
    return ", ".join(parts)


def sticky_entries(found: Mapping[str, Any]) -> RenderableType:
    """``l7lb table find``."""
    rows = found["entries"]
    if not rows:
        return Text("no such entry")
    table = Columns(
        ("key", "server", "idle", "expires", "pinned"),
        [
            (
                row["key"],
                row["server"],
                "" if row["pinned"] else f"{row['idle']:.0f}s",
                "never" if row["expires"] < 0 else f"{row['expires']:.0f}s",
                "pinned" if row["pinned"] else "",
            )
            for row in rows
        ],
        right=("idle", "expires"),
    )
    return Group(table, Text("... and more: --limit")) if found.get("more") else table


def _amount(name: str, value: float) -> str:
    return f"{value:.0f}s" if name == "expire" else str(value)


def _sized(number: int) -> str:
    return f"{number / 1024**2:.1f} MiB" if number >= 1024**2 else f"{number / 1024:.0f} KiB"


def explained(found: Mapping[str, Any]) -> RenderableType:
    """``l7lb explain``."""
    facts = ", ".join(f"{name} {value}" for name, value in found["facts"].items() if value)
    rules = Columns(
        ("rule", "where", "matches", "why"),
        [
            (
                rule["number"],
                rule["where"],
                Text("yes", "green") if rule["matched"] else Text("no"),
                "; ".join([rule["why"], *rule.get("details", ())]),
            )
            for rule in found["rules"]
        ],
        right=("rule",),
    )
    outcome = Text(_plain(f"=> {found['outcome']}"), "bold")
    limits = [Text(_plain(line)) for line in found.get("limits", ())]
    parts: list[RenderableType] = [
        Text(_plain(f"listener {found['listener']}: {facts}")),
        Text(),
        rules,
        *([Text(), *limits] if limits else []),
        Text(),
        outcome,
    ]
    if found.get("directory"):
        parts.append(Text(_plain(f"   {found['directory']}")))
    if found.get("why"):
        parts.append(Text(f"   {found['why']}"))
    parts.extend(Text(f"   - {_plain(line)}") for line in found.get("servers", ()))
    return Group(*parts)


def rendered(what: RenderableType, width: int, colour: bool) -> str:
    """As text, without blanks at the end of lines."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colour,
        no_color=not colour,
        color_system="standard" if colour else None,
        highlight=False,
        soft_wrap=False,
        _environ={},  # whether there is a terminal has been decided: TERM and NO_COLOR were asked before
    )
    console.print(what)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def show(what: RenderableType) -> None:
    """Print it: coloured and as wide as the terminal, or plain and whole where there is none."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else WIDE
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "dumb", "unknown")
    sys.stdout.write(rendered(what, width, terminal and not plain))


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _plain(cell: object) -> str:
    """A cell's text; what came over the wire may hold characters that would drive the terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in str(cell))
