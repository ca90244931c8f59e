"""What every tenant got under one policy, added up over its sidecars. Pure.

Figures are rounded here, to two digits: a status is written only when a rounded value changes.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from typing_extensions import override

from equipoise_api.latency import LatencyHistogram, merged
from equipoise_api.names import DEFAULT_TENANT
from equipoise_api.policy import AlgorithmType, DefaultTenant, Fairness, Load, ShadowStatus
from equipoise_api.sidecar_config import TenantConfig
from equipoise_api.sidecar_state import ShadowState, SidecarState, TenantState
from equipoise_api.tenant import Latency, Rejections, Share, Usage
from equipoise_scheduling.measures import jain, max_min

MOST_REASONS = 16
MOST_SHADOWS = 4
ALGORITHMS = frozenset(get_args(AlgorithmType))
Weights = Callable[[str], int | None]
"""A tenant's weight by its id; None for one that is not configured."""
CONTENDING = 1.02
"""Demand above service by this ratio is unmet: less is the last request that is still running."""


@dataclass(slots=True)
class Row:
    """One tenant under one policy."""

    share: Share = field(default_factory=Share)
    usage: Usage = field(default_factory=Usage)
    latency: Latency = field(default_factory=Latency)


def rounded(value: float) -> int:
    """Round a figure that is not negative to two significant digits; up to 99 it stays exact."""
    if value < 100:
        return max(0, round(value))
    step = int(10 ** (math.floor(math.log10(value)) - 1))
    return round(value / step) * step


class Rows(Mapping[str, Row]):
    """A row for each tenant that had anything to do at any sidecar, by id. Made when it is asked for: of thousands few are."""

    def __init__(self, states: Sequence[SidecarState], weights: Weights) -> None:
        """Share what was served by weighted max-min. O(n log n) in the states' tenants."""
        self._parts: dict[str, list[tuple[TenantState, float]]] = {}
        for state in states:
            per_minute = 60.0 / state.window_seconds if state.window_seconds > 0 else 0.0
            for tenant in state.tenants:
                self._parts.setdefault(tenant.id, []).append((tenant, per_minute))
        tenants = self._parts.values()
        service = [sum(tenant.service for tenant, _ in parts) for parts in tenants]
        demand = [sum(tenant.demand for tenant, _ in parts) for parts in tenants]
        weight = [float(weights(name) or parts[0][0].weight) for name, parts in self._parts.items()]
        self._total = math.fsum(service)
        entitled = max_min(demand, weight, self._total)
        self._figures = dict(zip(self._parts, zip(entitled, service, demand, strict=True), strict=True))

    @override
    def __getitem__(self, name: str) -> Row:
        parts, total = self._parts[name], self._total
        share = Share()
        if total > 0:
            entitled, service, demand = self._figures[name]
            share = Share(
                entitled_percent=_percent(entitled, total),
                actual_percent=_percent(service, total),
                demand_percent=rounded(min(1e6, 100 * demand / total)),
            )
        return Row(share, _usage(parts), _latency([tenant for tenant, _ in parts]))

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    @override
    def __len__(self) -> int:
        return len(self._parts)


def weights_of(tenants: Mapping[str, TenantConfig], default: DefaultTenant) -> Weights:
    """Return a look-up of the configured weights. Not a copy: there may be thousands, and few are active."""

    def weight(name: str) -> int | None:
        if name == DEFAULT_TENANT:
            return default.weight
        tenant = tenants.get(name)
        return tenant.weight if tenant else None

    return weight


def load(states: Sequence[SidecarState]) -> Load:
    """Return the load of all engines."""
    kv = [state.engine.kv_usage for state in states if state.engine.kv_usage is not None]
    gpu = [state.gpu.utilisation for state in states if state.gpu and state.gpu.utilisation is not None]
    return Load(
        queued=rounded(sum(state.load.queued for state in states)),
        running=rounded(sum(state.load.running for state in states)),
        saturation_percent=_mean_percent(state.load.saturation for state in states),
        kv_percent=_mean_percent(kv),
        gpu_percent=_mean_percent(gpu),
    )


def fairness(states: Sequence[SidecarState], weights: Weights) -> Fairness:
    """Return Jain's index over tenants with unmet demand, and gap and bound of the sidecar closest to its bound."""
    service: defaultdict[str, float] = defaultdict(float)
    demand: defaultdict[str, float] = defaultdict(float)
    for state in states:
        for tenant in state.tenants:
            service[tenant.id] += tenant.service
            demand[tenant.id] += tenant.demand
    contending = [name for name in demand if demand[name] > CONTENDING * service[name]]
    closest = max(
        (state.fairness for state in states if state.fairness.largest_gap is not None),
        key=lambda each: (each.largest_gap or 0.0) / (each.bound or math.inf),
        default=None,
    )
    index = jain([service[name] / (weights(name) or 1) for name in contending]) if contending else None
    return Fairness(
        jain_permille=_permille(index),
        largest_gap=None if closest is None else rounded(closest.largest_gap or 0.0),
        bound=None if closest is None or closest.bound is None else rounded(closest.bound),
    )


def shadow(states: Sequence[SidecarState]) -> list[ShadowStatus]:
    """Return what each shadow scheduler would have changed, over all engines, by algorithm."""
    parts: dict[str, list[ShadowState]] = {}
    for state in states:
        for each in state.shadow:
            if each.algorithm in ALGORITHMS:  # a newer sidecar may have others
                parts.setdefault(each.algorithm, []).append(each)
    return [_shadow(name, each) for name, each in sorted(parts.items())][:MOST_SHADOWS]


def _shadow(algorithm: str, parts: Sequence[ShadowState]) -> ShadowStatus:
    compared = sum(each.compared for each in parts)

    def mean(value: Callable[[ShadowState], float | None]) -> float | None:
        """Weigh each engine by what was compared there."""
        known = [(figure, each.compared) for each in parts if (figure := value(each)) is not None]
        weight = sum(count for _, count in known)
        return math.fsum(figure * count for figure, count in known) / weight if weight else None

    change = mean(lambda each: each.wait_change_seconds)
    off = next((each.off for each in parts if each.off), None)
    return ShadowStatus.model_validate(
        {
            "type": algorithm,
            "decisions": rounded(compared),
            "earlierPercent": _percent(sum(e.earlier for e in parts), compared) if compared else None,
            "laterPercent": _percent(sum(e.later for e in parts), compared) if compared else None,
            "waitChangeMilliseconds": None if change is None else _signed(1000 * change),
            "waitP90Milliseconds": _milliseconds(merged(e.wait for e in parts), 0.9),
            "enforcedWaitP90Milliseconds": _milliseconds(merged(e.wait_enforced for e in parts), 0.9),
            "jainPermille": _permille(mean(lambda each: each.jain)),
            "enforcedJainPermille": _permille(mean(lambda each: each.jain_enforced)),
            "refused": rounded(sum(each.refused for each in parts)),
            "reason": None if off is None else off[:256],
        }
    )


def _signed(value: float) -> int:
    most = min(86_400_000, rounded(abs(value)))
    return most if value >= 0 else -most


def _permille(fraction: float | None) -> int | None:
    return None if fraction is None else round(min(1000.0, max(0.0, 1000 * fraction)))


def _usage(parts: Sequence[tuple[TenantState, float]]) -> Usage:
    prompt = sum(tenant.prompt_tokens * rate for tenant, rate in parts)
    generated = sum(tenant.generated_tokens * rate for tenant, rate in parts)
    rejected: Counter[str] = Counter()
    for tenant, rate in parts:
        for reason, count in tenant.rejected.items():
            rejected[reason] += math.ceil(count * rate)
    return Usage(
        queued=rounded(sum(tenant.queued for tenant, _ in parts)),
        running=rounded(sum(tenant.running for tenant, _ in parts)),
        prompt_tokens_per_minute=rounded(prompt),
        cached_tokens_per_minute=rounded(sum(tenant.cached_tokens * rate for tenant, rate in parts)),
        generated_tokens_per_minute=rounded(generated),
        tokens_per_minute=rounded(prompt + generated),
        gpu_seconds=_known_sum((tenant.gpu_seconds, rate) for tenant, rate in parts),
        energy_joules=_known_sum((tenant.energy_joules, rate) for tenant, rate in parts),
        rejected=[
            Rejections(reason=reason, per_minute=rounded(count))
            for reason, count in sorted(rejected.most_common(MOST_REASONS))
        ],
    )


def _known_sum(values: Iterable[tuple[float | None, float]]) -> int | None:
    """Add up what sidecars with GPU metrics measured; None without any."""
    known = [value * rate for value, rate in values if value is not None]
    return rounded(math.fsum(known)) if known else None


def _latency(tenants: Sequence[TenantState]) -> Latency:
    wait = merged(tenant.wait for tenant in tenants)
    ttft = merged(tenant.ttft for tenant in tenants)
    kept = sum(tenant.slo_kept for tenant in tenants)
    total = sum(tenant.slo_total for tenant in tenants)
    return Latency(
        wait_p50_milliseconds=_milliseconds(wait, 0.5),
        wait_p99_milliseconds=_milliseconds(wait, 0.99),
        ttft_p50_milliseconds=_milliseconds(ttft, 0.5),
        ttft_p99_milliseconds=_milliseconds(ttft, 0.99),
        slo_attainment_percent=min(100, max(0, math.floor(100 * kept / total))) if total > 0 else None,
    )


def _milliseconds(histogram: LatencyHistogram, q: float) -> int | None:
    seconds = histogram.quantile(q)
    return None if seconds is None else rounded(1000 * seconds)


def _percent(part: float, whole: float) -> int:
    return round(min(100.0, max(0.0, 100 * part / whole)))


def _mean_percent(fractions: Iterable[float]) -> int | None:
    values = list(fractions)
    return _percent(math.fsum(values), len(values)) if values else None
