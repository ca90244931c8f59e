"""The metrics that only Equinox has: the parts of its counter, and how far off its metric mapper is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.contract import TenantShare
from equipoise_scheduling.schedulers.equinox import Equinox


def part_metrics(scheduler: TenantScheduler, shares: Iterable[TenantShare]) -> Iterator[Metric]:
    """Expose what tenants' users felt and what the engine spent on them; nothing of other schedulers."""
    if not isinstance(scheduler, Equinox):
        return
    parts = GaugeMetricFamily(
        "equipoise_equinox_counter",
        "Equinox's two counters, in typical requests over weight: user (what was felt) and resource (what was spent).",
        labels=["tenant", "counter"],
    )
    for share in shares:
        user, resource = scheduler.counters(share.tenant)
        parts.add_metric([share.tenant, "user"], user)
        parts.add_metric([share.tenant, "resource"], resource)
    yield parts


def mapper_metrics(scheduler: TenantScheduler) -> Iterator[Metric]:
    """Expose the mapper's errors once there were any; nothing of other schedulers."""
    if not isinstance(scheduler, Equinox):
        return
    errors = scheduler.mapper.errors()
    for name, unit, about in (
        ("latency_seconds", "latency_error_seconds", "latency"),
        ("utilisation", "utilisation_error_ratio", "GPU utilisation"),
    ):
        if errors[name].requests:
            yield GaugeMetricFamily(
                f"equipoise_equinox_{unit}",
                f"Mean absolute error of the {about} that Equinox expected of the last 500 requests.",
                value=errors[name].mean_absolute,
            )
