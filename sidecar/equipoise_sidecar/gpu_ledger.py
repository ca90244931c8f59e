"""Whose the GPUs' time and energy was: what was spent in an interval is shared out by the service delivered in it. Pure.

Nothing is lost and nothing is made up: what tenants got, what nobody used (nothing was in flight) and what waits for a
delivery (a long prompt delivers nothing until it is computed) add up to what was spent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from equipoise_sidecar.accounting import WINDOW_SECONDS


@dataclass(frozen=True, slots=True)
class Spent:
    """Busy GPU seconds and joules."""

    seconds: float = 0.0
    joules: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.joules + other.joules)

    def part(self, fraction: float) -> Spent:
        """Return a fraction of it."""
        return Spent(self.seconds * fraction, self.joules * fraction)


@dataclass(slots=True)
class _Account:
    total: Spent = Spent()
    recent: deque[tuple[float, Spent]] = field(default_factory=deque)


class GpuLedger:
    """Accounts by tenant, since the start and over the last minute."""

    def __init__(self) -> None:
        self.total = Spent()
        """All that was spent, as far as it was measured."""
        self.nobody = Spent()
        """Spent while nothing was in flight, or on tenants that are gone."""
        self.waiting = Spent()
        """Spent on what has delivered nothing yet."""
        self._accounts: dict[str, _Account] = {}
        self._service: dict[str, float] | None = None

    def share_out(self, spent: Spent, service: Mapping[str, float], *, busy: bool, now: float) -> None:
        """Share out what was spent since the last call.

        `service` is what each tenant was delivered since the start, in any unit; a correction downwards counts as nothing.
        `busy`: requests are in flight, so what delivered nothing will. O(tenants).
        """
        before = self._service or {}
        known = self._service is not None
        delivered = {
            tenant: more
            for tenant, total in service.items()
            if known and (more := total - before.get(tenant, 0.0)) > 0
        }
        self._service = dict(service)
        self.total += spent
        self.waiting += spent
        whole = math.fsum(delivered.values())
        if whole > 0:
            for tenant, more in delivered.items():
                self._charge(tenant, self.waiting.part(more / whole), now)
        elif not busy:
            self.nobody += self.waiting
        if whole > 0 or not busy:
            self.waiting = Spent()
        self._forget(service, now)

    def of(self, tenant: str) -> Spent:
        """Return a tenant's total."""
        account = self._accounts.get(tenant)
        return account.total if account is not None else Spent()

    def window(self, tenant: str, now: float) -> Spent:
        """Return what a tenant was charged in the last minute."""
        account = self._accounts.get(tenant)
        if account is None:
            return Spent()
        while account.recent and account.recent[0][0] <= now - WINDOW_SECONDS:
            account.recent.popleft()
        entries = [spent for _, spent in account.recent]
        return Spent(math.fsum(each.seconds for each in entries), math.fsum(each.joules for each in entries))

    def totals(self) -> Iterator[tuple[str, Spent]]:
        """Iterate over the tenants' totals, by name."""
        for tenant, account in sorted(self._accounts.items()):
            yield tenant, account.total

    def _charge(self, tenant: str, spent: Spent, now: float) -> None:
        account = self._accounts.setdefault(tenant, _Account())
        account.total += spent
        account.recent.append((now, spent))

    def _forget(self, service: Mapping[str, float], now: float) -> None:
        for tenant in self._accounts.keys() - service.keys():
            if self.window(tenant, now) == Spent():
                self.nobody += self._accounts.pop(tenant).total
