"""What a section of the report is made of: prose, tables, and claims that hold or do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from benchmarks.report.runs import Results, Run

Cell = str | float | int | None


@dataclass(frozen=True)
class Claim:
    """Something that should come out, what came out, and whether that is it."""

    text: str
    found: str
    holds: bool


@dataclass
class Page:
    """A section as Markdown, and its claims."""

    title: str
    lines: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Add a paragraph."""
        self.lines += [text, ""]

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Add a table."""
        self.lines.append(f"| {' | '.join(head)} |")
        self.lines.append(f"| {' | '.join('---' for _ in head)} |")
        self.lines += [f"| {' | '.join(shown(cell) for cell in row)} |" for row in rows]
        self.lines.append("")

    def claim(self, text: str, found: str, *, holds: bool) -> None:
        """Add a claim."""
        self.claims.append(Claim(text, found, holds))

    def markdown(self) -> str:
        """Return the section, its claims last."""
        lines = [f"## {self.title}", "", *self.lines]
        lines += [
            f"- {'holds' if claim.holds else '**does not hold**'}: {claim.text} ({claim.found})"
            for claim in self.claims
        ]
        return "\n".join([*lines, ""])


class Section(Protocol):
    """A module of the report."""

    def runs(self, inputs: Inputs) -> list[Run]:
        """Say what must be simulated."""

    def page(self, inputs: Inputs, results: Results) -> Page:
        """Write the section."""


@dataclass(frozen=True)
class Inputs:
    """What a report is made of besides the code."""

    arena: str
    """Path of the trace of the VTC paper's artifact."""
    azure_conversation: str
    azure_code: str


def shown(cell: Cell) -> str:
    """Write a figure with as many digits as mean anything."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    if not math.isfinite(cell):
        return "-"
    if abs(cell) >= 100:
        return f"{cell:,.0f}"
    return f"{cell:.2f}" if abs(cell) >= 1 else f"{cell:.3f}"


def ordered(values: Sequence[float], less: Callable[[float, float], bool] = lambda a, b: a < b) -> bool:
    """Say whether each value is less than the next."""
    return all(less(a, b) for a, b in pairwise(values))
