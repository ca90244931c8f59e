"""Gates, and what preemptions do to L, in the simulator: throughput, time to the first token, tokens computed again.

    .venv/bin/python -m benchmarks.gate --trace arena_27_clients.csv    writes benchmarks/results/gate.{md,json}

Deterministic: the same figures on every machine. About half a minute.
"""

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from equipoise_scheduling import kv_limit
from equipoise_scheduling.batching import BatchingLimits
from equipoise_scheduling.gate import GateSettings
from equipoise_simulator.profiles import Profile, profile_named
from equipoise_simulator.simulation import simulate
from equipoise_simulator.traces import read_trace
from equipoise_simulator.workload import Workload, from_trace

RESULTS = Path(__file__).parent / "results"
DEAR = 5
"""How many times as long a prompt token takes on the engine where preemptions are dear."""
REACTIONS = {"to each": 0.0, "by cost": kv_limit.ALLOWANCE, "none": math.inf}


@dataclass(frozen=True)
class Row:
    """One run."""

    what: str
    engine: str
    scheduler: str
    tokens_per_second: float
    seconds: float
    """Until the last request ended."""
    ttft: dict[str, float]
    tpot: dict[str, float]
    preemptions: int
    recomputed: int


@contextmanager
def allowance(share: float) -> Iterator[None]:
    """Let preemptions cost that share of the time before L reacts."""
    before = kv_limit.ALLOWANCE
    kv_limit.ALLOWANCE = share
    try:
        yield
    finally:
        kv_limit.ALLOWANCE = before


def play(what: str, workload: Workload, scheduler: str, gate: GateSettings, profile: Profile) -> Row:
    """Simulate one variant."""
    document = simulate(workload, scheduler, gate=gate, profile=profile).document()
    return Row(
        what,
        profile.name,
        scheduler,
        document["tokens_per_second"],
        document["simulated_seconds"],
        document["ttft_seconds"],
        document["tpot_seconds"],
        document["preemptions"],
        document["recomputed_tokens"],
    )


def table(rows: list[Row], what: str) -> list[str]:
    """Write rows in Markdown."""
    lines = [
        f"| {what} | engine | scheduler | tokens/s | until the end, s | TTFT mean / p50 / p90 / p99, s | TPOT mean / p99, ms | preemptions, tokens computed again |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        ttft = " / ".join(f"{row.ttft[name]:.1f}" for name in ("mean", "p50", "p90", "p99"))
        lines.append(
            f"| {row.what} | {row.engine} | {row.scheduler} | {row.tokens_per_second:.0f} | {row.seconds:.0f} | {ttft} "
            f"| {1000 * row.tpot['mean']:.0f} / {1000 * row.tpot['p99']:.0f} | {row.preemptions:,}, {row.recomputed:,} |"
        )
    return lines


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    workload = from_trace(read_trace(arguments.trace))
    fast = profile_named("fast")
    dear = replace(fast, name=f"fast, prompts {DEAR} times as dear", a1=DEAR * fast.a1)
    schedulers = ("VTC:noisy", "VTC:average")
    gates, reactions, batching = [], [], []
    with console.status("simulating"):
        for scheduler in schedulers:
            gates += [
                play(f"`{kind}`", workload, scheduler, GateSettings(kind=kind), fast)
                for kind in ("reserve", "prompt", "peak")
            ]
            for profile in (fast, dear):
                for name, share in REACTIONS.items():
                    with allowance(share):
                        reactions.append(play(name, workload, scheduler, GateSettings(), profile))
        limits = {"none": BatchingLimits(), "prefill 1,024": BatchingLimits(prefill_tokens=1024)}
        limits |= {
            f"{target * 1000:.0f} ms between tokens": BatchingLimits(inter_token_seconds=target)
            for target in (0.034, 0.032, 0.03)
        }
        batching += [
            play(name, workload, "VTC:noisy", GateSettings(batching=limit), fast)
            for name, limit in limits.items()
        ]
    head = (
        f"`python -m benchmarks.gate --trace {arguments.trace.name}`. {len(workload.calls):,} requests of "
        f"{len(workload.tenants)} clients, on the profile `fast` (KV cache of {fast.kv_tokens:,} tokens). `VTC:noisy` "
        "knows every length to within +-50 %, `VTC:average` the moving average of each client's answers."
    )
    about = (
        "*to each*: 2 points off for every preemption (at most once in 10 s), 1 back a quiet minute. *by cost*: the same, "
        f"where preemptions cost more than {kv_limit.ALLOWANCE:.0%} of the time; the one in force. *none*: L stays at 95 %."
    )
    lines = ["# Gates in the simulator", "", head, "", "## Kinds of gate", "", *table(gates, "gate"), ""]
    lines += ["## What preemptions do to L (gate `peak`)", "", about, "", *table(reactions, "reaction"), ""]
    lines += ["## Adaptive batching (gate `peak`)", "", *table(batching, "limit"), ""]
    text = "\n".join(lines)
    print(text)
    (arguments.out / "gate.md").write_text(text)
    document = {
        "gates": [asdict(row) for row in gates],
        "reactions": [asdict(row) for row in reactions],
        "batching": [asdict(row) for row in batching],
    }
    (arguments.out / "gate.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
