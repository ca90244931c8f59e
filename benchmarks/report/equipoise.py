"""Equipoise: deadlines inside a band, on mixed SLOs and on the arena trace, beside what it is built on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import stdev

from benchmarks.report.page import Inputs, Page
from benchmarks.report.runs import Document, Load, Results, Run, named, traced

from equipoise_simulator.profiles import PROFILES
from equipoise_simulator.workload import Workload

LOADS = (1.1, 1.3, 1.6, 2.0)
MIXED = ("FCFS", "VTC", "FairServe", "Equinox", "ExFairS", "Equipoise")
SAME = ("FCFS:100", "VTC:100", "Equipoise:100")
"""On the sketch's terms: every length predicted as 100."""
TOKENWISE = replace(PROFILES["fast"], name="fast, KV by the token", block_size=1)
FLOOR = {1.1: (96, 99, 100), 1.3: (68, 86, 83), 1.6: (56, 83, 69), 2.0: (36, 52, 43)}
"""Share of requests that kept their SLO in the sketch: interactive of all tenants, of those within their share, batch."""
SKETCHED = {
    1.1: ("69 (70) / 100", "75 (85) / 100"),
    1.3: ("3.5 (3.5) / 71", "31 (48) / 70"),
    1.6: ("1 (1) / 25", "3 (4) / 64"),
    2.0: ("-", "1 (1.5) / 23"),
}
"""FCFS and VTC in the sketch."""
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
SEEDS = (0, 1, 2, 3, 4)


def _mixed(load: float, contender: str, seed: int) -> Run:
    return Run(Load(named, ("mixed_slo", seed, load)), contender, gate="peak", profile="fast")


def _tokenwise(load: float, contender: str, seed: int) -> Run:
    return replace(_mixed(load, contender, seed), profile=TOKENWISE)


def limited(path: Path) -> Workload:
    """Make the suite `real` of a trace, with every client's output limit at what it gets: what `reserve` reserves."""
    load = traced(path)
    return replace(load, calls=tuple(replace(call, max_tokens=call.output_tokens) for call in load.calls))


def _arena(inputs: Inputs, gate: str, contender: str, seed: int) -> Run:
    make = limited if gate == "reserve" else traced
    return Run(Load(make, (Path(inputs.arena),)), contender, gate=gate, profile="fast", seed=seed)  # type: ignore[arg-type]


def _seeds(contender: str) -> tuple[int, ...]:
    return SEEDS if "noisy" in contender else (0,)


def runs(inputs: Inputs) -> list[Run]:
    """Say what must be simulated."""
    mixed = [
        _mixed(load, contender, seed) for load in LOADS for contender in (*MIXED, *SAME) for seed in SEEDS
    ]
    mixed += [_tokenwise(load, contender, seed) for load in LOADS for contender in SAME for seed in SEEDS]
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
        " tenants (of those within their share) / batch; then tokens/s and mean service difference. The default predictor, gate"
        f" `peak`, means of {len(SEEDS)} seeds. The last column is the floor that a sketch set."
    )

    def each(
        load: float, contender: str, of: str, make: Callable[[float, str, int], Run] = _mixed
    ) -> list[float]:
        values = {
            "all": lambda run: 100 * _attainment(run),
            "within": lambda run: 100 * _attainment(run, "within"),
            "batch": lambda run: 100 * _attainment(run, kind="batch"),
            "tokens": lambda run: run["tokens_per_second"],
            "difference": lambda run: run["service_difference"]["mean"],
        }[of]
        return [values(results[make(load, contender, seed)]) for seed in SEEDS]

    def mean(load: float, contender: str, of: str, make: Callable[[float, str, int], Run] = _mixed) -> float:
        found = each(load, contender, of, make)
        return sum(found) / len(found)

    def kept(load: float, contender: str, make: Callable[[float, str, int], Run] = _mixed) -> str:
        shares = [mean(load, contender, of, make) for of in ("all", "within", "batch")]
        return f"{shares[0]:.0f} ({shares[1]:.0f}) / {shares[2]:.0f}"

    rows = []
    for load in LOADS:
        cells = [
            f"{kept(load, c)}; {mean(load, c, 'tokens'):.0f}; {mean(load, c, 'difference'):.0f}"
            for c in MIXED
        ]
        floor = FLOOR[load]
        rows.append((f"{load}", *cells, f"{floor[0]} ({floor[1]}) / {floor[2]}"))
    page.table(("load", *MIXED, "floor"), rows)
    spread = [stdev(each(LOADS[0], "Equipoise", of)) for of in ("all", "within")]
    page.say(
        "Batch requests fill the KV cache to 95 %; interactive ones, whose time presses, may use the rest, which elsewhere is"
        " the margin for wrong predictions. And while interactive ones come, the prompts of batch requests go to the engine"
        " by 100 ms: else requests of equal length begin and end together, and in between there is no room. Over the seeds"
        f" Equipoise's shares at {LOADS[0]} have a standard deviation of {spread[0]:.1f} ({spread[1]:.1f}) points."
    )
    page.say(
        "On the sketch's terms, every length predicted as 100; the sketch's figures in square brackets. At 1.1 the load is"
        " what the engine can just serve, so one percent of its capacity is worth ten points under FCFS. vLLM's KV cache"
        " comes in blocks of 16 tokens, of which a request leaves half a block unused; the second half of the table has"
        " the same cache by the token."
    )
    rows = []
    for load in LOADS:
        fcfs, vtc = SKETCHED[load]
        floor = FLOOR[load]
        sketch = (fcfs, vtc, f"{floor[0]} ({floor[1]}) / {floor[2]}")
        whole = [f"{kept(load, c)} [{said}]" for c, said in zip(SAME, sketch, strict=True)]
        rows.append((f"{load}", *whole, *(kept(load, c, _tokenwise) for c in SAME)))
    page.table(("load", *SAME, *(f"{c}, KV by the token" for c in SAME)), rows)
    for contender, terms in (("Equipoise", ""), ("Equipoise:100", ", with every length predicted as 100")):
        for load in LOADS:
            got = [mean(load, contender, of) for of in ("all", "within", "batch")]
            page.claim(
                f"at load {load} the floor is reached, within a point{terms}",
                kept(load, contender),
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
