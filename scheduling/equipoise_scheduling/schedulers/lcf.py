"""LCF: least counter first."""

from typing_extensions import override

from equipoise_scheduling.contract import Bound
from equipoise_scheduling.schedulers.vtc import VTC


class LCF(VTC):
    """VTC without the lift: serve the backlogged tenant that has had the least weighted service since the start.

    Source: the baseline of the same name in Sheng et al., *Fairness in Serving Large Language Models* (arXiv
    2401.00588). Charging, settling and refunds are VTC's. A tenant that idles keeps its low counter and, when it comes
    back, is served alone until it has caught up with everybody else: the gap between two backlogged tenants has no
    bound. That is what the lift is there for.
    """

    algorithm = "LCF"

    @override
    def _lift_level(self, name: str) -> int | None:
        return None

    @override
    def bound(self, now: float) -> Bound | None:
        return None

    @override
    def _forgettable(self, name: str) -> bool:
        return True

    @override
    def _forgotten(self, name: str) -> None:
        if not self._account(name).value:  # else it would come back with less than it had
            super()._forgotten(name)
