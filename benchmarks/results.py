"""Ratios with their spread, the limits they are held to, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True)
class Figure:
    """Something measured several times for one peer."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median."""
        return median(self.values)


@dataclass(frozen=True)
class Ratio:
    """l7lb's figures to a peer's, round by round: both of a round were measured one after the other."""

    case: str
    peer: str
    values: tuple[float, ...]
    limit: float | None = None  # None: for information
    at_least: bool = False  # whether the limit is the least it must be

    @property
    def middle(self) -> float:
        """The median."""
        return median(self.values)

    @property
    def good(self) -> bool:
        """Whether the median keeps the limit."""
        if self.limit is None:
            return True
        return self.middle >= self.limit if self.at_least else self.middle <= self.limit


@dataclass
class Results:
    """All that a run found out."""

    figures: list[tuple[str, Figure]] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, case: str, unit: str, values: dict[str, list[float]]) -> None:
        """Keep the figures of a case, by peer."""
        self.figures += [(case, Figure(name, unit, tuple(found))) for name, found in values.items()]

    def compare(
        self,
        case: str,
        values: dict[str, list[float]],
        ours: str,
        peer: str,
        limit: float | None = None,
        at_least: bool = False,
    ) -> None:
        """Keep the ratio of two peers' figures, if both were measured."""
        if ours in values and peer in values:
            found = [
                mine / theirs if theirs else float("inf")
                for mine, theirs in zip(values[ours], values[peer], strict=True)
            ]
            label = peer if ours == "l7lb" else f"{ours} / {peer}"
            self.ratios.append(Ratio(case, label, tuple(found), limit, at_least))

    @property
    def good(self) -> bool:
        """Whether every limit is kept."""
        return all(ratio.good for ratio in self.ratios)

    def table(self) -> str:
        """Everything as text."""
        lines = ["", "figures: median [least .. most]"]
        lines += _columns(
            [
                [case, one.name, f"{one.middle:,.1f} {one.unit}", f"[{min(one.values):,.1f} .. {max(one.values):,.1f}]"]
                for case, one in self.figures
            ]
        )
        lines += ["", "l7lb to its peers: median ratio [least .. most], limit"]
        rows = []
        for one in self.ratios:
            sign = ">=" if one.at_least else "<="
            limit = "" if one.limit is None else f"{sign} {one.limit:g} {'ok' if one.good else 'BEYOND THE LIMIT'}"
            rows.append(
                [one.case, one.peer, f"{one.middle:.2f}", f"[{min(one.values):.2f} .. {max(one.values):.2f}]", limit]
            )
        lines += _columns(rows)
        return "\n".join([*lines, "", *self.notes])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["  (nothing)"]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
