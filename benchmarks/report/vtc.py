"""VTC's table and suites: published figures, and ours."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.page import Inputs, Page, ordered
from benchmarks.report.runs import Load, Results, Run, named, traced

REAL = {
    "FCFS": ("FCFS", (760, 434, 32112, 777)),
    "LCF": ("LCF", (750, 324, 29089, 778)),
    "VTC:none": ("VTC", (368, 252, 6549, 779)),
    "VTC:average": ("VTC, moving average", (365, 240, 5322, 773)),
    "VTC:oracle": ("VTC, oracle", (329, 228, 4476, 781)),
    "RPM:limit=5": ("RPM(5)", (144, 84, 1020, 340)),
}
"""Contender: name, and the published service difference (max, mean, variance) and tokens/s."""
OVERLOAD = {
    "FCFS": ("FCFS", 156_699),
    "VTC:none": ("VTC", 8_001),
    "VTC:noisy": ("VTC, +-50 %", 7_145),
    "VTC:oracle": ("VTC, oracle", 5_343),
}
"""Contender: name, and the published largest accumulated difference."""
SUITES = (
    "overload",
    "proportional",
    "on_off_less",
    "on_off_overload",
    "poisson_short_long",
    "poisson_short_long_2",
    "increase",
    "dist_shift",
    "overload_weighted",
)
SUITE_CONTENDERS = ("FCFS", "DRR", "VTC:none", "VTC:oracle", "Equipoise:oracle")


def _real(inputs: Inputs, contender: str) -> Run:
    return Run(Load(traced, (Path(inputs.arena),)), contender, profile="papers", metric="artifact")


def _suite(name: str, contender: str) -> Run:
    return Run(Load(named, (name,)), contender, metric="artifact")


def runs(inputs: Inputs) -> list[Run]:
    """Say what must be simulated."""
    return [
        *(_real(inputs, contender) for contender in REAL),
        *(_suite("overload", contender) for contender in OVERLOAD),
        *(_suite(name, contender) for name in SUITES for contender in SUITE_CONTENDERS),
    ]


def page(inputs: Inputs, results: Results) -> Page:
    """Write the section."""
    page = Page("VTC")
    real = {contender: results[_real(inputs, contender)] for contender in REAL}
    difference = {contender: run["service_difference"] for contender, run in real.items()}
    page.say(
        "*real*: 27 clients of Chatbot Arena in 600 s, on the artifact's engine (Llama-2-7B on an A10G). Service difference"
        " in weighted tokens a second over 60 s windows, the artifact's measure; published / ours."
    )
    page.table(
        ("scheduler", "max", "mean", "variance", "tokens/s", "requests refused"),
        [
            (
                name,
                f"{published[0]} / {difference[contender]['max']:.0f}",
                f"{published[1]} / {difference[contender]['mean']:.0f}",
                f"{published[2]:,} / {difference[contender]['variance']:,.0f}",
                f"{published[3]} / {real[contender]['tokens_per_second']:.0f}",
                sum(real[contender]["requests"]["rejected"].values()),
            )
            for contender, (name, published) in REAL.items()
        ],
    )
    means = {contender: each["mean"] for contender, each in difference.items()}
    worst = max(means[contender] for contender in ("VTC:none", "VTC:average", "VTC:oracle"))
    page.claim(
        "every VTC < LCF < FCFS in the mean service difference on *real*",
        f"{worst:.0f} < {means['LCF']:.0f} < {means['FCFS']:.0f}",
        holds=ordered([worst, means["LCF"], means["FCFS"]]),
    )
    limit, free = real["RPM:limit=5"]["tokens_per_second"], real["FCFS"]["tokens_per_second"]
    page.claim(
        "RPM pays for its fairness with throughput",
        f"{limit:.0f} of {free:.0f} tokens/s, mean difference {means['RPM:limit=5']:.0f} against {means['FCFS']:.0f}",
        holds=limit < 0.6 * free and means["RPM:limit=5"] < means["VTC:none"],
    )
    accumulated = {
        contender: results[_suite("overload", contender)]["accumulated_difference_max"]
        for contender in OVERLOAD
    }
    page.say(
        "*overload*, the first 360 s: largest accumulated difference of service between the two tenants."
    )
    page.table(
        ("scheduler", "published", "ours"),
        [(name, published, accumulated[contender]) for contender, (name, published) in OVERLOAD.items()],
    )
    order = [accumulated[contender] for contender in ("VTC:oracle", "VTC:noisy", "VTC:none", "FCFS")]
    page.claim(
        "oracle < +-50 % < VTC on *overload*, and FCFS at least 10 times VTC",
        " < ".join(f"{value:,.0f}" for value in order),
        holds=ordered(order) and order[-1] >= 10 * order[-2],
    )
    page.say(
        "All suites: mean service difference, and Jain's index of delivered service over weight, on the same engine."
    )
    page.table(
        ("suite", *SUITE_CONTENDERS),
        [
            (
                name,
                *(
                    f"{run['service_difference']['mean']:.0f} ({run['jain']:.2f})"
                    for run in (results[_suite(name, contender)] for contender in SUITE_CONTENDERS)
                ),
            )
            for name in SUITES
        ],
    )
    broken = [
        f"{run.contender} on {result['workload']}"
        for run, result in results.items()
        if result["bound"] is not None and not result["bound"]["met"]
    ]
    watched = sum(result["bound"] is not None for result in results.values())
    page.claim(
        "every published bound holds in every simulation of this report",
        f"{watched} runs watched" + (f", broken by {', '.join(broken)}" if broken else ""),
        holds=not broken and watched > 0,
    )
    return page
