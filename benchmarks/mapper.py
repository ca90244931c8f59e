"""How well Equinox's metric mapper foresees a simulated engine: latency and utilisation of each request at its dispatch.

The mapper starts from its prior and learns as requests end; the last 500 are judged, each just before it teaches. The
output is what was generated, so this is the mapper's own error, without the predictor's.

    python -m benchmarks.mapper --write
"""

import argparse
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import described, machine
from benchmarks.traces import ARENA, AZURE_CODE, AZURE_CONVERSATION, trace_path
from typing_extensions import override

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.mapper import Load, MetricMapper
from equipoise_scheduling.schedulers.equinox import Equinox
from equipoise_simulator.contender import Contender
from equipoise_simulator.simulation import simulate
from equipoise_simulator.suites import suite
from equipoise_simulator.traces import read_trace
from equipoise_simulator.workload import Workload, from_trace

RESULTS = Path(__file__).parent / "results"
AZURE_SECONDS = 600.0
AZURE_TENANTS = 8
COST_ROUNDS = 20_000


@dataclass(frozen=True, kw_only=True)
class Observed(Contender):
    """A contender whose scheduler can be looked at afterwards."""

    made: list[TenantScheduler] = field(default_factory=list)

    @override
    def scheduler(self, workload: Workload, seed: int) -> TenantScheduler:
        self.made.append(super().scheduler(workload, seed))
        return self.made[-1]


def loads() -> dict[str, tuple[Workload, str]]:
    def azure(name: str) -> Workload:
        trace = read_trace(trace_path(name)).first(AZURE_SECONDS)
        return from_trace(trace, split=AZURE_TENANTS, profile="large")

    return {
        "arena": (from_trace(read_trace(trace_path(ARENA)), profile="fast"), "fast"),
        "azure conversation, 10 min": (azure(AZURE_CONVERSATION), "large"),
        "azure code, 10 min": (azure(AZURE_CODE), "large"),
        "poisson_short_long": (suite("poisson_short_long"), "fast"),
    }


def row(name: str, workload: Workload, profile: str, gate: str) -> str:
    contender = Observed.parse("Equinox:mixture")
    result = simulate(workload, contender, gate=gate, profile=profile)
    (scheduler,) = contender.made
    assert isinstance(scheduler, Equinox)
    errors = scheduler.mapper.errors()
    times = [
        record.ended - record.dispatched
        for record in result.records
        if record.finished and record.ended is not None and record.dispatched is not None
    ]
    latency, utilisation = errors["latency_seconds"], errors["utilisation"]
    mean = sum(times) / len(times)
    return (
        f"| {name} | {gate} | {len(times):,} | {mean:.2f} | {latency.mean_absolute:.2f} ({latency.bias:+.2f}) "
        f"| {latency.mean_absolute / mean:.0%} | {utilisation.mean_absolute:.3f} |"
    )


def microseconds() -> tuple[float, float]:
    """CPU of one prediction and of one lesson."""
    rng = random.Random(1)
    mapper = MetricMapper()
    sent = [
        (rng.randint(1, 2000), rng.randint(1, 500), Load(rng.randint(0, 64), 0, rng.randint(0, 50_000)))
        for _ in range(COST_ROUNDS)
    ]
    start = time.process_time()
    for prompt, output, load in sent:
        mapper.predict(prompt, output, load)
    predicted = time.process_time()
    for prompt, output, load in sent:
        mapper.learn(prompt, output, load, latency=5.0, utilisation=0.5)
    learnt = time.process_time()
    return (predicted - start) / COST_ROUNDS * 1e6, (learnt - predicted) / COST_ROUNDS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/mapper.md")
    arguments = parser.parse_args()
    facts = described(machine("benchmarks.mapper"))
    rows = [
        row(name, workload, profile, gate)
        for name, (workload, profile) in loads().items()
        for gate in ("prompt", "peak")
    ]
    predict, learn = microseconds()
    text = "\n".join(
        [
            "# The metric mapper on a simulated engine",
            "",
            facts,
            "",
            "Error of latency (dispatch to end) and of GPU utilisation over the last 500 requests of a run under Equinox; in",
            "brackets the bias, above 0 where it expects too much. Under `prompt` the engine preempts, which no load at dispatch",
            "foretells.",
            "",
            "| load | gate | requests | mean latency, s | error, s | of the mean | error of utilisation |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            f"CPU: {predict:.1f} us a prediction, {learn:.1f} us a lesson.",
            "",
        ]
    )
    print(text)
    if arguments.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "mapper.md").write_text(text)


if __name__ == "__main__":
    main()
