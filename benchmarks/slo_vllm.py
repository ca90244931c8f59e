"""Promises before one real vLLM with a small KV pool: interactive requests beside batch ones, under FCFS, VTC and Equipoise.

    .venv/bin/python -m benchmarks.slo_vllm      writes benchmarks/results/slo_vllm.{md,json}

The suite `mixed_slo` at a CPU's size: six tenants, one of which asks for three times as much as each of the others; half of
everybody's requests want their first token within a second, half within BATCH_SECONDS. Nobody tells the sidecar how long an
answer will be, but for `max_tokens`. The schedulers take turns, each with the same calls in a round; the simulator replays
them too, with a profile calibrated just before.
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
from pathlib import Path
from statistics import mean, median

from benchmarks.machine import described, machine
from benchmarks.open_loop import Answer, replay, service
from benchmarks.real_engine import Size, calibrated, engine
from benchmarks.sidecar import Account, Sidecar, configuration, start
from rich.console import Console

from equipoise_api.policy import AlgorithmType
from equipoise_api.sidecar_config import SidecarConfig
from equipoise_api.tenant import SloTarget
from equipoise_cluster.vllm import VERSION
from equipoise_scheduling.measures import service_difference
from equipoise_simulator.calibration.calibrate import Calibration
from equipoise_simulator.profiles import Profile
from equipoise_simulator.simulation import simulate
from equipoise_simulator.suites import poisson
from equipoise_simulator.traces import Row as TraceRow
from equipoise_simulator.traces import Trace, capacity
from equipoise_simulator.workload import Call, Workload

RESULTS = Path(__file__).parent / "results"
SIZE = Size(sequences=16, kv_tokens=1536, context=512, block_tokens=32)
SCHEDULERS: tuple[AlgorithmType, ...] = ("FCFS", "VTC", "Equipoise")
GREEDY = "greedy"
SHARES = {GREEDY: 3.0, **{f"modest-{number}": 1.0 for number in range(1, 6)}}
"""What each tenant asks for, in proportion."""
INTERACTIVE, BATCH = (32, 32), (128, 64)
"""Prompt and output tokens."""
INTERACTIVE_SECONDS, BATCH_SECONDS = 1.0, 15.0
"""To the first token."""


@dataclass(frozen=True)
class Outcome:
    """What came of one run. Shares of 1."""

    interactive: float
    """Interactive requests that kept their promise, of all tenants."""
    modest: float
    """Those of the tenants that ask for no more than their share."""
    batch: float
    ttft_p50: float
    """Of interactive requests, in seconds."""
    tokens_per_second: float
    difference: float
    """Mean service difference."""
    preemptions: int
    requests: int


def workload(profile: Profile, load: float, seconds: float, seed: int) -> Workload:
    """Make a load of so many times what the profile can serve."""
    source = random.Random(seed)
    mix = [TraceRow(0.0, "mix", *(INTERACTIVE if number % 2 else BATCH)) for number in range(400)]
    cost = mean(row.cost for row in mix)
    rate = load * capacity(Trace("mix", tuple(mix), seconds), profile, 1) / cost
    rows = sorted(
        (arrival, tenant, source.random() < 0.5)
        for tenant, share in SHARES.items()
        for arrival in poisson(source, rate * share / sum(SHARES.values()), seconds)
    )
    calls = []
    for number, (arrival, tenant, interactive) in enumerate(rows):
        prompt, output = INTERACTIVE if interactive else BATCH
        calls.append(
            Call(
                id=str(number),
                tenant=tenant,
                arrival=arrival,
                prompt_tokens=prompt,
                output_tokens=output,
                max_tokens=output,
                ttft_budget=INTERACTIVE_SECONDS if interactive else BATCH_SECONDS,
            )
        )
    return Workload(name="mixed", calls=tuple(calls), seconds=seconds, warmup=0.0)


def outcome(
    waits: Sequence[tuple[Call, float | None]], tokens_per_second: float, difference: float, preemptions: int
) -> Outcome:
    """Judge calls by their seconds to the first token."""
    verdicts: dict[str, list[bool]] = {"interactive": [], "modest": [], "batch": []}
    interactive: list[float] = []
    for call, ttft in waits:
        assert call.ttft_budget is not None
        kept = ttft is not None and ttft <= call.ttft_budget
        if call.ttft_budget == BATCH_SECONDS:
            verdicts["batch"].append(kept)
            continue
        interactive.append(math.inf if ttft is None else ttft)
        verdicts["interactive"].append(kept)
        if call.tenant != GREEDY:
            verdicts["modest"].append(kept)
    return Outcome(
        **{name: mean(each) for name, each in verdicts.items()},
        ttft_p50=median(interactive),
        tokens_per_second=tokens_per_second,
        difference=difference,
        preemptions=preemptions,
        requests=len(waits),
    )


def measured(load: Workload, answers: list[Answer], seconds: float, preemptions: int) -> Outcome:
    """Measure a real run."""
    tokens = sum(answer.call.prompt_tokens + answer.generated for answer in answers)
    return outcome(
        [(a.call, None if a.first is None else a.first - a.sent) for a in answers],
        tokens / seconds,
        service_difference(service(load, answers), load.ticks).mean,
        preemptions,
    )


def simulated(load: Workload, algorithm: AlgorithmType, profile: Profile) -> Outcome:
    """Simulate the same calls."""
    result = simulate(load, algorithm, gate="peak", profile=profile)
    return outcome(
        [(record.call, record.ttft) for record in result.records],
        result.tokens_per_second,
        result.difference().mean,
        result.preemptions,
    )


def configured(accounts: Sequence[Account], algorithm: AlgorithmType) -> SidecarConfig:
    """Return a configuration in which every tenant was promised the shorter time; batch requests ask for less."""
    config = configuration(list(accounts), algorithm)
    promise = SloTarget(ttft_milliseconds=round(INTERACTIVE_SECONDS * 1000))
    return config.model_copy(
        update={"tenants": [tenant.model_copy(update={"slo": promise}) for tenant in config.tenants]}
    )


def preemptions(sidecar: Sidecar) -> int:
    """Return what the sidecar saw of them in the engine's metrics."""
    return round(sidecar.metrics()["equipoise_engine_preemptions_total", ""])


@dataclass
class Row:
    """One scheduler under one load: an outcome each round."""

    load: float
    scheduler: AlgorithmType
    real: list[Outcome] = field(default_factory=list)
    simulated: list[Outcome] = field(default_factory=list)


def cells(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the means of a row."""

    def over(key: str) -> float:
        return mean(getattr(each, key) for each in outcomes)

    shares = f"{over('interactive'):.0%} ({over('modest'):.0%}) / {over('batch'):.0%}"
    return [
        shares,
        f"{over('ttft_p50'):.2f}",
        f"{over('tokens_per_second'):,.0f}",
        f"{over('difference'):.1f}",
        f"{over('preemptions'):.0f}",
    ]


def report(rows: Sequence[Row], made: Calibration, facts: dict[str, str], seconds: float, name: str) -> str:
    """Write the table in Markdown."""
    requests = sum(each.requests for row in rows for each in row.real)
    lines = [
        "# Promises before a real vLLM",
        "",
        (
            f"{described(facts)} {name}, {SIZE.sequences} sequences, {SIZE.kv_tokens:,} tokens of KV cache in blocks of"
            f" {SIZE.block_tokens}. Six tenants of equal weight, one of which asks for three times as much as each other; half of the"
            f" requests are interactive ({INTERACTIVE[0]} tokens in, {INTERACTIVE[1]} out, first token within {INTERACTIVE_SECONDS:g} s),"
            f" half batch ({BATCH[0]} in, {BATCH[1]} out, {BATCH_SECONDS:g} s), Poisson arrivals over {seconds:g} s,"
            f" {len(rows[0].real)} rounds, {requests:,} requests. The load is in multiples of what the calibrated engine can serve."
            " Promises kept: interactive requests of all tenants (of those within their share) / batch."
        ),
        "",
        "| load | scheduler | engine | promises kept | interactive TTFT p50, s | tokens/s | service difference, mean | preemptions |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for label, outcomes in (("real", row.real), ("simulated", row.simulated)):
            lines.append("| " + " | ".join([f"{row.load:g}", row.scheduler, label, *cells(outcomes)]) + " |")
    lines += ["", f"The simulated engine: a step takes {made.profile.formula}."]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stand-in", action="store_true", help="the stand-in engine in vLLM's place")
    parser.add_argument(
        "--load", type=float, action="append", default=[], help="repeat it; default: 1.3 and 1.6"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals, each run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console, facts = Console(stderr=True, highlight=False), machine("benchmarks.slo_vllm")
    loads: list[float] = arguments.load or [1.3, 1.6]
    rows = {(load, name): Row(load, name) for load in loads for name in SCHEDULERS}
    accounts = {name: Account(f"team/{name}") for name in SHARES}
    headers = {name: account.headers for name, account in accounts.items()}
    with (
        tempfile.TemporaryDirectory() as place,
        engine(Path(place), SIZE, stand_in=arguments.stand_in) as url,
    ):
        folder = Path(place)
        made = calibrated(url, folder, SIZE, console.print)
        for round_ in range(arguments.rounds):
            for load in loads:
                calls = workload(made.profile, load, arguments.seconds, seed=round_)
                # each comes first in turn: the machine's speed drifts
                turn = round_ % len(SCHEDULERS)
                for algorithm in SCHEDULERS[turn:] + SCHEDULERS[:turn]:
                    with start(url, configured([*accounts.values()], algorithm), folder) as sidecar:
                        answers, lasted = asyncio.run(replay(sidecar.url, calls, headers))
                        seen = measured(calls, answers, lasted, preemptions(sidecar))
                    console.print(f"round {round_ + 1}, load {load:g}, {algorithm}: {seen}")
                    rows[load, algorithm].real.append(seen)
                    rows[load, algorithm].simulated.append(simulated(calls, algorithm, made.profile))
    name = "Stand-in engine" if arguments.stand_in else f"vLLM {VERSION} on the CPU"
    text = report(list(rows.values()), made, facts, arguments.seconds, name)
    print(text)
    if arguments.stand_in:
        return
    (arguments.out / "slo_vllm.md").write_text(text)
    document = {
        "machine": facts,
        "profile": made.profile.document(),
        "runs": [dataclasses.asdict(row) for row in rows.values()],
    }
    (arguments.out / "slo_vllm.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
