"""One algorithm's turn at the traffic: what clients saw, what the sidecars counted, what the policy's status said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from equipoise_demo.places import condition_of
from equipoise_scheduling.measures import jain

if TYPE_CHECKING:
    from equipoise_demo.counted import Counted
    from equipoise_demo.outcome import Result


@dataclass(frozen=True, slots=True)
class Phase:
    """A replay from its first request to its last answer."""

    result: Result
    """As clients saw it."""
    counted: Counted
    """By the sidecars while the traffic lasted: service and GPU time."""
    ended: Counted
    """By the sidecars until the last answer: promises are judged when a request ends."""
    policy: dict[str, Any]
    """The FairnessPolicy with its status when the traffic ended, before the algorithm was changed."""
    change_seconds: float | None = None
    """Real seconds from the patch to the next algorithm until every sidecar had it; None where nothing followed."""

    @property
    def algorithm(self) -> str:
        """By the policy's own word."""
        return str(self.policy["spec"]["algorithm"]["type"])

    @property
    def shares(self) -> dict[str, float]:
        """Service that the sidecars delivered to each tenant over what it was entitled to: 1 is all of its own."""
        seconds = self.result.seconds
        return {
            row.tenant: self.counted.service[row.tenant] / seconds / row.entitled
            for row in self.result.tenants
        }

    @property
    def jain(self) -> float:
        """Jain's index of `shares`: 1 when all tenants got the same part of what they are entitled to."""
        return jain(list(self.shares.values()))

    @property
    def rate(self) -> float:
        """Weighted tokens a second that all tenants were served while the traffic lasted."""
        return self.counted.service.total() / self.result.seconds

    @property
    def kept(self) -> float | None:
        """Share of the interactive requests that kept their promise; None of none."""
        return self.ended.share_kept()

    @property
    def gpu_percent(self) -> int | None:
        """GPU utilisation in the policy's status; None without GPU metrics."""
        percent = self.policy.get("status", {}).get("load", {}).get("gpuPercent")
        return None if percent is None else int(percent)

    @property
    def conditions(self) -> dict[str, str]:
        """The policy's conditions that tell of fairness and GPUs."""
        return {kind: condition_of(self.policy, kind) for kind in ("FairnessBoundMet", "GPUMetricsStale")}
