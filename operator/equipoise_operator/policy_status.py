"""From what the sidecars say to the status of a policy. Pure: time comes in as text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from equipoise_api.conditions import Condition
from equipoise_api.policy import FairnessPolicyStatus, SidecarCounts, SidecarVersion
from equipoise_api.sidecar_config import PASS_THROUGH, SCHEMA_VERSION
from equipoise_api.sidecar_state import EngineState, SidecarState
from equipoise_operator import shares
from equipoise_operator.findings import LONGEST_MESSAGE, Reason, summary
from equipoise_operator.gpu_status import gpu_metrics_stale
from equipoise_operator.views import NAMED, Conditions, PolicyView, SidecarView, some

MOST_VERSIONS = 8
GOES_ON = "dispatch goes on by the sidecar's own counts"


def policy_status(view: PolicyView, now: str) -> FairnessPolicyStatus:
    """Return a policy's status; every condition has `now` as its transition time."""
    states = [state for _, state in view.known()]
    own = [state for _, state in view.own()]
    revision = view.compiled.revision if view.compiled else None
    total = len(view.sidecars)
    synced = sum(1 for sidecar in view.sidecars if revision is not None and sidecar.held == revision)
    versions = _versions(states)
    maker = Conditions(view.observed, now)
    accepted = _accepted(maker, view)
    programmed = _programmed(maker, view, synced)
    return FairnessPolicyStatus(
        observed_generation=view.observed,
        conditions=[
            maker.ready([accepted, programmed]),
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
            versions=versions,
            synced_of_total=f"{synced}/{total}",
            version_names=",".join(each.version for each in versions),
        ),
        load=shares.load(states),
        fairness=shares.fairness(own, view.weights()),
        shadow=shares.shadow(own),
    )


def _versions(states: Iterable[SidecarState]) -> list[SidecarVersion]:
    counts = Counter(state.software_version for state in states if state.software_version)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [SidecarVersion(version=version, sidecars=count) for version, count in ordered[:MOST_VERSIONS]]


def _accepted(maker: Conditions, view: PolicyView) -> Condition:
    if view.error:
        return maker.make("Accepted", "False", Reason.INVALID, f"this operator cannot read {view.error}")
    findings = [
        *([view.conflict] if view.conflict else []),
        *(view.compiled.findings if view.compiled else ()),
    ]
    if findings:
        return maker.make("Accepted", "False", findings[0].reason, summary(findings))
    return maker.make("Accepted", "True", "Accepted")


def _programmed(maker: Conditions, view: PolicyView, synced: int) -> Condition:
    total = len(view.sidecars)
    if view.problem:
        message = f"the configuration cannot be made: {view.problem}"
        return maker.make("Programmed", "False", "NotCompiled", message[:LONGEST_MESSAGE])
    if view.compiled is None:
        return maker.make("Programmed", "Unknown", "Pending", "not compiled yet")
    if not total:
        return maker.make("Programmed", "False", "NoSidecars", "no running sidecar is selected")
    if synced == total:
        unheard = sorted(f"{s.pod} ({s.message})" for s in view.sidecars if s.state is None and s.message)
        message = f"figures are without {', '.join(unheard[:NAMED])}" if unheard else ""
        return maker.make("Programmed", "True", "Programmed", message[:LONGEST_MESSAGE])
    lacking = [sidecar for sidecar in view.sidecars if sidecar.held != view.compiled.revision]
    reason = next((sidecar.reason for sidecar in lacking if sidecar.reason), "Pending")
    told = [_lacking(view, sidecar) for sidecar in sorted(lacking, key=lambda s: s.pod)]
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    message = f"{len(lacking)} of {total} sidecars lack the configuration: {'; '.join(told[:NAMED])}{more}"
    return maker.make("Programmed", "False", reason, message[:LONGEST_MESSAGE])


def _lacking(view: PolicyView, sidecar: SidecarView) -> str:
    """Say of a sidecar without the present configuration what it goes by instead, and why."""
    goes_by, state = "", sidecar.state
    if state is not None and state.policy is not None:
        same = state.policy.uid == view.policy.metadata.uid
        if not same:
            goes_by = f"policy {state.policy.namespace}/{state.policy.name}"
        elif state.policy.generation != view.observed:
            goes_by = f"generation {state.policy.generation}"
    elif state is not None and state.revision == PASS_THROUGH.revision:
        goes_by = "no policy"
    shown = f"{sidecar.pod} (goes by {goes_by})" if goes_by else sidecar.pod
    return f"{shown}: {sidecar.message}" if sidecar.message else shown


def _signal_stale(maker: Conditions, view: PolicyView) -> Condition:
    known = view.known()
    stale: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for pod, state in known:
        if state.engine.signal_stale:
            stale[_silence(state.engine)].append(pod)
    if stale:
        told = [f"{what} at {some(sorted(pods))}" for (_, what), pods in sorted(stale.items())]
        return maker.make("EngineSignalStale", "True", min(stale)[0], "; ".join(told))
    if not known:
        return maker.make("EngineSignalStale", "Unknown", "NoSidecars")
    return maker.make("EngineSignalStale", "False", "Fresh")


def _silence(engine: EngineState) -> tuple[str, str]:
    """Return reason and words for an engine without fresh metrics; the gravest reason sorts first."""
    if not engine.reachable:
        return "EngineUnreachable", "the engine does not answer"
    if not engine.signal_seen:
        return "NoMetrics", f"the engine answers and has shown no metrics yet ({GOES_ON})"
    return "Stale", f"no fresh engine metrics ({GOES_ON})"


def _bound_met(maker: Conditions, view: PolicyView) -> Condition:
    bounded = [(pod, state.fairness) for pod, state in view.own() if state.fairness.bounded]
    broken = sorted(pod for pod, fairness in bounded if fairness.bound_met is False)
    if broken:
        message = f"two tenants' service differs by more than the scheduler's bound at {some(broken)}"
        return maker.make("FairnessBoundMet", "False", "BoundExceeded", message)
    if bounded:
        return maker.make("FairnessBoundMet", "True", "WithinBound")
    return maker.make(
        "FairnessBoundMet", "Unknown", "NoBound", "the scheduler publishes none, or no sidecar is known"
    )
