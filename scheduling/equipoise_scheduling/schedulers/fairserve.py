"""FairServe: fairness in requests that mean the same to a user."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

from typing_extensions import override

from equipoise_api.policy import Algorithm, FairServeParameters
from equipoise_scheduling.books import Flight, Tenant
from equipoise_scheduling.contract import SchedulerSettings, TenantSettings
from equipoise_scheduling.counters import Charge, units
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_scheduling.schedulers.vtc import VTC
from equipoise_scheduling.tenant_queue import TenantQueue
from equipoise_scheduling.typical import Sizes, Typical, TypicalCalls
from equipoise_scheduling.user_queue import User, UserQueue


@dataclass(frozen=True, kw_only=True)
class FairServeSettings(SchedulerSettings):
    """FairServe's own parameters; a and g of its counter are the cost function's input and output price."""

    typical: Typical = "Mean"
    """Which figure of an application's recent calls is typical, where nobody declared it."""
    system_share: float = 1.0
    """b: price of a token of the system prompt, as a multiple of an input token's."""

    def __post_init__(self) -> None:
        if self.typical not in get_args(Typical):
            raise ValueError(f"typical={self.typical!r} must be one of {', '.join(get_args(Typical))}")
        if not 0 <= self.system_share < float("inf"):
            raise ValueError(f"system_share={self.system_share} must be a number not below 0")

    @override
    @classmethod
    def of(cls, algorithm: Algorithm, **common: Any) -> Self:
        parameters = algorithm.fair_serve or FairServeParameters()
        return cls(typical=parameters.typical, system_share=parameters.system_percent / 100, **common)

    def price(self, sizes: Sizes) -> float:
        """Cost of a call of these sizes, at least that of one token each way."""
        cost = self.cost(round(sizes.input), 0, round(sizes.output))
        cost += (self.system_share - 1) * self.cost(round(min(sizes.system, sizes.input)), 0, 0)
        return max(cost, self.cost(1, 0, 1))


class Bill:
    """What a request in flight costs in the counter's units, and what its user was charged.

    `scale` is fixed at dispatch: a settlement meets its charge whatever is learnt meanwhile.
    """

    __slots__ = (
        "charge",
        "charged",
        "delivered",
        "expected",
        "flight",
        "instant",
        "pending",
        "scale",
        "surcharge",
        "tenant",
        "undelivered",
        "user",
        "watched",
        "weight",
    )

    def __init__(self, flight: Flight, user: User, scale: float, surcharge: float) -> None:
        self.flight = flight
        self.tenant = flight.tenant
        self.weight = flight.weight
        self.user = user
        self.scale = scale
        self.surcharge = surcharge
        """What a token of the system prompt costs beyond an input token, as a multiple of that."""
        self.charge = Charge()
        """The user's; the tenant's is the flight's."""
        self.instant = 0
        self.undelivered = self.pending = self.watched = 0.0
        self.charged = self.expected = self.delivered = 0.0
        self.price()

    def price(self) -> None:
        """Recompute the costs from the flight's. O(1)."""
        flight = self.flight
        whole = self._surcharge(flight.prompt)
        self.charged = (flight.charged + whole) * self.scale
        self.expected = (flight.expected + whole) * self.scale
        self.delivered = (flight.delivered + self._surcharge(flight.prefilled)) * self.scale

    def _surcharge(self, prompt: int) -> float:
        if not self.surcharge:
            return 0.0
        flight = self.flight
        system = min(flight.request.system_tokens, prompt)
        return self.surcharge * flight.cost(system, min(flight.cached, system), 0)


class FairServe(VTC):
    """Serve the tenant, and of its users the one, that has had the fewest typical requests.

    Source: *Ensuring Fair LLM Serving Amid Diverse Applications* (FairServe, arXiv 2411.15997): its weighted service
    counter and its order; its throttling is every scheduler's (`overload.py`). A request of an application adds

        S += T * (a*(in - sys) + b*sys + g*out) / (a*E_in' + b*E_sys + g*E_out) / w,    E_in' = E_in - E_sys

    where in, sys and out are tokens of its prompt, of the system prompt in it and of its output, E_* what is typical for the
    application (declared, else learnt: `typical.py`), a and g the prices of the cost function, b = system_share * a, w the
    tenant's weight. T, the cost of one prior request, makes it cost units: a typical request of any application
    costs T, and until an application is known S is VTC's counter. With another cost function h the fraction is that of h.

    Between tenants it is VTC in these units: least S, lift, stop at a head that does not fit. Inside a tenant the same once
    more between its users (one level would let a tenant multiply its share by inventing users), except that a user in the
    middle of an interaction goes first: see `user_queue.py`.

    Differs from the paper, whose artifact charges when a request ends, so that a burst runs free until then: here the
    expectation is charged at dispatch and settled while tokens come. And E_in counts the whole prompt.

    The bound is VTC's (`bound.py`), for service counted as S counts it: its derivation needs only that the tenant with the
    least counter goes next and that a charge and its delivery are counted alike. So U, gap and limit are in units of
    typical requests, T each; they say nothing of tokens, of which a tenant with larger applications rightly gets more. Order
    inside a tenant, and so interactions, do not touch it. Between users of one tenant no bound is published:
    an interaction that has begun may pass the others by its whole length (at most MOST_PREFERRED calls).
    """

    algorithm = "FairServe"
    settings_type = FairServeSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what TenantScheduler takes."""
        super().__init__(*args, **kwargs)
        settings = self.settings
        self._typical = TypicalCalls(settings.typical, settings.prediction.prior_tokens)
        self._queues: dict[str, UserQueue] = {}
        self._bills: dict[str, Bill] = {}
        self._places: dict[str, int] = {}
        """By tenant, when it became backlogged: breaks ties."""
        self._last_place = 0

    @property
    def settings(self) -> FairServeSettings:
        """The settings in force."""
        settings = self.books.settings
        assert isinstance(settings, FairServeSettings)
        return settings

    # -- order

    @override
    def _key(self, name: str) -> tuple[int, ...]:
        # Not the head's number: it may fall without the counter rising when another user's turn comes.
        return (self._accounts[name].value, self._places[name])

    @override
    def _make_queue(self, name: str) -> TenantQueue:
        queue = self._queues[name] = UserQueue(self.books.interactions.begun)
        return queue

    def _queue(self, name: str) -> UserQueue:
        self.books.open(name)
        return self._queues[name]

    @override
    def _joined(self, tenant: Tenant, now: float) -> None:
        super()._joined(tenant, now)
        self._last_place += 1
        self._places[tenant.name] = self._last_place

    @override
    def _returned(self, tenant: Tenant) -> None:
        super()._returned(tenant)
        if tenant.name not in self._places:
            self._last_place += 1
            self._places[tenant.name] = self._last_place

    @override
    def _ahead(self) -> bool:
        return True

    def _reorder(self, request: Request) -> None:
        """Move the calls of an interaction that has begun by this dispatch, or no longer has."""
        queue = self._queues[request.tenant]
        for call in self.books.interactions.affected(request):
            queue.replace(call)

    # -- charge, settle, refund

    def _scale(self, request: Request) -> float:
        settings = self.settings
        declared = self.books.tenants[request.tenant].settings.applications.get(request.application)
        typical = self._typical.of(request.tenant, request.application, declared)
        return settings.price(self._typical.prior) / settings.price(typical)

    def _charge(self, bill: Bill, cost: float) -> None:
        self._settle(bill.flight, cost)
        self._queues[bill.tenant.name].settle(bill.user, bill.charge, units(cost, 1.0))

    @override
    def _adopted(self, flight: Flight) -> None:
        request = flight.request
        queue = self._queue(request.tenant)
        user = queue.user(request.user)
        queue.took_off(user)
        bill = Bill(flight, user, self._scale(request), self.settings.system_share - 1)
        self._bills[request.id] = bill
        self._charge(bill, bill.charged)
        self._reorder(request)
        self.watch.dispatched(bill)
        # The watch's own note of its tenant's dispatches, by which it ages.
        flight.instant = bill.instant

    @override
    def _recounted(self, flight: Flight) -> None:
        bill = self._bills[flight.request.id]
        bill.price()
        self._charge(bill, bill.charged)
        self.watch.recounted(bill)

    @override
    def _undone(self, flight: Flight) -> None:
        bill = self._bills.pop(flight.request.id)
        bill.price()
        self._charge(bill, 0.0)
        self._queues[bill.tenant.name].landed(bill.user)
        self._reorder(flight.request)
        self.watch.undone(bill)

    @override
    def _settled(self, flight: Flight, usage: Usage, outcome: Outcome, now: float) -> None:
        request = flight.request
        bill = self._bills.pop(request.id)
        self._queues[bill.tenant.name].landed(bill.user)
        if outcome is Outcome.FINISHED and usage.teaches:
            sizes = Sizes(usage.prompt, min(request.system_tokens, usage.prompt), usage.generated)
            self._typical.learn(request.tenant, request.application, sizes)

    # -- the rest of the contract

    @property
    def _typical_cost(self) -> float:
        """Cost of what is typical over all tenants, in multiples of T."""
        settings = self.settings
        return settings.price(self._typical.everybody) / settings.price(self._typical.prior)

    @override
    def add_service(self, tenant: str, cost: float, now: float) -> None:
        super().add_service(tenant, cost / self._typical_cost, now)

    @override
    def reconfigure(
        self, settings: SchedulerSettings, tenants: Mapping[str, TenantSettings], now: float
    ) -> None:
        super().reconfigure(settings, tenants, now)
        self._typical.become(self.settings.typical)

    @override
    def _forgotten(self, name: str) -> None:
        super()._forgotten(name)
        self._typical.forget(name)
        self._places.pop(name, None)
        del self._queues[name]

    @override
    def _settled_accounts(self) -> dict[str, int]:
        accounts = {name: account.copy() for name, account in self._accounts.items()}
        for bill in self._bills.values():
            charge = bill.flight.charge.copy()
            accounts[bill.tenant.name].settle(charge, units(bill.delivered, bill.weight))
        return {name: account.value for name, account in accounts.items()}

    @override
    def _history(self) -> dict[str, float]:
        return {name: service * self._typical_cost for name, service in super()._history().items()}

    @override
    def _state(self) -> dict[str, Any]:
        flights: dict[str, dict[str, list[tuple[Charge, int]]]] = {}
        for bill in self._bills.values():
            users = flights.setdefault(bill.tenant.name, {})
            users.setdefault(bill.user.name, []).append((bill.charge, units(bill.delivered, 1.0)))
        states = {name: queue.snapshot(flights.get(name, {})) for name, queue in self._queues.items()}
        return {
            **super()._state(),
            "typical": self._typical.snapshot(),
            "users": {name: state for name, state in states.items() if state},
        }

    @override
    def _restore_state(self, state: dict[str, Any]) -> None:
        users = state.get("users")
        if not isinstance(users, dict):
            raise ValueError("snapshot: state.users must map tenants to their users")  # noqa: TRY004 - the contract's error
        super()._restore_state(state)
        self._typical.restore(state.get("typical"))
        for name, data in users.items():
            self._queue(name).restore(data)
