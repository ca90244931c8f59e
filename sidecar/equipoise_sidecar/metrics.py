"""The sidecar's Prometheus metrics: read off the parts at each scrape, nothing is counted twice and nothing per chunk.

The tenant label takes the configured tenants' names and `default`, and of a tenant that was removed until it is idle;
what clients send never becomes a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from typing import TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from typing_extensions import override

from equipoise_sidecar.certificate import CertificateKeeper
from equipoise_sidecar.equinox_metrics import mapper_metrics, part_metrics
from equipoise_sidecar.gate_metrics import gate_metrics
from equipoise_sidecar.gpu_metrics import gpu_metrics, gpu_tenant_metrics
from equipoise_sidecar.listener import HttpRefusal, Listener
from equipoise_sidecar.prefix_metrics import prefix_metrics
from equipoise_sidecar.report import Reporter
from equipoise_sidecar.shadow_figures import shadow_metrics
from equipoise_sidecar.snapshots import Snapshots
from equipoise_sidecar.tenant_metrics import account_metrics, share_metrics

T = TypeVar("T")

TENANTS_AT_A_TIME = 20
"""Between two looks at what else there is to do: about five milliseconds."""


@dataclass(slots=True, eq=False)
class SidecarMetrics(Collector):
    """All of them."""

    reporter: Reporter
    snapshots: Snapshots | None = None
    certificate: CertificateKeeper | None = None
    listeners: Mapping[str, Listener] = field(default_factory=dict)
    """The open ports: `data`, `health`, `admin`."""

    @override
    def collect(self) -> Iterator[Metric]:
        """Read the parts, tenants in one go. O(tenants)."""
        yield from self.general()
        dispatcher = self.reporter.dispatcher
        shares = dispatcher.scheduler.shares(dispatcher.clock())
        yield from share_metrics(shares)
        yield from part_metrics(dispatcher.scheduler, shares)
        yield from account_metrics(dispatcher.accounting.items())
        if (gpu := dispatcher.engine.gpu).url is not None:
            yield from gpu_tenant_metrics(gpu.ledger.totals())

    def general(self) -> Iterator[Metric]:
        """Read all that is not there once for each tenant."""
        yield InfoMetricFamily(
            "equipoise_build", "The sidecar's software.", {"version": version("equipoise")}
        )
        yield from self._process()
        yield self._http_refusals()
        yield from self._load()
        yield from self._engine()
        yield from self._gpu()
        yield from self._fairness()
        yield from shadow_metrics(self.reporter.dispatcher.shadows, self.reporter.dispatcher.clock())
        yield from self._prediction()
        yield from prefix_metrics(self.reporter.dispatcher.engine.prefixes)
        yield from mapper_metrics(self.reporter.dispatcher.scheduler)

    def by_tenant(self) -> Iterator[list[Metric]]:
        """Read the rest, some tenants at a time: the same families again and again."""
        dispatcher = self.reporter.dispatcher
        for shares in _batched(dispatcher.scheduler.iter_shares(dispatcher.clock())):
            yield [*share_metrics(shares), *part_metrics(dispatcher.scheduler, shares)]
        for accounts in _batched(dispatcher.accounting.items()):
            yield [*account_metrics(accounts)]
        if (gpu := dispatcher.engine.gpu).url is not None:
            for totals in _batched(gpu.ledger.totals()):
                yield [*gpu_tenant_metrics(totals)]

    def _process(self) -> Iterator[Metric]:
        reporter, store = self.reporter, self.reporter.store
        policy = reporter.dispatcher.policy
        yield _gauge("ready", "1 where requests are served.", not reporter.missing())
        yield _gauge("draining", "1 while new work is refused before shutdown.", reporter.dispatcher.draining)
        reference = policy.config.policy
        yield InfoMetricFamily(
            "equipoise_config",
            "The configuration in force.",
            {
                "revision": policy.revision or "",
                "mode": policy.config.mode,
                "algorithm": policy.algorithm,
                "policy": f"{reference.namespace}/{reference.name}" if reference is not None else "",
            },
        )
        yield _gauge("config_tenants", "Tenants in the configuration.", len(policy.tenants))
        yield _gauge("config_refused", "1 while the newest push was refused.", store.error is not None)
        errors = store.write_errors + (self.snapshots.write_errors if self.snapshots is not None else 0)
        yield _counter(
            "state_write_errors", "Files of the state directory that could not be written.", errors
        )
        if self.certificate is not None:
            yield _counter(
                "certificate_failures", "Tries that gave no certificate.", self.certificate.failures
            )
            current = self.certificate.current
            if current is not None:
                yield _gauge(
                    "certificate_expiry_timestamp_seconds",
                    "When the admin port's certificate ends, seconds since the epoch.",
                    current.not_after.timestamp(),
                )

    def _http_refusals(self) -> Metric:
        family = CounterMetricFamily(
            "equipoise_http_refusals",
            "Connections ended for what came, or did not come, in place of a request.",
            labels=["port", "reason"],
        )
        for port, listener in self.listeners.items():
            for reason in HttpRefusal:
                family.add_metric([port, reason], listener.refusals[reason])
        return family

    def _load(self) -> Iterator[Metric]:
        dispatcher = self.reporter.dispatcher
        gate = dispatcher.engine.capacity.gate
        yield _gauge(
            "queue_bytes",
            "Bytes of bodies that are being read, wait or are passed on unscheduled.",
            dispatcher.admission.held_bytes,
        )
        yield _gauge(
            "sequences_in_flight", "Sequences in the engine, by the sidecar's own count.", gate.sequences
        )
        yield _gauge(
            "max_in_flight",
            "Sequences that may be in the engine: the policy's number or the measured window.",
            dispatcher.engine.capacity.max_in_flight,
        )
        yield _gauge(
            "saturation_ratio",
            "Use of the gate's room, by slots, KV tokens or step time, whichever is fuller; 1 is full.",
            dispatcher.engine.capacity.saturation(),
        )
        yield _gauge("kv_used_tokens", "KV tokens in use by the sidecar's own count.", gate.used)
        yield from gate_metrics(dispatcher.engine.capacity)
        pace = dispatcher.engine.pace.tokens_per_second(dispatcher.clock())
        if pace is not None:
            yield _gauge(
                "sequence_tokens_per_second", "Measured tokens a second of one sequence in flight.", pace
            )

    def _engine(self) -> Iterator[Metric]:
        dispatcher, feedback = self.reporter.dispatcher, self.reporter.feedback
        now = dispatcher.clock()
        yield _gauge(
            "engine_reachable", "1 while the engine answers.", dispatcher.availability.reachable is True
        )
        yield _gauge(
            "engine_signal_stale", "1 while the engine's metrics are too old to use.", feedback.is_stale(now)
        )
        age = feedback.age(now)
        if age is not None:
            yield _gauge("engine_signal_age_seconds", "Age of the engine's newest metrics.", age)
        if dispatcher.engine.capacity.kv_tokens is not None:
            yield _gauge("engine_kv_tokens", "Size of the KV cache.", dispatcher.engine.capacity.kv_tokens)
        yield _counter(
            "engine_preemptions", "Preemptions seen in the engine's metrics.", feedback.preemptions
        )
        yield _counter(
            "engine_busy",
            "Requests that the engine would not take (503).",
            dispatcher.availability.times_busy,
        )

    def _gpu(self) -> Iterator[Metric]:
        dispatcher = self.reporter.dispatcher
        yield from gpu_metrics(dispatcher.engine.gpu, dispatcher.clock())

    def _fairness(self) -> Iterator[Metric]:
        bound = self.reporter.bound(self.reporter.dispatcher.clock())
        yield _gauge(
            "fairness_bounded",
            "1 where the scheduler has a bound and the gate lets it hold.",
            bound is not None,
        )
        if bound is None:
            return
        unit = "in the unit of the scheduler's counter over weight"
        yield _gauge(
            "fairness_bound",
            f"Largest possible service gap between two backlogged tenants, {unit}.",
            bound.limit,
        )
        yield _gauge(
            "fairness_gap", f"Largest service gap seen between two backlogged tenants, {unit}.", bound.gap
        )
        yield _gauge(
            "fairness_outstanding",
            "U: most undelivered cost of one tenant in flight just after a dispatch, in the unit of the scheduler's counter.",
            bound.undelivered,
        )
        yield _gauge("fairness_bound_met", "0 once a pair of tenants exceeded its bound.", bound.met)

    def _prediction(self) -> Iterator[Metric]:
        errors = self.reporter.dispatcher.scheduler.books.predictor.errors()
        error = GaugeMetricFamily(
            "equipoise_prediction_error_tokens",
            "Mean absolute error of the last 500 predicted outputs, all predictors on the same requests.",
            labels=["predictor"],
        )
        bias = GaugeMetricFamily(
            "equipoise_prediction_bias_tokens",
            "Mean of predicted less generated tokens, of the last 500 predicted outputs.",
            labels=["predictor"],
        )
        for name, seen in errors.items():
            if seen.requests:
                error.add_metric([name], seen.mean_absolute)
                bias.add_metric([name], seen.bias)
        yield from (error, bias)


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"equipoise_{name}", about, value=float(value))


def _counter(name: str, about: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"equipoise_{name}", about, value=float(value))


def _batched(rows: Iterator[T]) -> Iterator[list[T]]:
    while batch := list(islice(rows, TENANTS_AT_A_TIME)):
        yield batch
