"""What a replay found, request by request, in the trace's own time; and the measures that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from equipoise_scheduling.measures import (
    Difference,
    ServiceSeries,
    Summary,
    jain,
    max_min,
    service_difference,
    summary,
)

INPUT_WEIGHT, OUTPUT_WEIGHT = 1, 2
WINDOW_SECONDS = 60.0
TICK_SECONDS = 2.0


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
    interactive: bool = False

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
    entitled: float
    """Weighted tokens a second that are this tenant's by max-min fairness: all of its demand, or an equal share."""
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
    """Over each tenant's service divided by what it is entitled to: 1 when all got the same part of theirs."""
    ttft: Summary
    ttft_interactive: Summary
    tokens_per_second: float
    finished: int
    failed: int
    tenants: list[TenantResult]
    """Those with the most demand first."""
    series: dict[str, ServiceSeries]


def measure(algorithm: str, outcomes: list[Outcome], seconds: float, capacity: float) -> Result:
    """Derive the measures of a replay of a trace that lasted `seconds`, on engines that serve `capacity` weighted tokens/s."""
    series = _series(outcomes)
    asked = dict.fromkeys(series, 0.0)
    for outcome in outcomes:
        asked[outcome.tenant] += outcome.demand / seconds
    entitled = dict(zip(asked, max_min(list(asked.values()), [1.0] * len(asked), capacity), strict=True))
    tenants = [
        _tenant(
            name,
            [outcome for outcome in outcomes if outcome.tenant == name],
            service=series[name].received(0.0, seconds) / seconds,
            demand=asked[name],
            entitled=entitled[name],
        )
        for name in asked
    ]
    tenants.sort(key=lambda row: (-row.demand, row.tenant))
    half = min(WINDOW_SECONDS, seconds / 2) / 2
    ticks = [half + TICK_SECONDS * n for n in range(int((seconds - 2 * half) / TICK_SECONDS) + 1)]
    failed = sum(outcome.error is not None for outcome in outcomes)
    return Result(
        algorithm=algorithm,
        seconds=seconds,
        difference=service_difference(series, ticks, 2 * half),
        jain=jain([row.service / row.entitled for row in tenants]),
        ttft=summary(_ttfts(outcomes)),
        ttft_interactive=summary(_ttfts([outcome for outcome in outcomes if outcome.interactive])),
        tokens_per_second=_tokens_before(outcomes, seconds) / seconds,
        finished=len(outcomes) - failed,
        failed=failed,
        tenants=tenants,
        series=series,
    )


def _ttfts(outcomes: list[Outcome]) -> list[float]:
    return [outcome.ttft for outcome in outcomes if outcome.ttft is not None]


def _tokens_before(outcomes: list[Outcome], seconds: float) -> int:
    generated = sum(count for outcome in outcomes for time, count in outcome.tokens if time < seconds)
    begun = [
        outcome for outcome in outcomes if outcome.first_token is not None and outcome.first_token < seconds
    ]
    return generated + sum(outcome.input_tokens for outcome in begun)


def _tenant(name: str, own: list[Outcome], *, service: float, demand: float, entitled: float) -> TenantResult:
    return TenantResult(
        tenant=name,
        requests=len(own),
        failed=sum(outcome.error is not None for outcome in own),
        demand=demand,
        entitled=entitled,
        service=service,
        ttft=summary(_ttfts(own)),
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
