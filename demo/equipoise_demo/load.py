"""How hard the demo drives its engines: which trace, how fast, and whether that queues anything at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from equipoise_demo.places import DemoError, tenant_of
from equipoise_simulator.profiles import PROFILES, Profile
from equipoise_simulator.traces import Trace, arena_like, demand_ratio, read_trace

if TYPE_CHECKING:
    from pathlib import Path

ENGINES = 3
SLICE_SECONDS = 150.0
WANTED_RATIO = 1.35
LEAST_RATIO = 1.1
PACE = 6.0

ENGINE = replace(PROFILES["fast"], kv_tokens=3_328, max_model_len=3_328)
"""A third of the KV pool that the VTC paper's GPU has: three of these have about its capacity, so a trace made for it fits."""


@dataclass(frozen=True)
class Load:
    """What is replayed, and how fast engines and replay run."""

    trace: Trace
    """Its clients are Tenants' names."""
    ratio: float
    """Demand over what the engines can serve."""
    pace: float
    """Seconds of the trace in a real second."""
    speed: float
    """The engines' speed in the trace's time; 1 is the profile's own."""

    @property
    def capacity(self) -> float:
        """Weighted tokens a second of the trace that the engines can serve."""
        return sum(row.cost for row in self.trace.rows) / self.trace.seconds / self.ratio


def load_trace(path: Path | None, seconds: float | None) -> Trace:
    """Read a trace, or make the look-alike; all of it, or its first `seconds`. TraceError or OSError when it cannot be read."""
    trace = arena_like() if path is None else read_trace(path)
    if seconds is not None:
        trace = trace.first(seconds)
    rows = tuple(replace(row, client=tenant_of(row.client)) for row in trace.rows)
    return Trace(trace.name, rows, trace.seconds)


def stand_in_load(trace: Trace, *, pace: float, speed: float | None) -> Load:
    """Choose the engines' speed, unless given, so that demand is `WANTED_RATIO` of what they can serve.

    DemoError when nothing would queue, or a request fits no engine.
    """
    for number, row in enumerate(trace.rows, start=1):
        if row.input_tokens + row.output_tokens > ENGINE.max_model_len:
            raise DemoError(
                f"{trace.name}: request {number} has {row.input_tokens + row.output_tokens} tokens, and the demo's engines "
                f"take {ENGINE.max_model_len}"
            )
    at_speed_one = demand_ratio(trace, ENGINE, ENGINES)
    speed = at_speed_one / WANTED_RATIO if speed is None else speed
    load = Load(trace, at_speed_one / speed, pace, speed)
    refuse_idle(load.ratio, f"lower --speed to {at_speed_one / WANTED_RATIO:.2g}")
    return load


def engine_profile(load: Load) -> tuple[Profile, float]:
    """Return the engines' profile and how much faster than it they run in real time."""
    return ENGINE, load.speed * load.pace


def refuse_idle(ratio: float, mend: str) -> None:
    """Raise DemoError below `LEAST_RATIO`."""
    if ratio < LEAST_RATIO:
        raise DemoError(
            f"demand is {ratio:.2f} times what the engines can serve: below {LEAST_RATIO} nothing queues, and there is nothing "
            f"to show; {mend}"
        )
