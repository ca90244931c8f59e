"""Runs side by side as one HTML page that needs nothing else: figures as tables, plots as embedded SVG."""

from __future__ import annotations

import html
import io
import re
import warnings
from typing import TYPE_CHECKING, Any

from equipoise_simulator.table import RUN_COLUMNS, TENANT_COLUMNS, facts, notes, printable, tenant_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from equipoise_simulator.result import Result
    from equipoise_simulator.table import Column, Document

MOST_LINES = 8
"""Tenants drawn one by one in a plot of service; the others are summed up."""
MOST_BOXES = 3 * MOST_LINES
MOST_ROWS = 500
"""Tenants in a table; JSON has all."""
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #d8dee4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { background: #f6f8fa; } svg { max-width: 100%; height: auto; }
p.note { color: #57606a; } details { margin: 0.6rem 0; }
"""


def page(results: Sequence[Result], documents: Sequence[Document]) -> str:
    """Return the page. `documents` are the results' own, in the same order."""
    title = f"{printable(documents[0]['workload'])}: {', '.join(printable(run['scheduler']) for run in documents)}"
    wide = max(1, len(results))
    parts = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(facts(documents))}</p>",
        _table(RUN_COLUMNS, documents),
        *(f"<p>{html.escape(note)}</p>".replace("\n", "<br>") for note in notes(documents)),
        (
            "<p class=note>Times in seconds; service in weighted tokens; difference and accumulated: how far tenants that"
            " wanted more were behind the best served one, in weighted tokens a second and in all.</p>"
        ),
        "<h2>Service over time</h2><p class=note>Weighted tokens a second over the tenant's weight, in a sliding minute.</p>",
        _plot(_service, results, columns=min(wide, 2)),
        (
            "<h2>Time to first token</h2><p class=note>Of all requests that arrived: a line ends below 1 by the share that got"
            " none.</p>"
        ),
        _plot(_ttft, [results], columns=1),
        (
            "<h2>Jain's index over time</h2><p class=note>Of what tenants got in a minute over what they were entitled to (the"
            " max-min share by weight and demand): 1 where everybody got their share.</p>"
        ),
        _plot(_jain, [results], columns=1),
        (
            "<h2>Waits by tenant</h2><p class=note>Wait in the queue: box from quartile to quartile, whiskers from the 1st"
            " to the 99th percentile"
            f"{_of_the_most(results)}.</p>"
        ),
        _plot(_waits, results, columns=min(wide, 2)),
        "<h2>Tenants</h2>",
    ]
    parts += [_tenants(run) for run in documents]
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style>\n{body}\n</html>\n"
    )


def _of_the_most(results: Sequence[Result]) -> str:
    tenants = max(len(result.series) for result in results)
    return (
        f"; the {MOST_BOXES} of {tenants:,} tenants that asked for the most" if tenants > MOST_BOXES else ""
    )


def _tenants(run: Document) -> str:
    rows = tenant_rows(run, MOST_ROWS)
    more = len(run["tenants"]) - len(rows)
    summary = printable(run["scheduler"]) + (f" ({more:,} more tenants in JSON)" if more else "")
    return f"<details open><summary>{html.escape(summary)}</summary>{_table(TENANT_COLUMNS, rows)}</details>"


def _table(columns: Sequence[Column], rows: Sequence[Document]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title, _ in columns)
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(show(row))}</td>" for _, show in columns) + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><tr>{head}</tr>{lines}</table></div>"


def _plot(draw: Callable[[Axes, Any], None], items: Sequence[Any], *, columns: int) -> str:
    """Draw one plot an item in a grid, as SVG text."""
    from matplotlib import rc_context  # noqa: PLC0415 - a second to load
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    lines = -(-len(items) // columns)
    figure = Figure(figsize=(11, 3.4 * lines), layout="constrained")
    FigureCanvasSVG(figure)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place < len(items):
            draw(axes, items[place])
            axes.grid(alpha=0.25)
        else:
            axes.set_visible(False)
    grid.flat[0].set_ylim(bottom=0)  # after all were drawn: they share the axis
    out = io.StringIO()
    # text as text, in the reader's fonts, whatever script a name is in; the same drawing has the same bytes
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "equipoise"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(out, format="svg", metadata=NO_METADATA)
    drawing = out.getvalue()
    return re.sub(r"^.*?(?=<svg)", "", drawing, flags=re.DOTALL)


def _plain(label: str) -> str:
    """Return a label that matplotlib takes as it is: a dollar would begin a formula, an underscore hide the line."""
    escaped = printable(label).replace("$", r"\$")
    return "\N{ZERO WIDTH SPACE}" + escaped if escaped.startswith("_") else escaped


def _by_demand(result: Result) -> list[str]:
    """Return tenants, those that asked for the most first: the same order whatever the scheduler."""
    asked = {tenant: series.demanded(0.0, float("inf")) for tenant, series in result.series.items()}
    return sorted(asked, key=lambda tenant: (-asked[tenant], tenant))


def _service(axes: Axes, result: Result) -> None:
    seconds = result.workload.seconds
    window = min(60.0, seconds)
    times = [seconds * step / 120 for step in range(121) if seconds * step / 120 >= window / 4]

    def rates(tenant: str) -> list[float]:
        series = result.series[tenant]
        return [series.received(max(0.0, at - window), at) / min(window, at) for at in times]

    names = _by_demand(result)
    for tenant in names[:MOST_LINES]:
        axes.plot(times, rates(tenant), label=_plain(tenant), linewidth=1.2)
    rest = [rates(tenant) for tenant in names[MOST_LINES:]]
    if rest:
        mean = [sum(column) / len(rest) for column in zip(*rest, strict=True)]
        axes.plot(times, mean, label=f"mean of {len(rest)} more", color="grey", linestyle=":")
    axes.set(title=_plain(result.label), xlabel="s", ylabel="weighted tokens/s")
    axes.legend(fontsize=7, ncols=2)


def _ttft(axes: Axes, results: Sequence[Result]) -> None:
    for result in results:
        values = sorted(ttft for record in result.records if (ttft := record.ttft) is not None)
        shares = [(place + 1) / len(result.records) for place in range(len(values))]
        axes.step(values, shares, where="post", label=_plain(result.label))
    axes.set(
        xscale="symlog",
        xlabel="s to the first token",
        ylabel="share of requests",
        xlim=(0, None),
        ylim=(0, 1.02),
    )
    axes.legend(fontsize=8)


def _jain(axes: Axes, results: Sequence[Result]) -> None:
    for result in results:
        points = [(at, value) for at, value in result.jain_over_time() if value is not None]
        axes.plot(
            [at for at, _ in points], [value for _, value in points], marker=".", label=_plain(result.label)
        )
    axes.set(xlabel="s", ylabel="Jain's index", ylim=(0, 1.05))
    axes.legend(fontsize=8)


def _waits(axes: Axes, result: Result) -> None:
    waits: dict[str, list[float]] = {}
    for record in result.records:
        if record.queue_delay is not None:
            waits.setdefault(record.tenant, []).append(record.queue_delay)
    names = [each for each in _by_demand(result) if each in waits][:MOST_BOXES]
    if names:
        axes.boxplot(
            [waits[each] for each in names],
            whis=(1, 99),
            sym="",
            tick_labels=[_plain(each) for each in names],
        )
        axes.tick_params(axis="x", labelrotation=90, labelsize=7)
    axes.set(title=_plain(result.label), ylabel="s", yscale="symlog")
