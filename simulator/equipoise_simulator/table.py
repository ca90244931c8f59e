"""Runs side by side as text: one line a scheduler, then one a tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_TENANTS = 30
"""Tenants shown, those with the most requests first; JSON has all."""

Document = dict[str, Any]
Column = tuple[str, "Callable[[Document], str]"]


def number(value: float | None, digits: int = 2) -> str:
    """Format a figure; a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Format a share."""
    return "-" if value is None else f"{100 * value:.1f}"


def _rejected(run: Document) -> str:
    return f"{sum(run['requests']['rejected'].values()):,}"


def _bound(run: Document) -> str:
    bound = run["bound"]
    if bound is None:
        return "-"
    return f"{'met' if bound['met'] else 'BROKEN'} {number(bound['gap'], 0)}/{number(bound['limit'], 0)}"


RUN_COLUMNS: list[Column] = [
    ("scheduler", lambda run: run["scheduler"]),
    ("tok/s", lambda run: number(run["tokens_per_second"], 0)),
    (
        "difference max/mean",
        lambda run: "/".join(number(run["service_difference"][key], 0) for key in ("max", "mean")),
    ),
    ("accumulated", lambda run: number(run["accumulated_difference_max"], 0)),
    ("bound: gap/limit", _bound),
    ("Jain", lambda run: number(run["jain"], 3)),
    ("of entitlement", lambda run: number(run["jain_entitled"], 3)),
    ("wait mean", lambda run: number(run["queue_delay_seconds"]["mean"])),
    (
        "TTFT mean/p50/p90/p99",
        lambda run: "/".join(number(value) for value in run["ttft_seconds"].values()),
    ),
    ("TPOT p50", lambda run: number(run["tpot_seconds"]["p50"], 3)),
    ("SLO %", lambda run: percent(run["slo_attainment"])),
    ("GPU %", lambda run: percent(run["gpu_utilisation"])),
    ("finished", lambda run: f"{run['requests']['finished']:,}"),
    ("rejected", _rejected),
    ("wasted", lambda run: f"{run['wasted_tokens']:,}"),
    ("preempted", lambda run: f"{run['preemptions']:,}"),
]

TENANT_COLUMNS: list[Column] = [
    ("tenant", lambda row: row["tenant"]),
    ("weight", lambda row: f"{row['weight']:g}"),
    ("arrived", lambda row: f"{row['requests']['arrived']:,}"),
    ("finished", lambda row: f"{row['requests']['finished']:,}"),
    ("rejected", _rejected),
    ("service", lambda row: number(row["service"], 0)),
    ("share %", lambda row: percent(row["share"])),
    ("wait mean", lambda row: number(row["queue_delay_seconds"]["mean"])),
    ("TTFT p50/p99", lambda row: "/".join(number(row["ttft_seconds"][key]) for key in ("p50", "p99"))),
    ("SLO %", lambda row: percent(row["slo_attainment"])),
]


def text(runs: Sequence[Document]) -> str:
    """Return all runs as plain text. Seconds, tokens, weighted tokens (service) and weighted tokens/s (difference)."""
    first = runs[0]
    parts = [
        (
            f"{first['workload']}: {first['requests']['arrived']:,} requests in {first['seconds']:,.0f} s, "
            f"profile {first['profile']}, gate {first['gate']}, metric {first['metric']}"
        ),
        aligned(RUN_COLUMNS, runs),
    ]
    for run in runs:
        rows = tenant_rows(run)
        if len(rows) < 2:
            continue
        more = len(run["tenants"]) - len(rows)
        parts += [
            f"{run['scheduler']}, by tenant" + (f" ({more:,} more in JSON)" if more else ""),
            aligned(TENANT_COLUMNS, rows),
        ]
    return "\n\n".join(parts) + "\n"


def tenant_rows(run: Document) -> list[Document]:
    """Return a row a tenant with its share of all service, those with the most requests first, at most `MOST_TENANTS`."""
    total = sum(tenant["service"] for tenant in run["tenants"].values()) or 1.0
    rows = [
        {"tenant": name, "share": tenant["service"] / total, **tenant}
        for name, tenant in run["tenants"].items()
    ]
    rows.sort(key=lambda row: (-row["requests"]["arrived"], row["tenant"]))
    return sorted(rows[:MOST_TENANTS], key=lambda row: row["tenant"])


def aligned(columns: Sequence[Column], rows: Sequence[Document]) -> str:
    """Lay rows out in columns, the first to the left, the others to the right."""
    cells = [[head for head, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )
