"""Runs side by side as text: one line a scheduler, then one a tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_TENANTS = 30
"""Tenants shown, those with the most requests first; JSON has all."""

LONGEST_NAME = 60
GAP = "  "

Document = dict[str, Any]
Column = tuple[str, "Callable[[Document], str]"]


def number(value: float | None, digits: int = 2) -> str:
    """Format a figure; a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Format a share."""
    return "-" if value is None else f"{100 * value:.1f}"


def printable(name: str) -> str:
    """Return a name from a trace or a policy fit to print: what a terminal would obey is escaped, what is very long cut."""
    plain = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in name
    )
    return plain if len(plain) <= LONGEST_NAME else f"{plain[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _rejected(run: Document) -> str:
    return f"{sum(run['requests']['rejected'].values()):,}"


def _bound(run: Document) -> str:
    bound = run["bound"]
    if bound is None:
        return "-"
    return f"{'met' if bound['met'] else 'BROKEN'} {number(bound['gap'], 0)}/{number(bound['limit'], 0)}"


RUN_COLUMNS: list[Column] = [
    ("scheduler", lambda run: printable(run["scheduler"])),
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
    ("tenant", lambda row: printable(row["tenant"])),
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


def text(runs: Sequence[Document], width: int | None = None) -> str:
    """Return all runs as plain text, in lines of at most `width` characters where that can be.

    Seconds, tokens, weighted tokens (service) and weighted tokens/s (difference).
    """
    parts = [facts(runs), aligned(RUN_COLUMNS, runs, width), *notes(runs)]
    for run in runs:
        rows = tenant_rows(run, MOST_TENANTS)
        if len(run["tenants"]) < 2:
            continue
        more = len(run["tenants"]) - len(rows)
        parts += [
            f"{printable(run['scheduler'])}, by tenant" + (f" ({more:,} more in JSON)" if more else ""),
            aligned(TENANT_COLUMNS, rows, width),
        ]
    return "\n\n".join(parts) + "\n"


def facts(runs: Sequence[Document]) -> str:
    """Say what was run: the load, the engine, and the gates where they differ."""
    first = runs[0]
    arrived = [run["requests"]["arrived"] for run in runs]
    sent = f"{min(arrived):,}" if len(set(arrived)) == 1 else f"{min(arrived):,} to {max(arrived):,}"
    gates = [run["gate"] for run in runs]
    gate = f"gate {gates[0]}" if len(set(gates)) == 1 else f"gates {', '.join(gates)}"
    tenants = len({tenant for run in runs for tenant in run["tenants"]})
    return (
        f"{printable(first['workload'])}: {sent} requests of {tenants:,} tenant{'s' * (tenants != 1)} in {first['seconds']:,.0f} s, "
        f"profile {printable(first['profile'])}, {gate}, metric {first['metric']}"
    )


def notes(runs: Sequence[Document]) -> list[str]:
    """Say why requests were rejected, a line a scheduler that rejected some."""
    lines = []
    for run in runs:
        rejected = run["requests"]["rejected"]
        if rejected:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items())
            lines.append(f"{printable(run['scheduler'])} rejected {reasons}")
    return ["\n".join(lines)] if lines else []


def tenant_rows(run: Document, most: int) -> list[Document]:
    """Return a row a tenant with its share of all service, by name: `most` tenants, those with the most requests."""
    total = sum(tenant["service"] for tenant in run["tenants"].values()) or 1.0
    rows = [
        {"tenant": tenant, "share": figures["service"] / total, **figures}
        for tenant, figures in run["tenants"].items()
    ]
    rows.sort(key=lambda row: (-row["requests"]["arrived"], row["tenant"]))
    return sorted(rows[:most], key=lambda row: row["tenant"])


def aligned(columns: Sequence[Column], rows: Sequence[Document], width: int | None = None) -> str:
    """Lay rows out in columns, the first to the left, the others to the right.

    What is wider than `width` goes on below, with the first column repeated.
    """
    cells = [[head for head, _ in columns], *([show(row) for _, show in columns] for row in rows)]
    widths = [max(cell_len(line[place]) for line in cells) for place in range(len(columns))]
    blocks: list[list[int]] = []
    room = 0
    for place in range(1, len(columns)):
        needed = len(GAP) + widths[place]
        if not blocks or needed > room:
            blocks.append([0])
            room = (width or sum(widths) + len(GAP) * len(widths)) - widths[0]
        blocks[-1].append(place)
        room -= needed
    return "\n\n".join(
        "\n".join(
            _line([line[place] for place in block], [widths[place] for place in block]) for line in cells
        )
        for block in blocks
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    spaces = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
    first = cells[0] + spaces[0]
    return GAP.join(
        [first, *(space + cell for space, cell in zip(spaces[1:], cells[1:], strict=True))]
    ).rstrip()
