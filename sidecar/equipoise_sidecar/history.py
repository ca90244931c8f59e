"""What a restart must not forget: counters, what was learnt of prompts and where GPU metrics are, as one snapshot."""

from __future__ import annotations

from typing import Any

import structlog

from equipoise_scheduling.base import TenantScheduler
from equipoise_sidecar.gpu import GpuTelemetry
from equipoise_sidecar.sizing import Sizing

Snapshot = dict[str, Any]
GPU_EXPORTER = "gpu_exporter"
"""In a snapshot."""

log = structlog.get_logger(__name__)


class History:
    """Makes snapshots; holds a former process's until there is a configuration."""

    def __init__(self, sizing: Sizing, gpu: GpuTelemetry) -> None:
        self._sizing = sizing
        self._gpu = gpu
        self._waiting: Snapshot | None = None

    def snapshot(self, scheduler: TenantScheduler) -> Snapshot:
        """Return the present state, or the former process's counters while they are not in force yet."""
        state = self._waiting
        if state is None:
            state = {"scheduler": scheduler.snapshot(), "sizing": self._sizing.snapshot()}
        return {**state, GPU_EXPORTER: self._gpu.exporter}

    def restore(self, state: Snapshot, now: float) -> None:
        """Take over what was learnt; the counters wait for `adopt`. What cannot be read is left behind, and logged."""
        self._waiting = state
        try:
            self._sizing.restore(state["sizing"])
        except (KeyError, ValueError, TypeError) as error:
            log.warning("estimates not restored", error=repr(error))
        exporter = state.get(GPU_EXPORTER)
        self._gpu.point(exporter if isinstance(exporter, str) else None, now)

    def adopt(self, scheduler: TenantScheduler) -> None:
        """Give the waiting counters to the scheduler of the first configuration, before its first request."""
        if self._waiting is None:
            return
        counters, self._waiting = self._waiting.get("scheduler"), None
        if not isinstance(counters, dict):
            log.warning("counters not restored: the snapshot has none")
            return
        try:
            scheduler.restore(counters)
        except ValueError as error:
            log.warning("counters not restored", error=str(error))
        else:
            log.info("counters restored", algorithm=scheduler.algorithm, former=counters.get("algorithm"))
