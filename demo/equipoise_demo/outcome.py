"""What a replay found, request by request, in the trace's own time; and the measures that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from equipoise_scheduling.measures import (
    Difference,
    ServiceSeries,
    Summary,
    jain,
    service_difference,
    summary,
)

INPUT_WEIGHT, OUTPUT_WEIGHT = 1, 2
WINDOW_SECONDS = 60.0
TICK_SECONDS = 5.0


@dataclass(slots=True)
class Outcome:
    """One request. Times are seconds of the trace."""

    tenant: str
    arrival: float
    input_tokens: int
    output_tokens: int
    """What was asked for."""
    first_token: float | None = None
    end: float | None = None
    tokens: list[tuple[float, int]] = field(default_factory=list)
    """When how many tokens came."""
    status: int = 0
    error: str | None = None
    """Why it did not finish; None when it did."""

    @property
    def demand(self) -> int:
        """Weighted tokens asked for."""
        return INPUT_WEIGHT * self.input_tokens + OUTPUT_WEIGHT * self.output_tokens

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token."""
        return None if self.first_token is None else self.first_token - self.arrival


@dataclass(frozen=True, slots=True)
class TenantResult:
    """One tenant's row."""

    tenant: str
    requests: int
    failed: int
    demand: float
    """Weighted tokens a second asked for while the trace lasted."""
    service: float
    """Weighted tokens a second received in that time."""
    ttft: Summary


@dataclass(frozen=True, slots=True)
class Result:
    """All measures of one replay."""

    algorithm: str
    seconds: float
    """Length of the trace; what comes after it, while queues empty, counts for no rate."""
    difference: Difference
    jain: float
    """Over the service of the tenants that asked for at least an equal share: they are entitled to the same."""
    ttft: Summary
    tokens_per_second: float
    finished: int
    failed: int
    tenants: list[TenantResult]
    """Those with the most demand first."""
    series: dict[str, ServiceSeries]


def measure(algorithm: str, outcomes: list[Outcome], seconds: float) -> Result:
    """Derive the measures of a replay of a trace that lasted `seconds`."""
    series = _series(outcomes)
    tenants = sorted(
        (_tenant(name, outcomes, series[name], seconds) for name in series), key=lambda row: -row.demand
    )
    half = WINDOW_SECONDS / 2
    ticks = [half + TICK_SECONDS * n for n in range(int((seconds - WINDOW_SECONDS) / TICK_SECONDS) + 1)]
    ticks = ticks or [seconds / 2]
    received = sum(row.service for row in tenants)
    backlogged = [row.service for row in tenants if row.demand >= received / len(tenants)]
    ttfts = [outcome.ttft for outcome in outcomes if outcome.ttft is not None]
    failed = sum(outcome.error is not None for outcome in outcomes)
    generated = sum(count for outcome in outcomes for time, count in outcome.tokens if time < seconds)
    prefilled = sum(
        outcome.input_tokens
        for outcome in outcomes
        if outcome.first_token is not None and outcome.first_token < seconds
    )
    return Result(
        algorithm=algorithm,
        seconds=seconds,
        difference=service_difference(series, ticks, min(WINDOW_SECONDS, seconds)),
        jain=jain(backlogged),
        ttft=summary(ttfts),
        tokens_per_second=(generated + prefilled) / seconds,
        finished=len(outcomes) - failed,
        failed=failed,
        tenants=tenants,
        series=series,
    )


def _tenant(name: str, outcomes: list[Outcome], series: ServiceSeries, seconds: float) -> TenantResult:
    own = [outcome for outcome in outcomes if outcome.tenant == name]
    return TenantResult(
        tenant=name,
        requests=len(own),
        failed=sum(outcome.error is not None for outcome in own),
        demand=math.fsum(outcome.demand for outcome in own) / seconds,
        service=series.received(0.0, seconds) / seconds,
        ttft=summary([outcome.ttft for outcome in own if outcome.ttft is not None]),
    )


def _series(outcomes: list[Outcome]) -> dict[str, ServiceSeries]:
    asked: dict[str, list[tuple[float, float]]] = {}
    delivered: dict[str, list[tuple[float, float]]] = {}
    for outcome in outcomes:
        asked.setdefault(outcome.tenant, []).append((outcome.arrival, outcome.demand))
        events = delivered.setdefault(outcome.tenant, [])
        if outcome.first_token is not None:
            events.append((outcome.first_token, INPUT_WEIGHT * outcome.input_tokens))
        events += [(time, OUTPUT_WEIGHT * count) for time, count in outcome.tokens]
    result = {}
    for tenant, asks in asked.items():
        series = result[tenant] = ServiceSeries()
        for time, cost in sorted(asks):
            series.demand(time, cost)
        for time, cost in sorted(delivered[tenant]):
            series.deliver(time, cost)
    return result
