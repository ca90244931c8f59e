"""The operator's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

PREFIX = "equipoise_operator"


class Metrics:
    """One registry and what is in it. Gauges are set when the endpoint is read."""

    def __init__(self) -> None:
        # As text these would be a second series beside each counter and histogram; restarts show in the process's own.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # of prometheus-client
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.leading = Gauge(f"{PREFIX}_leading", "1 on the replica that leads.", registry=self.registry)
        self.epoch = Gauge(
            f"{PREFIX}_epoch", "Term of this leader: leaseTransitions.", registry=self.registry
        )
        self.objects = Gauge(f"{PREFIX}_objects", "Objects in the store.", ["kind"], registry=self.registry)
        self.events = Counter(
            f"{PREFIX}_changes", "Changes that make something dirty.", ["kind"], registry=self.registry
        )
        self.compiles = Histogram(
            f"{PREFIX}_compile_seconds",
            "Time to compile one policy.",
            registry=self.registry,
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
        )
        self.failures = Counter(
            f"{PREFIX}_work_failures",
            "Compiles, placements and reports that failed and are tried again.",
            registry=self.registry,
        )
        self.pushes = Counter(
            f"{PREFIX}_pushes",
            "Pushes to sidecars, by HTTP status; 0 is no answer.",
            ["method", "status"],
            registry=self.registry,
        )
        self.sidecars = Gauge(
            f"{PREFIX}_sidecars",
            "Sidecars by state: all, synced (hold the present revision), failing (last call failed), outdated (other schema version).",
            ["state"],
            registry=self.registry,
        )
        self.status_writes = Counter(
            f"{PREFIX}_status_writes",
            "Status writes by HTTP status; 0 is no answer.",
            ["kind", "status"],
            registry=self.registry,
        )
        self.status_pending = Gauge(
            f"{PREFIX}_status_pending", "Statuses that wait for the budget.", registry=self.registry
        )
        self.events_dropped = Counter(
            f"{PREFIX}_events_dropped",
            "Kubernetes Events not posted, for there were too many at once.",
            registry=self.registry,
        )
        self.certificates = Counter(
            f"{PREFIX}_certificate_requests",
            "Requests for certificates by HTTP status; 429 is an address that asks too often, 503 no authority, no review in time.",
            ["status"],
            registry=self.registry,
        )
        self.api_calls = Histogram(
            f"{PREFIX}_api_seconds",
            "Time of calls to the API server; status 0 is no answer.",
            ["method", "resource", "status"],
            registry=self.registry,
            buckets=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
        )

    def text(self) -> bytes:
        """Return the exposition."""
        return generate_latest(self.registry)
