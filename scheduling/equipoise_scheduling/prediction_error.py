"""How far predictions are off, kept online."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PredictionError:
    """In the unit of what is predicted: tokens of one sequence for outputs, seconds for latencies."""

    requests: int
    """Predictions judged since the start."""
    mean_absolute: float
    bias: float
    """Mean of predicted - seen: above 0 it expects too much."""


class ErrorTracker:
    """Mean absolute error and bias: of all requests until `window`, then fading with that many requests. O(1)."""

    __slots__ = ("_absolute", "_bias", "_requests", "_window")

    def __init__(self, window: int = 500) -> None:
        self._window = window
        self._requests = 0
        self._absolute = self._bias = 0.0

    def add(self, predicted: float, seen: float) -> None:
        """Judge one prediction."""
        self._requests += 1
        share = 1 / min(self._requests, self._window)
        self._absolute += share * (abs(predicted - seen) - self._absolute)
        self._bias += share * (predicted - seen - self._bias)

    def error(self) -> PredictionError:
        """Return what was seen so far; zeros of nothing."""
        return PredictionError(self._requests, self._absolute, self._bias)
