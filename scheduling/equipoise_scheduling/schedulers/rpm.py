"""RPM: a limit of requests per minute, then arrival order."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import override

from equipoise_api.policy import Algorithm, RpmParameters
from equipoise_scheduling.contract import SchedulerSettings
from equipoise_scheduling.request import Reason, Refusal, Request
from equipoise_scheduling.schedulers.fcfs import FCFS

MINUTE = 60.0


@dataclass(frozen=True, kw_only=True)
class RPMSettings(SchedulerSettings):
    """RPM's own parameter."""

    requests_per_minute: int = 60
    """Requests of a tenant accepted in any 60 seconds."""

    def __post_init__(self) -> None:
        if self.requests_per_minute < 1:
            raise ValueError(f"requests_per_minute={self.requests_per_minute} must be at least 1")

    @override
    @classmethod
    def of(cls, algorithm: Algorithm, **common: Any) -> Self:
        parameters = algorithm.rpm or RpmParameters()
        return cls(requests_per_minute=parameters.requests_per_minute, **common)


class RPM(FCFS):
    """Refuse on arrival what exceeds a tenant's requests per minute; serve the rest in arrival order.

    Source: the baseline of Sheng et al., *Fairness in Serving Large Language Models* (arXiv 2401.00588), and what most
    hosted APIs do. A request is refused when its tenant has had R requests *accepted* in the 60 seconds before it;
    refused ones do not count. Retry-After is when the oldest of them is a minute old. The limit holds however idle the
    engine is, and weights play no part.

    Arrivals are on a clock that does not survive a restart: after one every tenant starts with a whole R.
    O(1) amortised an arrival; memory O(requests accepted in the last minute).
    """

    algorithm = "RPM"
    settings_type = RPMSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what TenantScheduler takes."""
        super().__init__(*args, **kwargs)
        self._accepted: dict[str, deque[float]] = {}

    @property
    def _limit(self) -> int:
        settings = self.books.settings
        assert isinstance(settings, RPMSettings)
        return settings.requests_per_minute

    @override
    def enqueue(self, request: Request, now: float) -> Refusal | None:
        accepted = self._last_minute(request.tenant, now)
        limit = self._limit
        if len(accepted) >= limit:
            return Refusal(
                Reason.RATE_LIMITED,
                f"tenant {request.tenant} has sent {limit} requests in a minute, its limit",
                accepted[-limit] + MINUTE - now,
            )
        refusal = super().enqueue(request, now)
        if refusal is None:
            self._accepted.setdefault(request.tenant, accepted).append(now)
        return refusal

    def _last_minute(self, name: str, now: float) -> deque[float]:
        accepted = self._accepted.get(name)
        if accepted is None:
            return deque()
        while accepted and accepted[0] <= now - MINUTE:
            accepted.popleft()
        return accepted

    @override
    def tick(self, now: float) -> None:
        for name in list(self._accepted):
            if not self._last_minute(name, now):
                del self._accepted[name]
        super().tick(now)

    @override
    def _forgettable(self, name: str) -> bool:
        return name not in self._accepted
