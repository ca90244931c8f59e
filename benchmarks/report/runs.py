"""Simulations by description: what a section of the report wants run, run once each, on all cores."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from equipoise_simulator.contender import Contender
from equipoise_simulator.engines import GateName
from equipoise_simulator.profiles import Profile
from equipoise_simulator.result import Metric
from equipoise_simulator.simulation import simulate
from equipoise_simulator.suites import suite
from equipoise_simulator.traces import read_trace
from equipoise_simulator.workload import Workload

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Load:
    """A workload by the function that makes it, so that it can be made in another process."""

    make: Callable[..., Workload]
    arguments: tuple[Any, ...] = ()

    def __call__(self) -> Workload:
        """Make it."""
        return self.make(*self.arguments)


@dataclass(frozen=True, slots=True)
class Run:
    """One simulation."""

    load: Load
    contender: str
    gate: GateName | None = None
    profile: str | Profile | None = None
    metric: Metric = "token"
    seed: int = 0
    since: float = 0.0
    """Seconds from which on the tenants' `service_since` counts."""
    ablation: Callable[[Contender], Contender] | None = None
    """Takes something away from the contender."""
    patience: float = math.inf
    """Seconds after which an answer comes too late for `answered_tokens_per_second`, whether its client leaves or not."""

    def __call__(self) -> Document:
        """Run it and return its measures."""
        contender = Contender.parse(self.contender)
        if self.ablation is not None:
            contender = self.ablation(contender)
        load = self.load()
        began = time.process_time()
        result = simulate(load, contender, gate=self.gate, profile=self.profile, seed=self.seed)
        spent = time.process_time() - began
        document = {**result.document(self.metric), "cpu_seconds": spent}
        answers: dict[str, list[float]] = {}
        tokens = 0
        for record in result.records:
            if record.finished and record.ended is not None:
                seconds = record.ended - record.arrival
                if seconds <= self.patience:
                    answers.setdefault(record.tenant, []).append(seconds)
                    tokens += record.prompt + record.generated
        document["answered_tokens_per_second"] = tokens / result.simulated_seconds
        for name, tenant in document["tenants"].items():
            series, weight = result.series[name], result.weights[name]
            tenant["service_since"] = weight * series.received(self.since, result.workload.seconds)
            tenant["answer_seconds"] = fmean(answers[name]) if name in answers else None
        return document


Results = Mapping[Run, Document]


def named(name: str, seed: int = 0, load: float | None = None) -> Workload:
    """Make a suite's workload."""
    return suite(name, seed=seed, load=load)


def traced(path: Path) -> Workload:
    """Make the suite `real` of a trace."""
    return suite("real", trace=read_trace(path))


def execute(
    runs: Iterable[Run], tell: Callable[[int, int, Run], None] = lambda *_: None
) -> dict[Run, Document]:
    """Run each one once, on all cores; `tell` hears (done, of, which)."""
    wanted = list(dict.fromkeys(runs))
    results: dict[Run, Document] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        futures = {pool.submit(run): run for run in wanted}
        for future in as_completed(futures):
            run = futures[future]
            results[run] = future.result()
            tell(len(results), len(wanted), run)
    return results
