"""What the operator reads: the sidecar's whole state as the API's type."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from operator import attrgetter

import msgspec

from equipoise_api.sidecar_state import EngineState, FairnessState, LoadState, SidecarState, TenantState
from equipoise_scheduling.contract import Bound, TenantShare
from equipoise_scheduling.last_minute import WINDOW_SECONDS
from equipoise_sidecar.accounting import TenantAccount, histogram
from equipoise_sidecar.config_store import ConfigStore
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.feedback import Feedback
from equipoise_sidecar.shadow_figures import shadow_state

ROWS_AT_A_TIME = 25
"""Tenants between two looks at what else there is to do: about a millisecond."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """Reads the parts; changes nothing."""

    dispatcher: Dispatcher
    feedback: Feedback
    store: ConfigStore
    pod_uid: str
    incarnation: str

    def missing(self) -> list[str]:
        """Say what keeps the sidecar from being ready; nothing when it is."""
        dispatcher = self.dispatcher
        reasons = []
        if not dispatcher.policy.configured:
            reasons.append("no configuration yet")
        if not dispatcher.availability.reachable:
            reasons.append("the engine cannot be reached")
        elif self.feedback.is_silent(dispatcher.clock()):
            reasons.append("the engine does not answer")
        if dispatcher.draining:
            reasons.append("draining")
        return reasons

    def state(self) -> SidecarState:
        """Return the whole report at once. O(active tenants)."""
        return self._state(sorted(self._tenants(self.dispatcher.clock()), key=attrgetter("id")))

    async def encoded(self) -> bytes:
        """Return the whole report as JSON, letting requests go on in between: 10,000 tenants take a second."""
        # bytes, not objects: thousands of those would have the garbage collector look at everything there is
        rows: list[tuple[str, bytes]] = []
        for number, tenant in enumerate(self._tenants(self.dispatcher.clock())):
            rows.append((tenant.id, msgspec.json.encode(tenant.document())))
            if number % ROWS_AT_A_TIME == 0:
                await asyncio.sleep(0)
        rows.sort()
        tenants = [msgspec.Raw(row) for _, row in rows]
        return msgspec.json.encode(self._state([]).document() | {"tenants": tenants})

    def _state(self, tenants: list[TenantState]) -> SidecarState:
        dispatcher, held = self.dispatcher, self.store.held
        now = dispatcher.clock()
        policy = dispatcher.policy
        return SidecarState(
            software_version=version("equipoise"),
            pod_uid=self.pod_uid,
            incarnation=self.incarnation,
            policy=policy.config.policy,
            revision=policy.revision,
            epoch=held.epoch if held is not None else 0,
            sequence=held.sequence if held is not None else 0,
            ready=not self.missing(),
            draining=dispatcher.draining,
            window_seconds=WINDOW_SECONDS,
            engine=self._engine(now),
            load=self._load(),
            fairness=self._fairness(now),
            shadow=[shadow_state(report) for report in dispatcher.shadows.reports(now)],
            gpu=dispatcher.engine.gpu.state(now),
            tenants=tenants,
        )

    def _engine(self, now: float) -> EngineState:
        dispatcher, feedback = self.dispatcher, self.feedback
        signals = feedback.heard.signals if feedback.heard is not None else None
        return EngineState(
            reachable=dispatcher.availability.reachable is True and not feedback.is_silent(now),
            signal_seen=feedback.heard is not None,
            signal_stale=feedback.is_stale(now),
            running=(signals.running or 0) if signals is not None else 0,
            waiting=(signals.waiting or 0) if signals is not None else 0,
            kv_usage=signals.kv_usage if signals is not None else None,
            kv_tokens=dispatcher.engine.capacity.kv_tokens,
            preemptions=feedback.preemptions,
            reports_cached_tokens=dispatcher.engine.profile.reports_cached_tokens,
        )

    def _load(self) -> LoadState:
        dispatcher = self.dispatcher
        return LoadState(
            queued=dispatcher.scheduler.queued,
            running=dispatcher.scheduler.in_flight,
            max_in_flight=dispatcher.engine.capacity.max_in_flight,
            saturation=dispatcher.engine.capacity.saturation(),
        )

    def bound(self, now: float) -> Bound | None:
        """Return the fairness bound, where the policy is enforced and the gate lets one hold."""
        dispatcher = self.dispatcher
        if not dispatcher.policy.enforce or not dispatcher.engine.capacity.bounded:
            return None
        return dispatcher.scheduler.bound(now)

    def _fairness(self, now: float) -> FairnessState:
        bound = self.bound(now)
        if bound is None:
            return FairnessState()
        return FairnessState(
            bounded=True,
            bound=bound.limit,
            largest_gap=bound.gap,
            outstanding=bound.undelivered,
            bound_met=bound.met,
        )

    def _tenants(self, now: float) -> Iterator[TenantState]:
        """Yield those that had anything to do in the last minute."""
        accounting = self.dispatcher.accounting
        seen: set[str] = set()
        for share in self.dispatcher.scheduler.iter_shares(now, idle=False):
            seen.add(share.tenant)
            yield self._tenant(share.tenant, share, accounting.get(share.tenant), now)
        for tenant, account in accounting.items():
            if tenant not in seen and not account.is_idle(now):
                yield self._tenant(tenant, None, account, now)

    def _tenant(
        self, tenant: str, share: TenantShare | None, account: TenantAccount | None, now: float
    ) -> TenantState:
        window = (account or TenantAccount()).window(now)
        settings = self.dispatcher.policy.tenant_settings.get(tenant)
        figures = (
            {}
            if share is None
            else {
                "prompt_tokens": share.window.prompt,
                "cached_tokens": share.window.cached,
                "generated_tokens": share.window.generated,
                "service": share.window.cost,
                "demand": share.demand,
                "counter": share.counter,
            }
        )
        gpu = self.dispatcher.engine.gpu
        if gpu.is_fresh(now):
            spent = gpu.ledger.window(tenant, now)
            figures |= {"gpu_seconds": spent.seconds, "energy_joules": spent.joules}
        return TenantState(
            id=tenant,
            weight=round(settings.weight) if settings is not None else 1,
            queued=account.queued if account is not None else 0,
            running=account.running if account is not None else 0,
            rejected=window.rejected,
            wait=histogram(window.wait),
            ttft=histogram(window.ttft),
            slo_kept=window.slo_kept,
            slo_total=window.slo_total,
            **figures,
        )
