"""The stand-in's metrics under vLLM's names, with vLLM's labels `engine` and `model_name`."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from equipoise_simulator.engine_model import EngineModel
    from equipoise_simulator.standin.prefix_cache import PrefixCache

_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_INTER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)


class Histogram:
    """Counts observations a bucket; several equal ones cost as much as one."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `times` observations of `value`."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative counts by upper bound."""
        total, result = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            result.append(("+Inf" if bound == float("inf") else str(float(bound)), float(total)))
        return result


class Stats:
    """What the engine counts; a Prometheus collector."""

    def __init__(self, model: EngineModel, model_name: str, prefix_cache: PrefixCache | None = None) -> None:
        self.model = model
        self.prefix_cache = prefix_cache
        self.labels = {"engine": "0", "model_name": model_name}
        self.prompt_tokens = 0
        """Computed."""
        self.generation_tokens = 0
        self.success = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}
        self.rejected = 0
        self.late_seconds = 0.0
        self.busy_seconds = 0.0
        """With a step under way."""
        self.prefill_seconds = 0.0
        """Of these, those that prompt tokens took."""
        self.ttft = Histogram(_TTFT)
        self.inter_token = Histogram(_INTER_TOKEN)
        self.e2e = Histogram(_REQUEST)
        self.queue = Histogram(_REQUEST)
        self.prefill = Histogram(_REQUEST)
        self.decode = Histogram(_REQUEST)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def exposition(self) -> bytes:
        """Return the text that `/metrics` serves."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        model, profile = self.model, self.model.profile
        yield self._gauge("vllm:num_requests_running", "Requests in the running batch", model.running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait", model.waiting)
        yield self._labelled_gauge(
            "vllm:num_requests_waiting_by_reason",
            "Requests that wait, by reason",
            "reason",
            {"capacity": model.waiting, "deferred": 0},
        )
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the KV pool in use, 1 is all", model.kv_usage)
        yield self._counter("vllm:num_preemptions", "Preemptions", model.preemptions)
        cache = self.prefix_cache
        hits = 0 if cache is None else cache.hits
        yield self._counter("vllm:prompt_tokens", "Prompt tokens prefilled", self.prompt_tokens + hits)
        yield self._counter("vllm:prompt_tokens_cached", "Prompt tokens from the prefix cache", hits)
        if cache is not None:
            yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up", cache.queries)
            yield self._counter("vllm:prefix_cache_hits", "Prompt tokens found", hits)
        yield self._counter("vllm:generation_tokens", "Tokens generated", self.generation_tokens)
        rejections = CounterMetricFamily(
            "vllm:admission_rejections", "Requests refused by a queue limit", labels=["model_name", "reason"]
        )
        rejections.add_metric([self.labels["model_name"], "max_num_queued_reqs"], self.rejected)
        rejections.add_metric([self.labels["model_name"], "max_num_queued_tokens"], 0)
        yield rejections
        success = CounterMetricFamily(
            "vllm:request_success", "Requests that ended", labels=[*self.labels, "finished_reason"]
        )
        for reason, count in self.success.items():
            success.add_metric([*self.labels.values(), reason], count)
        yield success
        for name, text, histogram in (
            ("vllm:time_to_first_token_seconds", "Arrival to first token", self.ttft),
            ("vllm:inter_token_latency_seconds", "Token to token", self.inter_token),
            ("vllm:e2e_request_latency_seconds", "Arrival to end", self.e2e),
            ("vllm:request_queue_time_seconds", "Arrival to first scheduled", self.queue),
            ("vllm:request_prefill_time_seconds", "First scheduled to first token", self.prefill),
            ("vllm:request_decode_time_seconds", "First token to end", self.decode),
        ):
            family = HistogramMetricFamily(name, text, labels=list(self.labels))
            family.add_metric(list(self.labels.values()), histogram.buckets(), histogram.sum)
            yield family
        yield self._labelled_gauge(
            "vllm:engine_sleep_state",
            "Which sleep state holds",
            "sleep_state",
            {"awake": 1, "weights_offloaded": 0, "discard_all": 0},
        )
        config = {
            "block_size": str(profile.block_size),
            "cache_dtype": "auto",
            "enable_prefix_caching": str(cache is not None),
            "engine": "0",
            "gpu_memory_utilization": "0.9",
            "kv_cache_size_tokens": str(profile.kv_blocks * profile.block_size),
            "num_gpu_blocks": str(profile.kv_blocks),
        }
        info = GaugeMetricFamily("vllm:cache_config_info", "The cache's configuration", labels=list(config))
        info.add_metric(list(config.values()), 1)
        yield info
        yield self._counter(
            "standin:late_seconds",
            "Seconds by which this process fell behind the engine that it stands for",
            self.late_seconds,
        )

    def _labelled_gauge(self, name: str, text: str, label: str, values: dict[str, float]) -> Metric:
        family = GaugeMetricFamily(name, text, labels=[*self.labels, label])
        for value, number in values.items():
            family.add_metric([*self.labels.values(), value], number)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=list(self.labels))
        family.add_metric(list(self.labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=list(self.labels))
        family.add_metric(list(self.labels.values()), value)
        return family
