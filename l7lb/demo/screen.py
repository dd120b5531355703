"""What the demo prints: short sections in plain words, 80 columns, colours on a terminal only."""

from __future__ import annotations

import os
import sys
import textwrap

from rich.console import RenderableType

from l7lb.control import tables

WIDTH = 80


class Screen:
    """Writes to standard output, each line at once."""

    def __init__(self) -> None:
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._sections = 0

    def section(self, title: str) -> None:
        """Begin a section."""
        self._sections += 1
        self.line()
        self.line(self.styled(f"== {self._sections}. {title} ".ljust(WIDTH, "="), "1"))

    def say(self, text: str) -> None:
        """A paragraph."""
        for line in textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False):
            self.line(line)

    def item(self, text: str, indent: int = 2, mark: str = "") -> None:
        """An indented line, which goes on under itself where it is too long."""
        first, other = " " * indent + mark, " " * (indent + max(len(mark), 2))
        for line in textwrap.wrap(
            text, WIDTH, initial_indent=first, subsequent_indent=other, break_long_words=False, break_on_hyphens=False
        ):
            self.line(line)

    def command(self, text: str) -> None:
        """A command as an operator types it."""
        self.line()
        self.line(self.styled(f"  $ {text}", "36"))

    def table(self, what: RenderableType) -> None:
        """One of the commands' own tables, as they print it."""
        for line in tables.rendered(what, WIDTH - 2, self.colour).splitlines():
            self.line(f"  {line}".rstrip())

    def good(self, text: str) -> None:
        """Something that was checked."""
        self._marked("ok", "32", text)

    def bad(self, text: str) -> None:
        """What is not as it should be."""
        self._marked("WRONG", "1;31", text)

    def _marked(self, mark: str, style: str, text: str) -> None:
        lines = textwrap.wrap(text, WIDTH - len(mark) - 3, break_long_words=False, break_on_hyphens=False) or [""]
        self.line(f"  {self.styled(mark, style)} {lines[0]}")
        for line in lines[1:]:
            self.line(f"  {' ' * len(mark)} {line}")

    def styled(self, text: str, style: str) -> str:
        """In that style, on a terminal."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.colour else text

    def line(self, text: str = "") -> None:
        """One line."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
