"""What the commands print: plain columns that fit 80 characters on a terminal and are whole in a pipe."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

WIDE = 10_000  # columns where nothing is to be cut
STATE_STYLES = {"up": "green", "down": "bold red", "draining": "yellow", "disabled": "dim", "serving": "green"}


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> Table:
    """Columns with a header and no lines; those in ``right`` hold numbers, the last one wraps."""
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    numbers = set(right)
    for name in columns:
        last = name == columns[-1]
        found.add_column(
            name.upper(),
            justify="right" if name in numbers else "left",
            overflow="fold",
            no_wrap=name in numbers,
            ratio=None,
            min_width=min(len(name), 8) if not last else None,
        )
    for row in rows:
        found.add_row(*(cell if isinstance(cell, Text) else Text(_plain(cell)) for cell in row))
    return found


def state(word: str) -> Text:
    """A state in its colour."""
    return Text(word, STATE_STYLES.get(word, ""))


def servers(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """``l7lb servers``."""
    if not rows:
        return Text("no servers")
    return table(
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
        table(
            ("listener", "protocol", "bind"),
            [(one["name"], one["protocol"], _joined(one["bind"])) for one in found["listeners"]],
        ),
        Text(),
        table(
            ("worker", "pid", "connections", "snapshot"),
            [
                (one.get("index", number), one["pid"], one["connections"], one.get("snapshot", ""))
                for number, one in enumerate(found["workers"])
            ],
            right=("worker", "pid", "connections", "snapshot"),
        ),
    ]
    return Group(*parts)


def sessions(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """``l7lb sessions``."""
    if not rows:
        return Text("no sessions")
    return table(
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


def explained(found: Mapping[str, Any]) -> RenderableType:
    """``l7lb explain``."""
    facts = ", ".join(f"{name} {value}" for name, value in found["facts"].items() if value)
    rules = table(
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
    outcome = Text(f"=> {found['outcome']}", "bold")
    parts: list[RenderableType] = [Text(f"listener {found['listener']}: {facts}"), Text(), rules, Text(), outcome]
    if found.get("why"):
        parts.append(Text(f"   {found['why']}"))
    return Group(*parts)


def rendered(what: RenderableType, width: int, colour: bool) -> str:
    """As text, without blanks at the end of lines."""
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, no_color=not colour, highlight=False, soft_wrap=False
    )
    console.print(what)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def show(what: RenderableType) -> None:
    """Print it: coloured and as wide as the terminal, or plain and whole where there is none."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else WIDE
    sys.stdout.write(rendered(what, width, terminal))


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _plain(cell: object) -> str:
    """A cell's text; what came over the wire may hold characters that would drive the terminal."""
    return "".join(char if char.isprintable() else "\ufffd" for char in str(cell))
