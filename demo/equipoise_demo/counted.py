"""What the sidecars themselves have counted: their /metrics, added up over all of them."""

from __future__ import annotations

import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from equipoise_api.names import HEALTH_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Counted:
    """Totals by tenant, in the tenants' plain names."""

    service: Counter[str] = field(default_factory=Counter)
    """Weighted tokens delivered."""
    kept: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    """Requests that ended and had been promised something."""
    gpu_milliseconds: Counter[str] = field(default_factory=Counter)
    waiting: int = 0
    """Requests in the queues at that moment."""

    def since(self, earlier: Counted) -> Counted:
        """Return what was counted after `earlier`."""
        return Counted(
            self.service - earlier.service,
            self.kept - earlier.kept,
            self.judged - earlier.judged,
            self.gpu_milliseconds - earlier.gpu_milliseconds,
            self.waiting,
        )

    def share_kept(self, tenant: str | None = None) -> float | None:
        """Return which part of the judged requests kept its promise, of one tenant or of all; None of no requests."""
        judged = self.judged.total() if tenant is None else self.judged[tenant]
        kept = self.kept.total() if tenant is None else self.kept[tenant]
        return kept / judged if judged else None


def scrape(addresses: Iterable[str]) -> Counted:
    """Ask every sidecar for its metrics. OSError when one does not answer."""
    texts = []
    for address in addresses:
        with urllib.request.urlopen(
            f"http://{address}:{HEALTH_PORT}/metrics", timeout=TIMEOUT_SECONDS
        ) as reply:
            texts.append(reply.read().decode())
    return parsed(texts)


def parsed(texts: Iterable[str]) -> Counted:
    """Add up the metrics of all sidecars, each in Prometheus' text format."""
    total = Counted()
    waiting = 0.0
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                tenant = sample.labels.get("tenant", "").rpartition("/")[2]
                if sample.name == "equipoise_service_total":
                    total.service[tenant] += round(sample.value)
                elif sample.name == "equipoise_slo_requests_total":
                    total.judged[tenant] += round(sample.value)
                    total.kept[tenant] += round(sample.value) if sample.labels["kept"] == "true" else 0
                elif sample.name == "equipoise_gpu_busy_seconds_total":
                    total.gpu_milliseconds[tenant] += round(1000 * sample.value)
                elif sample.name == "equipoise_queued_requests":
                    waiting += sample.value
    return Counted(total.service, total.kept, total.judged, total.gpu_milliseconds, round(waiting))
