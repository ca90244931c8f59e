"""All shadow schedulers of one enforced one: every event reaches each, and an error in one ends that one alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.contract import SchedulerSettings, TenantSettings
from equipoise_scheduling.registry import create
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_scheduling.shadow import Seen, Shadow
from equipoise_scheduling.shadow_report import ServiceByTenant, ShadowReport

SYNC_SECONDS = 0.25
"""How old deliveries may be that a shadow goes by."""
_NOTHING = Usage(0, 0, exact=False)


class Shadows:
    """Call each method after the enforced scheduler was told, with the enforced scheduler's own requests."""

    def __init__(
        self, *, sync_seconds: float = SYNC_SECONDS, on_off: Callable[[Shadow], None] = lambda _: None
    ) -> None:
        """Start with none. `on_off` is told of a shadow that had to be switched off."""
        self.service = ServiceByTenant()
        """What was really started."""
        self.failures = 0
        """Shadows that were switched off."""
        self._sync_seconds = sync_seconds
        self._on_off = on_off
        self._synced = float("-inf")
        self._shadows: dict[str, Shadow] = {}
        self._running: list[Shadow] = []
        self._weights: Mapping[str, TenantSettings] = {}
        self._seen: dict[str, Seen] = {}
        self._waiting = 0
        self._next_index = 0

    def __iter__(self) -> Iterator[Shadow]:
        """Iterate over all, those that are switched off included, by algorithm."""
        return iter([self._shadows[name] for name in sorted(self._shadows)])

    def __bool__(self) -> bool:
        """Say whether any runs."""
        return bool(self._running)

    def configure(
        self,
        wanted: Mapping[str, SchedulerSettings],
        tenants: Mapping[str, TenantSettings],
        enforced: TenantScheduler,
        now: float,
    ) -> None:
        """Run these algorithms; one that runs goes on, a new one starts from the enforced one's service history.

        ValueError or TypeError, before anything changes, for settings that cannot be.
        """
        new = {name: create(name, settings, tenants) for name, settings in wanted.items()}
        self._weights = tenants
        kept = {
            name: shadow for name, shadow in self._shadows.items() if name in wanted and shadow.off is None
        }
        if not kept:
            # nobody has listened of late: what is known of waiting requests is not true any more
            self._seen.clear()
            self._waiting = 0
            self.service = ServiceByTenant()
        history = enforced.snapshot() if new.keys() - kept.keys() else {}
        self._shadows = kept
        for name, scheduler in new.items():
            if name in kept:
                self._tell(kept[name], kept[name].reconfigure, wanted[name], tenants, now)
                continue
            scheduler.set_pool(enforced.books.kv_tokens)
            shadow = self._shadows[name] = Shadow(scheduler, self._next_index)
            self._tell(shadow, scheduler.restore, history)
        self._running = [shadow for shadow in self if shadow.off is None]

    def _tell(self, shadow: Shadow, event: Callable[..., None], *facts: object, **more: object) -> None:
        """Pass an event on; whatever it raises is the shadow's end and nobody else's trouble."""
        try:
            event(*facts, **more)
        except Exception as error:  # noqa: BLE001 - a shadow decides nothing, so it must break nothing
            shadow.off = f"{type(error).__name__}: {error}"
            self.failures += 1
            self._running = [each for each in self._running if each is not shadow]
            self._on_off(shadow)

    def arrived(self, request: Request, enforced: TenantScheduler, now: float) -> None:
        """Take in a request that the enforced scheduler accepted."""
        if not self._running:
            return
        self._sync(enforced, now)
        seen = self._seen[request.id] = Seen(request, self._next_index, enforced.books.settings.cost)
        self._next_index += 1
        self._waiting += 1
        self.service.waits(request.tenant, seen.cost)
        for shadow in self._running:
            self._tell(shadow, shadow.arrived, seen, now)

    def decided(self, started: Sequence[Request], enforced: TenantScheduler, now: float) -> None:
        """Take in which requests the enforced scheduler started in one pass; none is a pass too."""
        if not self._running:
            return
        self._sync(enforced, now)
        for request in started:
            seen = self._seen.get(request.id)
            if seen is None or seen.started is not None:
                continue
            seen.started = now
            self._waiting -= 1
            self.service.waits(request.tenant, -seen.cost)
            self.service.served(request.tenant, seen.cost, now)
            for shadow in self._running:
                self._tell(shadow, shadow.really_started, seen, now)
        for shadow in self._running:
            self._tell(shadow, shadow.decide, now, idle=self._waiting == 0)

    def returned(self, request: Request, enforced: TenantScheduler, now: float) -> None:
        """Take in that the engine would not have a request that had started."""
        seen = self._seen.get(request.id)
        if seen is None or seen.started is None:
            return
        self._sync(enforced, now)
        seen.started = None
        self._waiting += 1
        self.service.waits(request.tenant, seen.cost)
        self.service.served(request.tenant, -seen.cost, now)
        for shadow in self._running:
            self._tell(shadow, shadow.returned, seen, now)

    def ended(
        self, request: Request, usage: Usage | None, outcome: Outcome, enforced: TenantScheduler, now: float
    ) -> None:
        """Take in that a request ended; `usage` None where it never started."""
        seen = self._seen.pop(request.id, None)
        if seen is None:
            return
        self._sync(enforced, now)
        usage = usage or _NOTHING
        seen.end = (usage, outcome)
        if seen.started is None:
            self._waiting -= 1
            self.service.waits(request.tenant, -seen.cost)
        else:
            cost = enforced.books.settings.cost(usage.prompt, usage.cached, usage.generated)
            for shadow in self._running:
                self._tell(shadow, shadow.recosted, seen, cost - seen.cost)
            self.service.served(request.tenant, cost - seen.cost, now)
            seen.cost = cost
        for shadow in self._running:
            self._tell(shadow, shadow.ended, seen, now)

    def tick(self, enforced: TenantScheduler, now: float) -> None:
        """Let time pass, about once a second. O(active tenants)."""
        if not self._running:
            return
        self._sync(enforced, now)
        self.service.forget_idle(now)
        for shadow in self._running:
            self._tell(shadow, shadow.scheduler.set_pool, enforced.books.kv_tokens)
            self._tell(shadow, shadow.tick, now)
            if self._waiting == 0:
                self._tell(shadow, shadow.decide, now, idle=True)

    def _sync(self, enforced: TenantScheduler, now: float) -> None:
        if now - self._synced < self._sync_seconds:
            return
        self._synced = now
        for shadow in self._running:
            self._tell(shadow, shadow.delivered, enforced.books.flights, now)

    def reports(self, now: float) -> list[ShadowReport]:
        """Say what each would have changed, by algorithm."""
        if not self._shadows:
            return []
        enforced = self.service.jain(self.weight, now)
        return [shadow.report(enforced, self.weight, now) for shadow in self]

    def weight(self, tenant: str) -> float:
        """Return a tenant's weight, 1 for a stranger."""
        settings = self._weights.get(tenant)
        return 1.0 if settings is None else settings.weight
