"""What Equinox would have counted in any scheduler's run: one measure of what was felt and spent, to compare them by.

The increments are those of `schedulers.equinox` at its default scales, from what each call really got, without lifts. Wait
counts from when a call came or its tenant's last dispatch, whichever was later: from when it could be the head. No
utilisation: throughput alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from equipoise_scheduling.measures import SpreadSeries, jain_over_time
from equipoise_scheduling.schedulers.equinox import EquinoxSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from equipoise_simulator.record import Record


def holistic_series(
    records: Iterable[Record], weights: Mapping[str, float], settings: EquinoxSettings | None = None
) -> dict[str, SpreadSeries]:
    """Return HF over time by tenant, in typical requests over weight: of each call from its dispatch to its end.

    What a call is going to get counts as asked for when it arrives. O(n log n).
    """
    settings = settings or EquinoxSettings()
    series = {name: SpreadSeries() for name in weights}
    last: dict[str, float] = {}
    started = [record for record in records if record.dispatched is not None and record.ended is not None]
    for record in sorted(started, key=lambda record: (record.dispatched, record.request.number)):
        dispatched, ended = record.dispatched, record.ended
        assert dispatched is not None
        assert ended is not None
        tenant = record.tenant
        head_since = max(record.arrival, last.get(tenant, record.arrival))
        last[tenant] = dispatched
        felt = settings.user(record.prompt, record.generated, ended - min(head_since, dispatched))
        spent = settings.resource(record.prompt, record.generated, 1.0)
        amount = (settings.alpha * felt + (1 - settings.alpha) * spent) / weights[tenant]
        series[tenant].demand(record.arrival, amount)
        series[tenant].deliver(dispatched, ended, amount)
    return series


def jain_holistic(
    records: Iterable[Record], weights: Mapping[str, float], ticks: Iterable[float]
) -> float | None:
    """Return the mean over `ticks` of Jain's index of HF among those who waited all the time; None where nobody did."""
    values = [
        value for value in jain_over_time(holistic_series(records, weights), ticks) if value is not None
    ]
    return sum(values) / len(values) if values else None
