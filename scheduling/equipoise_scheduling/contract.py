"""The one contract that every scheduler keeps: events in, decisions out, time as an argument.

A request's life, and who calls what:

    enqueue ─┬─ Refusal                            never queued; the caller answers 429/503
             └─ queued ─┬─ cancel                  left, or waited too long, in the queue: nothing is charged
                        ├─ refused()               taken out by overload throttling inside `next` or `tick`
                        └─ next ── in flight ─┬─ progress*, settle     exactly once, whatever happened
                                              └─ requeue               engine was busy: as if never dispatched

The caller owns clock, sockets and capacity. It calls `next` until that returns None whenever capacity may have
freed, something arrived, or a tick passed; `next` charges what it returns. One writer: no call is reentrant.
Counts given to `progress` and `settle` are cumulative and over all sequences of a request.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from equipoise_api.policy import Algorithm
from equipoise_scheduling.cost import Cost, LinearCost
from equipoise_scheduling.overload import OverloadSettings
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.request import Outcome, Refusal, Request, Usage

Fits = Callable[[Request], bool]
"""The capacity gate: can this request join the running batch at once? Must not change anything."""

Snapshot = dict[str, Any]
"""Plain JSON-able data with a `version`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationSettings:
    """What is known beforehand of a typical call of one application, in tokens. None: learnt."""

    expected_input: int | None = None
    """The prompt, its system part included."""
    expected_system: int | None = None
    expected_output: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("expected_input", 1), ("expected_system", 0), ("expected_output", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}, or None where it is not known")


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """What a scheduler needs to know of a tenant. Tenants it was not told of get the defaults."""

    weight: float = 1.0
    max_in_flight: int | None = None
    """Requests in flight at which the tenant is held out of the choice. None: no limit of its own."""
    max_queued: int | None = None
    applications: Mapping[str, ApplicationSettings] = field(default_factory=dict)
    """What was declared of its applications, by name."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight={self.weight} must be a positive number")
        for name in ("max_in_flight", "max_queued"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1, or None for no limit")


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """What every scheduler takes; one with parameters of its own subclasses it."""

    cost: Cost = field(default_factory=LinearCost)
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    max_queued: int | None = None
    """Requests queued over all tenants."""
    overload: OverloadSettings = field(default_factory=OverloadSettings)
    """Throttling at the start of interactions while the engine is full."""
    window_seconds: float = 60.0
    """Sliding window of the shares, and how much history a change of algorithm carries over."""

    @classmethod
    def of(cls, algorithm: Algorithm, **common: Any) -> Self:
        """Make the settings of a policy's algorithm; `common` are the fields of this class."""
        del algorithm
        return cls(**common)


@dataclass(frozen=True, slots=True)
class Service:
    """Delivered service by kind."""

    prompt: int = 0
    """Prompt tokens, cached ones included."""
    cached: int = 0
    generated: int = 0
    cost: float = 0.0
    """In cost units (weighted tokens)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantShare:
    """One tenant's row: the same for status, metrics, debug tables and tests. Shares are fractions of 1."""

    tenant: str
    weight: float
    queued: int
    in_flight: int
    """Requests in flight."""
    held: bool
    """At its own max_in_flight, and so not in the choice."""
    counter: float | None
    """The scheduler's key in cost units per unit of weight; None for one that keeps none."""
    total: Service
    """Delivered since the start."""
    window: Service
    """Delivered within the sliding window."""
    demand: float
    """The window's service plus what is queued and in flight still asks for (expected), in cost units."""
    entitled: float
    """Max-min share, by weight and demand, of all service delivered in the window."""
    actual: float
    """Share of all service delivered in the window."""
    lag: float
    """(entitled - actual) x the window's service: cost units owed to it (> 0) or had beyond its share (< 0)."""
    head_wait: float
    """Seconds that its oldest queued request has waited; 0 with nothing queued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The published fairness bound and whether it holds. Cost units; gap and limit per unit of weight."""

    undelivered: float
    """U: the most cost that one tenant had in flight and undelivered just after a dispatch."""
    limit: float
    """What the gap may at most be, for the pair of backlogged tenants that came closest to its limit."""
    gap: float
    """The largest |W_f/w_f - W_g/w_g| seen between that pair while both stayed backlogged."""
    met: bool
    """False where any pair exceeded its own limit."""


class Scheduler(ABC):
    """Whose request goes next. Deterministic: the same events give the same decisions."""

    algorithm: str
    """The name in FairnessPolicy's `algorithm.type`."""

    @abstractmethod
    def enqueue(self, request: Request, now: float) -> Refusal | None:
        """Accept `request` into the queue, or refuse it.

        Raises ValueError for an id that lives already and for a request that has ended.
        """

    @abstractmethod
    def next(self, now: float, fits: Fits) -> Request | None:
        """Dispatch and charge the next request, or None when nobody may go.

        None ends a pass: nothing is queued, all are held, or the chosen head does not fit.
        """

    @abstractmethod
    def refused(self) -> list[tuple[Request, Refusal]]:
        """Queued requests that `next` or `tick` refused since the last call; call it after each of the two."""

    @abstractmethod
    def progress(self, request: Request, prompt: int, generated: int, now: float) -> None:
        """Record delivery of a request in flight so far: prompt tokens prefilled, tokens generated.

        Cumulative; a count lower than before is ignored. Once `generated` is above 0 `prompt` is taken as the
        whole prompt and corrects the estimate.
        """

    @abstractmethod
    def settle(self, request: Request, usage: Usage, outcome: Outcome, now: float) -> None:
        """End a request in flight: correct its charge to what it used, refund what was predicted and not used."""

    @abstractmethod
    def cancel(self, request: Request, now: float, outcome: Outcome = Outcome.CANCELLED) -> None:
        """End a request that is still queued. Nothing is charged. In flight: `settle` instead (ValueError)."""

    @abstractmethod
    def requeue(self, request: Request, now: float) -> None:
        """Undo the dispatch of a request that the engine would not take, before any progress.

        The charge is undone exactly; the request stands where it stood, with its deadline and arrival number,
        and its tenant is not lifted. A lift in between stays: a tenant that this dispatch left with nothing queued, and
        that came back with another request, stands as if both had come together then. So it is no further behind than
        the least of the backlogged were, and what others were served meanwhile is not owed to it.
        """

    @abstractmethod
    def tick(self, now: float) -> None:
        """Let time pass: rounds, windows, watching the bound. About once a second."""

    @abstractmethod
    def reconfigure(
        self, settings: SchedulerSettings, tenants: Mapping[str, TenantSettings], now: float
    ) -> None:
        """Replace settings and tenants; queue, requests in flight and history stay.

        All errors (ValueError, TypeError) come out before anything changes. A tenant left out keeps its weight
        until its last request has ended.
        """

    @abstractmethod
    def add_service(self, tenant: str, cost: float, now: float) -> None:
        """Count service that `tenant` had elsewhere (another replica, a former scheduler), in cost units."""

    @abstractmethod
    def set_pool(self, kv_tokens: int | None) -> None:
        """Say how many tokens the engine's KV cache holds, once that is known; for parameters that scale with it."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """Counters, history and what was learnt, with each request in flight as if it ended here; no requests."""

    @abstractmethod
    def restore(self, data: Snapshot) -> None:
        """Take over a snapshot before any request: of another algorithm, its service history and what was learnt.

        ValueError if it cannot be read.
        """

    @abstractmethod
    def shares(self, now: float) -> list[TenantShare]:
        """One row a tenant, by name. O(tenants log tenants)."""

    @abstractmethod
    def iter_shares(self, now: float, *, idle: bool = True) -> Iterator[TenantShare]:
        """Yield the same row by row; without `idle`, only of tenants that have or had anything in the window.

        The caller may let time pass and tell the scheduler of events between two rows: sums are of the beginning, a row's
        counts of its own moment.
        """

    @abstractmethod
    def bound(self, now: float) -> Bound | None:
        """Give the live fairness bound; None for an algorithm that has none."""

    @property
    @abstractmethod
    def queued(self) -> int:
        """Requests queued over all tenants."""

    @property
    @abstractmethod
    def in_flight(self) -> int:
        """Requests in flight over all tenants."""
