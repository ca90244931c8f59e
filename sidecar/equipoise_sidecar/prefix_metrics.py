"""How good the estimate of cached prompt tokens is. Nothing of whose prompts they are, nor of what is in them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from equipoise_sidecar.prefix_cache import PrefixCache


def prefix_metrics(prefixes: PrefixCache) -> Iterator[Metric]:
    """Read the estimator. O(1)."""
    yield _gauge("active", "1 while cached prompt tokens are estimated.", prefixes.active)
    yield _gauge(
        "index_tokens",
        "Prompt and output tokens that the sidecar takes the engine's prefix cache to hold.",
        prefixes.index.tokens,
    )
    yield _gauge(
        "index_capacity_tokens",
        "Tokens that the sidecar takes the engine's prefix cache to have room for.",
        prefixes.index.capacity,
    )
    yield _gauge(
        "agreement_ratio",
        "Share of the prompt tokens found in the index that the engine lately served from its cache.",
        prefixes.agreement.ratio,
    )
    yield _counter(
        "predicted_tokens",
        "Cached prompt tokens as estimated at dispatch, of requests whose usage says them.",
        prefixes.predicted_tokens,
    )
    yield _counter(
        "reported_tokens",
        "Cached prompt tokens as the engine reported them, of requests whose usage says them.",
        prefixes.reported_tokens,
    )
    error = prefixes.error.error()
    yield _gauge(
        "error_tokens",
        "Mean absolute error of the last 500 estimates of cached prompt tokens.",
        error.mean_absolute,
    )
    yield _gauge(
        "bias_tokens",
        "Mean of estimated less reported cached prompt tokens, of the last 500 estimates.",
        error.bias,
    )


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"equipoise_prefix_{name}", about, value=float(value))


def _counter(name: str, about: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"equipoise_prefix_{name}", about, value=float(value))
