"""What a shadow scheduler reports: its waits beside the real ones, and who had how much service, over the last minute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from equipoise_api.latency import bucket
from equipoise_scheduling.last_minute import SLICE_SECONDS, WINDOW_SECONDS, LastMinute
from equipoise_scheduling.measures import jain, max_min
from equipoise_scheduling.service_window import ServiceWindow

SAME_SECONDS = 1e-6
"""Waits that differ by less are one decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReport:
    """One shadow's last minute, and totals since it began."""

    algorithm: str
    off: str | None
    """Why it no longer runs; None while it does."""
    waiting: int
    """Requests that wait in it."""
    compared: int
    """Requests that both have started."""
    earlier: int
    """Of these, those that it would have started before they were."""
    later: int
    refused: int
    """Requests that it would have turned away."""
    wait_change_seconds: float
    """Mean of its wait less the real one."""
    waits: dict[int, int]
    """Its waits, by the buckets of `equipoise_api.latency`."""
    waits_enforced: dict[int, int]
    jain: float | None
    """Jain's index of service started over entitlement, in it; None with fewer than two tenants."""
    jain_enforced: float | None
    compared_total: int
    changed_total: int
    refused_total: int


@dataclass(slots=True)
class _Slice:
    earlier: int = 0
    later: int = 0
    refused: int = 0
    change: float = 0.0
    waits: dict[int, int] = field(default_factory=dict)
    waits_enforced: dict[int, int] = field(default_factory=dict)
    tenants: dict[str, list[float]] = field(default_factory=dict)


class Comparison:
    """Waits in a shadow and in reality. O(1) an event, bounded memory."""

    def __init__(self) -> None:
        self._minute = LastMinute(_Slice)
        self._compared = self._changed = self._refused = 0

    def waited(self, tenant: str, enforced: float, shadow: float, now: float) -> None:
        """Count a request that waited `enforced` seconds and would have waited `shadow`."""
        part = self._minute.at(now)
        change = shadow - enforced
        part.change += change
        sums = part.tenants.setdefault(tenant, [0, 0.0, 0.0])
        sums[0] += 1
        sums[1] += enforced
        sums[2] += shadow
        self._compared += 1
        if change < -SAME_SECONDS:
            part.earlier += 1
            self._changed += 1
        elif change > SAME_SECONDS:
            part.later += 1
            self._changed += 1
        for counts, seconds in ((part.waits, shadow), (part.waits_enforced, enforced)):
            place = bucket(seconds)
            counts[place] = counts.get(place, 0) + 1

    def refused(self, now: float) -> None:
        """Count a request that the shadow turned away."""
        self._minute.at(now).refused += 1
        self._refused += 1

    def waits(self, now: float) -> dict[str, tuple[float, float]]:
        """Return each tenant's mean real wait of the last minute, and what it would have been."""
        sums: dict[str, list[float]] = {}
        for part in self._minute.slices(now):
            for tenant, more in part.tenants.items():
                known = sums.setdefault(tenant, [0, 0.0, 0.0])
                for place, value in enumerate(more):
                    known[place] += value
        return {
            tenant: (enforced / count, shadow / count) for tenant, (count, enforced, shadow) in sums.items()
        }

    def report(
        self,
        *,
        algorithm: str,
        off: str | None,
        waiting: int,
        jain: float | None,
        jain_enforced: float | None,
        now: float,
    ) -> ShadowReport:
        """Add the last minute up."""
        whole = _Slice()
        for part in self._minute.slices(now):
            whole.earlier += part.earlier
            whole.later += part.later
            whole.refused += part.refused
            whole.change += part.change
            for into, more in ((whole.waits, part.waits), (whole.waits_enforced, part.waits_enforced)):
                for place, count in more.items():
                    into[place] = into.get(place, 0) + count
        compared = sum(whole.waits.values())
        return ShadowReport(
            algorithm=algorithm,
            off=off,
            waiting=waiting,
            compared=compared,
            earlier=whole.earlier,
            later=whole.later,
            refused=whole.refused,
            wait_change_seconds=whole.change / compared if compared else 0.0,
            waits=whole.waits,
            waits_enforced=whole.waits_enforced,
            jain=jain,
            jain_enforced=jain_enforced,
            compared_total=self._compared,
            changed_total=self._changed,
            refused_total=self._refused,
        )


class ServiceByTenant:
    """Cost of the requests that were started in the last minute, and of those that wait. O(1) an event."""

    def __init__(self) -> None:
        self._served: dict[str, ServiceWindow] = {}
        self._waiting: dict[str, float] = {}
        self._looked = 0.0

    def waits(self, tenant: str, cost: float) -> None:
        """Count what begins to wait; less than 0 for what no longer does."""
        self._waiting[tenant] = self._waiting.get(tenant, 0.0) + cost

    def served(self, tenant: str, cost: float, now: float) -> None:
        """Count what was started, or a correction of it."""
        window = self._served.get(tenant)
        if window is None:
            window = self._served[tenant] = ServiceWindow(WINDOW_SECONDS)
        window.deliver(now, 0, 0, 0, cost)

    def jain(self, weight: Callable[[str], float], now: float) -> float | None:
        """Return Jain's index of service over max-min entitlement; None unless two tenants asked for any."""
        rows = self.rows(weight, now)
        ratios = [served / entitled for served, _, entitled in rows.values() if entitled > 0]
        return jain(ratios) if len(ratios) > 1 else None

    def rows(self, weight: Callable[[str], float], now: float) -> dict[str, tuple[float, float, float]]:
        """Return service, demand and entitlement of each tenant that was served or waits, by name."""
        names = sorted(self._served.keys() | self._waiting.keys())
        served = [self._served[name].cost(now) if name in self._served else 0.0 for name in names]
        demand = [
            had + max(0.0, self._waiting.get(name, 0.0)) for name, had in zip(names, served, strict=True)
        ]
        entitled = max_min(demand, [weight(name) for name in names], sum(served))
        return dict(zip(names, zip(served, demand, entitled, strict=True), strict=True))

    def forget_idle(self, now: float) -> None:
        """Drop tenants that had nothing in the last minute and have nothing waiting. O(tenants known), a few times a minute."""
        if now - self._looked < SLICE_SECONDS:
            return
        self._looked = now
        for name in [name for name, cost in self._waiting.items() if abs(cost) < SAME_SECONDS]:
            del self._waiting[name]
        for name in [name for name, window in self._served.items() if not window.cost(now)]:
            if name not in self._waiting:
                del self._served[name]
