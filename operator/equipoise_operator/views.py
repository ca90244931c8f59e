"""What a status is made of: a policy with its configuration and its sidecars, and a tenant under one policy. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from equipoise_api.conditions import Condition, ConditionStatus
from equipoise_api.policy import FairnessPolicy
from equipoise_api.sidecar_state import SidecarState
from equipoise_operator import shares
from equipoise_operator.compile import Compiled
from equipoise_operator.findings import Finding

NAMED = 3
"""Sidecars that a message names; the rest are counted."""


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
    problem: str = ""
    """Why the newest version could not be compiled."""
    exporters_problem: str = ""
    """Why there may be dcgm-exporters that the operator does not know."""

    @property
    def observed(self) -> int:
        """The generation that the status is of: the compiled one, or the newest where that cannot be compiled."""
        compiled = self.compiled.config.policy if self.compiled is not None else None
        if compiled is None or self.problem:
            return self.policy.metadata.generation
        return compiled.generation

    def known(self) -> list[tuple[str, SidecarState]]:
        """Return pod and state of the sidecars whose state counts."""
        return [(sidecar.pod, sidecar.state) for sidecar in self.sidecars if sidecar.state is not None]

    def own(self) -> list[tuple[str, SidecarState]]:
        """Return those of them that do not go by another policy still: what they say of fairness is that one's."""
        uid = self.policy.metadata.uid
        return [
            (pod, state) for pod, state in self.known() if state.policy is None or state.policy.uid == uid
        ]

    def rows(self) -> shares.Rows:
        """Return what each tenant got."""
        return shares.Rows([state for _, state in self.known()], self.weights())

    def weights(self) -> shares.Weights:
        """Return the look-up of the tenants' weights."""
        if self.compiled is None:
            return shares.weights_of({}, self.policy.spec.default_tenant)
        return shares.weights_of(self.compiled.tenants, self.compiled.config.default_tenant)


@dataclass(frozen=True, slots=True)
class Admission:
    """A tenant under one policy that admits it."""

    view: PolicyView
    row: shares.Row


@dataclass(frozen=True, slots=True)
class Conditions:
    """Makes conditions of one generation; every one has `now` as its transition time."""

    generation: int
    now: str

    def make(self, kind: str, status: ConditionStatus, reason: str, message: str = "") -> Condition:
        """Return one condition."""
        return Condition(
            type=kind,
            status=status,
            observed_generation=self.generation,
            last_transition_time=self.now,
            reason=reason,
            message=message,
        )

    def ready(self, needed: Sequence[Condition]) -> Condition:
        """Return Ready: True if all that are needed are, else the first that is not says why."""
        for condition in needed:
            if condition.status != "True":
                return self.make("Ready", "False", condition.reason, condition.message)
        return self.make("Ready", "True", "Ready")


def some(names: Sequence[str]) -> str:
    """Name a few and count the rest."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
