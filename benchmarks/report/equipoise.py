"""Equipoise: deadlines inside a band, on mixed SLOs and on the arena trace, beside what it is built on."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.page import Inputs, Page
from benchmarks.report.runs import Document, Load, Results, Run, named, traced

LOADS = (1.1, 1.3, 1.6, 2.0)
MIXED = ("FCFS", "VTC", "FairServe", "Equinox", "ExFairS", "Equipoise:band=2000", "Equipoise")
FLOOR = {1.1: (96, 99, 100), 1.3: (68, 86, 83), 1.6: (56, 83, 69), 2.0: (36, 52, 43)}
"""Share of requests that kept their SLO in the sketch: interactive of all tenants, of those within their share, batch."""
ARENA = {
    ("reserve", "FCFS:oracle"): "reserve by true length, FCFS",
    ("reserve", "VTC:oracle"): "reserve by true length, VTC",
    ("prompt", "FCFS:noisy"): "prompt, FCFS",
    ("prompt", "VTC:noisy"): "prompt, VTC",
    ("peak", "VTC:noisy"): "peak, VTC, lengths to +-50 %",
    ("peak", "Equipoise:noisy:band=2000"): "peak, Equipoise, band 2,000, lengths to +-50 %",
    ("peak", "VTC:average"): "peak, VTC, moving average",
    ("peak", "Equipoise:average:band=2000"): "peak, Equipoise, band 2,000, moving average",
    ("peak", "VTC:mixture"): "peak, VTC, mixture",
    ("peak", "Equipoise:mixture"): "peak, Equipoise, its own band, mixture",
}
SKETCH = {
    "reserve by true length, FCFS": (781, 48.6, 389),
    "reserve by true length, VTC": (782, 40.2, 140),
    "prompt, FCFS": (893, 11.2, 231),
    "prompt, VTC": (886, 8.9, 153),
    "peak, VTC, lengths to +-50 %": (918, 5.4, 168),
    "peak, Equipoise, band 2,000, lengths to +-50 %": (907, 3.5, 164),
    "peak, VTC, moving average": (None, 5.3, 159),
    "peak, Equipoise, band 2,000, moving average": (None, 5.5, 172),
}
"""tokens/s, TTFT mean, mean service difference of the sketch."""
SEEDS = (0,)


def _mixed(load: float, contender: str, seed: int) -> Run:
    return Run(Load(named, ("mixed_slo", seed, load)), contender, gate="peak", profile="fast")


def _arena(inputs: Inputs, gate: str, contender: str, seed: int) -> Run:
    return Run(Load(traced, (Path(inputs.arena),)), contender, gate=gate, profile="fast", seed=seed)  # type: ignore[arg-type]


def _seeds(contender: str) -> tuple[int, ...]:
    return SEEDS if "noisy" in contender else (0,)


def runs(inputs: Inputs) -> list[Run]:
    """Say what must be simulated."""
    mixed = [_mixed(load, contender, seed) for load in LOADS for contender in MIXED for seed in SEEDS]
    arena = [_arena(inputs, gate, name, seed) for gate, name in ARENA for seed in _seeds(name)]
    return mixed + arena


def _attainment(run: Document, tenants: str = "all", kind: str = "interactive") -> float:
    names = [name for name in run["tenants"] if tenants == "all" or name != "client-0"]
    kept = total = 0
    for name in names:
        cell = run["tenants"][name]["slo_by_budget"]["1" if kind == "interactive" else "60"]
        kept, total = kept + cell["kept"], total + cell["total"]
    return kept / total


def page(inputs: Inputs, results: Results) -> Page:
    """Write the section."""
    page = Page("Equipoise")
    page.say(
        "*mixed_slo*: six tenants on one engine, one of them asking for three times as much; half of everybody's requests"
        " are interactive (1 s to the first token), half batch (60 s). Share that kept its SLO, in percent: interactive of all"
        " tenants (of those within their share) / batch; then tokens/s and mean service difference. Moving average, gate"
        f" `peak`, {len(SEEDS)} seed(s). The last column is the floor that a sketch set."
    )

    def mean(load: float, contender: str, of: str) -> float:
        found = [results[_mixed(load, contender, seed)] for seed in SEEDS]
        values = {
            "all": lambda run: 100 * _attainment(run),
            "within": lambda run: 100 * _attainment(run, "within"),
            "batch": lambda run: 100 * _attainment(run, kind="batch"),
            "tokens": lambda run: run["tokens_per_second"],
            "difference": lambda run: run["service_difference"]["mean"],
        }[of]
        return sum(values(run) for run in found) / len(found)

    rows = []
    for load in LOADS:
        cells = [
            f"{mean(load, c, 'all'):.0f} ({mean(load, c, 'within'):.0f}) / {mean(load, c, 'batch'):.0f}; "
            f"{mean(load, c, 'tokens'):.0f}; {mean(load, c, 'difference'):.0f}"
            for c in MIXED
        ]
        floor = FLOOR[load]
        rows.append((f"{load}", *cells, f"{floor[0]} ({floor[1]}) / {floor[2]}"))
    page.table(("load", *MIXED, "floor"), rows)
    for load in LOADS:
        got = [mean(load, "Equipoise", of) for of in ("all", "within", "batch")]
        page.claim(
            f"at load {load} the floor is reached, within a point",
            f"{got[0]:.0f} ({got[1]:.0f}) / {got[2]:.0f}",
            holds=all(a >= b - 1 for a, b in zip(got, FLOOR[load], strict=True)),
        )
    others = [c for c in MIXED if not c.startswith("Equipoise")]
    page.claim(
        "Equipoise keeps more interactive SLOs than every other scheduler at every load",
        "; ".join(
            f"{load}: {mean(load, 'Equipoise', 'all'):.0f} against {max(mean(load, c, 'all') for c in others):.0f}"
            for load in LOADS
        ),
        holds=all(
            mean(load, "Equipoise", "all") >= max(mean(load, c, "all") for c in others) for load in LOADS
        ),
    )
    lost = max(1 - mean(load, "Equipoise", "tokens") / mean(load, "VTC", "tokens") for load in LOADS)
    page.claim("at VTC's throughput, within 0.5 %", f"{lost:+.2%} lost at most", holds=lost <= 0.005)
    page.say(
        "*arena* on the fast engine: what the gate gives every scheduler, and what deadlines from predicted lengths add."
        " In brackets the sketch's figures, which are the floor."
    )
    rows = []
    for (gate, contender), name in ARENA.items():
        found = [results[_arena(inputs, gate, contender, seed)] for seed in _seeds(contender)]

        def over(of: str, found: list[Document] = found, part: str = "mean") -> float:
            values = [run[of][part] if isinstance(run[of], dict) else run[of] for run in found]
            return sum(values) / len(values)

        sketch = SKETCH.get(name)
        hint = [f" ({value})" if value is not None else "" for value in sketch or (None, None, None)]
        rows.append(
            (
                name,
                f"{over('tokens_per_second'):.0f}{hint[0]}",
                f"{over('ttft_seconds'):.1f}{hint[1]}",
                f"{over('ttft_seconds', part='p50'):.1f} / {over('ttft_seconds', part='p90'):.1f} / {over('ttft_seconds', part='p99'):.1f}",
                f"{over('preemptions'):,.0f}, {over('recomputed_tokens'):,.0f}",
                f"{over('service_difference', part='max'):.0f} / {over('service_difference'):.0f}{hint[2]}",
            )
        )
    page.table(
        (
            "gate and scheduler",
            "tokens/s",
            "TTFT mean, s",
            "p50 / p90 / p99, s",
            "preemptions, tokens recomputed",
            "service difference max / mean",
        ),
        rows,
    )
    return page
