"""VTC: the Virtual Token Counter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from typing_extensions import override

from equipoise_api.policy import Algorithm, VtcParameters
from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.books import Flight, Tenant
from equipoise_scheduling.bound import BoundWatch
from equipoise_scheduling.contract import Bound, SchedulerSettings
from equipoise_scheduling.counters import SCALE, Account, units
from equipoise_scheduling.least_counter import LeastCounter


@dataclass(frozen=True, kw_only=True)
class VTCSettings(SchedulerSettings):
    """VTC's own parameter."""

    charge_predicted: bool = True
    """Charge the expected output at dispatch and settle it; else output is charged token by token."""

    @override
    @classmethod
    def of(cls, algorithm: Algorithm, **common: Any) -> Self:
        parameters = algorithm.vtc or VtcParameters()
        return cls(charge_predicted=parameters.charge == "Predicted", **common)


class VTC(LeastCounter[Account]):
    """Serve the backlogged tenant that has had the least weighted service.

    Source: Sheng et al., *Fairness in Serving Large Language Models* (arXiv 2401.00588, OSDI 2024): algorithm 2, with
    weights and prediction as in its section 4.3. Counter c per tenant, w its weight, h the cost function:

    - a tenant that becomes backlogged is lifted: c = max(c, least c of the backlogged), or, when nobody is backlogged,
      c = max(c, c of the tenant that left the queue last);
    - the head of the backlogged tenant with the least c goes next (equal: the older head); when it does not fit,
      nothing goes;
    - at dispatch c += h(in, pred)/w (pred = 0 without prediction), each token beyond pred c += its cost / w, and at the
      end what was charged and not used is refunded, but never credit from before the last lift.

    Differs from the paper in that the cost is corrected when the prompt's or the cached tokens' estimate turns out
    wrong, and that a tenant at its own in-flight limit does not count as backlogged. The bound: see `bound.py`.
    """

    algorithm = "VTC"
    settings_type: ClassVar[type[SchedulerSettings]] = VTCSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what TenantScheduler takes."""
        super().__init__(*args, **kwargs)
        self.watch = BoundWatch()

    @override
    def _new_account(self) -> Account:
        return Account()

    @override
    def _ahead(self) -> bool:
        settings = self.books.settings
        return isinstance(settings, VTCSettings) and settings.charge_predicted

    # -- lift

    @override
    def _joined(self, tenant: Tenant, now: float) -> None:
        account = self._account(tenant.name)
        level = self._lift_level(tenant.name)
        if level is not None:
            account.lift(level)
            self.watch.reached(level / SCALE)
        others = None if level is None or not len(self.choice) else level / SCALE
        self.watch.joined(tenant.name, tenant.settings.weight, account.value / SCALE, others)

    @override
    def _returned(self, tenant: Tenant) -> None:
        counter = self._account(tenant.name).value / SCALE
        self.watch.joined(tenant.name, tenant.settings.weight, counter, self._least_counter())

    @override
    def _left(self, tenant: Tenant) -> None:
        super()._left(tenant)
        self.watch.left(tenant.name)

    # -- charge, settle, refund

    def _settle(self, flight: Flight, cost: float) -> None:
        name = flight.tenant.name
        fell = self._account(name).settle(flight.charge, units(cost, flight.weight))
        if fell and name in self.choice:
            self._fell(name)

    def _fell(self, name: str) -> None:
        """React to a refund to a backlogged tenant."""
        self.choice.add(name)

    @override
    def _dispatched(self, flight: Flight) -> None:
        account = self._account(flight.tenant.name)
        self.watch.reached(account.value / SCALE)
        self._adopted(flight)

    @override
    def _adopted(self, flight: Flight) -> None:
        self._settle(flight, flight.charged)
        self.watch.dispatched(flight)

    @override
    def _recounted(self, flight: Flight) -> None:
        self._settle(flight, flight.charged)
        self.watch.recounted(flight)

    @override
    def _undone(self, flight: Flight) -> None:
        self._settle(flight, 0.0)
        self.watch.undone(flight)

    @override
    def add_service(self, tenant: str, cost: float, now: float) -> None:
        if cost < 0:
            raise ValueError(f"tenant {tenant}: service elsewhere is {cost}, must not be negative")
        weight = self.books.open(tenant).settings.weight
        self._account(tenant).add(units(cost, weight))
        self.watch.added(tenant, weight, cost)

    # -- the rest of the contract

    @override
    def tick(self, now: float) -> None:
        super().tick(now)
        self.watch.tick(now, self.books.flights.values(), lambda name: self._accounts[name].value / SCALE)

    @override
    def bound(self, now: float) -> Bound | None:
        return self.watch.bound()

    def _settled_accounts(self) -> dict[str, int]:
        """Return the counters as if each request in flight ended with what it has been delivered."""
        accounts = {name: account.copy() for name, account in self._accounts.items()}
        for flight in self.books.flights.values():
            accounts[flight.tenant.name].settle(flight.charge.copy(), units(flight.delivered, flight.weight))
        return {name: account.value for name, account in accounts.items()}

    @override
    def _history(self) -> dict[str, float]:
        return {name: value / SCALE for name, value in self._settled_accounts().items()}

    @override
    def _take_over(self, history: Mapping[str, float]) -> None:
        self._accounts = {name: Account(units(service, 1.0)) for name, service in history.items()}
        self._guess_last_left(history)

    @override
    def adopt(self, old: TenantScheduler, now: float) -> None:
        super().adopt(old, now)
        # What another scheduler dispatched rests on no counter of ours: the tenants may be any distance apart.
        serving = {flight.tenant.name for flight in self.books.flights.values()}
        counters = {name: self._accounts[name].value / SCALE for name in {*self.choice, *serving}}
        self.watch.reached(max(counters.values(), default=float("-inf")))
        for name in self.choice:
            weight = self.books.tenants[name].settings.weight
            self.watch.joined(name, weight, counters[name], None)

    @override
    def _state(self) -> dict[str, Any]:
        return {"counters": self._settled_accounts(), "last_left": self._leaving_last()}

    @override
    def _restore_state(self, state: dict[str, Any]) -> None:
        counters, last_left = state.get("counters"), state.get("last_left")
        if not isinstance(counters, dict) or not all(type(value) is int for value in counters.values()):
            raise ValueError("snapshot: state.counters must map tenants to integers")
        if last_left is not None and last_left not in counters:
            raise ValueError("snapshot: state.last_left must be one of state.counters")
        self._accounts = {str(name): Account(value) for name, value in counters.items()}
        self._last_left = last_left
