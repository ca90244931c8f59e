"""What is typical of an application's calls: declared, or learnt from those that finished.

Sizes are tokens of the prompt (its system part included), of the system prompt, and of the output. What nobody declared
is learnt for each application of each tenant; an application that nothing is known of yet is taken for its tenant, a new
tenant for everybody, and the first of all for a prior. Applications are strings that a client sends: of each tenant only so
many are remembered.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Mapping
from math import ceil
from typing import Any, Literal, NamedTuple

from typing_extensions import override

from equipoise_scheduling.contract import ApplicationSettings

Typical = Literal["Mean", "P99", "Min", "Max"]

RECENT = 100
"""Calls that a figure is about."""
START_CALLS = 2
"""Calls for which the starting value of a mean counts."""
MOST_APPLICATIONS = 64
"""Applications remembered of one tenant; beyond that the one unheard of longest is forgotten."""
PRIOR_INPUT = 256


class Sizes(NamedTuple):
    """Tokens of a call."""

    input: float
    system: float
    output: float


class Figure(ABC):
    """One application's recent calls in one figure a size."""

    @property
    @abstractmethod
    def sizes(self) -> Sizes:
        """Return the figure."""

    @abstractmethod
    def learn(self, sizes: Sizes) -> None:
        """Take in a call."""

    @abstractmethod
    def state(self) -> list[Any]:
        """Return what `figure` reads."""


class RecentMean(Figure):
    """Mean of all calls up to RECENT, exponentially forgetting after. O(1) in time and memory."""

    __slots__ = ("_count", "_mean")

    def __init__(self, start: Sizes, count: int = START_CALLS) -> None:
        self._mean = start
        self._count = count

    @property
    @override
    def sizes(self) -> Sizes:
        return self._mean

    @override
    def learn(self, sizes: Sizes) -> None:
        self._count = min(self._count + 1, RECENT)
        gain = 1 / self._count
        self._mean = Sizes(*(old + (new - old) * gain for old, new in zip(self._mean, sizes, strict=True)))

    @override
    def state(self) -> list[Any]:
        return [self._count, *self._mean]


class RecentOrder(Figure):
    """Nearest-rank quantile of each size over the last RECENT calls. O(RECENT log RECENT) for a figure asked after news."""

    __slots__ = ("_calls", "_quantile", "_sizes", "_start")

    def __init__(self, quantile: float, start: Sizes) -> None:
        self._quantile = quantile
        self._start = start
        self._calls: deque[Sizes] = deque(maxlen=RECENT)
        self._sizes: Sizes | None = None

    @property
    @override
    def sizes(self) -> Sizes:
        if not self._calls:
            return self._start
        if self._sizes is None:
            rank = max(1, ceil(self._quantile * len(self._calls))) - 1
            self._sizes = Sizes(*(sorted(size)[rank] for size in zip(*self._calls, strict=True)))
        return self._sizes

    @override
    def learn(self, sizes: Sizes) -> None:
        self._calls.append(sizes)
        self._sizes = None

    @override
    def state(self) -> list[Any]:
        return [list(sizes) for sizes in self._calls]


_QUANTILES: Mapping[Typical, float] = {"P99": 0.99, "Min": 0.0, "Max": 1.0}


def figure(kind: Typical, start: Sizes, state: list[Any] | None = None) -> Figure:
    """Make a figure, from its `state` where there is one. ValueError if that cannot be read."""
    if kind == "Mean":
        if state is None:
            return RecentMean(start)
        if len(state) != 4 or not all(isinstance(value, int | float) for value in state):
            raise ValueError("snapshot: a mean must be a count and three sizes")
        return RecentMean(Sizes(*map(float, state[1:])), max(START_CALLS, int(state[0])))
    order = RecentOrder(_QUANTILES[kind], start)
    for sizes in state or ():
        if not isinstance(sizes, list) or len(sizes) != 3:
            raise ValueError("snapshot: a recent call must be three sizes")
        order.learn(Sizes(*map(float, sizes)))
    return order


class TenantFigures:
    """One tenant's figure, and those of its applications."""

    __slots__ = ("applications", "whole")

    def __init__(self, whole: Figure) -> None:
        self.whole = whole
        self.applications: OrderedDict[str, Figure] = OrderedDict()


class TypicalCalls:
    """Typical sizes by tenant and application. Asking is O(1) for means."""

    def __init__(self, kind: Typical, prior_output: int) -> None:
        self.kind = kind
        self.prior = Sizes(PRIOR_INPUT, 0, prior_output)
        self._everybody = figure(kind, self.prior)
        self._tenants: dict[str, TenantFigures] = {}

    @property
    def everybody(self) -> Sizes:
        """Typical sizes over all tenants."""
        return self._everybody.sizes

    def of(self, tenant: str, application: str, declared: ApplicationSettings | None) -> Sizes:
        """Return what is typical, declared before learnt."""
        learnt = self._learnt(tenant, application)
        if declared is None:
            return learnt
        return Sizes(
            learnt.input if declared.expected_input is None else declared.expected_input,
            learnt.system if declared.expected_system is None else declared.expected_system,
            learnt.output if declared.expected_output is None else declared.expected_output,
        )

    def _learnt(self, tenant: str, application: str) -> Sizes:
        figures = self._tenants.get(tenant)
        if figures is None:
            return self.everybody
        own = figures.applications.get(application)
        return (own or figures.whole).sizes

    def learn(self, tenant: str, application: str, sizes: Sizes) -> None:
        """Take in a call that finished."""
        figures = self._tenants.get(tenant)
        if figures is None:
            figures = self._tenants[tenant] = TenantFigures(figure(self.kind, self.everybody))
        applications = figures.applications
        own = applications.get(application)
        if own is None:
            own = applications[application] = figure(self.kind, figures.whole.sizes)
        applications.move_to_end(application)
        for each in (own, figures.whole, self._everybody):
            each.learn(sizes)
        if len(applications) > MOST_APPLICATIONS:
            applications.popitem(last=False)

    def forget(self, tenant: str) -> None:
        """Drop what was learnt of a tenant that is gone."""
        self._tenants.pop(tenant, None)

    def become(self, kind: Typical) -> None:
        """Change which figure is typical: each goes on from its present value."""
        if kind == self.kind:
            return
        self.kind = kind
        self._everybody = figure(kind, self.everybody)
        for figures in self._tenants.values():
            figures.whole = figure(kind, figures.whole.sizes)
            for name, own in figures.applications.items():
                figures.applications[name] = figure(kind, own.sizes)

    def snapshot(self) -> dict[str, Any]:
        """Return what was learnt, as plain data."""
        return {
            "kind": self.kind,
            "everybody": self._everybody.state(),
            "tenants": {
                name: {
                    "whole": figures.whole.state(),
                    "applications": {name: own.state() for name, own in figures.applications.items()},
                }
                for name, figures in self._tenants.items()
            },
        }

    def restore(self, data: Any) -> None:
        """Take over a snapshot; one of another kind is dropped. ValueError if it cannot be read."""
        if not isinstance(data, dict) or not isinstance(data.get("tenants"), dict):
            raise ValueError("snapshot: state.typical must be an object with tenants")  # noqa: TRY004 - the contract's error
        if data.get("kind") != self.kind:
            return

        def read(state: Any) -> Figure:
            if not isinstance(state, list):
                raise ValueError("snapshot: a figure of state.typical must be a list")  # noqa: TRY004 - the contract's error
            return figure(self.kind, self.prior, state)

        everybody = read(data.get("everybody"))
        tenants: dict[str, TenantFigures] = {}
        for tenant, parts in data["tenants"].items():
            if not isinstance(parts, dict) or not isinstance(parts.get("applications"), dict):
                raise ValueError("snapshot: state.typical.tenants must have whole and applications")  # noqa: TRY004 - the contract's error
            tenants[tenant] = figures = TenantFigures(read(parts.get("whole")))
            for name, state in parts["applications"].items():
                figures.applications[name] = read(state)
        self._everybody, self._tenants = everybody, tenants
