"""What the simulator itself costs: an hour of production traffic, under every scheduler."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.report.page import Inputs, Page
from benchmarks.report.runs import Load, Results, Run

from equipoise_simulator.profiles import profile_named
from equipoise_simulator.traces import read_trace
from equipoise_simulator.workload import Workload, from_trace

CONTENDERS = (
    "FCFS",
    "RoundRobin",
    "RPM",
    "LCF",
    "DRR",
    "VTC",
    "FairServe",
    "Equinox",
    "ExFairS",
    "Equipoise",
)
PROFILE = replace(profile_named("large"), name="large, long context", max_model_len=16_384)
TENANTS = 10


def hour(path: Path) -> Workload:
    """Deal the hour of Azure's conversations to ten tenants by Zipf's law."""
    return from_trace(read_trace(path), split=TENANTS)


def _run(inputs: Inputs, contender: str) -> Run:
    return Run(Load(hour, (Path(inputs.azure_conversation),)), contender, profile=PROFILE)


def runs(inputs: Inputs) -> list[Run]:
    """Say what must be simulated."""
    return [_run(inputs, contender) for contender in CONTENDERS]


def page(inputs: Inputs, results: Results) -> Page:
    """Write the section."""
    page = Page("The simulator")
    page.say(
        f"One hour of Azure's conversations (19,366 requests), dealt to {TENANTS} tenants by Zipf's law, on a large engine."
        " CPU seconds of one core, reading the trace left out."
    )
    found = {contender: results[_run(inputs, contender)] for contender in CONTENDERS}
    page.table(
        (
            "scheduler",
            "CPU, s",
            "simulated requests a CPU second",
            "requests finished",
            "tokens/s",
            "TTFT mean, s",
        ),
        [
            (
                contender,
                run["cpu_seconds"],
                run["requests"]["arrived"] / run["cpu_seconds"],
                run["requests"]["finished"],
                run["tokens_per_second"],
                run["ttft_seconds"]["mean"],
            )
            for contender, run in found.items()
        ],
    )
    slowest = max(run["cpu_seconds"] for run in found.values())
    page.claim(
        "an hour of traffic takes less than 10 s of one core", f"{slowest:.1f} s at most", holds=slowest < 10
    )
    return page
