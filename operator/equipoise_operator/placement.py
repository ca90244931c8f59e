"""Which policy governs which pod: one each. Where two select a pod the older policy has it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from equipoise_api.policy import FairnessPolicy
from equipoise_operator.findings import Finding, Reason
from equipoise_operator.identities import seniority
from equipoise_operator.objects import Pod

NAMED = 5
"""Pods that a conflict's message names; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One namespace's pods and policies."""

    governed: Mapping[str, str | None]
    """Policy uid by pod uid; None for a sidecar's pod that no policy selects."""
    conflicts: Mapping[str, Finding]
    """By uid of the policy that lost pods to an older one."""


def place(policies: Iterable[FairnessPolicy], pods: Iterable[Pod]) -> Placement:
    """Give every pod with a sidecar its policy. Both are of one namespace."""
    by_age = sorted(policies, key=seniority)
    governed: dict[str, str | None] = {}
    lost: dict[str, list[tuple[str, str]]] = {}
    for pod in sorted(pods, key=lambda pod: pod.name):
        if not pod.has_sidecar:
            continue
        labels = dict(pod.labels)
        selecting = [policy for policy in by_age if policy.spec.target.selector.matches(labels)]
        governed[pod.uid] = selecting[0].metadata.uid if selecting else None
        for younger in selecting[1:]:
            lost.setdefault(younger.metadata.uid, []).append((pod.name, selecting[0].metadata.name))
    return Placement(governed, {uid: _conflict(pairs) for uid, pairs in lost.items()})


def _conflict(pairs: list[tuple[str, str]]) -> Finding:
    shown = ", ".join(f"{pod} ({policy})" for pod, policy in pairs[:NAMED])
    more = f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    return Finding(Reason.CONFLICT, f"older policies govern pods that this one selects too: {shown}{more}")
