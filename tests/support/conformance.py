"""The conformance suite's frame: a scheduler under test, what it promises, and the cases that it must pass.

A case is a function of a `Subject` that raises AssertionError where the scheduler is wrong; `CASES` holds all of them by
name. `traits` say what a scheduler shares out and which general rules it departs from, and so which cases apply.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from scheduling_harness import make_request

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.registry import SCHEDULERS

EVERY = sorted(SCHEDULERS)


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a scheduler promises."""

    unit: Literal["nothing", "requests", "tokens", "typical requests", "felt and spent", "experience"]
    """Of what backlogged tenants get equal amounts."""
    weights: bool = False
    """Shares follow the weights."""
    banks: bool = False
    """Time spent idle is worth service later."""
    bound: bool = False
    """It publishes a fairness bound."""
    skips: bool = False
    """Other tenants' heads are tried where one does not fit."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Under which the cases mean the same for all: a rate limit that does not act."""


TRAITS: Mapping[str, Traits] = {
    "FCFS": Traits(unit="nothing"),
    "RoundRobin": Traits(unit="requests"),
    "RPM": Traits(unit="nothing", settings={"requests_per_minute": 1_000_000}),
    "LCF": Traits(unit="tokens", weights=True, banks=True),
    "DRR": Traits(unit="tokens", weights=True),
    "VTC": Traits(unit="tokens", weights=True, bound=True),
    "FairServe": Traits(unit="typical requests", weights=True, bound=True),
    "Equinox": Traits(unit="felt and spent", weights=True, bound=True),
    "ExFairS": Traits(unit="experience"),
    "Equipoise": Traits(unit="tokens", weights=True, bound=True, skips=True),
}


@dataclass(frozen=True)
class Subject:
    """A scheduler under test: one of the registry, or a flawed copy of it."""

    type: type[TenantScheduler]

    @property
    def algorithm(self) -> str:
        return self.type.algorithm

    @property
    def traits(self) -> Traits:
        return TRAITS[self.type.algorithm]

    def make(self, tenants=None, predictor=None, **settings) -> TenantScheduler:
        """Build it; keyword arguments are settings."""
        made = self.type.settings_type(**{**self.traits.settings, **settings})
        return self.type(made, tenants or {}, predictor)


Case = Callable[[Subject], None]
CASES: dict[str, Case] = {}
_applies: dict[str, Callable[[Traits], bool]] = {}


def case(when: Callable[[Traits], bool] = lambda _: True) -> Callable[[Case], Case]:
    """Make a function a case for the schedulers with such traits."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = function
        _applies[function.__name__] = when
        return function

    return register


def cases_of(subject: Subject) -> dict[str, Case]:
    """Return the cases that apply."""
    return {name: function for name, function in CASES.items() if _applies[name](subject.traits)}


def fill(scheduler, pattern, *, now=0.0, **fields):
    """Enqueue one request a letter, the letter being its tenant."""
    requests = [
        make_request(f"{now}-{at}", tenant, arrival=now, **fields) for at, tenant in enumerate(pattern)
    ]
    for request in requests:
        assert scheduler.enqueue(request, now) is None
    return requests


def settle_turns(scheduler, now):
    """Let a pass in which nobody fits move the turns on, as it may once."""
    assert scheduler.next(now, lambda _: False) is None
