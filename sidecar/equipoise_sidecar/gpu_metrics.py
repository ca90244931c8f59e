"""The Prometheus metrics of GPU telemetry; those of a reading are there while it is fresh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from equipoise_sidecar.gpu import GpuTelemetry
from equipoise_sidecar.gpu_ledger import Spent


def gpu_metrics(gpu: GpuTelemetry, now: float) -> Iterator[Metric]:
    """Expose what is not there once for each tenant."""
    stale = "1 while GPU metrics are expected and there are no fresh ones."
    if gpu.url is None:
        if gpu.settings.dcgm == "Exporter":  # the policy says that there is one
            yield _gauge("metrics_stale", stale, value=True)
        return
    state = gpu.state(now)
    yield _gauge("metrics_stale", stale, state.stale)
    yield CounterMetricFamily(
        "equipoise_gpu_scrape_failures", "Tries that gave nothing of this pod's GPUs.", value=gpu.failures
    )
    for name, about, value in (
        (
            "metrics_age_seconds",
            "Age of the GPU metrics: since the present values were first read.",
            state.age_seconds,
        ),
        (
            "utilisation_ratio",
            "Share of time in which anything ran, 0 to 1, mean of the pod's GPUs.",
            state.utilisation,
        ),
        (
            "utilisation_least_ratio",
            "Utilisation of that of the pod's GPUs that does least, 0 to 1.",
            state.least_utilisation,
        ),
        (
            "sm_active_ratio",
            "Share of the multiprocessors' time with work, 0 to 1, mean of the GPUs.",
            state.sm_active,
        ),
        (
            "tensor_active_ratio",
            "Share of cycles with tensor work, 0 to 1, mean of the GPUs: prefill.",
            state.tensor_active,
        ),
        (
            "dram_active_ratio",
            "Share of cycles with memory traffic, 0 to 1, mean of the GPUs: decode.",
            state.dram_active,
        ),
        ("power_watts", "Power of the pod's GPUs; of a shared one its part.", state.power_watts),
        ("xid", "Last XID error code of any of the pod's GPUs; 0 is none.", state.xid),
        ("devices", "GPUs or MIG instances of the pod.", state.devices or None),
    ):
        if value is not None:
            yield _gauge(name, about, value)
    nobody = gpu.ledger.nobody
    yield CounterMetricFamily(
        "equipoise_gpu_nobodys_busy_seconds",
        "Busy GPU time while no request was in flight.",
        value=nobody.seconds,
    )
    yield CounterMetricFamily(
        "equipoise_gpu_nobodys_energy_joules",
        "Energy while no request was in flight.",
        value=nobody.joules,
    )


def gpu_tenant_metrics(totals: Iterable[tuple[str, Spent]]) -> Iterator[Metric]:
    """Expose what tenants cost."""
    seconds = CounterMetricFamily(
        "equipoise_gpu_busy_seconds",
        "Busy GPU time of the tenant, by the service delivered meanwhile.",
        labels=["tenant"],
    )
    joules = CounterMetricFamily(
        "equipoise_gpu_energy_joules",
        "Energy of the tenant, by the service delivered meanwhile.",
        labels=["tenant"],
    )
    for tenant, spent in totals:
        seconds.add_metric([tenant], spent.seconds)
        joules.add_metric([tenant], spent.joules)
    yield from (seconds, joules)


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"equipoise_gpu_{name}", about, value=float(value))
