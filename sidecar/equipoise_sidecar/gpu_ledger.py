"""Whose the GPUs' time and energy was: what was spent in an interval is shared out by the service delivered in it. Pure.

Nothing is lost and nothing is made up: what tenants got, what nobody used (nothing was in flight) and what waits for a
delivery (a long prompt delivers nothing until it is computed) add up to what was spent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from equipoise_scheduling.last_minute import WINDOW_SECONDS


@dataclass(frozen=True, slots=True)
class Spent:
    """Busy GPU seconds and joules."""

    seconds: float = 0.0
    joules: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.joules + other.joules)


@dataclass(slots=True)
class _Account:
    seconds: float = 0.0
    joules: float = 0.0
    recent: deque[tuple[float, float, float]] = field(default_factory=deque)
    """When, seconds and joules of each charge of the last minute."""


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
                self._charge(tenant, more / whole, now)
        elif not busy:
            self.nobody += self.waiting
        if whole > 0 or not busy:
            self.waiting = Spent()
        self._forget(service, now)

    def of(self, tenant: str) -> Spent:
        """Return a tenant's total."""
        account = self._accounts.get(tenant)
        return Spent(account.seconds, account.joules) if account is not None else Spent()

    def window(self, tenant: str, now: float) -> Spent:
        """Return what a tenant was charged in the last minute."""
        account = self._accounts.get(tenant)
        if account is None:
            return Spent()
        recent = account.recent
        while recent and recent[0][0] <= now - WINDOW_SECONDS:
            recent.popleft()
        return Spent(
            math.fsum(seconds for _, seconds, _ in recent), math.fsum(joules for _, _, joules in recent)
        )

    def totals(self) -> Iterator[tuple[str, Spent]]:
        """Iterate over the tenants' totals, by name."""
        for tenant, account in sorted(self._accounts.items()):
            yield tenant, Spent(account.seconds, account.joules)

    def _charge(self, tenant: str, part: float, now: float) -> None:
        """Charge a part of what waits."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account()
        seconds, joules = self.waiting.seconds * part, self.waiting.joules * part
        account.seconds += seconds
        account.joules += joules
        recent = account.recent
        recent.append((now, seconds, joules))
        while recent[0][0] <= now - WINDOW_SECONDS:
            recent.popleft()

    def _forget(self, service: Mapping[str, float], now: float) -> None:
        for tenant in self._accounts.keys() - service.keys():
            if self.window(tenant, now) == Spent():
                self.nobody += self.of(tenant)
                del self._accounts[tenant]
