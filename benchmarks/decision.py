"""CPU per scheduling decision, at 10, 1,000 and 10,000 tenants.

One decision is a request's whole life: enqueue, next, progress a few times, settle. Every tenant is backlogged with
two requests, the state that costs most; the gate admits while fewer than `IN_FLIGHT` are in flight. Ratios are given
because the times depend on the machine: against the same scheduler at 10 tenants, and against FCFS.

    python benchmarks/decision.py --write
"""

import argparse
import gc
import json
import platform
import random
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.gate import Gate
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome, Request, Usage

TENANTS = (10, 1_000, 10_000)
DECISIONS = 10_000
ROUNDS = 7
IN_FLIGHT = 64
PROGRESS = 4
SETTINGS = {"RPM": {"requests_per_minute": 1_000_000_000}}
"""A rate limit that does not act: every request is a decision."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Result:
    """Microseconds of CPU a decision, the quietest of `ROUNDS` rounds."""

    scheduler: str
    tenants: int
    microseconds: float
    """enqueue + next + 4 x progress + settle"""
    next_microseconds: float
    """`next` alone"""
    tick_microseconds: float
    """one tick, with every tenant backlogged"""


def requests(tenants: int, count: int, rng: random.Random) -> list[Request]:
    return [
        Request(
            id=str(at),
            tenant=f"tenant-{at % tenants if at < 2 * tenants else rng.randrange(tenants)}",
            arrival=0.0,
            prompt_tokens=rng.randint(10, 500),
            max_tokens=256,
        )
        for at in range(count)
    ]


def measure(kind: type[TenantScheduler], tenants: int) -> Result:
    rng = random.Random(1)
    settings = {f"tenant-{at}": TenantSettings(weight=1 + at % 4) for at in range(tenants)}
    scheduler = kind(kind.settings_type(**SETTINGS.get(kind.algorithm, {})), settings)
    waiting = deque(requests(tenants, 2 * tenants + (ROUNDS + 1) * DECISIONS + IN_FLIGHT, rng))
    flying: deque[Request] = deque()

    def room(_: Request) -> bool:
        return True

    for _ in range(2 * tenants):
        scheduler.enqueue(waiting.popleft(), 0.0)
    for _ in range(min(IN_FLIGHT, tenants)):
        request = scheduler.next(0.0, room)
        assert request is not None
        flying.append(request)
        scheduler.enqueue(waiting.popleft(), 0.0)
    rounds, in_next, ticks = [], [], []
    for _ in range(ROUNDS + 1):
        gc.collect()
        gc.disable()
        start, nexts = time.process_time(), 0.0
        for _ in range(DECISIONS):
            scheduler.enqueue(waiting.popleft(), 1.0)
            before = time.process_time()
            request = scheduler.next(1.0, room)
            nexts += time.process_time() - before
            assert request is not None
            flying.append(request)
            oldest = flying.popleft()
            for step in range(1, PROGRESS + 1):
                scheduler.progress(oldest, oldest.prompt_tokens, step * 30, 1.0)
            usage = Usage(oldest.prompt_tokens, PROGRESS * 30)
            scheduler.settle(oldest, usage, Outcome.FINISHED, 1.0)
        rounds.append((time.process_time() - start) / DECISIONS * 1e6)
        in_next.append(nexts / DECISIONS * 1e6)
        start = time.process_time()
        scheduler.tick(len(rounds) * 100.0)
        ticks.append((time.process_time() - start) * 1e6)
        gc.enable()
    return Result(
        kind.algorithm,
        tenants,
        *(round(min(each[1:]), 1) for each in (rounds, in_next, ticks)),
    )


def measure_gate(in_flight: int) -> float:
    """Microseconds of CPU of one `fits` after one delivery, with that many requests in flight.

    The pool is one that takes the pass over all of them: neither so full nor so empty that sums decide.
    """
    rng = random.Random(1)
    gate = Gate()
    sent = requests(10, in_flight + 1, rng)
    for request in sent:
        request.predicted_tokens = rng.randint(1, 256)
    candidate = sent.pop()
    for request in sent:
        gate.start(request)
    gate.set_pool(int((gate.used + 0.8 * gate.outstanding) / (gate.percent / 100)))
    best = float("inf")
    for attempt in range(1, 20):
        start = time.process_time()
        for at in range(20):
            request = sent[(attempt * 20 + at) % in_flight]
            gate.progress(request, request.prompt_tokens, attempt)
            assert gate.fits(candidate, 0.0)
        best = min(best, (time.process_time() - start) / 20 * 1e6)
    return round(best, 1)


def table(results: list[Result], gate: dict[int, float]) -> str:
    by = {(result.scheduler, result.tenants): result for result in results}
    lines = [
        "# CPU per scheduling decision",
        "",
        "`python benchmarks/decision.py --write`, one core,",
        f"Python {platform.python_version()}, {platform.machine()}. Microseconds of CPU, the quietest of {ROUNDS} rounds of",
        f"{DECISIONS:,} decisions. A decision is enqueue + next + {PROGRESS} x progress + settle with every tenant backlogged;",
        "a tick comes about once a second.",
        "",
        "| scheduler | tenants | decision, us | to 10 tenants | to FCFS | `next` alone, us | tick, us |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        few, fcfs = by[result.scheduler, TENANTS[0]], by["FCFS", result.tenants]
        lines.append(
            f"| {result.scheduler} | {result.tenants:,} | {result.microseconds} "
            f"| {result.microseconds / few.microseconds:.2f} | {result.microseconds / fcfs.microseconds:.2f} "
            f"| {result.next_microseconds} | {result.tick_microseconds:,.0f} |"
        )
    lines += [
        "",
        "The gate (`peak`), one `fits` after one delivery; it is linear in the requests in flight:",
        "",
        "| in flight | us |",
        "| ---: | ---: |",
        *(f"| {count} | {cost} |" for count, cost in gate.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/decision.{md,json}")
    arguments = parser.parse_args()
    results = [measure(SCHEDULERS[name], count) for name in sorted(SCHEDULERS) for count in TENANTS]
    gate = {count: measure_gate(count) for count in (16, 64, 256)}
    text = table(results, gate)
    print(text)
    if arguments.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "decision.md").write_text(text)
        data = {"decisions": [asdict(result) for result in results], "gate_microseconds": gate}
        (RESULTS / "decision.json").write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
