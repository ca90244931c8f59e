"""The algorithms side by side on one traffic: tables for people, JSON for programs, a plot for the eye."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from equipoise_demo.phase import Phase

HEADINGS = ("tenant", "asked", "entitled", "service", "kept, %", "GPU s")
EXPLANATION = (
    "Asked, entitled (max-min fair) and service are weighted tokens a second (input 1, output 2) while the traffic lasted; "
    "kept is the share of interactive requests whose first token came as promised. Service, kept and GPU seconds are the sidecars' metrics; GPU utilisation and conditions the policy's status "
    "(of the last minute); times to first token are what clients saw."
)
SHOWN = 12
"""Tenants in the table on the terminal; the files have all."""


def as_json(phases: Sequence[Phase], facts: dict[str, Any]) -> str:
    """Return all results with all tenants. Not-a-number becomes null."""
    document = {"facts": facts, "results": [_plain(phase) for phase in phases]}
    return json.dumps(document, indent=2, default=str) + "\n"


def as_markdown(phases: Sequence[Phase], facts: dict[str, Any], promise_seconds: float) -> str:
    """Return the summary and every tenant's row."""
    names = [phase.algorithm for phase in phases]
    lines = [f"# {', '.join(names[:-1])} and {names[-1]} on the same traffic", ""]
    for name, value in facts.items():
        if isinstance(value, list):
            lines += [f"- {name}:", *(f"  - {each}" for each in value)]
        else:
            lines.append(f"- {name}: {value}")
    lines += ["", f"| | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    lines += [f"| {' | '.join(row)} |" for row in summary_rows(phases, promise_seconds)]
    lines += [
        "",
        f"{EXPLANATION} Between arrows: {', '.join(names)}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| --- |" + " ---: |" * (len(HEADINGS) - 1),
    ]
    lines += ["| " + " | ".join(row) + " |" for row in tenant_rows(phases)]
    return "\n".join(lines) + "\n"


def summary_rows(phases: Sequence[Phase], promise_seconds: float) -> list[tuple[str, ...]]:
    """Return the name of each measure over all tenants and its value under each algorithm."""

    def row(name: str, value: Callable[[Phase], str]) -> tuple[str, ...]:
        return name, *(value(phase) for phase in phases)

    rows = [
        row("service over entitlement, best served", lambda phase: f"{max(phase.shares.values()):.2f}"),
        row("service over entitlement, worst served", lambda phase: f"{min(phase.shares.values()):.2f}"),
        row("Jain's index of it (1: all alike)", lambda phase: f"{phase.jain:.3f}"),
        row("service of all (weighted tokens/s)", lambda phase: f"{phase.rate:.0f}"),
        row(f"interactive: first token within {promise_seconds:g} s", lambda phase: _percent(phase.kept)),
        row(
            "interactive: TTFT p50 / p99 (s)",
            lambda phase: (
                f"{_seconds(phase.result.ttft_interactive.p50)} / {_seconds(phase.result.ttft_interactive.p99)}"
            ),
        ),
        row(
            "all: TTFT p50 / p99 (s)",
            lambda phase: f"{_seconds(phase.result.ttft.p50)} / {_seconds(phase.result.ttft.p99)}",
        ),
    ]
    if any(phase.gpu_percent is not None for phase in phases):
        rows += [
            row(
                "GPU utilisation; seconds",
                lambda phase: (
                    f"{'-' if phase.gpu_percent is None else phase.gpu_percent} %; "
                    f"{phase.counted.gpu_milliseconds.total() / 1000:.0f}"
                ),
            ),
            row("GPUMetricsStale", lambda phase: phase.conditions["GPUMetricsStale"]),
        ]
    return [
        *rows,
        row("FairnessBoundMet", lambda phase: phase.conditions["FairnessBoundMet"]),
        row("finished / failed", lambda phase: f"{phase.result.finished} / {phase.result.failed}"),
    ]


def tenant_rows(phases: Sequence[Phase]) -> list[tuple[str, ...]]:
    """Return a row a tenant, those with the most demand first."""

    def each(value: Callable[[Phase], str]) -> str:
        return " → ".join(value(phase) for phase in phases)

    def cells(tenant: str, seconds: float) -> tuple[str, str, str]:
        return (
            each(lambda phase: f"{phase.counted.service[tenant] / seconds:.0f}"),
            each(lambda phase: _percent(phase.ended.share_kept(tenant), "")),
            each(lambda phase: f"{phase.counted.gpu_milliseconds[tenant] / 1000:.0f}"),
        )

    result = phases[-1].result
    return [
        (
            row.tenant,
            f"{row.demand:.0f}",
            f"{row.entitled:.0f}",
            *cells(row.tenant, result.seconds),
        )
        for row in result.tenants
    ]


def tables(phases: Sequence[Phase], promise_seconds: float) -> tuple[Table, Table]:
    """Return the tenants' table and the summary for a terminal."""
    names = [phase.algorithm for phase in phases]
    tenants = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
        title=f"Each tenant under {' → '.join(names)}: tokens/s, promises, GPU",
    )
    for heading in HEADINGS:
        tenants.add_column(heading, justify="left" if heading == "tenant" else "right", no_wrap=True)
    rows = tenant_rows(phases)
    for cells in rows[:SHOWN]:
        tenants.add_row(*cells)
    if len(rows) > SHOWN:
        tenants.caption = f"{len(rows) - SHOWN} tenants with less demand are in the report"
    totals = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left", title="All tenants")
    totals.add_column("")
    for name in names:
        totals.add_column(name, justify="right", style="bold" if name == names[-1] else "")
    for row in summary_rows(phases, promise_seconds):
        totals.add_row(*row)
    return tenants, totals


def write(folder: Path, phases: Sequence[Phase], facts: dict[str, Any], promise_seconds: float) -> list[Path]:
    """Write result.json, result.md and result.png into an existing folder."""
    from equipoise_demo.plot import draw  # noqa: PLC0415 - matplotlib takes a second to import

    files = [folder / name for name in ("result.json", "result.md", "result.png")]
    files[0].write_text(as_json(phases, facts), encoding="utf-8")
    files[1].write_text(as_markdown(phases, facts, promise_seconds), encoding="utf-8")
    draw(phases, files[2], promise_seconds)
    return files


def _plain(phase: Phase) -> dict[str, Any]:
    result = phase.result
    return {
        "algorithm": phase.algorithm,
        "seconds": result.seconds,
        "jain": phase.jain,
        "service_per_second": phase.rate,
        "promises_kept": phase.kept,
        "promises_judged": phase.ended.judged.total(),
        "gpu_percent": phase.gpu_percent,
        "conditions": phase.conditions,
        "waiting_at_the_end": phase.counted.waiting,
        "seconds_of_the_change": phase.change_seconds,
        "service_difference": _finite(asdict(result.difference)),
        "ttft_seconds": _finite(asdict(result.ttft)),
        "ttft_interactive_seconds": _finite(asdict(result.ttft_interactive)),
        "tokens_per_second": result.tokens_per_second,
        "finished": result.finished,
        "failed": result.failed,
        "tenants": [
            {
                **{
                    name: getattr(row, name)
                    for name in ("tenant", "requests", "failed", "demand", "entitled")
                },
                "service": phase.counted.service[row.tenant] / result.seconds,
                "service_over_entitlement": phase.shares[row.tenant],
                "promises_kept": phase.ended.share_kept(row.tenant),
                "gpu_seconds": phase.counted.gpu_milliseconds[row.tenant] / 1000,
                "ttft_seconds": _finite(asdict(row.ttft)),
            }
            for row in result.tenants
        ],
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _percent(share: float | None, unit: str = " %") -> str:
    return "-" if share is None else f"{100 * share:.0f}{unit}"


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"
