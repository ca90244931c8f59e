"""DRR: deficit round robin, turns by tokens instead of requests."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import override

from equipoise_api.policy import Algorithm, DrrParameters
from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.books import Flight, Tenant
from equipoise_scheduling.contract import SchedulerSettings
from equipoise_scheduling.counters import SCALE, units
from equipoise_scheduling.request import Request

POOL_SHARE = 20
"""The default quantum is the KV pool over this."""
UNKNOWN_POOL = 10_000
"""Tokens, until the engine has told its pool: the paper's A10G."""


@dataclass(frozen=True, kw_only=True)
class DRRSettings(SchedulerSettings):
    """DRR's own parameter."""

    quantum: int | None = None
    """Cost units that a turn adds to a deficit. None: a twentieth of the KV pool."""

    def __post_init__(self) -> None:
        if self.quantum is not None and self.quantum < 1:
            raise ValueError(
                f"quantum={self.quantum} must be at least 1, or None for a twentieth of the pool"
            )

    @override
    @classmethod
    def of(cls, algorithm: Algorithm, **common: Any) -> Self:
        parameters = algorithm.drr or DrrParameters()
        return cls(quantum=parameters.quantum_tokens, **common)


class DRR(TenantScheduler):
    """Turns over the active tenants; each turn is worth a quantum of weighted tokens, and debts are paid first.

    Source: Sheng et al., *Fairness in Serving Large Language Models* (arXiv 2401.00588), appendix C.2, after Shreedhar
    and Varghese, *Efficient Fair Queuing Using Deficit Round-Robin* (1996). Deficit d per tenant, 0 at first; a FIFO of
    active tenants, which a tenant joins at the tail when it becomes backlogged:

    - the first tenant's turn begins: if d <= 0 then d += Q;
    - while d > 0 and it has requests: if the next one fits, dispatch it and d -= h(in, 0)/w, else the pass ends and the
      turn goes on in the next one, without another quantum (with one, a tenant whose output is charged between two
      passes would hold its turn for ever);
    - then it goes to the tail if it is still backlogged or d < 0, else it leaves with what d it has;
    - each generated token: d -= its cost / w. d is never reset.

    Output is charged as it comes, whatever the prediction. Differs from the paper in that the charge follows a prompt
    that turns out longer or shorter than estimated, that a tenant at its own in-flight limit has no requests for the
    time being, and that turns stand still while nobody is backlogged.

    d <= Q, save for what a corrected estimate or an undone dispatch gives back; and since a tenant admits only while
    d > 0, d > -(one prompt and the outputs that came of what was admitted since). A decision takes O(1) for each turn passed, at
    most two rounds of them and a look at everybody; each turn passed without a dispatch pays at least Q of a debt, so
    the turns of a request are its cost over Q, amortised.
    """

    algorithm = "DRR"
    settings_type = DRRSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what TenantScheduler takes."""
        super().__init__(*args, **kwargs)
        self._active: OrderedDict[str, None] = OrderedDict()
        self._deficits: dict[str, int] = {}
        """In counter units."""
        self._turn = 0
        """Turns that have ended."""
        self._first: str | None = None
        """Whose turn has begun."""

    @property
    def quantum(self) -> float:
        """Cost units that a turn adds."""
        settings = self.books.settings
        assert isinstance(settings, DRRSettings)
        return settings.quantum or (self.books.kv_tokens or UNKNOWN_POOL) / POOL_SHARE

    # -- turns

    @override
    def _key(self, name: str) -> tuple[int, ...]:
        return (self._turn, self.books.tenants[name].queue.head().number)

    @override
    def _candidates(self, now: float) -> Iterator[Request]:
        if not len(self.choice):
            return
        quantum, deficits, passed = round(self.quantum * SCALE), self._deficits, 0
        while True:
            if passed >= len(self._active):
                self._skip_rounds(quantum)
                passed = 0
            name = next(iter(self._active))
            if self._first != name:
                self._first = name
                if deficits[name] <= 0:
                    deficits[name] += quantum
            if deficits[name] > 0 and name in self.choice:
                yield self.books.tenants[name].queue.head()
                return
            self._active.popitem(last=False)
            if name in self.choice or deficits[name] < 0:
                self._active[name] = None
            self._turn += 1
            self._first = None
            passed += 1

    def _skip_rounds(self, quantum: int) -> None:
        """Give everybody at once the quanta of the rounds in which nobody comes out of debt. O(active tenants)."""
        rounds = min(-self._deficits[name] for name in self.choice) // quantum
        for name in list(self._active) if rounds > 0 else ():
            debt = -self._deficits[name]
            if name in self.choice:
                self._deficits[name] += rounds * quantum
            elif debt > 0:
                self._deficits[name] += min(rounds, -(-debt // quantum)) * quantum
                if self._deficits[name] >= 0:
                    del self._active[name]
        self._turn += max(0, rounds) * len(self._active)

    @override
    def _joined(self, tenant: Tenant, now: float) -> None:
        self._deficits.setdefault(tenant.name, 0)
        self._active.setdefault(tenant.name)

    @override
    def _returned(self, tenant: Tenant) -> None:
        self._joined(tenant, 0.0)

    # -- deficits

    def _charge(self, flight: Flight, cost: float) -> None:
        name, charged = flight.tenant.name, units(cost, flight.weight)
        self._deficits[name] = self._deficits.get(name, 0) + flight.charge.after - charged
        flight.charge.after = charged

    @override
    def _dispatched(self, flight: Flight) -> None:
        self._charge(flight, flight.charged)

    @override
    def _adopted(self, flight: Flight) -> None:
        self._charge(flight, flight.charged)

    @override
    def _recounted(self, flight: Flight) -> None:
        self._charge(flight, flight.charged)

    @override
    def _undone(self, flight: Flight) -> None:
        self._charge(flight, 0.0)
        name = self._first = flight.tenant.name
        self._active.setdefault(name)
        self._active.move_to_end(name, last=False)

    # -- the rest of the contract

    @override
    def _forgettable(self, name: str) -> bool:
        return self._deficits.get(name, 0) >= 0

    @override
    def _forgotten(self, name: str) -> None:
        self._deficits.pop(name, None)
        self._active.pop(name, None)

    @override
    def _state(self) -> dict[str, Any]:
        deficits = dict(self._deficits)
        for flight in self.books.flights.values():
            deficits[flight.tenant.name] += flight.charge.after - units(flight.delivered, flight.weight)
        return {"deficits": deficits, "active": list(self._active), "turn": self._turn}

    @override
    def _restore_state(self, state: dict[str, Any]) -> None:
        deficits, active, turn = state.get("deficits"), state.get("active"), state.get("turn")
        if not isinstance(deficits, dict) or not all(type(value) is int for value in deficits.values()):
            raise ValueError("snapshot: state.deficits must map tenants to integers")
        if not isinstance(active, list) or not all(name in deficits for name in active):
            raise ValueError("snapshot: state.active must be a list of names in state.deficits")
        if type(turn) is not int:
            raise ValueError("snapshot: state.turn must be an integer")
        self._deficits = {str(name): value for name, value in deficits.items()}
        self._active = OrderedDict.fromkeys(active)
        self._turn = turn
