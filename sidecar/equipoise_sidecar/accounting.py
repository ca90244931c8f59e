"""What each tenant lived through: waits, time to first token, SLOs, refusals, outcomes; in all and over the last minute.

Delivered service and demand are the scheduler's to count (`Scheduler.shares`); this is the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeVar

from equipoise_api.latency import LatencyHistogram, bucket
from equipoise_api.tenant import SloTarget
from equipoise_scheduling.last_minute import LastMinute
from equipoise_scheduling.request import Outcome
from equipoise_sidecar.ticket import Ticket

Counts = dict[int, int]
K = TypeVar("K", int, str, Outcome)


@dataclass(slots=True)
class Slice:
    """A few seconds of one tenant's history."""

    wait: Counts = field(default_factory=dict)
    ttft: Counts = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    slo_kept: int = 0
    slo_total: int = 0


@dataclass(slots=True)
class Recorder:
    """A latency distribution since the start, by the buckets of `equipoise_api.latency`."""

    counts: Counts = field(default_factory=dict)
    seconds: float = 0.0
    """Sum."""

    def add(self, index: int, seconds: float) -> None:
        """Count one duration that belongs to bucket `index`."""
        self.counts[index] = self.counts.get(index, 0) + 1
        self.seconds += seconds


class TenantAccount:
    """One tenant: live counts, totals since the start, and the last minute in slices. O(1) an event."""

    __slots__ = (
        "_minute",
        "outcomes",
        "queued",
        "rejected",
        "running",
        "slo_kept",
        "slo_total",
        "ttft",
        "wait",
    )

    def __init__(self) -> None:
        self.queued = 0
        self.running = 0
        self.outcomes: dict[Outcome, int] = {}
        self.rejected: dict[str, int] = {}
        self.wait = Recorder()
        self.ttft = Recorder()
        self.slo_kept = 0
        self.slo_total = 0
        self._minute = LastMinute(Slice)

    def waited(self, seconds: float, now: float) -> None:
        """Count a wait in the queue that ended in a dispatch, or because it was too long."""
        index = bucket(seconds)
        self.wait.add(index, seconds)
        _count(self._minute.at(now).wait, index)

    def began(self, seconds: float, now: float) -> None:
        """Count a time to first token."""
        index = bucket(seconds)
        self.ttft.add(index, seconds)
        _count(self._minute.at(now).ttft, index)

    def refused(self, reason: str, now: float) -> None:
        """Count a refusal."""
        _count(self.rejected, reason)
        _count(self._minute.at(now).rejected, reason)

    def judged(self, kept: bool, now: float) -> None:  # noqa: FBT001 - the one fact
        """Count a request that had an SLO."""
        slice_ = self._minute.at(now)
        self.slo_total += 1
        slice_.slo_total += 1
        self.slo_kept += kept
        slice_.slo_kept += kept

    def window(self, now: float) -> Slice:
        """Add the last minute's slices up."""
        whole = Slice()
        for part in self._minute.slices(now):
            _merge(whole.wait, part.wait)
            _merge(whole.ttft, part.ttft)
            _merge(whole.rejected, part.rejected)
            whole.slo_kept += part.slo_kept
            whole.slo_total += part.slo_total
        return whole

    def is_idle(self, now: float) -> bool:
        """Whether nothing is queued or running, and nothing happened in the last minute."""
        return not (self.queued or self.running or self._minute.slices(now))


class Accounting:
    """All tenants' accounts. A tenant has one from its first request until it is gone from the configuration."""

    def __init__(self) -> None:
        self._accounts: dict[str, TenantAccount] = {}

    def __getitem__(self, tenant: str) -> TenantAccount:
        """Return the tenant's account, opening it at the first request."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = TenantAccount()
        return account

    def get(self, tenant: str) -> TenantAccount | None:
        """Return the tenant's account if it has one."""
        return self._accounts.get(tenant)

    def items(self) -> Iterator[tuple[str, TenantAccount]]:
        """Iterate over tenants, by name."""
        yield from sorted(self._accounts.items())

    def keep_only(self, tenants: AbstractSet[str], now: float) -> None:
        """Close the accounts of tenants that are gone, once they are idle."""
        for tenant in self._accounts.keys() - tenants:
            if self._accounts[tenant].is_idle(now):
                del self._accounts[tenant]


def slo_kept(slo: SloTarget, ticket: Ticket, outcome: Outcome, now: float) -> bool | None:
    """Judge a request that ended at `now`: kept every target, broke one, or None where it cannot be judged.

    A client that leaves before any target was broken is not judged, nor is a request that the engine refused. The first
    token of an answer that does not stream is not seen: its TTFT and TPOT targets are left out.
    """
    arrival = ticket.request.arrival
    nothing = outcome is Outcome.FINISHED and not (ticket.prompt or ticket.generated)
    if outcome is Outcome.REFUSED or nothing:
        return None
    if outcome in {Outcome.EXPIRED, Outcome.FAILED}:
        return False
    age_ms = (now - arrival) * 1000
    judged = False
    if slo.e2e_milliseconds is not None:
        if age_ms > slo.e2e_milliseconds:
            return False
        judged = True
    if ticket.facts.stream:
        first = ticket.first_token_at
        if slo.ttft_milliseconds is not None:
            if ((first or now) - arrival) * 1000 > slo.ttft_milliseconds:
                return False
            judged = True
        tokens = ticket.generated // max(1, ticket.request.sequences)
        if slo.tpot_milliseconds is not None and first is not None and tokens > 1:
            if (now - first) * 1000 / (tokens - 1) > slo.tpot_milliseconds:
                return False
            judged = True
    return True if judged and outcome is Outcome.FINISHED else None


def histogram(counts: Counts) -> LatencyHistogram:
    """Copy counts into the type that goes over the wire."""
    return LatencyHistogram(counts=dict(counts))


def _count(counts: dict[K, int], key: K) -> None:
    counts[key] = counts.get(key, 0) + 1


def _merge(into: dict[K, int], more: dict[K, int]) -> None:
    for key, count in more.items():
        into[key] = into.get(key, 0) + count
