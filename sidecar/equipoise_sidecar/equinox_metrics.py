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
        "Equinox's counters, in typical requests over weight: user (what was felt) and resource (what was spent).",
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
    error = GaugeMetricFamily(
        "equipoise_equinox_mapper_error",
        "Mean absolute error of what Equinox expected of the last 500 requests, by what was expected.",
        labels=["expected"],
    )
    for name, seen in scheduler.mapper.errors().items():
        if seen.requests:
            error.add_metric([name], seen.mean_absolute)
    yield error
