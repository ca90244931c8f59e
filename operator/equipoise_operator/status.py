"""From what the sidecars say to the status of policies and tenants. Pure: time comes in as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from equipoise_api.conditions import Condition, ConditionStatus
from equipoise_api.names import tenant_id
from equipoise_api.policy import FairnessPolicy, FairnessPolicyStatus, SidecarCounts
from equipoise_api.sidecar_config import SCHEMA_VERSION
from equipoise_api.sidecar_state import SidecarState
from equipoise_api.tenant import Latency, Share, Tenant, TenantPolicyStatus, TenantStatus, Usage
from equipoise_operator import shares
from equipoise_operator.compile import Compiled
from equipoise_operator.findings import Finding, Reason, summary
from equipoise_operator.gpu_status import gpu_metrics_stale

NAMED = 3
"""Sidecars that a message names; the rest are counted."""
MOST_POLICIES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarView:
    """One sidecar as the operator knows it."""

    pod: str
    state: SidecarState | None = None
    """None before the first, and once the last is too old to count."""
    held: str | None = None
    """Revision that it holds; "" for none, None while unknown."""
    acknowledged: Compiled | None = None
    """The newest configuration that it is known to have taken."""
    reason: str = ""
    message: str = ""
    """Why the last call to it failed."""
    exporter: str | None = None
    """URL of the dcgm-exporter on its node, where one is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyView:
    """One policy, its configuration and its sidecars."""

    policy: FairnessPolicy
    compiled: Compiled | None
    sidecars: Sequence[SidecarView] = ()
    conflict: Finding | None = None
    """Pods that an older policy has."""
    error: str = ""
    """Why the newest version of the object could not be read."""
    exporters_problem: str = ""
    """Why there may be dcgm-exporters that the operator does not know."""

    def states(self) -> list[SidecarState]:
        """Return the states that count."""
        return [sidecar.state for sidecar in self.sidecars if sidecar.state is not None]

    def rows(self) -> dict[str, shares.Row]:
        """Return what each tenant got."""
        return shares.rows(self.states(), self.weights())

    def weights(self) -> shares.Weights:
        """Return the look-up of the tenants' weights."""
        if self.compiled is None:
            return shares.weights_of({}, self.policy.spec.default_tenant)
        return shares.weights_of(self.compiled.tenants, self.compiled.config.default_tenant)


def policy_status(view: PolicyView, now: str) -> FairnessPolicyStatus:
    """Return a policy's status; every condition has `now` as its transition time."""
    states = view.states()
    revision = view.compiled.revision if view.compiled else None
    total = len(view.sidecars)
    synced = sum(1 for sidecar in view.sidecars if revision is not None and sidecar.held == revision)
    maker = _Conditions(view.policy.metadata.generation, now)
    accepted = _accepted(maker, view)
    programmed = _programmed(maker, view, synced)
    return FairnessPolicyStatus(
        observed_generation=view.policy.metadata.generation,
        conditions=[
            _ready(maker, [accepted, programmed]),
            accepted,
            programmed,
            _signal_stale(maker, view),
            maker.make("GPUMetricsStale", *gpu_metrics_stale(view)),
            _bound_met(maker, view),
        ],
        revision=revision,
        tenants=len(view.compiled.tenants) if view.compiled else 0,
        sidecars=SidecarCounts(
            total=total,
            ready=sum(1 for state in states if state.ready),
            synced=synced,
            outdated=sum(1 for state in states if state.schema_version != SCHEMA_VERSION),
            synced_of_total=f"{synced}/{total}",
        ),
        load=shares.load(states),
        fairness=shares.fairness(states, view.weights()),
        shadow=shares.shadow(states),
    )


@dataclass(frozen=True, slots=True)
class Admission:
    """A tenant under one policy that admits it."""

    view: PolicyView
    row: shares.Row


def tenant_status(tenant: Tenant, admissions: Iterable[Admission], error: str, now: str) -> TenantStatus:
    """Return a tenant's status; every condition has `now` as its transition time."""
    name = tenant_id(tenant.metadata.namespace, tenant.metadata.name)
    maker = _Conditions(tenant.metadata.generation, now)
    ordered = sorted(
        admissions, key=lambda each: (each.view.policy.metadata.namespace, each.view.policy.metadata.name)
    )
    entries = [_entry(maker, name, each) for each in ordered]
    identity = _identity(maker, name, ordered, error)
    conditions = [identity, _synced_everywhere(maker, entries)]
    promised = [tenant.spec.slo, *(application.slo for application in tenant.spec.applications)]
    objectives = [slo.objective_percent for slo in promised if slo is not None]
    if objectives:
        conditions.append(_slo_met(maker, max(objectives), ordered))
    return TenantStatus(
        observed_generation=tenant.metadata.generation,
        conditions=[_ready(maker, conditions[:2]), *conditions],
        policies=entries[:MOST_POLICIES],
        share=max((entry.share for entry in entries), key=_gap, default=Share()),
        usage=_sum([entry.usage for entry in entries]),
        latency=_worst([entry.latency for entry in entries]),
    )


@dataclass(frozen=True, slots=True)
class _Conditions:
    generation: int
    now: str

    def make(self, kind: str, status: ConditionStatus, reason: str, message: str = "") -> Condition:
        return Condition(
            type=kind,
            status=status,
            observed_generation=self.generation,
            last_transition_time=self.now,
            reason=reason,
            message=message,
        )


def _ready(maker: _Conditions, needed: Sequence[Condition]) -> Condition:
    for condition in needed:
        if condition.status != "True":
            return maker.make("Ready", "False", condition.reason, condition.message)
    return maker.make("Ready", "True", "Ready")


def _accepted(maker: _Conditions, view: PolicyView) -> Condition:
    if view.error:
        return maker.make("Accepted", "False", Reason.INVALID, f"this operator cannot read {view.error}")
    findings = [
        *([view.conflict] if view.conflict else []),
        *(view.compiled.findings if view.compiled else ()),
    ]
    if findings:
        return maker.make("Accepted", "False", findings[0].reason, summary(findings))
    return maker.make("Accepted", "True", "Accepted")


def _programmed(maker: _Conditions, view: PolicyView, synced: int) -> Condition:
    total = len(view.sidecars)
    if view.compiled is None:
        return maker.make("Programmed", "Unknown", "Pending", "not compiled yet")
    if not total:
        return maker.make("Programmed", "False", "NoSidecars", "no running sidecar is selected")
    if synced == total:
        return maker.make("Programmed", "True", "Programmed")
    lacking = [sidecar for sidecar in view.sidecars if sidecar.held != view.compiled.revision]
    reason = next((sidecar.reason for sidecar in lacking if sidecar.reason), "Pending")
    told = [f"{s.pod}: {s.message}" if s.message else s.pod for s in sorted(lacking, key=lambda s: s.pod)]
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    message = f"{len(lacking)} of {total} sidecars lack the configuration: {'; '.join(told[:NAMED])}{more}"
    return maker.make("Programmed", "False", reason, message[:1024])


def _signal_stale(maker: _Conditions, view: PolicyView) -> Condition:
    known = [sidecar for sidecar in view.sidecars if sidecar.state is not None]
    stale = sorted(s.pod for s in known if s.state is not None and s.state.engine.signal_stale)
    if stale:
        message = f"no fresh engine metrics at {', '.join(stale[:NAMED])}; dispatch goes on by the sidecars' own counts"
        return maker.make("EngineSignalStale", "True", "Stale", message)
    if not known:
        return maker.make("EngineSignalStale", "Unknown", "NoSidecars")
    return maker.make("EngineSignalStale", "False", "Fresh")


def _bound_met(maker: _Conditions, view: PolicyView) -> Condition:
    bounded = [s for s in view.sidecars if s.state is not None and s.state.fairness.bounded]
    broken = sorted(s.pod for s in bounded if s.state is not None and s.state.fairness.bound_met is False)
    if broken:
        message = (
            f"two tenants' service differs by more than the scheduler's bound at {', '.join(broken[:NAMED])}"
        )
        return maker.make("FairnessBoundMet", "False", "BoundExceeded", message)
    if bounded:
        return maker.make("FairnessBoundMet", "True", "WithinBound")
    return maker.make(
        "FairnessBoundMet", "Unknown", "NoBound", "the scheduler publishes none, or no sidecar is known"
    )


def _entry(maker: _Conditions, name: str, admission: Admission) -> TenantPolicyStatus:
    policy, compiled = admission.view.policy, admission.view.compiled
    note = compiled.notes.get(name) if compiled else None
    accepted = (
        maker.make("Accepted", "True", note.reason, note.message)
        if note
        else maker.make("Accepted", "True", "Admitted")
    )
    return TenantPolicyStatus(
        namespace=policy.metadata.namespace,
        name=policy.metadata.name,
        conditions=[accepted, _synced(maker, name, admission.view)],
        share=admission.row.share,
        usage=admission.row.usage,
        latency=admission.row.latency,
    )


def lacks(sidecar: SidecarView, compiled: Compiled, name: str) -> bool:
    """Say whether a sidecar serves by another configuration of this tenant than it should.

    One without any configuration serves nobody, so it lacks nothing.
    """
    if sidecar.held in (compiled.revision, ""):
        return False
    if sidecar.held is None:
        return False
    taken = sidecar.acknowledged
    if taken is None or taken.revision != sidecar.held:
        return True
    return taken.tenants.get(name) != compiled.tenants.get(name)


def _synced(maker: _Conditions, name: str, view: PolicyView) -> Condition:
    if view.compiled is None or name not in view.compiled.tenants:
        return maker.make("Synced", "Unknown", "Pending", "not compiled yet")
    lacking = sorted(s.pod for s in view.sidecars if lacks(s, view.compiled, name))
    if not lacking:
        return maker.make("Synced", "True", "Synced")
    more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
    return maker.make("Synced", "False", "Pending", f"not yet known at {', '.join(lacking[:NAMED])}{more}")


def _synced_everywhere(maker: _Conditions, entries: Sequence[TenantPolicyStatus]) -> Condition:
    if not entries:
        return maker.make("Synced", "False", "NoPolicy", "no FairnessPolicy admits this tenant")
    for status in ("False", "Unknown"):
        for entry in entries:
            synced = entry.conditions[1]
            if synced.status == status:
                where = f"{entry.namespace}/{entry.name}: {synced.message}"
                return maker.make("Synced", synced.status, synced.reason, where)
    return maker.make("Synced", "True", "Synced")


def _identity(maker: _Conditions, name: str, admissions: Sequence[Admission], error: str) -> Condition:
    if error:
        return maker.make("IdentityResolved", "False", Reason.INVALID, f"this operator cannot read {error}")
    compiled = [each.view.compiled for each in admissions if each.view.compiled is not None]
    findings = [finding for each in compiled for finding in each.identity_findings.get(name, ())]
    if findings:
        return maker.make("IdentityResolved", "False", findings[0].reason, summary(findings))
    if not compiled:
        return maker.make("IdentityResolved", "Unknown", "NoPolicy", "no FairnessPolicy admits this tenant")
    return maker.make("IdentityResolved", "True", "Resolved")


def _slo_met(maker: _Conditions, objective: int, admissions: Sequence[Admission]) -> Condition:
    """Compare all its requests with the strictest objective: what is reported is not split by application."""
    reached = [
        each.row.latency.slo_attainment_percent
        for each in admissions
        if each.row.latency.slo_attainment_percent is not None
    ]
    if not reached:
        return maker.make("SLOMet", "Unknown", "NoRequests", "no request ended in the last minute")
    if min(reached) < objective:
        message = f"fewer than {objective}% of the last minute's requests kept the targets"
        return maker.make("SLOMet", "False", "Missed", message)
    return maker.make("SLOMet", "True", "Met")


def _gap(share: Share) -> int:
    if share.entitled_percent is None or share.actual_percent is None:
        return -1
    return abs(share.entitled_percent - share.actual_percent)


def _sum(usages: Sequence[Usage]) -> Usage:
    if len(usages) == 1:
        return usages[0]
    rejected: dict[str, int] = {}
    for usage in usages:
        for each in usage.rejected:
            rejected[each.reason] = rejected.get(each.reason, 0) + each.per_minute
    counts = {
        name: shares.rounded(sum(known))
        for name in Usage.model_fields
        if name != "rejected"
        and (known := [value for usage in usages if (value := getattr(usage, name)) is not None])
    }
    most = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))[: shares.MOST_REASONS]
    return Usage.model_validate(
        counts | {"rejected": [{"reason": reason, "perMinute": count} for reason, count in sorted(most)]}
    )


def _worst(latencies: Sequence[Latency]) -> Latency:
    def of(name: str) -> list[int]:
        return [value for each in latencies if (value := getattr(each, name)) is not None]

    return Latency(
        wait_p50_milliseconds=max(of("wait_p50_milliseconds"), default=None),
        wait_p99_milliseconds=max(of("wait_p99_milliseconds"), default=None),
        ttft_p50_milliseconds=max(of("ttft_p50_milliseconds"), default=None),
        ttft_p99_milliseconds=max(of("ttft_p99_milliseconds"), default=None),
        slo_attainment_percent=min(of("slo_attainment_percent"), default=None),
    )
