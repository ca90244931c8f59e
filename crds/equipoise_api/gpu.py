"""GPU telemetry: what a policy wants to know of the GPUs, where a sidecar reads it, and what it found.

The operator finds the dcgm-exporter on each pod's node and tells the pod's sidecar where it is, beside the configuration:
the configuration stays one a policy, with one revision, and an exporter that restarts changes nobody's.

`PUT /equipoise/v1/gpu-exporter` takes a GpuExporter and answers 204; 403 for all but the operator, 422 with a Problem. The
operator sends it whenever the state's `gpu.exporter` is another than it should be, so the order of two does not matter.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from equipoise_api.model import ApiModel, Known
from equipoise_api.structural import rules

ExporterUrl = Annotated[
    str, StringConstraints(min_length=8, max_length=512, pattern=r"^https?://[^\s/@]+(/[^\s]*)?$")
]

GPU_RULES = rules(
    (
        "(has(self.dcgm) && self.dcgm == 'Endpoint') == has(self.endpoint)",
        "set endpoint where dcgm is Endpoint, and remove it where it is not",
        ".endpoint",
    )
)


class Gpu(ApiModel):
    """GPU telemetry: it feeds Equinox' resource counter, GPU time and energy of tenants and the status, and never holds a request back."""

    dcgm: Literal["Auto", "Exporter", "Endpoint", "Off"] = "Auto"
    """Auto: the dcgm-exporter of the pod's node, where there is one. Exporter: the same, and GPUMetricsStale says where there is none. Endpoint: `endpoint`. Off: nothing is read."""
    endpoint: ExporterUrl | None = None
    """URL of an exposition with the pods' rows, such as a federating Prometheus; every sidecar reads it."""
    scrape_seconds: Annotated[int, Field(ge=1, le=300)] = 10
    """Seconds between two readings; the exporter itself samples every 30 seconds unless told otherwise."""
    stale_seconds: Annotated[int, Field(ge=5, le=3600)] = 90
    """Age in seconds from which a reading counts no more; longer than the exporter's own interval."""


class GpuExporter(ApiModel):
    """Where one sidecar reads GPU metrics."""

    exporter: ExporterUrl | None = None
    """None: there is no exporter on the pod's node, or none is known."""


class GpuState(ApiModel):
    """The pod's GPUs as its sidecar sees them. None: the exporter does not say, or what it said is too old."""

    exporter: str | None = None
    """As the operator said last."""
    stale: bool = False
    """An exposition is to be read, and for `staleSeconds` nothing fresh of this pod was in it."""
    problem: Annotated[str, StringConstraints(max_length=64, pattern=r"^([A-Za-z][A-Za-z0-9]*)?$")] = ""
    """Why the last try gave nothing, in one word: Unreachable, BadAnswer, NoRows, NoMatch or Frozen."""
    message: str = ""
    """The same for people."""
    age_seconds: Known = None
    """Since the present values were first read; they may have been sampled up to half a minute before."""
    devices: int = 0
    """GPUs or MIG instances of the pod."""
    utilisation: Known = None
    """0 to 1, mean over the devices: the share of time in which anything ran on them."""
    least_utilisation: Known = None
    """0 to 1, of the device that does least."""
    sm_active: Known = None
    tensor_active: Known = None
    dram_active: Known = None
    power_watts: Known = None
    """Sum over the devices; of a shared device the pod's part."""
    xid: int | None = None
    """Last XID error of any device; 0 is none."""
    fields: list[str] = []
    """DCGM fields that were found."""
