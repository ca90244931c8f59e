"""How far each tenant was behind the best served one: the parts of which a run's service difference is the sum.

The definitions are those of `equipoise_scheduling.measures`, which has the figures for all tenants together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from equipoise_scheduling.measures import Difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from equipoise_scheduling.measures import Series


def difference_by_tenant(
    tenants: Mapping[str, Series], ticks: Sequence[float], window: float = 60.0
) -> dict[str, Difference]:
    """Return each tenant's own part of the service difference: max, mean and variance over the ticks.

    The means add up to the run's. O(ticks * tenants * log events).
    """
    behind: dict[str, list[float]] = {name: [] for name in tenants}
    for tick in ticks:
        start, end = tick - window / 2, tick + window / 2
        rates = {name: series.received(start, end) / window for name, series in tenants.items()}
        best = max(rates.values(), default=0.0)
        for name, series in tenants.items():
            unmet = abs(series.demanded(start, end) / window - rates[name])
            behind[name].append(min(best - rates[name], unmet))
    return {name: _spread(values) for name, values in behind.items()}


def accumulated_by_tenant(tenants: Mapping[str, Series], ticks: Sequence[float]) -> dict[str, float]:
    """Return by how much each tenant's service since the start was at most below the best served one's.

    The largest of them is the run's accumulated difference.
    """
    largest = dict.fromkeys(tenants, 0.0)
    for tick in ticks:
        totals = {name: series.total(tick) for name, series in tenants.items()}
        best = max(totals.values(), default=0.0)
        for name, total in totals.items():
            largest[name] = max(largest[name], best - total)
    return largest


def _spread(values: Sequence[float]) -> Difference:
    mean = sum(values) / len(values)
    return Difference(max(values), mean, sum((value - mean) ** 2 for value in values) / len(values))
