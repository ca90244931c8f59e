"""Two replays of one trace side by side: a table for people, JSON for programs, a plot for the eye."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from equipoise_demo.outcome import Result, TenantResult

HEADINGS = ("tenant", "requests", "asked", "entitled", "service", "TTFT p50", "TTFT p99")
EXPLANATION = (
    "Asked, entitled (max-min fair) and service are weighted tokens a second (input 1, output 2) while the trace lasted; "
    "times are in the trace's seconds."
)
SHOWN = 12
"""Tenants in the table on the terminal; the files have all."""


def as_json(before: Result, after: Result, facts: dict[str, Any]) -> str:
    """Return both results with all tenants. Not-a-number becomes null."""
    document = {"facts": facts, "results": [_plain(before), _plain(after)]}
    return json.dumps(document, indent=2, default=str) + "\n"


def as_markdown(before: Result, after: Result, facts: dict[str, Any]) -> str:
    """Return the summary and every tenant's row."""
    lines = [f"# {before.algorithm} against {after.algorithm}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", f"| | {before.algorithm} | {after.algorithm} |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {one} | {two} |" for name, one, two in summary_rows(before, after)]
    lines += [
        "",
        f"{EXPLANATION} Before the arrow {before.algorithm}, after it {after.algorithm}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| --- |" + " ---: |" * (len(HEADINGS) - 1),
    ]
    lines += ["| " + " | ".join(row) + " |" for row in tenant_rows(before, after)]
    return "\n".join(lines) + "\n"


def summary_rows(before: Result, after: Result) -> list[tuple[str, str, str]]:
    """Return name and both values of each measure over all tenants."""

    def row(name: str, value: Callable[[Result], str]) -> tuple[str, str, str]:
        return name, value(before), value(after)

    return [
        row("service difference, mean (tokens/s)", lambda result: f"{result.difference.mean:.0f}"),
        row("service difference, max (tokens/s)", lambda result: f"{result.difference.max:.0f}"),
        row("Jain's index of service over entitlement", lambda result: f"{result.jain:.3f}"),
        row(
            "TTFT p50, tenants within their share (s)", lambda result: _seconds(result.ttft_within_share.p50)
        ),
        row(
            "TTFT p99, tenants within their share (s)", lambda result: _seconds(result.ttft_within_share.p99)
        ),
        row("TTFT p50, all (s)", lambda result: _seconds(result.ttft.p50)),
        row("TTFT p99, all (s)", lambda result: _seconds(result.ttft.p99)),
        row("throughput (tokens/s)", lambda result: f"{result.tokens_per_second:.0f}"),
        row("finished / failed", lambda result: f"{result.finished} / {result.failed}"),
    ]


def tenant_rows(before: Result, after: Result) -> list[tuple[str, ...]]:
    """Return a row a tenant, those with the most demand first."""
    others = {row.tenant: row for row in after.tenants}

    def both(row: TenantResult, value: Callable[[TenantResult], str]) -> str:
        return f"{value(row)} → {value(others[row.tenant])}"

    return [
        (
            row.tenant,
            str(row.requests),
            f"{row.demand:.0f}",
            f"{row.entitled:.0f}",
            both(row, lambda each: f"{each.service:.0f}"),
            both(row, lambda each: _seconds(each.ttft.p50)),
            both(row, lambda each: _seconds(each.ttft.p99)),
        )
        for row in before.tenants
    ]


def tables(before: Result, after: Result) -> tuple[Table, Table]:
    """Return the summary and the tenants' table for a terminal."""
    totals = Table(
        box=SIMPLE_HEAD, pad_edge=False, title=f"{before.algorithm} against {after.algorithm}, all tenants"
    )
    totals.add_column("")
    totals.add_column(before.algorithm, justify="right")
    totals.add_column(after.algorithm, justify="right", style="bold")
    for row in summary_rows(before, after):
        totals.add_row(*row)
    tenants = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"Per tenant: weighted tokens/s; seconds of the trace; {before.algorithm} → {after.algorithm}",
    )
    for heading in HEADINGS:
        tenants.add_column(heading, justify="left" if heading == "tenant" else "right", no_wrap=True)
    rows = tenant_rows(before, after)
    for cells in rows[:SHOWN]:
        tenants.add_row(*cells)
    if len(rows) > SHOWN:
        tenants.caption = f"{len(rows) - SHOWN} tenants with less demand are in the report"
    return totals, tenants


def write(folder: Path, before: Result, after: Result, facts: dict[str, Any]) -> list[Path]:
    """Write result.json, result.md and result.png into an existing folder."""
    from equipoise_demo.plot import draw  # noqa: PLC0415 - matplotlib takes a second to import

    files = [folder / name for name in ("result.json", "result.md", "result.png")]
    files[0].write_text(as_json(before, after, facts), encoding="utf-8")
    files[1].write_text(as_markdown(before, after, facts), encoding="utf-8")
    draw(before, after, files[2])
    return files


def _plain(result: Result) -> dict[str, Any]:
    return {
        "algorithm": result.algorithm,
        "seconds": result.seconds,
        "service_difference": _finite(asdict(result.difference)),
        "jain": result.jain,
        "ttft_seconds": _finite(asdict(result.ttft)),
        "ttft_within_share_seconds": _finite(asdict(result.ttft_within_share)),
        "tokens_per_second": result.tokens_per_second,
        "finished": result.finished,
        "failed": result.failed,
        "tenants": [_tenant(row) for row in result.tenants],
    }


def _tenant(row: TenantResult) -> dict[str, Any]:
    values = asdict(row)
    return {**values, "ttft": _finite(values["ttft"])}


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"
