"""How many tokens a request will generate, guessed before it is known: the contract, and the two simplest.

`mixture` holds the third, `predictors` makes one by its name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import override

from equipoise_scheduling.prediction_error import ErrorTracker, PredictionError
from equipoise_scheduling.request import Outcome, Request, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSettings:
    """Which predictor, and what it says of a tenant that it knows nothing of."""

    kind: Literal["Mixture", "MovingAverage", "None"] = "MovingAverage"
    prior_tokens: int = 256

    def __post_init__(self) -> None:
        if self.prior_tokens < 1:
            raise ValueError(f"prediction.prior_tokens={self.prior_tokens} must be at least 1")


class Predictor(ABC):
    """Predicts the output of one sequence and learns from requests that finished."""

    learned = 0
    """Requests learnt from: a prediction is stale once this has moved on."""

    @abstractmethod
    def predict(self, request: Request) -> int | None:
        """Return the expected tokens of one sequence, at most `request.max_tokens`; None for no opinion."""

    @abstractmethod
    def learn(self, request: Request, usage: Usage, outcome: Outcome) -> None:
        """Take in how a request ended. Ignores estimated usage and requests that were cut short."""

    def errors(self) -> Mapping[str, PredictionError]:
        """Return how far off it is, and what it is compared with on the same requests, by predictor."""
        return {}

    @abstractmethod
    def forget(self, tenant: str) -> None:
        """Drop what was learnt of a tenant that is gone."""

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """Return what was learnt, as plain data."""

    @abstractmethod
    def restore(self, data: dict[str, Any]) -> None:
        """Take over a snapshot. ValueError if it cannot be read."""


class NoPrediction(Predictor):
    """Every request may generate all that it is allowed to."""

    @override
    def predict(self, request: Request) -> int | None:
        return None

    @override
    def learn(self, request: Request, usage: Usage, outcome: Outcome) -> None:
        """Learn nothing."""

    @override
    def forget(self, tenant: str) -> None:
        """Know nothing to forget."""

    @override
    def snapshot(self) -> dict[str, Any]:
        return {}

    @override
    def restore(self, data: dict[str, Any]) -> None:
        """Take over nothing."""


class MovingAverage(Predictor):
    """pred <- (4 * pred + out) / 5 for each tenant, from `prior`, clipped to [1, max_tokens]. O(1).

    Source: the length predictor of VTC's artifact (arXiv 2401.00588).
    """

    def __init__(self, prior: int = 256) -> None:
        self._prior = prior
        self._mean: dict[str, float] = {}
        self._error = ErrorTracker()

    @override
    def predict(self, request: Request) -> int | None:
        mean = self._mean.get(request.tenant, self._prior)
        return min(max(1, round(mean)), request.max_tokens)

    @override
    def learn(self, request: Request, usage: Usage, outcome: Outcome) -> None:
        if not learnable(usage, outcome):
            return
        output = usage.generated / request.sequences
        mean = self._mean.get(request.tenant, self._prior)
        self._error.add(min(max(1, round(mean)), request.max_tokens), output)
        self._mean[request.tenant] = (4 * mean + output) / 5
        self.learned += 1

    @override
    def errors(self) -> Mapping[str, PredictionError]:
        return {"moving_average": self._error.error()}

    @override
    def forget(self, tenant: str) -> None:
        self._mean.pop(tenant, None)

    @override
    def snapshot(self) -> dict[str, Any]:
        return {"mean": dict(self._mean)}

    @override
    def restore(self, data: dict[str, Any]) -> None:
        mean = data.get("mean", {})
        if not isinstance(mean, dict) or not all(isinstance(value, int | float) for value in mean.values()):
            raise ValueError("snapshot: predictor.mean must map tenants to numbers")
        self._mean = {str(tenant): float(value) for tenant, value in mean.items()}


def learnable(usage: Usage, outcome: Outcome) -> bool:
    """Say whether a request's output is what it would have been: known exactly, and not cut short."""
    return outcome is Outcome.FINISHED and usage.teaches
