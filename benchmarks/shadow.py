"""CPU a shadow scheduler adds to a request, by algorithm and number of shadows.

The enforced scheduler is VTC with every tenant backlogged. A request's life is measured as in decision.py (enqueue,
next, 4 x progress, settle), without shadows and with one or three of them, deliveries being taken over once in 64 requests
(four times a second at 256 requests a second).

    python benchmarks/shadow.py --write
"""

import argparse
import gc
import json
import platform
import random
import time
from collections import deque
from pathlib import Path

from equipoise_scheduling.contract import SchedulerSettings, TenantSettings
from equipoise_scheduling.registry import SCHEDULERS, create
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_scheduling.shadows import Shadows

TENANTS = (10, 1_000)
REQUESTS = 2_000
ROUNDS = 4
IN_FLIGHT = 64
PROGRESS = 4
SECONDS = 1 / 256
CASES = ((), ("FCFS",), ("VTC",), ("Equipoise",), ("FCFS", "DRR", "Equipoise"))
RESULTS = Path(__file__).parent / "results"


def settings(algorithm: str) -> SchedulerSettings:
    return SCHEDULERS[algorithm].settings_type()


def measure(names: tuple[str, ...], tenants: int) -> float:
    """Microseconds of CPU a request, the quietest round."""
    rng = random.Random(1)
    known = {f"tenant-{at}": TenantSettings() for at in range(tenants)}
    scheduler = create("VTC", settings("VTC"), known)
    shadows = Shadows()
    shadows.configure({name: settings(name) for name in names}, known, scheduler, 0.0)
    now, serial = 0.0, 0
    flying: deque[Request] = deque()

    def arrive() -> None:
        nonlocal serial
        tenant = f"tenant-{serial % tenants if serial < 2 * tenants else rng.randrange(tenants)}"
        request = Request(
            id=str(serial), tenant=tenant, arrival=now, prompt_tokens=rng.randint(10, 500), max_tokens=256
        )
        serial += 1
        scheduler.enqueue(request, now)
        shadows.arrived(request, scheduler, now)

    def start() -> None:
        request = scheduler.next(now, lambda _: True)
        assert request is not None
        flying.append(request)
        shadows.decided((request,), scheduler, now)

    for _ in range(2 * tenants + IN_FLIGHT):
        arrive()
    for _ in range(IN_FLIGHT):
        start()
    rounds = []
    for _ in range(ROUNDS + 1):
        gc.collect()
        gc.disable()
        began = time.process_time()
        for _ in range(REQUESTS):
            now += SECONDS
            arrive()
            start()
            oldest = flying.popleft()
            for step in range(1, PROGRESS + 1):
                scheduler.progress(oldest, oldest.prompt_tokens, step * 30, now)
            usage = Usage(oldest.prompt_tokens, PROGRESS * 30)
            scheduler.settle(oldest, usage, Outcome.FINISHED, now)
            shadows.ended(oldest, usage, Outcome.FINISHED, scheduler, now)
        rounds.append((time.process_time() - began) / REQUESTS * 1e6)
        gc.enable()
    for shadow in shadows:
        assert shadow.off is None, shadow.off
    return round(min(rounds[1:]), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/shadow.{md,json}")
    arguments = parser.parse_args()
    results = {
        ", ".join(case) or "none": {count: measure(case, count) for count in TENANTS} for case in CASES
    }
    lines = [
        "# CPU that shadow schedulers add",
        "",
        f"`python benchmarks/shadow.py --write`, one core, Python {platform.python_version()}, {platform.machine()}. Microseconds of CPU for a",
        f"request's whole life under an enforced VTC with every tenant backlogged, the quietest of {ROUNDS} rounds of {REQUESTS:,} requests. Compare",
        "columns with the first row: the times depend on the machine.",
        "",
        "| shadows | "
        + " | ".join(f"{count:,} tenants" for count in TENANTS)
        + " | to none, 1,000 tenants |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | "
            + " | ".join(str(by[count]) for count in TENANTS)
            + f" | {by[1000] / results['none'][1000]:.2f} |"
            for name, by in results.items()
        ),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.write:
        (RESULTS / "shadow.md").write_text(text)
        (RESULTS / "shadow.json").write_text(json.dumps({"microseconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
