"""How hard the demo drives its engines: how fast both run, and whether that queues anything at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from equipoise_demo.places import DemoError
from equipoise_simulator.profiles import PROFILES, Profile
from equipoise_simulator.traces import demand_ratio

if TYPE_CHECKING:
    from equipoise_demo.traffic import Traffic
    from equipoise_simulator.traces import Trace

ENGINES = 3
WANTED_RATIO = 1.35
LEAST_RATIO = 1.1
PACE = 1.0
TRACE_PACE = 6.0
"""Of a file's trace."""

ENGINE = replace(PROFILES["fast"], kv_tokens=3_328, max_model_len=3_328)
"""A third of the KV pool that the VTC paper's GPU has: three of these have about its capacity, so a trace made for it fits."""


@dataclass(frozen=True)
class Load:
    """What is replayed, and how fast engines and replay run."""

    traffic: Traffic
    ratio: float
    """Demand over what the engines can serve."""
    pace: float
    """Seconds of the trace in a real second."""
    speed: float
    """The engines' speed in the trace's time; 1 is the profile's own."""

    @property
    def trace(self) -> Trace:
        """Its clients are Tenants' names."""
        return self.traffic.trace


def stand_in_load(traffic: Traffic, *, pace: float, speed: float | None) -> Load:
    """Choose the engines' speed, unless given, so that demand is `WANTED_RATIO` of what they can serve.

    DemoError when nothing would queue, or a request fits no engine.
    """
    trace = traffic.trace
    for number, row in enumerate(trace.rows, start=1):
        if row.input_tokens + row.output_tokens > ENGINE.max_model_len:
            raise DemoError(
                f"{trace.name}: request {number} has {row.input_tokens + row.output_tokens} tokens, and the demo's engines "
                f"take {ENGINE.max_model_len}"
            )
    at_speed_one = demand_ratio(trace, ENGINE, ENGINES)
    speed = at_speed_one / WANTED_RATIO if speed is None else speed
    load = Load(traffic, at_speed_one / speed, pace, speed)
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
