"""ExFairS: experiential fairness."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import override

from equipoise_api.policy import Algorithm, ExFairSParameters
from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.books import Flight
from equipoise_scheduling.contract import SchedulerSettings, TenantSettings
from equipoise_scheduling.priority_list import Place, PriorityList
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_scheduling.slo import SLOJudge

MAX_PRIORITY = 1000
SMALLEST_GAP = 0.1
"""SAFIs closer than this exchange nothing."""
LARGEST_GAP = 0.5
STEP = 10
"""Priority for a SAFI gap of 1."""


@dataclass(frozen=True, kw_only=True)
class ExFairSSettings(SchedulerSettings):
    """ExFairS's own parameters."""

    round_seconds: float = 100.0
    """Longer than the SLOs, so that a round's requests are judged in it."""
    violation_share: float = 0.7
    """alpha: the weight of missed SLOs in SAFI."""
    overtakes: int = 50
    """Requests that one may pass as it joins, and times that one may be passed."""
    priority_limit: int = 50
    """Largest priority, either way."""

    def __post_init__(self) -> None:
        if not 0 < self.round_seconds < float("inf"):
            raise ValueError(f"round_seconds={self.round_seconds} must be above 0")
        if not 0 <= self.violation_share <= 1:
            raise ValueError(f"violation_share={self.violation_share} must be within [0, 1]")
        if self.overtakes < 1:
            raise ValueError(f"overtakes={self.overtakes} must be at least 1")
        if not 1 <= self.priority_limit <= MAX_PRIORITY:
            raise ValueError(f"priority_limit={self.priority_limit} must be within [1, {MAX_PRIORITY}]")

    @override
    @classmethod
    def of(cls, algorithm: Algorithm, **common: Any) -> Self:
        parameters = algorithm.ex_fair_s or ExFairSParameters()
        return cls(
            round_seconds=float(parameters.round_seconds),
            violation_share=parameters.violation_percent / 100,
            overtakes=parameters.overtakes,
            priority_limit=parameters.priority_limit,
            **common,
        )


@dataclass(slots=True)
class Experience:
    """How one tenant fares."""

    priority: int = 0
    """Smaller goes first. Also its credit: what it lent (> 0) or borrowed (< 0)."""
    judged: int = 0
    """Requests judged in this round."""
    missed: int = 0
    """Of these, the ones that missed their SLO."""
    before: float = 0.0
    """Service delivered before this round, in cost units."""


class ExFairS(TenantScheduler):
    """Rounds in which tenants that fare well lend priority to those that suffer; one list ordered by priority.

    Source: after ExFairS (*experiential fairness*, AAAI 2026). In each round of T seconds, for each tenant i with
    requests in it:

    - v_i = its requests that missed their SLO / its requests, service_i = the cost delivered to it;
    - SAFI_i = alpha * v_i + (1 - alpha) * service_i / sum of service; high = suffering.

    At a round's end, at most n/2 times and each tenant at most once: the tenant with the lowest SAFI and the one with
    the highest exchange s = int(10 * min(difference, 0.5)), unless they differ by 0.1 or less: the suffering one's
    priority number and credit fall by s, the other's rise by s. Both start at 0 and move alike, so one number is kept;
    it carries over and stays within `priority_limit`, which cuts s for both sides alike.

    A request takes its tenant's priority on arrival and is inserted as `PriorityList` says; the first of the list whose
    tenant is not held goes next, and when it does not fit, nothing goes.

    Differs from the paper in that a request is overtaken a limited number of times, that one never overtakes its own
    tenant's, and in what a round counts: a request is judged once, when it ends or when a round ends after its SLO did;
    tenants that had nothing to judge and no service exchange nothing. Weights play no part, and there is no bound.
    """

    algorithm = "ExFairS"
    settings_type = ExFairSSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what TenantScheduler takes."""
        super().__init__(*args, **kwargs)
        self._list = PriorityList(MAX_PRIORITY)
        self._places: dict[str, Place] = {}
        """Where each request in flight stood."""
        self._judge = SLOJudge()
        self._experiences: dict[str, Experience] = {}
        self._round_began: float | None = None
        self._elapsed = 0.0
        """Seconds of the round that had passed at the last tick."""

    @property
    def _settings(self) -> ExFairSSettings:
        settings = self.books.settings
        assert isinstance(settings, ExFairSSettings)
        return settings

    def _experience(self, name: str) -> Experience:
        experience = self._experiences.get(name)
        if experience is None:
            experience = self._experiences[name] = Experience()
        return experience

    def priority_of(self, name: str) -> int:
        """Return a tenant's priority and credit; 0 for one that never exchanged."""
        experience = self._experiences.get(name)
        return 0 if experience is None else experience.priority

    # -- the list

    @override
    def _key(self, name: str) -> tuple[int, ...]:
        return (self._list[self.books.tenants[name].queue.head().id].position,)

    @override
    def _request_joined(self, request: Request, now: float) -> None:
        place = self._places.pop(request.id, None)
        if place is None:
            priority = self._experience(request.tenant).priority
            self._list.join(request.id, request.tenant, priority, self._settings.overtakes)
        else:
            self._list.put_back(place)

    @override
    def _request_left(self, request: Request) -> None:
        place = self._list.remove(request.id)
        if request.outcome is None:
            self._places[request.id] = place

    @override
    def adopt(self, old: TenantScheduler, now: float) -> None:
        super().adopt(old, now)
        requests = [flight.request for flight in self.books.flights.values()]
        front = 1 + max((request.number for request in requests), default=0)
        for request in requests:  # put back, they stand before all that waits
            self._places[request.id] = Place(request.id, request.tenant, 0, request.number - front)
        for tenant in self.books.tenants.values():
            self._experience(tenant.name).before = tenant.service.total.cost

    # -- what tenants experience

    @override
    def progress(self, request: Request, prompt: int, generated: int, now: float) -> None:
        super().progress(request, prompt, generated, now)
        if generated > 0:
            self._judge.generated(request, now)

    @override
    def _settled(self, flight: Flight, usage: Usage, outcome: Outcome, now: float) -> None:
        del self._places[flight.request.id]
        self._ended(flight.request, outcome, now)

    @override
    def cancel(self, request: Request, now: float, outcome: Outcome = Outcome.CANCELLED) -> None:
        super().cancel(request, now, outcome)
        self._ended(request, outcome, now)

    def _ended(self, request: Request, outcome: Outcome, now: float) -> None:
        missed = self._judge.ended(request, outcome, now)
        if missed is not None:
            self._count(request, missed=missed)

    def _count(self, request: Request, *, missed: bool) -> None:
        experience = self._experience(request.tenant)
        experience.judged += 1
        experience.missed += missed

    @override
    def _undone(self, flight: Flight) -> None:
        self._judge.forget(flight.request)

    # -- rounds

    @override
    def tick(self, now: float) -> None:
        if self._round_began is None:
            self._round_began = now - self._elapsed
        length = self._settings.round_seconds
        if now - self._round_began >= length:
            self._end_round(now)
            self._round_began += (now - self._round_began) // length * length
        self._elapsed = now - self._round_began
        super().tick(now)

    def _end_round(self, now: float) -> None:
        """Exchange priorities and start counting anew. O(requests + tenants log tenants)."""
        for request in self.books.waiting.values():
            if self._judge.overdue(request, now):
                self._count(request, missed=True)
        for flight in self.books.flights.values():
            if self._judge.overdue(flight.request, now):
                self._count(flight.request, missed=True)
        self._exchange(self.safi())
        for name, experience in self._experiences.items():
            experience.judged = experience.missed = 0
            experience.before = self._delivered(name)

    def _delivered(self, name: str) -> float:
        tenant = self.books.tenants.get(name)
        return 0.0 if tenant is None else tenant.service.total.cost

    def _served(self, name: str, experience: Experience) -> float:
        return max(0.0, self._delivered(name) - experience.before)

    def safi(self) -> dict[str, float]:
        """Return the SAFI of each tenant that took part in the present round, as of now."""
        served = {name: self._served(name, each) for name, each in self._experiences.items()}
        total = sum(served.values()) or 1.0
        alpha = self._settings.violation_share
        return {
            name: alpha * (experience.missed / experience.judged if experience.judged else 0.0)
            + (1 - alpha) * served[name] / total
            for name, experience in self._experiences.items()
            if experience.judged or served[name]
        }

    def _exchange(self, safi: Mapping[str, float]) -> None:
        names = sorted(safi, key=lambda name: (safi[name], name))
        limit = self._settings.priority_limit
        for happy, sad in zip(names[: len(names) // 2], reversed(names), strict=False):
            gap = safi[sad] - safi[happy]
            if gap <= SMALLEST_GAP:
                return
            lender, borrower = self._experiences[happy], self._experiences[sad]
            step = int(STEP * min(gap, LARGEST_GAP))
            step = max(0, min(step, limit - lender.priority, limit + borrower.priority))
            lender.priority += step
            borrower.priority -= step

    # -- the rest of the contract

    @override
    def reconfigure(
        self, settings: SchedulerSettings, tenants: Mapping[str, TenantSettings], now: float
    ) -> None:
        super().reconfigure(settings, tenants, now)
        limit = self._settings.priority_limit
        for experience in self._experiences.values():
            experience.priority = max(-limit, min(limit, experience.priority))

    @override
    def _forgettable(self, name: str) -> bool:
        experience = self._experience(name)
        return not experience.judged and not self._served(name, experience)

    @override
    def _forgotten(self, name: str) -> None:
        experience = self._experiences[name]
        experience.before = 0.0
        if not experience.priority:  # else who lent would gain by being forgotten, and who borrowed lose
            del self._experiences[name]

    @override
    def _state(self) -> dict[str, Any]:
        return {
            "elapsed": self._elapsed,
            "tenants": {
                name: {
                    "priority": experience.priority,
                    "judged": experience.judged,
                    "missed": experience.missed,
                    "served": self._served(name, experience),
                }
                for name, experience in self._experiences.items()
            },
        }

    @override
    def _restore_state(self, state: dict[str, Any]) -> None:
        elapsed, tenants = state.get("elapsed"), state.get("tenants")
        if elapsed is None or type(elapsed) not in {int, float} or not isinstance(tenants, dict):
            raise ValueError("snapshot: state.elapsed must be seconds and state.tenants an object")
        experiences = {}
        for name, row in tenants.items():
            try:
                priority, judged, missed = (int(row[key]) for key in ("priority", "judged", "missed"))
                served = float(row["served"])
            except (TypeError, KeyError, ValueError) as error:
                raise ValueError(
                    f"snapshot: state.tenants[{name!r}] must have the numbers priority, judged, missed and served"
                ) from error
            limit = self._settings.priority_limit
            experiences[str(name)] = Experience(max(-limit, min(limit, priority)), judged, missed, -served)
        self._elapsed, self._experiences = float(elapsed), experiences
