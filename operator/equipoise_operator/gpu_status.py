"""The condition GPUMetricsStale: whether a policy's sidecars have the GPU metrics that they should have. Pure.

Where nobody asked for GPU metrics (`gpu.dcgm: Auto`) an exporter that is not there is no fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from equipoise_api.conditions import ConditionStatus
from equipoise_api.gpu import GpuState

if TYPE_CHECKING:
    from equipoise_operator.views import PolicyView, SidecarView

NAMED = 3
GOES_ON = "scheduling goes on; Equinox' resource counter with throughput alone"

Told = tuple[ConditionStatus, str, str]
"""Status, reason and message."""


def gpu_metrics_stale(view: PolicyView) -> Told:
    """Judge the sidecars whose state is known."""
    wanted = view.policy.spec.gpu.dcgm
    if wanted == "Off":
        return "False", "Off", ""
    known = [
        sidecar for sidecar in view.sidecars if sidecar.state is not None and sidecar.state.gpu is not None
    ]
    if not known:
        return "Unknown", "NoSidecars", ""
    lacking = [] if wanted == "Endpoint" else [sidecar for sidecar in known if sidecar.exporter is None]
    without = ""
    if lacking:
        why = f" ({view.exporters_problem})" if view.exporters_problem else ""
        without = f"no dcgm-exporter is known on the node of {_names(lacking)}{why}"
    if lacking and wanted == "Exporter":
        return "True", "NoExporter", f"{without}; {GOES_ON}"
    if len(lacking) == len(known):
        return "Unknown", "NoExporter", without
    stale = [sidecar for sidecar in known if _gpu(sidecar).stale]
    if stale:
        reason = next((problem for sidecar in stale if (problem := _gpu(sidecar).problem)), "Stale")
        first = next((message for sidecar in stale if (message := _gpu(sidecar).message)), "")
        told = f": {first}" if first else ""
        return "True", reason, f"no fresh GPU metrics at {_names(stale)}{told}; {GOES_ON}"[:1024]
    if all(_gpu(sidecar).age_seconds is None for sidecar in known):
        return "Unknown", "Pending", "nothing was read yet"
    return "False", "Fresh", without


def _gpu(sidecar: SidecarView) -> GpuState:
    assert sidecar.state is not None
    assert sidecar.state.gpu is not None
    return sidecar.state.gpu


def _names(sidecars: Sequence[SidecarView]) -> str:
    names = sorted(sidecar.pod for sidecar in sidecars)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
