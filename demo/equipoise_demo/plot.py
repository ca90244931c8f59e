"""The demo's picture: who was served how much over time, and how long each tenant waited, before and after."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from equipoise_demo.outcome import Result

LINES = 6
"""Tenants with a line of their own; the others are one grey band."""
WINDOW = 30.0
STEP = 2.0
COLOURS = ("#0b6e99", "#d1495b", "#edae49", "#2a9d6f", "#8a5fbf", "#7a5c43")
BEFORE, AFTER, MUTED, INK = "#b9bcc2", "#0b6e99", "#8b9099", "#22262e"


def draw(before: Result, after: Result, path: Path) -> None:
    """Write the picture as PNG."""
    names = [row.tenant for row in before.tenants]
    height = 4.6 + max(2.6, 0.21 * len(names))
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
        figure = plt.figure(figsize=(11, height), dpi=150, layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=[3.6, height - 4.6])
        left = figure.add_subplot(grid[0, 0])
        right = figure.add_subplot(grid[0, 1], sharey=left)
        heaviest = names[:LINES]
        for axes, result in ((left, before), (right, after)):
            _service(axes, result, heaviest)
        left.set_ylabel("service, weighted tokens/s")
        right.legend(
            handles=[
                Line2D([], [], color=colour, lw=2.2, label=name)
                for colour, name in zip(COLOURS, heaviest, strict=False)
            ]
            + [Line2D([], [], color=BEFORE, lw=1, label="other tenants")],
            fontsize=8,
            frameon=False,
            loc="upper right",
            ncols=2,
        )
        _waits(figure.add_subplot(grid[1, :]), before, after, names)
        figure.suptitle(
            f"{after.algorithm} against {before.algorithm}: service difference "
            f"{before.difference.mean:.0f} → {after.difference.mean:.0f} tokens/s, "
            f"Jain's index {before.jain:.2f} → {after.jain:.2f}",
            fontsize=14,
            fontweight="bold",
            x=0.01,
            ha="left",
        )
        figure.savefig(path)
        plt.close(figure)


def _service(axes: Axes, result: Result, heaviest: list[str]) -> None:
    """Draw each tenant's service rate over a sliding window."""
    half = WINDOW / 2
    ticks = [STEP * n for n in range(int(result.seconds / STEP) + 1)]
    for tenant, series in result.series.items():
        rates = []
        for tick in ticks:
            start, end = max(0.0, tick - half), min(result.seconds, tick + half)
            rates.append(series.received(start, end) / (end - start))
        if tenant in heaviest:
            axes.plot(ticks, rates, color=COLOURS[heaviest.index(tenant)], lw=2.2, zorder=3)
        else:
            axes.plot(ticks, rates, color=BEFORE, lw=0.8, zorder=1)
    axes.set_title(f"{result.algorithm}: service of each tenant", loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(f"seconds of the trace (window {WINDOW:.0f} s)")
    axes.set_xlim(0, result.seconds)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e6e8ec", lw=0.8)


def _waits(axes: Axes, before: Result, after: Result, names: list[str]) -> None:
    """Draw each tenant's P99 time to first token, before and after, joined by a line."""
    earlier = {row.tenant: row.ttft.p99 for row in before.tenants}
    later = {row.tenant: row.ttft.p99 for row in after.tenants}
    for place, name in enumerate(names):
        one, two = earlier[name], later[name]
        if math.isnan(one) or math.isnan(two):
            continue
        axes.plot(
            [one, two], [place, place], color=AFTER if two < one else "#d1495b", lw=1.6, alpha=0.45, zorder=1
        )
        axes.scatter(one, place, s=34, color="white", edgecolor=MUTED, lw=1.6, zorder=2)
        axes.scatter(two, place, s=38, color=AFTER, zorder=3)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("seconds of the trace, logarithmic")
    axes.set_title(
        "P99 time to first token of each tenant, those that ask for most at the top",
        loc="left",
        fontsize=11,
        fontweight="bold",
    )
    axes.grid(axis="x", color="#e6e8ec", lw=0.8)
    axes.legend(
        handles=[
            Line2D([], [], ls="", marker="o", mfc="white", mec=MUTED, mew=1.6, label=before.algorithm),
            Line2D([], [], ls="", marker="o", color=AFTER, label=after.algorithm),
        ],
        frameon=False,
        loc="lower right",
    )
