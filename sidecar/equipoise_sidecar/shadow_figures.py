"""What shadow schedulers would have changed: for the operator, for Prometheus, and as a table."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from equipoise_api.latency import LatencyHistogram
from equipoise_api.sidecar_state import ShadowState
from equipoise_scheduling.shadow_report import ShadowReport
from equipoise_scheduling.shadows import Shadows


def shadow_state(report: ShadowReport) -> ShadowState:
    """Copy a report into the type that goes over the wire."""
    return ShadowState(
        algorithm=report.algorithm,
        off=report.off,
        waiting=report.waiting,
        compared=report.compared,
        earlier=report.earlier,
        later=report.later,
        refused=report.refused,
        wait_change_seconds=report.wait_change_seconds,
        wait=LatencyHistogram(counts=report.waits),
        wait_enforced=LatencyHistogram(counts=report.waits_enforced),
        jain=report.jain,
        jain_enforced=report.jain_enforced,
    )


def shadow_metrics(shadows: Shadows, now: float) -> Iterator[Metric]:
    """Read the shadows. O(n log n) in the tenants active in the last minute; nothing where there are none."""
    reports = shadows.reports(now)
    if not reports:
        return
    yield CounterMetricFamily(
        "equipoise_shadow_failures", "Shadow schedulers that had to be switched off.", value=shadows.failures
    )
    for name, about, counts in (
        (
            "compared_requests",
            "Requests started in reality and by the shadow scheduler.",
            [r.compared_total for r in reports],
        ),
        (
            "changed_requests",
            "Compared requests that the shadow scheduler started at another time.",
            [r.changed_total for r in reports],
        ),
        (
            "rejections",
            "Requests that the shadow scheduler would have turned away.",
            [r.refused_total for r in reports],
        ),
    ):
        counter = CounterMetricFamily(f"equipoise_shadow_{name}", about, labels=["algorithm"])
        for report, count in zip(reports, counts, strict=True):
            counter.add_metric([report.algorithm], count)
        yield counter
    figures: tuple[tuple[str, str, list[float | None]], ...] = (
        (
            "running",
            "0 once the shadow scheduler had to be switched off.",
            [float(r.off is None) for r in reports],
        ),
        ("queued_requests", "Requests that wait in the shadow scheduler.", [r.waiting for r in reports]),
        (
            "wait_change_seconds",
            "Mean wait in the shadow scheduler less the real one, of the last minute's requests.",
            [r.wait_change_seconds if r.compared else None for r in reports],
        ),
        (
            "jain_ratio",
            "Jain's index of the last minute's service over entitlement, in the shadow scheduler.",
            [r.jain for r in reports],
        ),
        (
            "enforced_jain_ratio",
            "Jain's index of the last minute's service over entitlement, in reality.",
            [r.jain_enforced for r in reports],
        ),
    )
    for name, about, values in figures:
        gauge = GaugeMetricFamily(f"equipoise_shadow_{name}", about, labels=["algorithm"])
        for report, value in zip(reports, values, strict=True):
            if value is not None:
                gauge.add_metric([report.algorithm], value)
        yield gauge
    tenants = GaugeMetricFamily(
        "equipoise_shadow_tenant_wait_change_seconds",
        "Mean wait of the tenant in the shadow scheduler less the real one, of the last minute's requests.",
        labels=["algorithm", "tenant"],
    )
    for shadow in shadows:
        for tenant, (enforced, wait) in sorted(shadow.comparison.waits(now).items()):
            tenants.add_metric([shadow.algorithm, tenant], wait - enforced)
    yield tenants


def shadow_rows(shadows: Shadows, now: float) -> list[dict[str, str | int | float | None]]:
    """Return how long each tenant waited in the last minute and what it was given, in each shadow and in reality."""
    real = shadows.service.rows(shadows.weight, now)
    rows: list[dict[str, str | int | float | None]] = []
    for shadow in shadows:
        service = shadow.service.rows(shadows.weight, now)
        waits = shadow.comparison.waits(now)
        for tenant in sorted(real.keys() | service.keys()):
            served, demand, entitled = service.get(tenant, (0.0, 0.0, 0.0))
            rows.append(
                {
                    "algorithm": shadow.algorithm,
                    "tenant": tenant,
                    "wait_seconds": waits.get(tenant, (None, None))[1],
                    "wait_seconds_enforced": waits.get(tenant, (None, None))[0],
                    "served": served,
                    "served_enforced": real.get(tenant, (0.0, 0.0, 0.0))[0],
                    "entitled": entitled,
                    "demand": demand,
                    "off": shadow.off,
                }
            )
    return rows
