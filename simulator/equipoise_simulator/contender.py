"""Who competes in a simulation: a scheduler with its settings and its predictor, by name or from a policy.

A name is `TYPE[:PREDICTOR][:PARAMETER=VALUE]...`, all case-insensitive:

- TYPE is one of FairnessPolicy's `algorithm.type` (FCFS, RoundRobin, RPM, LCF, DRR, VTC, FairServe, Equinox, ExFairS,
  Equipoise);
- PREDICTOR is none, average, mixture, or, as only a simulation can, oracle (the true length), noisy (the true length
  +-50 %, uniform, seeded) or a number of tokens (for every request); left out, the policy's default;
- PARAMETER is a field of the algorithm's member in FairnessPolicy, or a part of its name that no other field has:
  `RPM:limit=5` is `requestsPerMinute: 5`, `Equipoise:oracle:band=2000:stretch=5` has `bandTokens` and `stretch`;
  `userLimit` and `applicationLimit` are the policy's `overload`, for any type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from equipoise_api.names import DEFAULT_TENANT
from equipoise_api.policy import Algorithm, AlgorithmType, Capacity, Cost, Overload, Prediction, Queue
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.registry import SCHEDULERS, create, scheduler_settings
from equipoise_simulator.oracle import Constant, Noisy, Oracle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from equipoise_scheduling.base import TenantScheduler
    from equipoise_scheduling.gate import GateSettings
    from equipoise_scheduling.prediction import Predictor
    from equipoise_simulator.rules import Rules
    from equipoise_simulator.workload import Workload

Foresight = Literal["oracle", "noisy"]
Model = TypeVar("Model", bound=BaseModel)

_PREDICTORS: Mapping[str, Prediction] = {
    "none": Prediction(type="None"),
    "average": Prediction(type="MovingAverage"),
    "mixture": Prediction(type="Mixture"),
}
_SYNONYMS = {"limit": "requestsPerMinute", "quantum": "quantumTokens"}
_OVERLOAD = {"userlimit": "userRequestsPerMinute", "applicationlimit": "applicationRequestsPerMinute"}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A scheduler to be made anew for each run."""

    label: str
    algorithm: Algorithm
    prediction: Prediction = field(default_factory=Prediction)
    foresight: Foresight | int | None = None
    """A predictor that knows the workload, or says so many tokens of every request, in place of `prediction`."""
    cost: Cost = field(default_factory=Cost)
    queue: Queue = field(default_factory=lambda: Queue(max_requests=1_000_000))
    overload: Overload = field(default_factory=Overload)
    capacity: Capacity = field(default_factory=Capacity)
    """Sizes in place of the profile's, where the policy has some."""
    gate: GateSettings | None = None
    """What the policy says; None: the run's."""
    enforced: bool = True
    """False: everything goes to the engine as it comes."""
    rules: Rules | None = None
    """From Tenant objects, in place of the workload's weights."""

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read a contender's name. ValueError says what there is instead."""
        kind, *rest = name.split(":")
        types = {known.lower(): known for known in get_args(AlgorithmType)}
        algorithm = types.get(kind.strip().lower())
        if algorithm is None or algorithm not in SCHEDULERS:
            raise ValueError(
                f"scheduler {kind!r} is unknown: use one of {', '.join(SCHEDULERS)}; parameters as in RPM:limit=5"
            )
        prediction = Prediction()
        foresight: Foresight | int | None = None
        parameters: dict[str, str] = {}
        for part in rest:
            word = part.strip().lower()
            if "=" in word:
                key, value = part.split("=", 1)
                parameters[key.strip()] = value.strip()
            elif word in _PREDICTORS:
                prediction = _PREDICTORS[word]
            elif word in get_args(Foresight):
                foresight = "oracle" if word == "oracle" else "noisy"
            elif word.isdecimal() and int(word) > 0:
                foresight = int(word)
            else:
                raise ValueError(
                    f"scheduler {name!r}: {part!r} is neither a predictor "
                    f"({', '.join((*_PREDICTORS, *get_args(Foresight)))}, a number of tokens) nor PARAMETER=VALUE"
                )
        limits = {
            _OVERLOAD[key.lower()]: parameters.pop(key)
            for key in list(parameters)
            if key.lower() in _OVERLOAD
        }
        return cls(
            label=name,
            algorithm=_algorithm(name, algorithm, parameters),
            prediction=prediction,
            foresight=foresight,
            overload=_parsed(name, Overload, limits),
        )

    def weight(self, tenant: str, workload: Workload) -> float:
        """Return the weight that a tenant runs with."""
        if self.rules is None:
            return workload.weights.get(tenant, 1.0)
        return self.rules.of(tenant).settings.weight

    def scheduler(self, workload: Workload, seed: int) -> TenantScheduler:
        """Make the scheduler, as a sidecar does from its configuration."""
        settings = scheduler_settings(self.algorithm, self.cost, self.prediction, self.queue, self.overload)
        if self.rules is None:
            tenants = {name: TenantSettings(weight=self.weight(name, workload)) for name in workload.tenants}
        else:
            tenants = {name: tenant.settings for name, tenant in self.rules.tenants.items()}
            tenants[DEFAULT_TENANT] = self.rules.default.settings
        if not self.enforced:
            settings, tenants = replace(settings, max_queued=None), {}
        return create(self.algorithm.type, settings, tenants, self._predictor(workload, seed))

    def _predictor(self, workload: Workload, seed: int) -> Predictor | None:
        if self.foresight is None:
            return None
        if isinstance(self.foresight, int):
            return Constant(self.foresight)
        lengths = {call.id: call.output_tokens for call in workload.calls}
        return Oracle(lengths) if self.foresight == "oracle" else Noisy(lengths, seed=seed)


def _algorithm(name: str, kind: str, parameters: Mapping[str, str]) -> Algorithm:
    """Make the API's algorithm of a type and of parameters by (a part of) their name."""
    if not parameters:
        return Algorithm.model_validate({"type": kind})
    members = {field.lower().replace("_", ""): field for field in Algorithm.model_fields if field != "type"}
    member = members.get(kind.lower())
    if member is None:
        raise ValueError(f"scheduler {name!r}: {kind} has no parameters")
    model = _model_of(Algorithm.model_fields[member].annotation)
    fields = [info.alias or field for field, info in model.model_fields.items()]
    values = {_field(name, kind, key, fields): value for key, value in parameters.items()}
    return Algorithm.model_validate({"type": kind, member: _parsed(name, model, values)})


def _field(name: str, kind: str, key: str, fields: list[str]) -> str:
    plain = re.sub(r"[_-]", "", _SYNONYMS.get(key.lower(), key)).lower()
    found = [field for field in fields if field.lower() == plain] or [
        field for field in fields if plain in field.lower()
    ]
    if len(found) != 1:
        raise ValueError(f"scheduler {name!r}: {key!r} is none of {kind}'s parameters: {', '.join(fields)}")
    return found[0]


def _model_of(annotation: Any) -> type[BaseModel]:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    raise TypeError(f"{annotation} holds no model")


def _parsed(name: str, model: type[Model], values: Mapping[str, str]) -> Model:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(
            f"scheduler {name!r}: {'.'.join(map(str, problem['loc']))}={problem['input']!r}: {problem['msg']}"
        ) from None
