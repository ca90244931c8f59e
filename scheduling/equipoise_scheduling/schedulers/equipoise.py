"""Equipoise: a bounded band of the fair counter, and free choice inside it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import floor
from typing import Any, Literal, Self

from typing_extensions import override

from equipoise_api.policy import Algorithm, EquipoiseParameters
from equipoise_scheduling.band import Band
from equipoise_scheduling.books import Flight, Tenant
from equipoise_scheduling.contract import SchedulerSettings, TenantSettings
from equipoise_scheduling.counters import SCALE
from equipoise_scheduling.deadline_queue import (
    Alarms,
    DeadlineQueue,
    TimedFifoQueue,
    TimedQueue,
    patient,
)
from equipoise_scheduling.pace import Pace
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_scheduling.schedulers.vtc import VTC
from equipoise_scheduling.slo import URGENT_MEMORY_SECONDS, urgent
from equipoise_scheduling.tenant_queue import TenantQueue

STEP_SECONDS = 0.25
"""Deadlines closer than that are equally urgent."""
GRACE = 20.0
"""Who has missed its deadline has another one, so many times its budget later."""
TYPICAL_COST = 512.0
"""Prior of what a request costs."""
TYPICAL_REQUESTS = 64.0
"""How many past requests say what is typical."""


@dataclass(frozen=True, kw_only=True)
class EquipoiseSettings(SchedulerSettings):
    """Equipoise's own parameters."""

    band: float | None = None
    """B: counter units (cost over weight) that a tenant may be ahead and still be chosen; 0 is VTC. None: two typical
    requests or a tenth of what a tenant has in flight at most, whichever is more."""
    ordering: Literal["Deadline", "FIFO"] = "Deadline"
    """Of a tenant's own requests."""
    stretch: float = 5.0
    """Deadline of a request without SLO: its predicted service time, times this, after its arrival."""
    overdue_every: int = 5
    """Every how many dispatches one goes to the oldest overdue request."""
    skips: int = 4
    """Further candidates that are tried when the chosen one does not fit."""

    def __post_init__(self) -> None:
        for name, least in (("band", 0), ("stretch", 0), ("overdue_every", 2), ("skips", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise ValueError(f"{name}={value} must be at least {least}")

    @override
    @classmethod
    def of(cls, algorithm: Algorithm, **common: Any) -> Self:
        parameters = algorithm.equipoise or EquipoiseParameters()
        return cls(
            band=parameters.band_tokens,
            ordering=parameters.ordering,
            stretch=parameters.stretch,
            overdue_every=parameters.overdue_every,
            skips=parameters.skips,
            **common,
        )


class Equipoise(VTC):
    """Among the tenants within a band of the least served one, serve whom waiting hurts most.

    Counters c, weights w, charge, settlement and refund are VTC's with prediction. What differs:

    - **Virtual time** V = max(V, least c of the backlogged) never falls; a tenant that becomes backlogged is lifted to V.
    - **Candidates** are the backlogged with c <= V + B. Of their heads the one goes whose deadline is least, in steps of
      250 ms; equal: the longest cached prefix, as known since its tenant last sent or ended one; equal: the least counter. One
      that continues an interaction goes first.
    - **The band is kept for what presses while urgent requests come**, until a minute after the last one arrived. Heads
      that press, an SLO of at most 10 s that can still be kept or a begun interaction, are candidates up to V + B, all
      others up to V: else a tenant's own patient requests use up its band and its urgent ones wait outside.
    - **Deadline**, fixed on arrival: arrival + SLO (to the first token, else to the end); without one arrival + stretch *
      predicted service time. It orders a tenant's own requests too (`ordering`).
    - **A deadline that cannot be kept** even by going at once gives way to a second one, 20 times the budget later: what
      has time yields to it, what is urgent does not. Who misses that too is *overdue* and goes behind all others; every
      `overdue_every`-th dispatch goes to the oldest overdue request among the candidates, so none starves. Requests
      without an SLO have no second deadline, and being overdue does not change their order among themselves.
    - **Skipping**: where the chosen head does not fit, up to `skips` other candidates' heads are tried, the least
      counter's always among them. Who is served meanwhile stops at V + B, so the engine drains for a big head.

    B = 0 chooses, lifts and stops as VTC does.

    **Bound.** |W_f/w_f - W_g/w_g| <= (A + P)/w_f + (A + P)/w_g + R + 2E with the symbols of `bound.py` and E = B + X, X
    the most by which a backlogged tenant's counter has been below V. Proof: at f's last dispatch, at s, c_f(s-) <= V(s) +
    B. If g is backlogged at s, c_g(s-) >= V(s) - X by definition, hence c_f(s-) <= c_g(s-) + E, which is what `bound.py`
    goes on from. If g joins later, at j, it is lifted to V(j) >= V(s), hence c_f(s-) <= c_g(j) + B; a tenant that is back
    by an undone dispatch is not lifted, and by how much it is below the highest least counter seen is R. A tenant that
    is lifted above the least counter is lifted by X at most, so what it had in flight then keeps within E as well. X is
    the refund outstanding: V never rises above the counter of a backlogged g, so only a refund to g can take it below, and
    that by no more than g had charged and undelivered: X <= P/w_g, unless g is back by an undone dispatch. With B = 0, V
    follows the least counter down and E = 0.

    O(log n) amortised a dispatch, arrival or end in tenants and queued requests, O(1) a token.
    """

    algorithm = "Equipoise"
    settings_type = EquipoiseSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what TenantScheduler takes."""
        super().__init__(*args, **kwargs)
        self.pace = Pace()
        self.band = Band(lambda name: self._accounts[name].value, self._urgency, self._longest_overdue)
        self._pressing = Band(lambda name: self._accounts[name].value, self._urgency, lambda _: None)
        """Of the backlogged, those whose head may use the band while it is kept for urgent requests."""
        self._last_urgent = float("-inf")
        """Arrival of the latest urgent request."""
        self._alarms = Alarms()
        self._virtual_time = 0
        self._typical = TYPICAL_COST
        """Cost over weight of a request, a mean over the last ones."""
        self._undelivered = 0.0
        """U at the last tick: it holds still in between, as if a dispatch that is undone had never been."""
        self._least, self._slack = 0.0, 0.0
        """Of the choice under way: V, and how far above the least counter of the backlogged it may go."""
        self._since_overdue = 0
        """Dispatches since one of an overdue request, or since one waits."""
        self._overdue_waits = False
        self._missed: set[str] = set()
        """Ids of queued requests that have missed their deadline and wait for their second one."""
        self._turns: dict[str, int] = {}
        """`_since_overdue` before each request in flight was dispatched."""

    @property
    def _settings(self) -> EquipoiseSettings:
        settings = self.books.settings
        assert isinstance(settings, EquipoiseSettings)
        return settings

    @property
    def band_units(self) -> int:
        """B, in counter units."""
        band = self._settings.band
        return round((max(2 * self._typical, 0.1 * self._undelivered) if band is None else band) * SCALE)

    @override
    def _ahead(self) -> bool:
        return True

    # -- deadlines

    @override
    def _make_queue(self, name: str) -> TenantQueue:
        return (DeadlineQueue if self._settings.ordering == "Deadline" else TimedFifoQueue)(self._order)

    def _order(self, request: Request) -> tuple[int, ...]:
        """Place a request that is not overdue; fixes its deadline."""
        if request.deadline is None:
            request.deadline = request.arrival + self._budget(request)
        begun = self.books.interactions.begun(request)
        return (0 if begun else 1, floor(self._aim(request) / STEP_SECONDS), -request.cached_tokens)

    def _aim(self, request: Request) -> float:
        """Return the deadline that a queued request has still to keep."""
        deadline = request.deadline
        assert deadline is not None, "fixed when the request was queued"
        return deadline + GRACE * (deadline - request.arrival) if request.id in self._missed else deadline

    def _budget(self, request: Request) -> float:
        for budget in (request.ttft_budget, request.e2e_budget):
            if budget is not None:
                return budget
        prompt = request.prompt_tokens - request.cached_tokens
        return self._settings.stretch * self.pace.service_seconds(prompt, self._output(request))

    def _watch(self, request: Request) -> None:
        """Have it looked at when it could not keep its deadline any more if it went at once."""
        prompt = request.prompt_tokens - request.cached_tokens
        needed = 0.0
        if request.ttft_budget is not None:
            needed = self.pace.service_seconds(prompt, 1)
        elif request.e2e_budget is not None:
            needed = self.pace.service_seconds(prompt, self._output(request))
        self._alarms.set(self._aim(request) - needed, request, self.books.waiting)

    @staticmethod
    def _output(request: Request) -> int:
        return request.max_tokens if request.predicted_tokens is None else request.predicted_tokens

    def _queue(self, name: str) -> TimedQueue:
        queue = self.books.tenants[name].queue
        assert isinstance(queue, TimedQueue)
        return queue

    def _urgency(self, name: str) -> tuple[int, ...]:
        place, number = self._queue(name).first()
        return (*place, self._accounts[name].value, number)

    def _longest_overdue(self, name: str) -> int | None:
        request = self._queue(name).overdue()
        return None if request is None else request.number

    def _expire(self, now: float) -> None:
        for request in self._alarms.passed(now, self.books.waiting):
            if self.books.interactions.begun(request):
                continue
            if patient(request) or request.id in self._missed:
                self._queue(request.tenant).expire(request)
            else:
                self._missed.add(request.id)
                self._queue(request.tenant).move(request)
                self._watch(request)
            self._changed(request.tenant)

    def _changed(self, name: str) -> None:
        if name in self.choice:
            self._place(name)

    def _place(self, name: str) -> None:
        self.band.changed(name)
        if self._presses(self._queue(name).head()):
            self._pressing.changed(name)
        else:
            self._pressing.discard(name)

    def _presses(self, head: Request) -> bool:
        if self.books.interactions.begun(head):
            return True
        return urgent(head) and head.id not in self._missed and not self._queue(head.tenant).late(head)

    # -- the choice

    @override
    def _candidates(self, now: float) -> Iterator[Request]:
        self._expire(now)
        least = self.choice.least()
        if least is None:
            return
        settings, band = self._settings, self.band_units
        due = self._since_overdue >= settings.overdue_every - 1
        lowest = self._accounts[least].value
        if band == 0:
            self._least, self._slack = lowest / SCALE, 0.0
            queue = self._queue(least)
            overdue = queue.overdue()
            self._overdue_waits = overdue is not None
            yield overdue if overdue is not None and due else queue.head()
            return
        self._virtual_time = max(self._virtual_time, lowest)
        level = self._virtual_time + band
        self._least, self._slack = self._virtual_time / SCALE, (level - lowest) / SCALE
        kept = now - self._last_urgent <= URGENT_MEMORY_SECONDS
        shared = self._virtual_time if kept else level
        self.band.admit(shared)
        self._pressing.admit(level)
        chosen = self.band.longest_overdue(shared)
        self._overdue_waits = chosen is not None
        if chosen is not None and due:
            overdue = self._queue(chosen).overdue()
            assert overdue is not None, "the band holds it as having one"
            yield overdue
        else:
            chosen = self.band.first(shared)
            assert chosen is not None, "the least counter is in the band"
            pressing = self._pressing.first(level)
            if pressing is not None:
                chosen = min(chosen, pressing, key=self._urgency)
            yield self._queue(chosen).head()
        yield from self._others(chosen, least, (shared, level), settings.skips)

    def _others(self, chosen: str, least: str, levels: tuple[int, int], skips: int) -> Iterator[Request]:
        """Yield the heads that may go in place of the chosen tenant's."""
        shared, level = levels
        names = self.band.most_urgent(shared, skips + 1)
        pressing = self._pressing.most_urgent(level, skips + 1)
        if pressing:
            names = sorted({*names, *pressing}, key=self._urgency)
        names = [name for name in names if name != chosen][:skips]
        if skips and least != chosen and least not in names:
            names[skips - 1 :] = [least]
        for name in names:
            yield self._queue(name).head()

    # -- counters

    @override
    def _lift_level(self, name: str) -> int | None:
        level = super()._lift_level(name)
        if self.band_units == 0:
            return level
        return self._virtual_time if level is None else max(level, self._virtual_time)

    @override
    def _joined(self, tenant: Tenant, now: float) -> None:
        least = self.choice.least()
        super()._joined(tenant, now)
        if least is not None and self.band_units:
            self.watch.strayed((self._virtual_time - self._accounts[least].value) / SCALE)
        self._place(tenant.name)

    @override
    def _returned(self, tenant: Tenant) -> None:
        super()._returned(tenant)
        self._place(tenant.name)

    @override
    def _left(self, tenant: Tenant) -> None:
        super()._left(tenant)
        self.band.discard(tenant.name)
        self._pressing.discard(tenant.name)

    @override
    def _fell(self, name: str) -> None:
        super()._fell(name)
        self._changed(name)

    # -- requests

    @override
    def _request_joined(self, request: Request, now: float) -> None:
        if urgent(request):
            self._last_urgent = max(self._last_urgent, request.arrival)
        self._watch(request)
        self._changed(request.tenant)

    @override
    def look_again(self, tenant: str, cached: Callable[[Request], int]) -> None:
        if tenant in self.choice:
            head = self._queue(tenant).head()
            expected, head.cached_tokens = head.cached_tokens, cached(head)
            if head.cached_tokens != expected:
                self._reestimated(head)

    @override
    def _reestimated(self, request: Request) -> None:
        queue = self._queue(request.tenant)
        if not queue.late(request):
            queue.move(request)
            self._changed(request.tenant)

    @override
    def _request_left(self, request: Request) -> None:
        self._missed.discard(request.id)
        # A dispatch comes before the request is out of the queue, and `_dispatched` after.
        if request.id not in self.books.waiting and self.books.tenants[request.tenant].eligible:
            self._changed(request.tenant)

    @override
    def _dispatch(self, request: Request, now: float) -> Request:
        before = self._since_overdue
        kept_waiting = self._overdue_waits and not self._queue(request.tenant).late(request)
        self._since_overdue = before + 1 if kept_waiting else 0
        self._turns[request.id] = before
        return super()._dispatch(request, now)

    def _interaction_moved(self, request: Request) -> None:
        """Place anew the waiting calls of its interaction that have begun by that, or not after all."""
        for call in self.books.interactions.affected(request):
            self._queue(call.tenant).move(call)
            self._watch(call)

    @override
    def _dispatched(self, flight: Flight) -> None:
        self.watch.reached(self._least)
        self.watch.strayed(self._slack)
        self._adopted(flight)
        self._interaction_moved(flight.request)
        if flight.tenant.eligible:
            self._changed(flight.tenant.name)

    @override
    def _undone(self, flight: Flight) -> None:
        self._since_overdue = max(self._turns.pop(flight.request.id, 0), self._since_overdue - 1)
        self._interaction_moved(flight.request)
        super()._undone(flight)

    @override
    def progress(self, request: Request, prompt: int, generated: int, now: float) -> None:
        flight = self.books.flight(request)
        before = flight.generated
        super().progress(request, prompt, generated, now)
        if flight.generated and not before:
            assert request.dispatched is not None
            each = flight.generated / request.sequences
            self.pace.first(request.id, flight.prompt, now - request.dispatched, each, now)

    @override
    def _settled(self, flight: Flight, usage: Usage, outcome: Outcome, now: float) -> None:
        request = flight.request
        self._turns.pop(request.id, None)
        if usage.teaches:
            self.pace.seen(request.id, usage.generated / request.sequences, now)
        self.pace.ended(request.id)
        if outcome is Outcome.FINISHED:
            self._typical += (flight.delivered / flight.weight - self._typical) / TYPICAL_REQUESTS

    # -- the rest of the contract

    @override
    def tick(self, now: float) -> None:
        super().tick(now)
        for flight in self.books.flights.values():
            self.pace.seen(flight.request.id, flight.generated / flight.request.sequences, now)
        self.pace.tick(now)
        self._undelivered = self.watch.undelivered

    @override
    def reconfigure(
        self, settings: SchedulerSettings, tenants: Mapping[str, TenantSettings], now: float
    ) -> None:
        before = self._settings.ordering
        super().reconfigure(settings, tenants, now)
        if self._settings.ordering != before:
            self.books.order_by(self._make_queue)
            for request in self.books.waiting.values():
                self._request_joined(request, now)

    @override
    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "virtual_time": self._virtual_time,
            "since_overdue": self._since_overdue,
            "typical": self._typical,
            "pace": self.pace.snapshot(),
        }

    @override
    def _restore_state(self, state: dict[str, Any]) -> None:
        numbers = {name: state.get(name) for name in ("virtual_time", "since_overdue", "typical")}
        for name, value in numbers.items():
            wanted = int | float if name == "typical" else int
            if not isinstance(value, wanted) or isinstance(value, bool) or not 0 <= value < float("inf"):
                raise ValueError(f"snapshot: state.{name} must be a number not below 0")
        super()._restore_state(state)
        self.pace.restore(state.get("pace"))
        self._virtual_time, self._since_overdue = int(state["virtual_time"]), int(state["since_overdue"])
        self._typical = float(state["typical"])
