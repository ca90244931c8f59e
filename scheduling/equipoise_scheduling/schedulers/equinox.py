"""Equinox: what users felt and what the engine spent, in one counter, charged by prediction and settled by measurement."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from typing_extensions import override

from equipoise_api.policy import Algorithm, EquinoxParameters
from equipoise_scheduling.books import Flight, Tenant
from equipoise_scheduling.contract import Bound, SchedulerSettings
from equipoise_scheduling.counter_bound import CounterWatch
from equipoise_scheduling.counters import units
from equipoise_scheduling.flight_load import FlightLoad
from equipoise_scheduling.head_wait import HeadWait
from equipoise_scheduling.holistic import UNIT, WHOLE, DualAccount, Dues
from equipoise_scheduling.least_counter import LeastCounter
from equipoise_scheduling.mapper import Load, MetricMapper
from equipoise_scheduling.request import Outcome, Request, Usage

OUTPUT_WEIGHT = 4
"""Of a generated token to a prompt token, in what users felt."""
TYPICAL_PROMPT, TYPICAL_OUTPUT = 512, 256
TYPICAL_SECONDS = MetricMapper().predict(TYPICAL_PROMPT, TYPICAL_OUTPUT, Load()).latency
TYPICAL_COST = 1024
"""HF of one typical request, so that HF reads as weighted tokens."""


@dataclass(frozen=True, kw_only=True)
class EquinoxSettings(SchedulerSettings):
    """Equinox's own parameters."""

    alpha: float = 0.7
    """Weight of the user fairness counter, in thousandths; the resource fairness counter has the rest, beta."""
    delay_discount: float = 0.1
    """d, by a second: how much less service counts that comes late."""
    u0: float | None = None
    """Scale of the user fairness counter. None: what one typical request adds that does not wait."""
    r0: float | None = None
    """Scale of the resource fairness counter. None: what one typical request adds at full utilisation."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must lie within [0, 1]")
        if not 0 <= self.delay_discount < float("inf"):
            raise ValueError(f"delay_discount={self.delay_discount} must be a number not below 0")
        for name in ("u0", "r0"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be a positive number, or None for a typical request")

    @override
    @classmethod
    def of(cls, algorithm: Algorithm, **common: Any) -> Self:
        parameters = algorithm.equinox or EquinoxParameters()
        return cls(
            alpha=parameters.user_percent / 100,
            delay_discount=parameters.delay_discount_milli_per_second / 1000,
            **common,
        )

    @property
    def share(self) -> int:
        """alpha, of WHOLE."""
        return round(self.alpha * WHOLE)

    def user(self, prompt: int, output: int, seconds: float) -> float:
        """Increment of UFC over U0: `seconds` from the head of the queue to the end."""
        scale = self.u0
        if scale is None:
            typical = TYPICAL_PROMPT + OUTPUT_WEIGHT * TYPICAL_OUTPUT
            scale = typical / (1 + self.delay_discount * TYPICAL_SECONDS)
        return (prompt + OUTPUT_WEIGHT * output) / (1 + self.delay_discount * seconds) / scale

    def resource(self, prompt: int, output: int, utilisation: float) -> float:
        """Increment of RFC over R0; throughput x latency is the tokens."""
        scale = TYPICAL_PROMPT + TYPICAL_OUTPUT if self.r0 is None else self.r0
        return (prompt + output) * utilisation / scale


class _Trip:
    """What is remembered of a request in flight."""

    __slots__ = ("dues", "head_since", "load", "output", "prompt", "usable", "utilisation", "wait")

    def __init__(self, head_since: float, wait: float, load: Load, *, usable: bool) -> None:
        self.head_since = head_since
        self.wait = wait
        self.load = load
        """Without itself."""
        self.usable = usable
        """Its dispatch was ours: the mapper may learn from it."""
        self.dues = Dues()
        self.prompt = self.output = 0
        """What the charge expects."""
        self.utilisation = 1.0


class Equinox(LeastCounter[DualAccount]):
    """Serve the backlogged tenant with the least holistic fairness, HF.

    After Equinox (arXiv 2508.16646): dual counters, predicted and then settled. The paper's code is not public and its
    formulas are not those below: they are reconstructed from its abstract and its descriptions ("weighted tokens and
    latency", "throughput and GPU utilisation"), and equality with it is not claimed. w is a tenant's weight, ^ marks
    what is predicted before dispatch:

        UFC += (in + 4 out^) / (1 + d (wait + latency^)) / w       what users felt; late service counts for less
        RFC += TPS^ util^ latency^ / w,  TPS^ = (in + out^) / latency^            what the engine spent
        HF   = alpha UFC / U0 + beta RFC / R0,   alpha + beta = 1, U0 and R0 fixed

    - the head of the backlogged tenant with the least HF goes next (equal: the older head); when it does not fit,
      nothing goes;
    - a tenant that becomes backlogged with HF below the least of the backlogged (nobody backlogged: below that of the
      tenant that left last) has U/U0 and R/R0 both raised by the shortfall: lifting each alone would let HF fall short;
    - all of it is charged at dispatch, follows output beyond its prediction, and is replaced at the end by what was
      measured: tokens, latency, and GPU utilisation where telemetry has it (else what was expected; 1, throughput
      alone, where it never does).

    wait counts from when the request became its tenant's head, so that queueing behind oneself earns nothing. latency^,
    TPS^ and util^ come from the metric mapper, fitted online, out^ from the policy's predictor; without one output is
    charged as it comes.

    For two backlogged tenants |HF_f - HF_g| <= D + E+ + E- + R at any time, twice that over an interval: see
    `counter_bound`. HF is published times `TYPICAL_COST`, as weighted tokens over weight. O(log n) a dispatch,
    arrival or end, O(1) a token.
    """

    algorithm = "Equinox"
    settings_type: ClassVar[type[SchedulerSettings]] = EquinoxSettings
    unit = UNIT

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what TenantScheduler takes."""
        super().__init__(*args, **kwargs)
        self.mapper = MetricMapper()
        self.watch = CounterWatch()
        self._trips: dict[str, _Trip] = {}
        self._heads = HeadWait()
        self._load = FlightLoad()

    @property
    def _settings(self) -> EquinoxSettings:
        settings = self.books.settings
        assert isinstance(settings, EquinoxSettings)
        return settings

    @override
    def _new_account(self) -> DualAccount:
        return DualAccount()

    @override
    def _ahead(self) -> bool:
        return True

    # -- the head's wait

    @override
    def _request_joined(self, request: Request, now: float) -> None:
        is_head = self.books.tenants[request.tenant].queue.head() is request
        self._heads.joined(request, now, is_head=is_head)

    @override
    def cancel(self, request: Request, now: float, outcome: Outcome = Outcome.CANCELLED) -> None:
        tenant = self.books.tenants.get(request.tenant)
        was_head = tenant is not None and len(tenant.queue) > 0 and tenant.queue.head() is request
        super().cancel(request, now, outcome)
        if was_head:
            self._heads.took(request.tenant, now)

    # -- lift

    @override
    def _joined(self, tenant: Tenant, now: float) -> None:
        account = self._account(tenant.name)
        level = self._lift_level(tenant.name)
        if level is not None:
            account.lift(level)
            self.watch.reached(level / UNIT)
        others = None if level is None or not len(self.choice) else level / UNIT
        self.watch.joined(tenant.name, account.value / UNIT, others)

    @override
    def _returned(self, tenant: Tenant) -> None:
        self.watch.joined(tenant.name, self._account(tenant.name).value / UNIT, self._least_counter())

    # -- predict, charge, settle

    def _dues(self, flight: Flight, prompt: int, output: int, seconds: float, utilisation: float) -> Dues:
        settings = self._settings
        return Dues(
            units(settings.user(prompt, output, seconds) * TYPICAL_COST, flight.weight),
            units(settings.resource(prompt, output, utilisation) * TYPICAL_COST, flight.weight),
        )

    def _charge(self, flight: Flight, trip: _Trip, dues: Dues) -> float:
        """Make `dues` what the request has been charged; return how HF changed."""
        name = flight.tenant.name
        change = self._account(name).charge(flight.charge, trip.dues, dues, self._settings.share)
        trip.dues = dues
        if change < 0 and name in self.choice:
            self.choice.add(name)
        return change / UNIT

    def _expect(self, flight: Flight, trip: _Trip) -> Dues:
        """Predict what the request will be like and cost."""
        trip.prompt, trip.output = flight.prompt, max(flight.predicted_output, flight.generated)
        metrics = self.mapper.predict(trip.prompt, trip.output // flight.request.sequences, trip.load)
        trip.utilisation = metrics.utilisation
        return self._dues(flight, trip.prompt, trip.output, trip.wait + metrics.latency, metrics.utilisation)

    def _start(self, flight: Flight, trip: _Trip) -> None:
        self._trips[flight.request.id] = trip
        self._load.start(flight)
        self.watch.dispatched(flight, self._charge(flight, trip, self._expect(flight, trip)))

    @override
    def _dispatched(self, flight: Flight) -> None:
        request = flight.request
        now = request.dispatched
        assert now is not None
        self.watch.reached(self._account(request.tenant).value / UNIT)
        since = self._heads.took(request.tenant, now)
        self._start(flight, _Trip(since, max(0.0, now - since), self._load.now, usable=True))

    @override
    def _adopted(self, flight: Flight) -> None:
        now = flight.request.dispatched or 0.0
        # dispatched by another order, many of one tenant perhaps: it need not have been the least
        self.watch.reached(self._account(flight.tenant.name).value / UNIT)
        self._start(flight, _Trip(now, 0.0, self._load.now, usable=False))

    @override
    def _recounted(self, flight: Flight) -> None:
        if flight.request.outcome is not None:
            return  # `_settled` follows, and knows how it ended
        trip = self._trips[flight.request.id]
        self._load.update(flight)
        if flight.generated > trip.output or flight.prompt != trip.prompt:
            self.watch.corrected(flight, self._charge(flight, trip, self._expect(flight, trip)))

    @override
    def _settled(self, flight: Flight, usage: Usage, outcome: Outcome, now: float) -> None:
        trip = self._trips.pop(flight.request.id)
        self._load.end(flight)
        request = flight.request
        seconds = max(0.0, now - (now if request.dispatched is None else request.dispatched))
        measured = usage.gpu_utilisation
        utilisation = trip.utilisation if measured is None else measured
        dues = self._dues(flight, flight.prompt, flight.generated, trip.wait + seconds, utilisation)
        self.watch.corrected(flight, self._charge(flight, trip, dues))
        if trip.usable and usage.teaches and outcome is Outcome.FINISHED:
            output = flight.generated // request.sequences
            self.mapper.learn(flight.prompt, output, trip.load, latency=seconds, utilisation=measured)

    @override
    def _undone(self, flight: Flight) -> None:
        trip = self._trips.pop(flight.request.id)
        self._load.end(flight)
        self._heads.puts_back(flight.request, trip.head_since)
        self.watch.corrected(flight, self._charge(flight, trip, Dues()))

    @override
    def add_service(self, tenant: str, cost: float, now: float) -> None:
        if cost < 0:
            raise ValueError(f"tenant {tenant}: service elsewhere is {cost}, must not be negative")
        amount = units(cost / self._typical_cost * TYPICAL_COST, self.books.open(tenant).settings.weight)
        account = self._account(tenant)
        account.add_both(amount)
        self.watch.added(tenant, amount * WHOLE / UNIT)

    # -- the rest of the contract

    @property
    def _typical_cost(self) -> float:
        """Service of one typical request, in cost units."""
        return self._settings.cost(TYPICAL_PROMPT, 0, TYPICAL_OUTPUT) or TYPICAL_COST

    @override
    def tick(self, now: float) -> None:
        super().tick(now)
        backlogged = {name: self._accounts[name].value / UNIT for name in self.choice}
        self.watch.tick(backlogged, self.books.flights.values())

    @override
    def bound(self, now: float) -> Bound | None:
        return self.watch.bound()

    def counters(self, name: str) -> tuple[float, float]:
        """Return UFC / U0 and RFC / R0 of a tenant, lifts included, each in typical requests over weight."""
        account = self._accounts.get(name, DualAccount())
        scale = TYPICAL_COST * UNIT / WHOLE
        return account.user / scale, account.resource / scale

    @override
    def _forgotten(self, name: str) -> None:
        super()._forgotten(name)
        self._heads.forget(name)

    def _settled_accounts(self) -> dict[str, DualAccount]:
        """Return the accounts as if each request in flight ended with what it has been delivered."""
        accounts = {name: account.copy() for name, account in self._accounts.items()}
        for flight in self.books.flights.values():
            trip = self._trips[flight.request.id]
            output = flight.generated // flight.request.sequences
            metrics = self.mapper.predict(flight.prefilled, output, trip.load)
            seconds = trip.wait + metrics.latency
            dues = self._dues(flight, flight.prefilled, flight.generated, seconds, metrics.utilisation)
            accounts[flight.tenant.name].charge(flight.charge.copy(), trip.dues, dues, self._settings.share)
        return accounts

    @override
    def _history(self) -> dict[str, float]:
        scale = self._typical_cost / TYPICAL_COST / UNIT
        return {name: account.value * scale for name, account in self._settled_accounts().items()}

    @override
    def _take_over(self, history: Mapping[str, float]) -> None:
        scale = TYPICAL_COST / self._typical_cost
        self._accounts = {}
        for name, service in history.items():
            self._account(name).add_both(units(service * scale, 1.0))
        self._guess_last_left(history)

    @override
    def _state(self) -> dict[str, Any]:
        counters = {
            name: [account.value, account.user, account.resource]
            for name, account in self._settled_accounts().items()
        }
        return {
            "counters": counters,
            "last_left": self._leaving_last(),
            "mapper": self.mapper.snapshot(),
        }

    @override
    def _restore_state(self, state: dict[str, Any]) -> None:
        counters, last_left = state.get("counters"), state.get("last_left")
        if not isinstance(counters, dict) or not all(
            isinstance(row, list) and len(row) == 3 and all(type(value) is int for value in row)
            for row in counters.values()
        ):
            raise ValueError("snapshot: state.counters must map tenants to three integers")
        if last_left is not None and last_left not in counters:
            raise ValueError("snapshot: state.last_left must be one of state.counters")
        self.mapper.restore(state.get("mapper"))
        self._accounts = {str(name): DualAccount(*row) for name, row in counters.items()}
        self._last_left = last_left
