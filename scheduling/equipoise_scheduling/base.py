"""The frame of every scheduler: it wires books, choice and counters to the contract.

A scheduler of its own overrides the few hooks at the end: the key that orders tenants (or, where the order is another,
the candidates and the tenants' queues), and what joining, charging, correcting and undoing do to it.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from typing_extensions import override

from equipoise_scheduling.books import Books, Flight, Tenant
from equipoise_scheduling.choice import LeastKey
from equipoise_scheduling.contract import (
    Bound,
    Fits,
    Scheduler,
    SchedulerSettings,
    Snapshot,
    TenantSettings,
    TenantShare,
)
from equipoise_scheduling.overload import OverloadThrottle
from equipoise_scheduling.plain import check_numbers
from equipoise_scheduling.prediction import Predictor
from equipoise_scheduling.predictors import predictor_for
from equipoise_scheduling.request import Outcome, Refusal, Request, Usage
from equipoise_scheduling.tenant_queue import FifoQueue, TenantQueue

SNAPSHOT_VERSION = 1


class TenantScheduler(Scheduler):
    """A queue a tenant, and the head of the backlogged tenant with the least key goes next.

    Invariant: between calls `choice` holds exactly the eligible tenants (backlogged and not held).
    """

    settings_type: ClassVar[type[SchedulerSettings]] = SchedulerSettings

    def __init__(
        self,
        settings: SchedulerSettings | None = None,
        tenants: Mapping[str, TenantSettings] | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        """Start empty. A `predictor` given here stays until `settings.prediction` changes."""
        settings = self.settings_type() if settings is None else settings
        tenants = {} if tenants is None else tenants
        self._check(settings, tenants)
        self.books = Books(settings, tenants, predictor or predictor_for(settings.prediction))
        self.books.make_queue = self._make_queue
        self.choice: LeastKey[tuple[int, ...]] = LeastKey(self._key)
        self.throttle = OverloadThrottle(settings.overload)
        self._refused: list[tuple[Request, Refusal]] = []

    # -- the contract

    @override
    def enqueue(self, request: Request, now: float) -> Refusal | None:
        refusal = self.throttle.arrived(request, now) or self.books.accept(request, now)
        if refusal is None:
            self._request_joined(request, now)
            self._refresh(self.books.tenants[request.tenant], now)
        return refusal

    @override
    def next(self, now: float, fits: Fits) -> Request | None:
        first = True
        for request in self._candidates(now):
            self.books.refresh(request)
            expected = request.cached_tokens
            if fits(request):
                return self._dispatch(request, now)
            if request.cached_tokens != expected:
                self._reestimated(request)
            if first and self._throttled(request, now):
                return None
            first = False
        return None

    def _throttled(self, request: Request, now: float) -> bool:
        """Refuse the start of an interaction where its sender's limits say so; never while nothing is in flight.

        A gate may be shut on an idle engine, but that is no overload.
        """
        books = self.books
        if not self.throttle.active or not books.flights or books.interactions.started(request):
            return False
        refusal = self.throttle.refusal(request, now)
        if refusal is None:
            return False
        for call in books.interactions.waiting(request) or [request]:
            self.cancel(call, now, Outcome.REFUSED)
            self._refused.append((call, refusal))
        return True

    def _dispatch(self, request: Request, now: float) -> Request:
        tenant = self.books.tenants[request.tenant]
        request.priority = self._priority(tenant.name)
        self._request_left(request)
        flight = self.books.take(tenant, request, now, ahead=self._ahead())
        self._dispatched(flight)
        self._refresh(tenant, now)
        return request

    def look_again(self, tenant: str, cached: Callable[[Request], int]) -> None:
        """Have the cached tokens of the tenant's head estimated anew, where the order goes by them. O(log n)."""

    @override
    def refused(self) -> list[tuple[Request, Refusal]]:
        refused, self._refused = self._refused, []
        return refused

    @override
    def progress(self, request: Request, prompt: int, generated: int, now: float) -> None:
        flight = self.books.flight(request)
        generated = max(generated, flight.generated)
        prefilled = max(prompt, flight.prefilled)
        whole = flight.prompt
        if generated > 0:
            whole = prefilled = prefilled or whole
        else:
            whole = max(whole, prefilled)
        if generated == flight.generated and prefilled == flight.prefilled and whole == flight.prompt:
            return
        self.books.count(flight, whole, prefilled, min(flight.cached, whole), generated, now=now)
        self._recounted(flight)

    @override
    def settle(self, request: Request, usage: Usage, outcome: Outcome, now: float) -> None:
        flight = self.books.flight(request)
        self.books.close(flight, usage, outcome, now)
        self._recounted(flight)
        self._settled(flight, usage, outcome, now)
        self._refresh(flight.tenant, now)

    @override
    def cancel(self, request: Request, now: float, outcome: Outcome = Outcome.CANCELLED) -> None:
        tenant = self.books.drop(request, outcome)
        self._request_left(request)
        self._refresh(tenant, now)

    @override
    def requeue(self, request: Request, now: float) -> None:
        flight = self.books.put_back(request, now)
        tenant = flight.tenant
        self._undone(flight)
        self._request_joined(request, now)
        if tenant.eligible:
            if tenant.name not in self.choice:
                self._returned(tenant)
            self.choice.add(tenant.name)

    @override
    def tick(self, now: float) -> None:
        books = self.books
        for name in list(books.strangers):
            tenant = books.tenants[name]
            idle = not tenant.in_flight and not len(tenant.queue)
            if idle and not tenant.service.window(now).cost and self._forgettable(name):
                books.forget(name)
                self._forgotten(name)

    @override
    def reconfigure(
        self, settings: SchedulerSettings, tenants: Mapping[str, TenantSettings], now: float
    ) -> None:
        self._check(settings, tenants)
        if settings.window_seconds != self.books.settings.window_seconds:
            raise ValueError("window_seconds cannot change while the scheduler runs")
        if settings.prediction != self.books.settings.prediction:
            self.books.predictor = predictor_for(settings.prediction)
        self.throttle.reconfigure(settings.overload)
        self.books.reconfigure(settings, tenants)
        for tenant in self.books.tenants.values():
            self._refresh(tenant, now)

    @override
    def add_service(self, tenant: str, cost: float, now: float) -> None:
        """Count it where the scheduler keeps a history; one that keeps none has no use for it."""

    @override
    def set_pool(self, kv_tokens: int | None) -> None:
        self.books.kv_tokens = kv_tokens

    @override
    def snapshot(self) -> Snapshot:
        return {
            "version": SNAPSHOT_VERSION,
            "algorithm": self.algorithm,
            "prediction": self.books.settings.prediction.kind,
            "tenants": sorted(self.books.tenants),
            "predictor": self.books.predictor.snapshot(),
            "state": self._state(),
            "history": self._history(),
        }

    @override
    def restore(self, data: Snapshot) -> None:
        if self.queued or self.in_flight:
            raise ValueError("snapshot: restore comes before the first request")
        check_numbers(data)
        for scheduler in (type(self)(self.books.settings), self):  # a rehearsal: nothing half read stays here
            try:
                scheduler._read(data)  # noqa: SLF001 - the same class
            except (TypeError, KeyError, AttributeError, OverflowError) as error:
                raise ValueError(f"snapshot: cannot be read: {error!r}") from error

    def _read(self, data: Snapshot) -> None:
        if not isinstance(data, dict) or data.get("version") != SNAPSHOT_VERSION:
            raise ValueError(f"snapshot: version must be {SNAPSHOT_VERSION}")
        if not all(isinstance(data.get(part), dict) for part in ("state", "predictor", "history")):
            raise ValueError("snapshot: state, predictor and history must be objects")
        history = data["history"]
        if not all(isinstance(service, int | float) and service >= 0 for service in history.values()):
            raise ValueError("snapshot: history must map tenants to their service")
        tenants = data.get("tenants")
        if not isinstance(tenants, list) or not all(isinstance(name, str) for name in tenants):
            raise ValueError("snapshot: tenants must be a list of names")
        if data.get("algorithm") == self.algorithm:
            self._restore_state(data["state"])
        else:
            self._take_over(history)
        if data.get("prediction") == self.books.settings.prediction.kind:
            self.books.predictor.restore(data["predictor"])
        for name in tenants:
            self.books.open(name)

    @override
    def shares(self, now: float) -> list[TenantShare]:
        return list(self.iter_shares(now))

    @override
    def iter_shares(self, now: float, *, idle: bool = True) -> Iterator[TenantShare]:
        return self.books.shares(now, self._counter, idle=idle)

    @override
    def bound(self, now: float) -> Bound | None:
        return None

    @property
    @override
    def queued(self) -> int:
        return len(self.books.waiting)

    @property
    @override
    def in_flight(self) -> int:
        return len(self.books.flights)

    # -- a change of algorithm

    def history(self, now: float) -> dict[str, float]:
        """Delivered service over weight of each tenant, as far as the algorithm looks back: here one window."""
        known = self._history()
        return known or {
            tenant.name: tenant.service.window(now).cost / tenant.settings.weight
            for tenant in self.books.tenants.values()
        }

    def adopt(self, old: "TenantScheduler", now: float) -> None:
        """Take over all requests and the service history of `old`, which must not be used afterwards.

        ValueError unless this scheduler is new.
        """
        if self.queued or self.in_flight:
            raise ValueError("a scheduler that has requests cannot take over those of another")
        history, mine = old.history(now), self.books
        self.books = old.books
        self.books.adopt(mine)
        self.throttle = old.throttle
        self.throttle.reconfigure(self.books.settings.overload)
        for flight in self.books.flights.values():
            # What it was delivered so far is part of the history, and of the charge that follows: once is enough.
            name = flight.tenant.name
            history[name] = max(0.0, history.get(name, 0.0) - flight.delivered / flight.weight)
        self._take_over(history)
        for flight in self.books.flights.values():
            flight.recharge(ahead=self._ahead())
            self._adopted(flight)
        for request in sorted(self.books.waiting.values(), key=lambda request: request.number):
            self._request_joined(request, now)
        for tenant in self.books.tenants.values():
            if tenant.eligible:
                self._returned(tenant)
                self.choice.add(tenant.name)
        self._refused += old.refused()

    # -- inside

    def _check(self, settings: SchedulerSettings, tenants: Mapping[str, TenantSettings]) -> None:
        """Raise before anything changes."""
        if not isinstance(settings, self.settings_type):
            raise TypeError(
                f"{self.algorithm} takes {self.settings_type.__name__}, not {type(settings).__name__}"
            )
        for name, tenant in tenants.items():
            if not isinstance(tenant, TenantSettings):
                raise TypeError(f"tenants[{name!r}] must be TenantSettings, not {type(tenant).__name__}")

    def _refresh(self, tenant: Tenant, now: float) -> None:
        """Keep the invariant after anything that may have changed whether `tenant` is eligible."""
        name = tenant.name
        if tenant.eligible:
            if name not in self.choice:
                self._joined(tenant, now)
                self.choice.add(name)
        elif name in self.choice:
            self.choice.discard(name)
            self._left(tenant)

    # -- hooks

    @abstractmethod
    def _key(self, name: str) -> tuple[int, ...]:
        """Return the order among eligible tenants; unique. A key that falls needs `choice.add`."""

    def _candidates(self, now: float) -> Iterator[Request]:  # noqa: ARG002 - the hook's argument
        """Yield the requests that may go next, best first; those after the first are tried where it does not fit."""
        name = self.choice.least()
        if name is not None:
            yield self.books.tenants[name].queue.head()

    def _make_queue(self, name: str) -> TenantQueue:  # noqa: ARG002 - the hook's argument
        """Return an empty queue for the tenant named."""
        return FifoQueue()

    def _request_joined(self, request: Request, now: float) -> None:
        """React to a request that joins its tenant's queue, or is back in it."""

    def _reestimated(self, request: Request) -> None:
        """React to a new estimate of the cached tokens of a queued request."""

    def _request_left(self, request: Request) -> None:
        """React to a request that leaves the queue."""

    def _priority(self, name: str) -> int:
        """Return the start tag of the next request, for the engine's own queue."""
        return self._key(name)[0]

    def _ahead(self) -> bool:
        """Say whether predicted output is charged at dispatch."""
        return False

    def _joined(self, tenant: Tenant, now: float) -> None:
        """React to a tenant that becomes eligible, before it is in the choice."""

    def _returned(self, tenant: Tenant) -> None:
        """React to a tenant that is eligible again because a dispatch was undone."""

    def _left(self, tenant: Tenant) -> None:
        """React to a tenant that is no longer eligible."""

    def _dispatched(self, flight: Flight) -> None:
        """Charge a request that goes into flight."""

    def _adopted(self, flight: Flight) -> None:
        """Charge a request that another scheduler dispatched."""

    def _recounted(self, flight: Flight) -> None:
        """Correct the charge after the flight's counts and costs changed."""

    def _settled(self, flight: Flight, usage: Usage, outcome: Outcome, now: float) -> None:
        """Take in how a request in flight ended; its charge is settled."""

    def _undone(self, flight: Flight) -> None:
        """Take the charge of a request back exactly."""

    def _counter(self, name: str) -> float | None:  # noqa: ARG002 - the hook's argument
        """Return the tenant's counter in cost units over weight, if there is one."""
        return None

    def _forgettable(self, name: str) -> bool:  # noqa: ARG002 - the hook's argument
        """Say whether an idle tenant would come back no better off if it were forgotten."""
        return True

    def _forgotten(self, name: str) -> None:
        """Drop the state of a forgotten tenant."""

    def _history(self) -> dict[str, float]:
        """Return delivered service over weight of each tenant, where the algorithm counts it; else nothing."""
        return {}

    def _take_over(self, history: Mapping[str, float]) -> None:
        """Start from the service that a former scheduler delivered."""

    def _state(self) -> dict[str, Any]:
        """Return the algorithm's own part of a snapshot."""
        return {}

    def _restore_state(self, state: dict[str, Any]) -> None:
        """Take over `_state`; ValueError if it cannot be read."""
