"""The metrics that are there once for each tenant. Built for any part of the tenants, so that a scrape can go by pieces."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from equipoise_api.latency import GROWTH, SMALLEST_SECONDS
from equipoise_scheduling.contract import TenantShare
from equipoise_sidecar.accounting import Recorder, TenantAccount

F = TypeVar("F", CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily)

LIMITS = range(24, 157, 12)
"""Of the API's latency buckets, those that are exposed: 1 ms to 290 s, a factor of 3.1 apart."""
_UNIT = "in weighted tokens, or engine milliseconds where the cost is profiled"
_NAMES = tuple(f"{SMALLEST_SECONDS * GROWTH**limit:.4g}" for limit in LIMITS)


def share_metrics(shares: Iterable[TenantShare]) -> Iterator[Metric]:
    """Expose what tenants were entitled to and got."""
    prompt = _by_tenant(
        CounterMetricFamily, "prompt_tokens", "Prompt tokens delivered, cached ones included."
    )
    cached = _by_tenant(
        CounterMetricFamily, "cached_tokens", "Prompt tokens that came from the prefix cache."
    )
    generated = _by_tenant(CounterMetricFamily, "generated_tokens", "Tokens generated.")
    service = _by_tenant(CounterMetricFamily, "service", f"Service delivered, {_UNIT}.")
    demand = _by_tenant(
        GaugeMetricFamily, "demand", f"Service of the last minute and still asked for, {_UNIT}."
    )
    entitled = _by_tenant(
        GaugeMetricFamily, "entitled_ratio", "Max-min fair share of the last minute's service."
    )
    actual = _by_tenant(GaugeMetricFamily, "actual_ratio", "Share of the last minute's service.")
    counter = _by_tenant(
        GaugeMetricFamily,
        "virtual_counter",
        "The scheduler's counter over weight, in the scheduler's own unit.",
    )
    for share in shares:
        label = [share.tenant]
        prompt.add_metric(label, share.total.prompt)
        cached.add_metric(label, share.total.cached)
        generated.add_metric(label, share.total.generated)
        service.add_metric(label, share.total.cost)
        demand.add_metric(label, share.demand)
        entitled.add_metric(label, share.entitled)
        actual.add_metric(label, share.actual)
        if share.counter is not None:
            counter.add_metric(label, share.counter)
    yield from (prompt, cached, generated, service, demand, entitled, actual, counter)


def account_metrics(accounts: Iterable[tuple[str, TenantAccount]]) -> Iterator[Metric]:
    """Expose what tenants lived through."""
    queued = _by_tenant(GaugeMetricFamily, "queued_requests", "Requests that wait.")
    running = _by_tenant(GaugeMetricFamily, "running_requests", "Requests in the engine.")
    ended = _by_tenant(
        CounterMetricFamily, "requests", "Accepted requests that ended, by outcome.", "outcome"
    )
    refused = _by_tenant(CounterMetricFamily, "rejections", "Requests turned away, by reason.", "reason")
    judged = _by_tenant(
        CounterMetricFamily,
        "slo_requests",
        "Requests judged by their tenant's SLO, by whether it was kept.",
        "kept",
    )
    wait = _by_tenant(
        HistogramMetricFamily,
        "wait_seconds",
        "Wait in the queue, of requests that were dispatched or waited too long.",
    )
    first = _by_tenant(
        HistogramMetricFamily,
        "time_to_first_token_seconds",
        "Arrival to first token, of answers that stream.",
    )
    for tenant, account in accounts:
        queued.add_metric([tenant], account.queued)
        running.add_metric([tenant], account.running)
        for outcome, count in account.outcomes.items():
            ended.add_metric([tenant, outcome.value], count)
        for reason, count in account.rejected.items():
            refused.add_metric([tenant, reason], count)
        if account.slo_total:
            judged.add_metric([tenant, "true"], account.slo_kept)
            judged.add_metric([tenant, "false"], account.slo_total - account.slo_kept)
        wait.add_metric([tenant], *_histogram(account.wait))
        first.add_metric([tenant], *_histogram(account.ttft))
    yield from (queued, running, ended, refused, judged, wait, first)


def _by_tenant(family: type[F], name: str, about: str, *labels: str) -> F:
    return family(f"equipoise_{name}", about, labels=["tenant", *labels])


def _histogram(recorder: Recorder) -> tuple[list[tuple[str, float]], float]:
    """Return cumulative buckets by their upper limits, and the sum."""
    return _cumulative(recorder.counts), recorder.seconds


def _cumulative(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    places = sorted(counts)
    seen = [0, *accumulate(counts[place] for place in places)]
    buckets = [
        (name, float(seen[bisect_right(places, limit)])) for name, limit in zip(_NAMES, LIMITS, strict=True)
    ]
    return [*buckets, ("+Inf", float(seen[-1]))]
