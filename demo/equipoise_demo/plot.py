"""The demo's picture: who was served how much over time under each algorithm, and whose promises were kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from equipoise_demo.phase import Phase

LINES = 6
"""Tenants with a line of their own; the others are grey."""
BARS = 12
"""Tenants whose promises are shown."""
WINDOWS = 6
"""Of the traffic's length, over which a rate is taken."""
STEPS = 80
COLOURS = ("#d1495b", "#0b6e99", "#edae49", "#2a9d6f", "#8a5fbf", "#7a5c43")
TURNS = ("#b9bcc2", "#edae49", "#0b6e99")
"""Of the algorithms, in their order."""
OTHERS, MUTED, INK = "#b9bcc2", "#8b9099", "#22262e"


def draw(phases: Sequence[Phase], path: Path, promise_seconds: float) -> None:
    """Write the picture as PNG."""
    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with plt.rc_context(style):
        figure = plt.figure(figsize=(11, 6.8), dpi=150, layout="constrained")
        grid = figure.add_gridspec(2, len(phases), height_ratios=[3.4, 2.4])
        names = [row.tenant for row in phases[0].result.tenants]
        panels: list[Axes] = []
        for place, phase in enumerate(phases):
            panels.append(figure.add_subplot(grid[0, place], sharey=panels[0] if panels else None))
            _service(panels[-1], phase, names[:LINES])
        panels[0].set_ylabel("service, weighted tokens/s")
        panels[-1].legend(handles=_lines(names), fontsize=8, frameon=False, loc="upper right", ncols=2)
        _promises(figure.add_subplot(grid[1, :]), phases, promise_seconds)
        kept = " → ".join("-" if phase.kept is None else f"{100 * phase.kept:.0f}" for phase in phases)
        figure.suptitle(
            f"{' → '.join(phase.algorithm for phase in phases)}: Jain's index of service "
            f"{' → '.join(f'{phase.jain:.2f}' for phase in phases)}, promises kept {kept} %",
            fontsize=13,
            fontweight="bold",
            x=0.01,
            ha="left",
        )
        figure.savefig(path)
        plt.close(figure)


def _lines(names: list[str]) -> list[Line2D]:
    named = zip(COLOURS, names[:LINES], strict=False)
    lines = [Line2D([], [], color=colour, lw=2.2, label=name) for colour, name in named]
    return lines if len(names) <= LINES else [*lines, Line2D([], [], color=OTHERS, lw=1, label="others")]


def _service(axes: Axes, phase: Phase, heaviest: list[str]) -> None:
    """Draw each tenant's service rate over a sliding window, as clients saw it."""
    result = phase.result
    half = result.seconds / WINDOWS / 2
    ticks = [result.seconds * n / STEPS for n in range(STEPS + 1)]
    for tenant, series in result.series.items():
        rates = []
        for tick in ticks:
            start, end = max(0.0, tick - half), min(result.seconds, tick + half)
            rates.append(series.received(start, end) / (end - start))
        if tenant in heaviest:
            axes.plot(ticks, rates, color=COLOURS[heaviest.index(tenant)], lw=2.0, zorder=3)
        else:
            axes.plot(ticks, rates, color=OTHERS, lw=0.8, zorder=1)
    axes.set_title(f"{phase.algorithm}: service of each tenant", loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(f"seconds (window {2 * half:.0f} s)")
    axes.set_xlim(0, result.seconds)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e6e8ec", lw=0.8)


def _promises(axes: Axes, phases: Sequence[Phase], promise_seconds: float) -> None:
    """Draw the share of each tenant's interactive requests that kept the promise, a bar an algorithm."""
    names = [row.tenant for row in phases[0].result.tenants][:BARS]
    width = 0.8 / len(phases)
    for turn, phase in enumerate(phases):
        shares = [phase.ended.share_kept(), *(phase.ended.share_kept(name) for name in names)]
        places = [place + (turn - (len(phases) - 1) / 2) * width for place in range(len(shares))]
        percents = [100 * (share or 0.0) for share in shares]
        bars = axes.bar(places, percents, width * 0.92, color=TURNS[turn], label=phase.algorithm)
        axes.bar_label(bars, [f"{percent:.0f}" for percent in percents], fontsize=8, padding=1)
    axes.set_xticks(range(len(names) + 1), ["all tenants", *names])
    axes.set_ylim(0, 112)
    axes.set_yticks([0, 50, 100])
    axes.set_ylabel("%")
    axes.set_title(
        f"Interactive requests whose first token came within {promise_seconds:g} s, as promised",
        loc="left",
        fontsize=11,
        fontweight="bold",
    )
    axes.grid(axis="y", color="#e6e8ec", lw=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.55, 1.22), ncols=3)
