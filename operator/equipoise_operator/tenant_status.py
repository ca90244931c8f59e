"""From what the sidecars say to the status of a tenant. Pure: time comes in as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from equipoise_api.conditions import Condition
from equipoise_api.names import tenant_id
from equipoise_api.tenant import Latency, Share, Tenant, TenantPolicyStatus, TenantStatus, Usage
from equipoise_operator import shares
from equipoise_operator.compile import Compiled, Version
from equipoise_operator.findings import Reason, summary
from equipoise_operator.views import Admission, Conditions, PolicyView, SidecarView, some

MOST_POLICIES = 16


def tenant_status(tenant: Tenant, admissions: Iterable[Admission], error: str, now: str) -> TenantStatus:
    """Return a tenant's status; every condition has `now` as its transition time."""
    ordered = sorted(
        admissions, key=lambda each: (each.view.policy.metadata.namespace, each.view.policy.metadata.name)
    )
    maker = Conditions(_observed(tenant, ordered), now)
    entries = [_entry(maker, tenant, each) for each in ordered]
    identity = _identity(maker, tenant, ordered, error)
    conditions = [identity, _synced_everywhere(maker, entries)]
    promised = [tenant.spec.slo, *(application.slo for application in tenant.spec.applications)]
    objectives = [slo.objective_percent for slo in promised if slo is not None]
    if objectives:
        conditions.append(_slo_met(maker, max(objectives), ordered))
    return TenantStatus(
        observed_generation=maker.generation,
        conditions=[maker.ready(conditions[:2]), *conditions],
        policies=entries[:MOST_POLICIES],
        share=max((entry.share for entry in entries), key=_gap, default=Share()),
        usage=_sum([entry.usage for entry in entries]),
        latency=_worst([entry.latency for entry in entries]),
    )


def _made_from(tenant: Tenant, view: PolicyView) -> Version | None:
    """Return the version of the tenant that a policy was compiled from; None where that has not happened yet."""
    if view.compiled is None:
        return None
    version = view.compiled.made_from.get(tenant_id(tenant.metadata.namespace, tenant.metadata.name))
    return version if version is not None and version.uid == tenant.metadata.uid else None


def _observed(tenant: Tenant, admissions: Iterable[Admission]) -> int:
    """Return the generation that the status is of: the oldest that a policy was compiled from.

    A status of the newest would say that it is in force when it is not compiled yet.
    """
    made_from = [version for each in admissions if (version := _made_from(tenant, each.view)) is not None]
    return min((version.generation for version in made_from), default=tenant.metadata.generation)


def _entry(maker: Conditions, tenant: Tenant, admission: Admission) -> TenantPolicyStatus:
    policy, compiled = admission.view.policy, admission.view.compiled
    name = tenant_id(tenant.metadata.namespace, tenant.metadata.name)
    note = compiled.notes.get(name) if compiled else None
    accepted = (
        maker.make("Accepted", "True", note.reason, note.message)
        if note
        else maker.make("Accepted", "True", "Admitted")
    )
    return TenantPolicyStatus(
        namespace=policy.metadata.namespace,
        name=policy.metadata.name,
        conditions=[accepted, _synced(maker, tenant, admission.view)],
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


def _synced(maker: Conditions, tenant: Tenant, view: PolicyView) -> Condition:
    if view.compiled is None or _made_from(tenant, view) is None:
        return maker.make("Synced", "Unknown", "Pending", "not compiled yet")
    name = tenant_id(tenant.metadata.namespace, tenant.metadata.name)
    lacking = sorted(s.pod for s in view.sidecars if lacks(s, view.compiled, name))
    if not lacking:
        return maker.make("Synced", "True", "Synced")
    return maker.make("Synced", "False", "Pending", f"not yet known at {some(lacking)}")


def _synced_everywhere(maker: Conditions, entries: Sequence[TenantPolicyStatus]) -> Condition:
    if not entries:
        return maker.make("Synced", "False", "NoPolicy", "no FairnessPolicy admits this tenant")
    for status in ("False", "Unknown"):
        for entry in entries:
            synced = entry.conditions[1]
            if synced.status == status:
                where = f"{entry.namespace}/{entry.name}: {synced.message}"
                return maker.make("Synced", synced.status, synced.reason, where)
    return maker.make("Synced", "True", "Synced")


def _identity(maker: Conditions, tenant: Tenant, admissions: Sequence[Admission], error: str) -> Condition:
    if error:
        return maker.make("IdentityResolved", "False", Reason.INVALID, f"this operator cannot read {error}")
    if not admissions:
        return maker.make("IdentityResolved", "Unknown", "NoPolicy", "no FairnessPolicy admits this tenant")
    name = tenant_id(tenant.metadata.namespace, tenant.metadata.name)
    compiled = [each.view.compiled for each in admissions if _made_from(tenant, each.view) is not None]
    findings = [finding for each in compiled if each for finding in each.identity_findings.get(name, ())]
    if findings:
        return maker.make("IdentityResolved", "False", findings[0].reason, summary(findings))
    if not compiled:
        return maker.make("IdentityResolved", "Unknown", "Pending", "not compiled yet")
    return maker.make("IdentityResolved", "True", "Resolved")


def _slo_met(maker: Conditions, objective: int, admissions: Sequence[Admission]) -> Condition:
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
