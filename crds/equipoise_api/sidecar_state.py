"""What a sidecar tells the operator: `GET /equipoise/v1/state`. Figures cover the last `window_seconds`."""

from __future__ import annotations

from equipoise_api.gpu import GpuState
from equipoise_api.latency import LatencyHistogram
from equipoise_api.model import ApiModel
from equipoise_api.sidecar_config import SCHEMA_VERSION


class EngineState(ApiModel):
    """The engine as the sidecar sees it."""

    reachable: bool = False
    """The last scrape or probe was answered."""
    signal_age_seconds: float | None = None
    """Age of the newest metrics; None before the first."""
    signal_stale: bool = True
    """Older than three scrapes: dispatch goes on by the sidecar's own counts."""
    running: int = 0
    waiting: int = 0
    kv_usage: float | None = None
    """0 to 1."""
    kv_tokens: int | None = None
    """Size of the KV cache."""
    preemptions: int = 0
    """Since the sidecar started."""
    reports_cached_tokens: bool | None = None
    """Whether usage says how much of a prompt came from the prefix cache; None while unknown."""


class LoadState(ApiModel):
    """Queue and gate."""

    queued: int = 0
    queued_bytes: int = 0
    running: int = 0
    max_in_flight: int = 0
    """Present size of the window."""
    saturation: float = 0.0
    """Use of the gate's room, by slots or KV tokens, whichever is fuller; 0 to 1."""


class TenantState(ApiModel):
    """One tenant that had anything queued, running, served or refused in the window."""

    id: str
    weight: int = 1
    queued: int = 0
    running: int = 0
    prompt_tokens: int = 0
    """Delivered in the window, cached ones included."""
    cached_tokens: int = 0
    generated_tokens: int = 0
    service: float = 0.0
    """Delivered in the window, in weighted tokens."""
    demand: float = 0.0
    """Service in the window plus what its waiting and running requests still ask for (expected), in weighted tokens."""
    counter: float | None = None
    """The scheduler's virtual counter, where it has one."""
    rejected: dict[str, int] = {}
    """Refusals in the window by reason."""
    wait: LatencyHistogram = LatencyHistogram()
    ttft: LatencyHistogram = LatencyHistogram()
    gpu_seconds: float | None = None
    """Busy GPU seconds of the window; None without GPU metrics."""
    energy_joules: float | None = None
    slo_kept: int = 0
    slo_total: int = 0
    """Requests that ended in the window and had an SLO."""


class FairnessState(ApiModel):
    """Fairness at this engine."""

    bounded: bool = False
    """Whether the scheduler has a bound under the present gate."""
    bound: float | None = None
    """Largest possible difference in service over weight between two backlogged tenants, weighted tokens."""
    largest_gap: float | None = None
    """Largest one seen between two tenants while both were backlogged."""
    outstanding: float | None = None
    """U: the most undelivered cost of one tenant in flight just after a dispatch, weighted tokens."""
    bound_met: bool | None = None


class ShadowState(ApiModel):
    """One scheduler that decides nothing. Waits end at dispatch; where requests pass through, at the first token."""

    algorithm: str
    off: str | None = None
    """Why it no longer runs."""
    waiting: int = 0
    """Requests that wait in it."""
    compared: int = 0
    """Requests of the window that both it and the enforced scheduler have started."""
    earlier: int = 0
    """Of these, those that it would have started before they were."""
    later: int = 0
    refused: int = 0
    """Requests of the window that it would have turned away."""
    wait_change_seconds: float = 0.0
    """Mean of its wait less the real one."""
    wait: LatencyHistogram = LatencyHistogram()
    wait_enforced: LatencyHistogram = LatencyHistogram()
    """The real waits of the same requests."""
    jain: float | None = None
    """Jain's index of service started over max-min entitlement; None with fewer than two tenants."""
    jain_enforced: float | None = None


class SidecarState(ApiModel):
    """One sidecar's whole report."""

    schema_version: int = SCHEMA_VERSION
    software_version: str = ""
    pod_uid: str = ""
    incarnation: str = ""
    """Random, new at each start."""
    policy_uid: str | None = None
    revision: str | None = None
    """Revision in force; None before the first."""
    epoch: int = 0
    sequence: int = 0
    config_error: str | None = None
    """Why the newest push was refused, while that is so."""
    ready: bool = False
    draining: bool = False
    window_seconds: float = 60.0
    engine: EngineState = EngineState()
    load: LoadState = LoadState()
    fairness: FairnessState = FairnessState()
    shadow: list[ShadowState] = []
    gpu: GpuState | None = None
    """None: a sidecar that reads none."""
    tenants: list[TenantState] = []
