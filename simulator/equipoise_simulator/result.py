"""What a simulation found: every call's record, service over time, and the measures as plain data.

The measures are those of `equipoise_scheduling.measures`; service is in weighted tokens over the tenant's weight. Times
are simulated seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from equipoise_scheduling.measures import (
    Difference,
    ServiceSeries,
    SpreadSeries,
    Summary,
    accumulated_difference,
    attainment,
    jain,
    jain_of_entitlement,
    jain_over_time,
    service_difference,
    summary,
)
from equipoise_scheduling.request import Outcome
from equipoise_simulator.holistic import jain_holistic
from equipoise_simulator.shortfall import accumulated_by_tenant, difference_by_tenant
from equipoise_simulator.workload import thinned

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from equipoise_scheduling.contract import Bound
    from equipoise_scheduling.cost import Cost
    from equipoise_simulator.profiles import Profile
    from equipoise_simulator.record import Record
    from equipoise_simulator.workload import Workload

Metric = Literal["token", "artifact"]


@dataclass(slots=True)
class BoundSeen:
    """The published bound, looked at every second of a run: whether it was ever broken, and the closest approach."""

    closest: Bound | None = None
    met: bool = True

    def note(self, bound: Bound | None) -> None:
        """Take in one look."""
        if bound is None:
            return
        self.met = self.met and bound.met
        if self.closest is None or bound.gap * self.closest.limit >= self.closest.gap * bound.limit:
            self.closest = bound

    def document(self) -> dict[str, Any] | None:
        """Return plain data; None where the scheduler has no bound."""
        if self.closest is None:
            return None
        return {
            "undelivered": self.closest.undelivered,
            "limit": self.closest.limit,
            "gap": self.closest.gap,
            "met": self.met,
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run."""

    workload: Workload
    label: str
    gate: str
    profile: Profile
    records: list[Record]
    """In order of arrival; what was never sent has none."""
    series: Mapping[str, ServiceSeries]
    """Service over weight as it was delivered, by tenant."""
    weights: Mapping[str, float]
    cost: Cost
    bound: BoundSeen
    simulated_seconds: float
    busy_seconds: float
    """Seconds in which the engine ran a step, while calls arrived."""
    work_seconds: float
    """Seconds of steps beyond the fixed cost of each, over the whole run."""
    preemptions: int
    recomputed_tokens: int

    @cached_property
    def spread(self) -> dict[str, SpreadSeries]:
        """Service over weight as the VTC paper's artifact counts it: what was refused asked for nothing."""
        spread = {name: SpreadSeries() for name in self.series}
        for record in self.records:
            call = record.call
            if record.outcome is Outcome.REFUSED:
                continue
            cost = self.cost(call.prompt_tokens, 0, call.output_tokens) / self.weights[record.tenant]
            spread[record.tenant].demand(record.arrival, cost)
            if record.finished and record.first_token is not None and record.ended is not None:
                spread[record.tenant].deliver(record.first_token, record.ended, cost)
        return spread

    def _series(self, metric: Metric) -> Mapping[str, ServiceSeries] | Mapping[str, SpreadSeries]:
        return self.spread if metric == "artifact" else self.series

    def difference(self, metric: Metric = "token") -> Difference:
        """Return the service difference over the workload's ticks."""
        return service_difference(dict(self._series(metric)), self.workload.ticks)

    def accumulated(self, metric: Metric = "token") -> float:
        """Return the largest accumulated difference while calls arrived, looked at every 5 s (of very long loads a sample)."""
        return accumulated_difference(dict(self._series(metric)), self._accumulated_ticks)

    @property
    def _accumulated_ticks(self) -> list[float]:
        step = thinned(5.0, self.workload.seconds)
        return [step * tick for tick in range(math.ceil(self.workload.seconds / step))]

    def service(self, tenant: str) -> float:
        """Return what a tenant was delivered while calls arrived, over its weight."""
        return self.series[tenant].total(self.workload.seconds)

    @property
    def jain(self) -> float:
        """Jain's index of service over weight, of all tenants, while calls arrived."""
        return jain([self.service(tenant) for tenant in self.series])

    def jain_over_time(self) -> list[tuple[float, float | None]]:
        """Return Jain's index of what tenants got over what they were entitled to, around each tick."""
        ticks = self.workload.ticks
        return list(zip(ticks, jain_of_entitlement(dict(self.series), ticks, self.weights), strict=True))

    @property
    def tokens_per_second(self) -> float:
        """Prompt and output tokens delivered, over the time until the last call ended."""
        return _tokens(self.records) / self.simulated_seconds if self.simulated_seconds else 0.0

    @property
    def gpu_utilisation(self) -> float:
        """Share of the time while calls arrived in which the engine ran a step."""
        return min(1.0, self.busy_seconds / min(self.workload.seconds, self.simulated_seconds or math.inf))

    def document(self, metric: Metric = "token") -> dict[str, Any]:
        """Return everything as plain JSON data; null where there is nothing to measure."""
        overall = self._measures(self.records)
        by_tenant: dict[str, list[Record]] = {name: [] for name in self.series}
        for record in self.records:
            by_tenant[record.tenant].append(record)
        contended = jain_over_time(dict(self.series), self.workload.ticks)
        differences = difference_by_tenant(dict(self._series(metric)), self.workload.ticks)
        accumulated = accumulated_by_tenant(dict(self._series(metric)), self._accumulated_ticks)
        service = {name: self.service(name) * self.weights[name] for name in self.series}
        served = sum(service.values()) or 1.0
        document = {
            "scheduler": self.label,
            "workload": self.workload.name,
            "profile": self.profile.name,
            "gate": self.gate,
            "metric": metric,
            "seconds": self.workload.seconds,
            "simulated_seconds": self.simulated_seconds,
            "tokens_per_second": self.tokens_per_second,
            "jain": self.jain,
            "jain_entitled": _mean([value for _, value in self.jain_over_time()]),
            "jain_contended": _mean(contended),
            "jain_holistic": jain_holistic(self.records, self.weights, self.workload.ticks),
            "service_difference": asdict(self.difference(metric)),
            "accumulated_difference_max": max(accumulated.values()),
            "bound": self.bound.document(),
            "gpu_utilisation": self.gpu_utilisation,
            "gpu_work": self.work_seconds / self.simulated_seconds if self.simulated_seconds else None,
            "preemptions": self.preemptions,
            "recomputed_tokens": self.recomputed_tokens,
            **overall,
            "tenants": {
                name: {
                    "weight": self.weights[name],
                    "service": service[name],
                    "tokens_per_second": _tokens(records) / self.simulated_seconds
                    if self.simulated_seconds
                    else 0.0,
                    "service_difference": asdict(differences[name]),
                    "accumulated_difference_max": accumulated[name],
                    "gpu_utilisation": self.gpu_utilisation * service[name] / served,
                    **self._measures(records),
                }
                for name, records in sorted(by_tenant.items())
            },
        }
        return {key: _without_nan(value) for key, value in document.items()}

    def _measures(self, records: Sequence[Record]) -> dict[str, Any]:
        refused = Counter(record.reason for record in records if record.outcome is Outcome.REFUSED)
        ends = Counter(record.outcome for record in records)
        kept = [verdict for record in records if (verdict := record.slo_kept) is not None]
        errors = [
            abs(record.predicted - record.call.output_tokens)
            for record in records
            if record.predicted is not None and record.finished
        ]
        wasted = self._wasted
        return {
            "requests": {
                "arrived": len(records),
                "finished": ends[Outcome.FINISHED],
                "rejected": dict(sorted((str(reason), count) for reason, count in refused.items())),
                "cancelled": ends[Outcome.CANCELLED],
                "expired": ends[Outcome.EXPIRED],
            },
            "queue_delay_seconds": _durations([record.queue_delay for record in records]),
            "ttft_seconds": _durations([record.ttft for record in records]),
            "tpot_seconds": _durations([record.tpot for record in records]),
            "slo_attainment": attainment(sum(kept), len(kept)),
            "slo_by_budget": _by_budget(records),
            "slo_tokens_per_second": _tokens([record for record in records if record.slo_kept])
            / self.simulated_seconds
            if self.simulated_seconds
            else 0.0,
            "wasted_tokens": sum(wasted.get(record.call.id, (0, 0))[0] for record in records),
            "wasted_prompt_tokens": sum(wasted.get(record.call.id, (0, 0))[1] for record in records),
            "prediction_error_tokens": sum(errors) / len(errors) if errors else None,
        }

    @cached_property
    def _wasted(self) -> dict[str, tuple[int, int]]:
        """Tokens and prompt tokens delivered to no use: of calls that broke off, and of calls whose interaction did."""
        broken = {r.call.interaction for r in self.records if not r.finished and r.call.interaction}
        return {
            record.call.id: (record.prompt + record.generated, record.prompt)
            for record in self.records
            if not record.finished or record.call.interaction in broken
        }


def _by_budget(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Count the calls that kept their SLO and all that had one, by its budget in seconds (the first token's, else the end's, else a token's)."""
    found: dict[str, dict[str, int]] = {}
    for record in records:
        kept = record.slo_kept
        if kept is None:
            continue
        request = record.request
        budgets = (request.ttft_budget, request.e2e_budget, record.tpot_budget)
        budget = next(each for each in budgets if each is not None)
        cell = found.setdefault(f"{budget:g}", {"kept": 0, "total": 0})
        cell["kept"] += kept
        cell["total"] += 1
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _tokens(records: Sequence[Record]) -> int:
    return sum(record.prompt + record.generated for record in records)


def _durations(values: Sequence[float | None]) -> dict[str, float]:
    found: Summary = summary([value for value in values if value is not None])
    return asdict(found)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
