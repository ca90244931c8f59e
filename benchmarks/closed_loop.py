"""Does the simulator predict a real vLLM? Calibrate, simulate a load, replay that load for real, compare.

    .venv/bin/python -m benchmarks.closed_loop        writes benchmarks/results/closed_loop.{md,json}

The loads have nothing of the calibration's: three tenants of different lengths and rhythms, open loop, less and more than the
engine can serve. The same calls go through the simulator and, over HTTP, through a sidecar to the engine, under the same
scheduler, gate and predictor. A virtual machine's speed drifts by ten percent from one minute to another, with nothing else
on it; so all is done in rounds, the engine is calibrated (through a sidecar too) before each and after the last, every load
is simulated at the speed of each calibration, and means are compared. The engine's core has one CPU to itself, as a GPU would be; front end, sidecar and clients share the others.
`--stand-in` takes the stand-in engine in vLLM's place: what is left then is the error of the method.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.machine import described, machine
from benchmarks.open_loop import Answer, replay, service
from benchmarks.real_engine import Size, calibrated, engine
from benchmarks.sidecar import Account, configuration, start
from rich.console import Console

from equipoise_api.policy import AlgorithmType, Capacity
from equipoise_cluster.vllm import VERSION
from equipoise_scheduling.measures import service_difference, summary
from equipoise_simulator.calibration.calibrate import Calibration
from equipoise_simulator.calibration.steps import WINDOW
from equipoise_simulator.profiles import Profile
from equipoise_simulator.simulation import simulate
from equipoise_simulator.traces import Row as TraceRow
from equipoise_simulator.traces import Trace, capacity
from equipoise_simulator.workload import Call, Workload

RESULTS = Path(__file__).parent / "results"
SIZE = Size(sequences=8, kv_tokens=4096, context=1024)
SECONDS = 30.0
LOADS = {"busy": 0.5, "overload": 2.5}
"""What a load asks for over what the engine can serve. An error of the throughput shows demand / (demand - 1) times in the
waits of an overload: just above 1 nothing could be predicted. The bursts of one tenant take the busy load to 0.8."""
TENANTS: dict[str, tuple[float, tuple[int, int], tuple[int, int]]] = {
    "chat": (0.4, (20, 200), (10, 80)),
    "batch": (0.4, (100, 600), (60, 120)),
    "bursty": (0.2, (20, 100), (30, 60)),
}
"""Share of the demand, range of prompt tokens, range of output tokens; lengths are log-uniform."""
TOLERANCE = 0.10


@dataclass(frozen=True)
class Figures:
    """What is compared."""

    ttft_mean: float
    ttft_p50: float
    ttft_p90: float
    tokens_per_second: float
    difference_mean: float
    difference_max: float
    requests: int


def workload(profile: Profile, load: str, seed: int) -> Workload:
    """Make a load: so many times what the profile can serve, over SECONDS."""
    source = random.Random(seed)
    drawn: list[TraceRow] = []
    total = 1.0
    served: dict[str, float] = dict.fromkeys(TENANTS, 0.0)

    def length(bounds: tuple[int, int]) -> int:
        low, high = bounds
        return round(float(low * (high / low) ** source.random()))

    # Draw a mix large enough to measure what the engine can serve of it, then as much of it as the time takes.
    while len(drawn) < 2000:
        tenant = min(TENANTS, key=lambda name: served[name] / TENANTS[name][0])
        row = TraceRow(0.0, tenant, length(TENANTS[tenant][1]), length(TENANTS[tenant][2]))
        served[tenant] += row.cost
        drawn.append(row)
    rate = capacity(Trace("mix", tuple(drawn[:400]), SECONDS), profile, 1)
    rows: list[TraceRow] = []
    for row in drawn:
        if total > LOADS[load] * rate * SECONDS:
            break
        total += row.cost
        at = source.uniform(0, SECONDS)
        if row.client == "bursty":  # two bursts of five seconds
            at = source.choice((3, 20)) + source.uniform(0, 5)
        rows.append(dataclasses.replace(row, arrival=at))
    rows.sort(key=lambda row: row.arrival)
    calls = tuple(
        Call(
            id=str(number),
            tenant=row.client,
            arrival=row.arrival,
            prompt_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            max_tokens=row.output_tokens,
        )
        for number, row in enumerate(rows)
    )
    return Workload(name=load, calls=calls, seconds=SECONDS, warmup=0.0)


def measured(load: Workload, answers: list[Answer], seconds: float) -> Figures:
    """Measure a real run as the simulator measures its own."""
    ttft = summary([answer.first - answer.sent for answer in answers if answer.first is not None])
    tokens = sum(answer.call.prompt_tokens + answer.generated for answer in answers)
    difference = service_difference(service(load, answers), load.ticks)
    return Figures(
        ttft.mean, ttft.p50, ttft.p90, tokens / seconds, difference.mean, difference.max, len(answers)
    )


def predicted(load: Workload, algorithm: AlgorithmType, profile: Profile, speeds: Sequence[float]) -> Figures:
    """Simulate the same calls at each of the speeds; return the means."""
    runs = [simulated(load, algorithm, profile.scaled(speed)) for speed in speeds]
    means = {
        field.name: mean(getattr(run, field.name) for run in runs) for field in dataclasses.fields(Figures)
    }
    return Figures(**means)


def simulated(load: Workload, algorithm: AlgorithmType, profile: Profile) -> Figures:
    """Simulate the same calls."""
    result = simulate(load, algorithm, gate="peak", profile=profile)
    ttft = summary([record.ttft for record in result.records if record.ttft is not None])
    difference = result.difference()
    return Figures(
        ttft.mean,
        ttft.p50,
        ttft.p90,
        result.tokens_per_second,
        difference.mean,
        difference.max,
        len(result.records),
    )


@dataclass
class Row:
    """One kind of load under one scheduler: a figure each round."""

    load: str
    scheduler: str
    simulated: list[Figures] = field(default_factory=list)
    real: list[Figures] = field(default_factory=list)

    def means(self, key: str) -> tuple[float, float]:
        """Return simulated and real."""
        return mean(getattr(each, key) for each in self.simulated), mean(
            getattr(each, key) for each in self.real
        )

    def ratio(self, key: str) -> float:
        """Return simulated over real."""
        simulated, real = self.means(key)
        return simulated / real if real else math.inf


def report(rows: list[Row], made: Calibration, speeds: list[float], facts: dict[str, str], name: str) -> str:
    """Write the comparison in Markdown."""
    errors = "; ".join(
        f"{f'{clients} requests at a time' if clients else 'a prompt alone'} {error.median:.1%} (sum {error.bias:+.1%})"
        for clients, error in made.fit.errors.items()
    )
    drift = ", ".join(f"{speed:.2f}" for speed in speeds)
    offered = ", ".join(
        f"{name} asks for {times} times what the engine can serve" for name, times in LOADS.items()
    )
    requests = sum(each.requests for row in rows for each in row.real)
    lines = [
        "# Does the simulator predict a real engine?",
        "",
        (
            f"{described(facts)} {name}, {SIZE.sequences} sequences, {SIZE.kv_tokens:,} tokens of KV cache. Calibrated: a step takes "
            f"{made.profile.formula}. Median error of the fit for {WINDOW} steps: {errors}. Speed at each calibration, to all: {drift}. The loads: {len(TENANTS)} tenants in {SECONDS:.0f} s, {offered}; {len(rows[0].real)} rounds, "
            f"{requests:,} requests. Means over the rounds; behind the real ones, the least and the most."
        ),
        "",
        "| load | scheduler | measure | simulated | real | simulated / real |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for label, key in (
            ("TTFT mean, s", "ttft_mean"),
            ("TTFT p50, s", "ttft_p50"),
            ("TTFT p90, s", "ttft_p90"),
            ("tokens/s", "tokens_per_second"),
            ("service difference, mean", "difference_mean"),
            ("service difference, max", "difference_max"),
        ):
            simulated, real = row.means(key)
            seen = [getattr(each, key) for each in row.real]
            lines.append(
                f"| {row.load} | {row.scheduler} | {label} | {simulated:,.2f} | {real:,.2f} ({min(seen):,.2f} to "
                f"{max(seen):,.2f}) | {row.ratio(key):.3f} |"
            )
    lines.append("")
    for load, demand in LOADS.items():
        compared = {"mean TTFT": "ttft_mean", "throughput": "tokens_per_second"}
        if demand > 1:  # else everybody gets what he asks for, and the difference is nothing
            compared["mean service difference"] = "difference_mean"
        worst = {
            name: max(abs(row.ratio(key) - 1) for row in rows if row.load == load)
            for name, key in compared.items()
        }
        verdict = "within" if max(worst.values()) <= TOLERANCE else "not within"
        off = ", ".join(f"{name} {error:.1%}" for name, error in worst.items())
        lines += [f"*{load}*: {verdict} {TOLERANCE:.0%}; off by at most: {off}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stand-in", action="store_true", help="the stand-in engine in vLLM's place")
    parser.add_argument("--scheduler", action="append", choices=["FCFS", "VTC", "Equipoise"], default=[])
    parser.add_argument("--rounds", type=int, default=3, help="of eight minutes each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console, facts = Console(stderr=True, highlight=False), machine("benchmarks.closed_loop")
    schedulers: list[AlgorithmType] = arguments.scheduler or ["FCFS", "VTC", "Equipoise"]
    rows = {(load, name): Row(load, name) for load in LOADS for name in schedulers}
    replayed: list[tuple[Workload, AlgorithmType]] = []
    with (
        tempfile.TemporaryDirectory() as place,
        engine(Path(place), SIZE, stand_in=arguments.stand_in) as url,
    ):
        folder = Path(place)
        calibrations = [calibrated(url, folder, SIZE, console.print)]
        accounts = [Account(f"team/{name}") for name in TENANTS]
        headers = {name: account.headers for name, account in zip(TENANTS, accounts, strict=True)}
        for round_ in range(arguments.rounds):
            loads = [workload(calibrations[0].profile, name, arguments.seed + round_) for name in LOADS]
            for algorithm in schedulers:
                config = configuration(accounts, algorithm, Capacity(max_in_flight=SIZE.sequences))
                for load in loads:
                    with start(url, config, folder) as sidecar:
                        seen = measured(load, *asyncio.run(replay(sidecar.url, load, headers)))
                    console.print(f"round {round_ + 1}, {algorithm}, {load.name}: {seen}")
                    rows[load.name, algorithm].real.append(seen)
                    replayed.append((load, algorithm))
            calibrations.append(calibrated(url, folder, SIZE, console.print))
    made = reduce(Calibration.joined, calibrations)
    speeds = [made.fit.speed(each.observations) for each in calibrations]
    for load, algorithm in replayed:
        rows[load.name, algorithm].simulated.append(predicted(load, algorithm, made.profile, speeds))
    text = report(
        list(rows.values()),
        made,
        speeds,
        facts,
        "Stand-in engine" if arguments.stand_in else f"vLLM {VERSION} on the CPU",
    )
    print(text)
    if arguments.stand_in:
        return
    (arguments.out / "closed_loop.md").write_text(text)
    document: dict[str, Any] = {
        "machine": facts,
        "speeds": speeds,
        "profile": made.profile.document(),
        "runs": [dataclasses.asdict(row) for row in rows.values()],
    }
    (arguments.out / "closed_loop.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
