"""A stand-in for dcgm-exporter beside the stand-in engine: one GPU of one pod, whose values follow the engine's own steps.

Over each sampling interval the share of time with a step under way is the activity of the graphics engine; the part of it
that goes into prompt tokens is that of the tensor cores, the rest (weights and KV read for each step) that of the memory.
Power is a straight line between idle and limit in these two. Only the first is what a GPU would say of such an
engine; the others have the right direction (prefill against decode), not the right size.

Names and labels are those of dcgm-exporter 4. As there, values stand still between two samples.
"""

from __future__ import annotations

import hashlib
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric

    from equipoise_simulator.standin.stats import Stats

PORT = 9400
IDLE_WATTS, LIMIT_WATTS = 25.0, 300.0
COMPUTE_POWER, MEMORY_POWER = 0.9, 0.6
"""Parts of the range between idle and limit that full tensor and full memory activity take."""
FRAMEBUFFER_MIB = 22_500
MODEL = "NVIDIA A10G (stand-in)"


@dataclass(frozen=True, slots=True)
class DcgmPlace:
    """Where the exporter listens, and whose GPU it shows."""

    host: str = "127.0.0.1"
    port: int = 0
    pod: str = ""
    """Empty: rows without a pod, as of an exporter that does not know Kubernetes."""
    namespace: str = "default"
    container: str = "engine"
    interval_seconds: float = 30.0
    """Between two samples; the real exporter's default."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one interval was, ratios from 0 to 1."""

    active: float = 0.0
    tensor: float = 0.0
    dram: float = 0.0

    @property
    def watts(self) -> float:
        """Power."""
        return IDLE_WATTS + (LIMIT_WATTS - IDLE_WATTS) * min(
            1.0, COMPUTE_POWER * self.tensor + MEMORY_POWER * self.dram
        )


class DcgmExporter:
    """An ASGI application with `/metrics`, and a collector. Samples when it is asked, at most once an interval."""

    def __init__(
        self, stats: Stats, place: DcgmPlace, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.place = place
        self.sample = Sample()
        self._stats = stats
        self._clock = clock
        self._at = clock()
        self._busy = stats.busy_seconds
        self._prefill = stats.prefill_seconds
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        digest = hashlib.sha256(f"{place.namespace}/{place.pod}".encode()).hexdigest()
        self._uuid = f"GPU-{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"

    async def __call__(self, scope: dict[str, Any], _receive: Any, send: Any) -> None:
        """Serve `/metrics`."""
        found = scope["path"] == "/metrics"
        body = self.exposition() if found else b"see /metrics\n"
        headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def exposition(self) -> bytes:
        """Return the text that `/metrics` serves."""
        self._take_sample()
        return generate_latest(self._registry)

    def _take_sample(self) -> None:
        now = self._clock()
        seconds = now - self._at
        if seconds < self.place.interval_seconds:
            return
        busy, prefill = self._stats.busy_seconds - self._busy, self._stats.prefill_seconds - self._prefill
        # A step counts when it ends, so a little more than the interval may come together.
        active = min(1.0, busy / seconds)
        tensor = active * prefill / busy if busy > 0 else 0.0
        self.sample = Sample(active, tensor, active - tensor)
        self._at, self._busy, self._prefill = now, self._stats.busy_seconds, self._stats.prefill_seconds

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        sample = self.sample
        used = round(FRAMEBUFFER_MIB * 0.9)
        for name, text, value in (
            ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", round(100 * sample.active)),
            ("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", used),
            ("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", FRAMEBUFFER_MIB - used),
            ("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", round(sample.watts, 3)),
            (
                "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
                "Ratio of time the graphics engine is active.",
                round(sample.active, 6),
            ),
            (
                "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
                "Ratio of cycles the tensor (HMMA) pipe is active.",
                round(sample.tensor, 6),
            ),
            (
                "DCGM_FI_PROF_DRAM_ACTIVE",
                "Ratio of cycles the device memory interface is active sending or receiving data.",
                round(sample.dram, 6),
            ),
        ):
            yield self._gauge(name, text, value)
        yield self._gauge(
            "DCGM_FI_DEV_XID_ERRORS",
            "Value of the last XID error encountered.",
            0,
            err_code="0",
            err_msg="No Error",
        )

    def _gauge(self, name: str, text: str, value: float, **more: str) -> Metric:
        labels = {
            "gpu": "0",
            "UUID": self._uuid,
            "pci_bus_id": "00000000:00:1E.0",
            "device": "nvidia0",
            "modelName": MODEL,
            "Hostname": socket.gethostname(),
            "DCGM_FI_DRIVER_VERSION": "580.95.05",
        }
        if self.place.pod:
            labels["container"] = self.place.container
        labels |= more
        if self.place.pod:
            labels |= {"namespace": self.place.namespace, "pod": self.place.pod, "pod_uid": ""}
        family = GaugeMetricFamily(name, text, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        return family
