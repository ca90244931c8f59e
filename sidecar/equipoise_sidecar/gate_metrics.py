"""The gate's Prometheus metrics: what it plans with, and what it has learnt of the engine's steps."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from equipoise_sidecar.capacity import Capacity


def gate_metrics(capacity: Capacity) -> Iterator[Metric]:
    """Read the gate. O(requests in flight)."""
    gate = capacity.gate
    yield InfoMetricFamily("equipoise_gate", "The gate in force.", {"kind": gate.settings.kind})
    yield _gauge(
        "planned_tokens",
        "KV tokens that count against the gate's limit: the future peak, all that is reserved, or what is held, by its kind.",
        gate.planned,
    )
    yield _gauge("peak_tokens", "KV tokens that the requests in flight are predicted to reach.", gate.peak)
    yield _gauge("outstanding_tokens", "Output tokens still to come, as predicted.", gate.outstanding)
    yield _gauge("limit_ratio", "L: share of the KV cache that may be planned with.", gate.percent / 100)
    yield _gauge(
        "surplus_tokens", "KV tokens that the engine shows in use beyond the sidecar's count.", gate.surplus
    )
    yield _gauge(
        "prefill_tokens", "Prompt tokens dispatched and not yet prefilled.", gate.batching.prefill_held
    )
    step = gate.step_seconds
    if step is not None:
        yield _gauge("step_seconds", "Predicted time of a step of what is in flight.", step)


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"equipoise_gate_{name}", about, value=float(value))
