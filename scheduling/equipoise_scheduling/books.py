"""Every request's life and every tenant's service: the bookkeeping that all schedulers share.

Owns who waits, who is in flight, what was delivered, and the one place where a request ends. Knows nothing of order:
which request goes next, and what that does to anybody's counter, is the scheduler's.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter

from equipoise_scheduling.contract import SchedulerSettings, TenantSettings, TenantShare
from equipoise_scheduling.counters import Charge
from equipoise_scheduling.interactions import Interactions
from equipoise_scheduling.measures import max_min
from equipoise_scheduling.prediction import Predictor
from equipoise_scheduling.request import Outcome, Reason, Refusal, Request, Usage
from equipoise_scheduling.service_window import ServiceWindow
from equipoise_scheduling.tenant_queue import FifoQueue, TenantQueue

MAX_RETRY_AFTER = 120.0


class Tenant:
    """One tenant's settings, queue and delivered service."""

    __slots__ = ("configured", "in_flight", "name", "predicted", "queue", "service", "settings")

    def __init__(
        self,
        name: str,
        settings: TenantSettings,
        queue: TenantQueue,
        window_seconds: float,
        *,
        configured: bool,
    ) -> None:
        self.name = name
        self.settings = settings
        self.configured = configured
        self.queue = queue
        self.in_flight = 0
        self.service = ServiceWindow(window_seconds)
        self.predicted = (-1, -1)
        """The head's number and how much the predictor had learnt when the head's output was last predicted."""

    @property
    def held(self) -> bool:
        """At its own limit: out of the choice until one of its requests ends."""
        limit = self.settings.max_in_flight
        return limit is not None and self.in_flight >= limit

    @property
    def eligible(self) -> bool:
        """Backlogged: has a request that may go."""
        return len(self.queue) > 0 and not self.held


class Flight:
    """A request in flight: what it was charged, what it is expected to cost, what was delivered.

    Weight and cost function stay those of its dispatch, so a reconfiguration cannot make a settlement miss its charge.
    """

    __slots__ = (
        "cached",
        "charge",
        "charged",
        "charged_output",
        "cost",
        "delivered",
        "expected",
        "generated",
        "instant",
        "pending",
        "predicted_output",
        "prefilled",
        "prompt",
        "request",
        "tenant",
        "undelivered",
        "watched",
        "weight",
    )

    def __init__(
        self, request: Request, tenant: Tenant, settings: SchedulerSettings, charged_output: int
    ) -> None:
        self.request = request
        self.tenant = tenant
        self.weight = tenant.settings.weight
        self.cost = settings.cost
        self.prompt = request.prompt_tokens
        self.cached = request.cached_tokens
        self.prefilled = 0
        self.generated = 0
        self.predicted_output = request.predicted_output
        self.charged_output = charged_output
        """Output tokens charged ahead of delivery."""
        self.charged = 0.0
        """cost(prompt, cached, max(charged ahead, generated))"""
        self.expected = 0.0
        """cost(prompt, cached, max(predicted, generated))"""
        self.delivered = 0.0
        """cost(prefilled, cached of these, generated)"""
        self.charge = Charge()
        self.instant = 0
        """Which of its tenant's dispatches this was; this and the next three are the bound's."""
        self.undelivered = 0.0
        """Expected and not delivered, when the bound last looked."""
        self.pending = 0.0
        """Charged and not delivered, when the bound last looked."""
        self.watched = 0.0
        """Delivered, when the bound last looked."""
        self.price()

    def recharge(self, *, ahead: bool) -> None:
        """Make it as if another scheduler had dispatched the request."""
        self.charged_output = self.predicted_output if ahead else 0
        self.charge = Charge()
        self.undelivered = self.pending = 0.0
        self.price()

    def price(self) -> None:
        """Recompute the three costs from the counts. O(1)."""
        cost, prompt, cached, generated = self.cost, self.prompt, self.cached, self.generated
        self.charged = cost(prompt, cached, max(self.charged_output, generated))
        self.expected = self.charged
        if self.predicted_output > self.charged_output:
            self.expected = cost(prompt, cached, max(self.predicted_output, generated))
        self.delivered = cost(self.prefilled, min(cached, self.prefilled), generated)


class Books:
    """The state that outlives a change of algorithm."""

    def __init__(
        self, settings: SchedulerSettings, tenants: Mapping[str, TenantSettings], predictor: Predictor
    ) -> None:
        self.settings = settings
        self.predictor = predictor
        self.make_queue: Callable[[str], TenantQueue] = lambda _: FifoQueue()
        """The scheduler's ordering of the requests of the tenant named."""
        self.tenants: dict[str, Tenant] = {}
        self.waiting: dict[str, Request] = {}
        self.flights: dict[str, Flight] = {}
        self.interactions = Interactions()
        self.outcomes: Counter[Outcome] = Counter()
        """How accepted requests ended."""
        self.tokens = 0
        """Prompt and generated tokens delivered since the start."""
        self.kv_tokens: int | None = None
        """Size of the engine's KV cache; None until somebody says."""
        self.strangers: set[str] = set()
        """Open tenants that no configuration names."""
        self._configured = dict(tenants)
        self._all = ServiceWindow(settings.window_seconds)  # of dispatches alone
        self._next_number = 0

    def open(self, name: str) -> Tenant:
        """Return the tenant of that name, made on first sight."""
        tenant = self.tenants.get(name)
        if tenant is None:
            settings = self._configured.get(name)
            tenant = Tenant(
                name,
                settings or TenantSettings(),
                self.make_queue(name),
                self.settings.window_seconds,
                configured=settings is not None,
            )
            self.tenants[name] = tenant
            if settings is None:
                self.strangers.add(name)
        return tenant

    def forget(self, name: str) -> None:
        """Drop an idle tenant that no configuration names."""
        del self.tenants[name]
        self.strangers.discard(name)
        self.predictor.forget(name)

    def reconfigure(self, settings: SchedulerSettings, tenants: Mapping[str, TenantSettings]) -> None:
        """Replace settings; a tenant that is left out keeps its own while it has requests."""
        self.settings = settings
        self._configured = dict(tenants)
        for name, tenant in self.tenants.items():
            wanted = self._configured.get(name)
            tenant.configured = wanted is not None
            if wanted is not None:
                tenant.settings = wanted
                self.strangers.discard(name)
            else:
                self.strangers.add(name)
                self._release(tenant)

    def adopt(self, other: "Books") -> None:
        """Take settings and predictor of a scheduler that replaces the one these books were kept for."""
        if self.settings.prediction != other.settings.prediction:
            self.predictor = other.predictor
        self.reconfigure(other.settings, other._configured)  # noqa: SLF001 - the same class
        self.order_by(other.make_queue)

    def order_by(self, make_queue: Callable[[str], TenantQueue]) -> None:
        """Queue all that waits anew, under another ordering. O(n log n)."""
        self.make_queue = make_queue
        for name, tenant in self.tenants.items():
            tenant.queue = make_queue(name)
        for request in sorted(self.waiting.values(), key=lambda request: request.number):
            self._queue(self.tenants[request.tenant], request)

    # -- the queue

    def accept(self, request: Request, now: float) -> Refusal | None:
        """Give `request` its number and queue it, or refuse it for want of room."""
        if request.id in self.waiting or request.id in self.flights:
            raise ValueError(f"request {request.id} is queued or in flight already")
        if request.outcome is not None:
            raise ValueError(f"request {request.id} has ended as {request.outcome}")
        tenant = self.open(request.tenant)
        limit = self.settings.max_queued
        if limit is not None and len(self.waiting) >= limit:
            retry = self._drain_seconds(len(self.waiting), self._all, now)
            return Refusal(Reason.QUEUE_FULL, f"the queue holds {limit} requests, its limit", retry)
        limit = tenant.settings.max_queued
        if limit is not None and len(tenant.queue) >= limit:
            retry = self._drain_seconds(len(tenant.queue), tenant.service, now)
            return Refusal(
                Reason.TENANT_QUEUE_FULL,
                f"tenant {tenant.name} has {limit} requests queued, its limit",
                retry,
            )
        request.number = self._next_number
        self._next_number += 1
        request.predicted_tokens = self.predictor.predict(request)
        self._queue(tenant, request)
        return None

    @staticmethod
    def _drain_seconds(queued: int, service: ServiceWindow, now: float) -> float | None:
        """Seconds until as many requests as are queued have been dispatched, at the window's rate."""
        dispatched = service.dispatches(now)
        if not dispatched:
            return None
        return min(MAX_RETRY_AFTER, max(1.0, queued * service.span(now) / dispatched))

    def _queue(self, tenant: Tenant, request: Request) -> None:
        self.waiting[request.id] = request
        self.interactions.joined(request)
        output = request.max_output if request.predicted_tokens is None else request.predicted_output
        tenant.queue.push(request, self.settings.cost(request.prompt_tokens, request.cached_tokens, output))

    def refresh(self, request: Request) -> None:
        """Make the prediction of a candidate for dispatch as fresh as the predictor."""
        tenant = self.tenants[request.tenant]
        fresh = (request.number, self.predictor.learned)
        if tenant.predicted != fresh:
            tenant.predicted = fresh
            request.predicted_tokens = self.predictor.predict(request)

    def drop(self, request: Request, outcome: Outcome) -> Tenant:
        """End a queued request."""
        if self.waiting.get(request.id) is not request:
            where = "is in flight: settle it" if request.id in self.flights else "is not queued"
            raise ValueError(f"request {request.id} {where}")
        tenant = self.tenants[request.tenant]
        tenant.queue.remove(request)
        del self.waiting[request.id]
        self.interactions.left(request)
        self._end(request, tenant, outcome)
        return tenant

    # -- in flight

    def take(self, tenant: Tenant, request: Request, now: float, *, ahead: bool) -> Flight:
        """Move a queued request into flight; `ahead` charges its predicted output at once."""
        tenant.queue.remove(request)
        del self.waiting[request.id]
        self.interactions.dispatched(request)
        request.dispatched = now
        flight = Flight(request, tenant, self.settings, request.predicted_output if ahead else 0)
        self.flights[request.id] = flight
        tenant.in_flight += 1
        tenant.service.dispatch(now)
        self._all.dispatch(now)
        return flight

    def put_back(self, request: Request, now: float) -> Flight:
        """Undo `take`."""
        flight = self.flight(request)
        self.count(flight, 0, 0, flight.cached, 0, now=now)
        tenant = flight.tenant
        del self.flights[request.id]
        tenant.in_flight -= 1
        tenant.service.dispatch(now, -1)
        self._all.dispatch(now, -1)
        request.dispatched = None
        self.interactions.undone(request)
        self._queue(tenant, request)
        return flight

    def flight(self, request: Request) -> Flight:
        """Return the record of a request in flight. ValueError when it is not."""
        flight = self.flights.get(request.id)
        if flight is None or flight.request is not request:
            ended = f"has ended as {request.outcome}" if request.outcome is not None else "was not dispatched"
            raise ValueError(f"request {request.id} {ended}")
        return flight

    def count(
        self,
        flight: Flight,
        prompt: int,
        prefilled: int,
        cached: int,
        generated: int,
        *,
        now: float,
        settled: bool = False,
    ) -> None:
        """Set a flight's cumulative counts, reprice it and add what is new to its tenant's service.

        Cached tokens are an estimate until they are `settled`: they are priced before, and counted only then.
        """
        served = flight.prefilled, flight.generated, flight.delivered
        flight.prompt, flight.prefilled, flight.cached, flight.generated = (
            prompt,
            prefilled,
            cached,
            generated,
        )
        flight.price()
        news = (
            prefilled - served[0],
            cached if settled else 0,
            generated - served[1],
            flight.delivered - served[2],
        )
        flight.tenant.service.deliver(now, *news)
        self.tokens += news[0] + news[2]

    def close(self, flight: Flight, usage: Usage, outcome: Outcome, now: float) -> None:
        """End a request in flight at what it used."""
        prompt, generated, cached = usage.prompt, usage.generated, usage.cached
        if not usage.exact:
            # An estimate never takes back what was seen: cancelling late is not free service.
            prompt, generated = max(prompt, flight.prefilled), max(generated, flight.generated)
        flight.charged_output = flight.predicted_output = 0
        self.count(flight, prompt, prompt, cached, generated, now=now, settled=True)
        tenant = flight.tenant
        del self.flights[flight.request.id]
        tenant.in_flight -= 1
        self.interactions.ended(flight.request, now)
        self._end(flight.request, tenant, outcome)
        self.predictor.learn(flight.request, usage, outcome)

    def _end(self, request: Request, tenant: Tenant, outcome: Outcome) -> None:
        """End an accepted request; nothing else sets an outcome."""
        request.outcome = outcome
        self.outcomes[outcome] += 1
        self._release(tenant)

    @staticmethod
    def _release(tenant: Tenant) -> None:
        """Let a tenant that no configuration names keep its old settings only while it has requests."""
        if not tenant.configured and not tenant.in_flight and not len(tenant.queue):
            tenant.settings = TenantSettings()

    # -- shares

    def shares(
        self, now: float, counter: Callable[[str], float | None], *, idle: bool = True
    ) -> Iterator[TenantShare]:
        """Yield rows of all open tenants by name; without `idle`, of those that have or had anything in the window.

        O(n log n), most of it row by row: a caller may let other work go on in between.
        """
        owed: dict[str, float] = {}
        for flight in self.flights.values():
            name = flight.tenant.name
            owed[name] = owed.get(name, 0.0) + max(0.0, flight.expected - flight.delivered)
        tenants = sorted(
            (t for t in self.tenants.values() if idle or t.in_flight or len(t.queue) or t.service.cost(now)),
            key=attrgetter("name"),
        )
        costs = [tenant.service.cost(now) for tenant in tenants]
        demands = [
            cost + tenant.queue.expected_cost + owed.get(tenant.name, 0.0)
            for tenant, cost in zip(tenants, costs, strict=True)
        ]
        served = sum(costs)
        entitled = max_min(demands, [tenant.settings.weight for tenant in tenants], served)
        scale = 1 / served if served > 0 else 0.0
        for tenant, cost, demand, fair in zip(tenants, costs, demands, entitled, strict=True):
            yield TenantShare(
                tenant=tenant.name,
                weight=tenant.settings.weight,
                queued=len(tenant.queue),
                in_flight=tenant.in_flight,
                held=tenant.held,
                counter=counter(tenant.name),
                total=tenant.service.total,
                window=tenant.service.window(now),
                demand=demand,
                entitled=fair * scale,
                actual=cost * scale,
                lag=fair - cost,
                head_wait=max(0.0, now - tenant.queue.head().arrival) if len(tenant.queue) else 0.0,
            )

    def served(self) -> dict[str, float]:
        """Return each open tenant's delivered cost since the start."""
        return {name: tenant.service.total_cost for name, tenant in self.tenants.items()}
