"""What a sidecar tells the operator: `GET /equipoise/v1/state`. Figures cover the last `window_seconds`.

Figures that the operator adds up have limits here, so that a sidecar which tells nonsense is refused by the name of the
field, and no status is made of it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from equipoise_api.gpu import GpuState
from equipoise_api.latency import LatencyHistogram
from equipoise_api.model import ApiModel, Known, Weight
from equipoise_api.sidecar_config import SCHEMA_VERSION, PolicyReference

Whole = Annotated[int, Field(ge=-(2**40), le=2**40)]
"""A count. What was delivered is corrected later, so that a window's may be less than 0."""
Amount = Annotated[float, Field(ge=-1e18, le=1e18, allow_inf_nan=False)]
"""Weighted tokens, or nanoseconds of the engine where cost is profiled."""
RejectionReason = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class EngineState(ApiModel):
    """The engine as the sidecar sees it."""

    reachable: bool = False
    """The last scrape or probe was answered."""
    signal_seen: bool = True
    """Metrics were read at least once since the sidecar started."""
    signal_stale: bool = True
    """Older than three scrapes: dispatch goes on by the sidecar's own counts."""
    running: int = 0
    waiting: int = 0
    kv_usage: Known = None
    """0 to 1."""
    kv_tokens: int | None = None
    """Size of the KV cache."""
    preemptions: int = 0
    """Since the sidecar started."""
    reports_cached_tokens: bool | None = None
    """Whether usage says how much of a prompt came from the prefix cache; None while unknown."""


class LoadState(ApiModel):
    """Queue and gate."""

    queued: Whole = 0
    running: Whole = 0
    max_in_flight: int = 0
    """Present size of the window."""
    saturation: Amount = 0.0
    """Use of the gate's room, by slots or KV tokens, whichever is fuller; 0 to 1."""


class TenantState(ApiModel):
    """One tenant that had anything queued, running, served or refused in the window."""

    id: Annotated[str, StringConstraints(max_length=320)]
    weight: Weight = 1
    queued: Whole = 0
    running: Whole = 0
    prompt_tokens: Whole = 0
    """Delivered in the window, cached ones included."""
    cached_tokens: Whole = 0
    generated_tokens: Whole = 0
    service: Amount = 0.0
    """Delivered in the window, in weighted tokens."""
    demand: Amount = 0.0
    """Service in the window plus what its waiting and running requests still ask for (expected), in weighted tokens."""
    counter: Amount | None = None
    """The scheduler's virtual counter, where it has one."""
    rejected: dict[RejectionReason, Whole] = {}
    """Refusals in the window by reason."""
    wait: LatencyHistogram = LatencyHistogram()
    ttft: LatencyHistogram = LatencyHistogram()
    gpu_seconds: Known = None
    """Busy GPU seconds of the window; None without GPU metrics."""
    energy_joules: Known = None
    slo_kept: Whole = 0
    slo_total: Whole = 0
    """Requests that ended in the window and had an SLO."""


class FairnessState(ApiModel):
    """Fairness at this engine."""

    bounded: bool = False
    """Whether the scheduler has a bound under the present gate."""
    bound: Amount | None = None
    """Largest possible difference in service over weight between two backlogged tenants, weighted tokens."""
    largest_gap: Amount | None = None
    """Largest one seen between two tenants while both were backlogged."""
    outstanding: Amount | None = None
    """U: the most undelivered cost of one tenant in flight just after a dispatch, weighted tokens."""
    bound_met: bool | None = None


class ShadowState(ApiModel):
    """One scheduler that decides nothing. Waits end at dispatch; where requests pass through, at the first token."""

    algorithm: str
    off: str | None = None
    """Why it no longer runs."""
    waiting: int = 0
    """Requests that wait in it."""
    compared: Whole = 0
    """Requests of the window that both it and the enforced scheduler have started."""
    earlier: Whole = 0
    """Of these, those that it would have started before they were."""
    later: Whole = 0
    refused: Whole = 0
    """Requests of the window that it would have turned away."""
    wait_change_seconds: Amount = 0.0
    """Mean of its wait less the real one."""
    wait: LatencyHistogram = LatencyHistogram()
    wait_enforced: LatencyHistogram = LatencyHistogram()
    """The real waits of the same requests."""
    jain: Known = None
    """Jain's index of service started over max-min entitlement; None with fewer than two tenants."""
    jain_enforced: Known = None


class SidecarState(ApiModel):
    """One sidecar's whole report."""

    schema_version: int = SCHEMA_VERSION
    software_version: Annotated[str, StringConstraints(max_length=64)] = ""
    pod_uid: str = ""
    incarnation: str = ""
    """Random, new at each start."""
    policy: PolicyReference | None = None
    """Whose configuration is in force, and of which generation; None where everything passes."""
    revision: str | None = None
    """Revision in force; None before the first."""
    epoch: int = 0
    sequence: int = 0
    ready: bool = False
    draining: bool = False
    window_seconds: Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)] = 60.0
    engine: EngineState = EngineState()
    load: LoadState = LoadState()
    fairness: FairnessState = FairnessState()
    shadow: list[ShadowState] = []
    gpu: GpuState | None = None
    """None: a sidecar that reads none."""
    tenants: list[TenantState] = []
