"""Workloads by name: those of the VTC paper's artifact, of ExFairS and FairServe, and one of ours.

| suite | what it is |
| --- | --- |
| overload ... overload_weighted | synthetic loads of the VTC paper (arXiv 2401.00588) on the "papers" profile |
| real | a trace, by default on the "papers" profile |
| mixed_slo | interactive requests beside batch ones, within and between tenants; on the "fast" profile |
| exfairs_1 ... exfairs_5 | the scenarios of ExFairS' artifact (AAAI 2026) |
| interactions, interactions_open | LLM agents' interactions after FairServe's statistics; see `interactions.py` |

Rates are requests a second, times seconds; the same seed gives the same workload.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from equipoise_simulator.exfairs import SCENARIOS, exfairs
from equipoise_simulator.interactions import interactions
from equipoise_simulator.workload import Call, Workload, from_trace

if TYPE_CHECKING:
    from equipoise_simulator.traces import Trace

ON_OFF_SECONDS = 60.0


def uniform(rate: float, seconds: float, start: float = 0.0) -> Iterator[float]:
    """Yield arrivals at even intervals, the first at the start."""
    for number in range(math.ceil(rate * seconds - 1e-9)):
        yield start + number / rate


def poisson(source: random.Random, rate: float, seconds: float) -> Iterator[float]:
    """Yield arrivals of a Poisson process."""
    now = source.expovariate(rate)
    while now < seconds:
        yield now
        now += source.expovariate(rate)


def on_off(arrivals: Iterator[float], period: float = ON_OFF_SECONDS) -> Iterator[float]:
    """Keep only what arrives in the first, third, fifth ... period."""
    return (arrival for arrival in arrivals if int(arrival // period) % 2 == 0)


def rising(first: float, last: float, seconds: float) -> Iterator[float]:
    """Yield arrivals whose rate rises from `first` to `last` evenly."""
    growth = (last - first) / seconds
    for number in range(math.ceil((first + last) / 2 * seconds - 1e-9)):
        yield (math.sqrt(first * first + 2 * growth * number) - first) / growth


def _senders(
    name: str, seconds: float, senders: list[tuple[Iterator[float], int, int]], **fields: Any
) -> Workload:
    """Make a workload of tenants that each send requests of one size: (arrivals, input, output)."""
    rows = sorted(
        (arrival, tenant, prompt, output)
        for tenant, (arrivals, prompt, output) in enumerate(senders)
        for arrival in arrivals
    )
    return Workload(
        name=name,
        calls=tuple(
            Call(
                id=str(number),
                tenant=f"client-{tenant}",
                arrival=arrival,
                prompt_tokens=prompt,
                output_tokens=output,
            )
            for number, (arrival, tenant, prompt, output) in enumerate(rows)
        ),
        seconds=seconds,
        profile="papers",
        **fields,
    )


def overload(seed: int) -> Workload:
    """Both tenants ask for more than half of the engine."""
    del seed
    rates = (1.5, 3)
    return _senders("overload", 360, [(uniform(rate, 360), 256, 256) for rate in rates], warmup=0.0)


def proportional(seed: int) -> Workload:
    """Two tenants within their share, one beyond it."""
    del seed
    return _senders("proportional", 600, [(uniform(rate, 600), 256, 256) for rate in (0.25, 0.5, 1.5)])


def on_off_less(seed: int) -> Workload:
    """Let a tenant within its share come and go."""
    del seed
    return _senders("on_off_less", 600, [(on_off(uniform(0.5, 600)), 256, 256), (uniform(2, 600), 256, 256)])


def on_off_overload(seed: int) -> Workload:
    """Let a tenant beyond its share come and go."""
    del seed
    return _senders(
        "on_off_overload", 600, [(on_off(uniform(2, 600)), 256, 256), (uniform(3, 600), 256, 256)]
    )


def poisson_short_long(seed: int) -> Workload:
    """Many short requests beside few long ones."""
    source = random.Random(seed)  # noqa: S311 - a reproducible load, no secret
    return _senders(
        "poisson_short_long",
        600,
        [(poisson(source, 8, 600), 64, 64), (poisson(source, 1.5, 600), 256, 256)],
    )


def poisson_short_long_2(seed: int) -> Workload:
    """Long prompts with short answers beside the reverse."""
    source = random.Random(seed)  # noqa: S311 - a reproducible load, no secret
    return _senders(
        "poisson_short_long_2",
        600,
        [(poisson(source, 8, 600), 512, 32), (poisson(source, 1.5, 600), 32, 512)],
    )


def increase(seed: int) -> Workload:
    """Let one tenant's load rise beyond its share."""
    del seed
    return _senders("increase", 600, [(uniform(0.5, 600), 256, 256), (rising(0.2, 2, 600), 256, 256)])


def dist_shift(seed: int) -> Workload:
    """Change the loads twice."""
    del seed
    first = [*on_off(uniform(0.5, 300)), *uniform(1, 300, 300), *uniform(0.5, 300, 600)]
    second = [*uniform(2, 300), *uniform(1, 300, 300), *uniform(1.5, 300, 600)]
    return _senders("dist_shift", 900, [(iter(first), 256, 256), (iter(second), 256, 256)])


def overload_weighted(seed: int) -> Workload:
    """Four tenants with weights 1 to 4, all beyond their share."""
    del seed
    rates = (0.8, 0.8, 1.2, 1.6)
    return _senders(
        "overload_weighted",
        360,
        [(uniform(rate, 360), 256, 256) for rate in rates],
        weights={f"client-{tenant}": tenant + 1.0 for tenant in range(4)},
        warmup=0.0,
    )


def mixed_slo(seed: int, load: float = 1.3) -> Workload:
    """Half of everybody's requests interactive (1 s to the first token), half batch (60 s); one tenant asks for three times as much.

    `load` is the x of the rates: 2.7x once and 0.9x five times.
    """
    source = random.Random(seed)  # noqa: S311 - a reproducible load, no secret
    rows = sorted(
        (arrival, tenant, source.random() < 0.5)
        for tenant, rate in enumerate([2.7, *[0.9] * 5])
        for arrival in poisson(source, rate * load, 600)
    )
    return Workload(
        name="mixed_slo",
        calls=tuple(
            Call(
                id=str(number),
                tenant=f"client-{tenant}",
                arrival=arrival,
                prompt_tokens=64 if interactive else 256,
                output_tokens=64 if interactive else 128,
                ttft_budget=1.0 if interactive else 60.0,
            )
            for number, (arrival, tenant, interactive) in enumerate(rows)
        ),
        seconds=600,
    )


_SUITES: dict[str, Callable[[int], Workload]] = {
    "overload": overload,
    "proportional": proportional,
    "on_off_less": on_off_less,
    "on_off_overload": on_off_overload,
    "poisson_short_long": poisson_short_long,
    "poisson_short_long_2": poisson_short_long_2,
    "increase": increase,
    "dist_shift": dist_shift,
    "overload_weighted": overload_weighted,
    "mixed_slo": mixed_slo,
    "interactions": interactions,
    "interactions_open": partial(interactions, closed_loop=False),
    **{f"exfairs_{number}": partial(exfairs, number) for number in SCENARIOS},
}
SUITES = (*_SUITES, "real")
"""All names."""


def suite(name: str, *, seed: int = 0, trace: Trace | None = None, load: float | None = None) -> Workload:
    """Make the workload of that name. ValueError for an unknown one.

    `real` needs `trace`; `load` is `mixed_slo`'s, 1.3 where nothing is said.
    """
    if name == "real":
        if trace is None:
            raise ValueError("suite real replays a trace: name its file with --trace")
        return replace(from_trace(trace, profile="papers"), name="real")
    if name not in _SUITES:
        raise ValueError(f"suite {name!r} is unknown: use one of {', '.join(SUITES)}")
    if load is not None:
        if name != "mixed_slo":
            raise ValueError(f"load={load:g}: only mixed_slo has one")
        return mixed_slo(seed, load)
    return _SUITES[name](seed)
