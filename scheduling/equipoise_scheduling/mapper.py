"""The metric mapper: from a request and what is running to its latency, throughput and GPU utilisation. After Equinox.

A sequence takes one engine step a token; a step costs a constant, something a sequence and something a token of
context; its prompt, and those that wait to be prefilled before it, cost something a token. So latency is linear in

    x = (1, prompts, out, out * sequences, out * context)

and recursive least squares with forgetting (`least_squares`) fits the coefficients to the requests that ended, from
those of an engine of moderate speed. Samples are weighted by what that engine would take: a long request's error in
seconds is larger in the same proportion. Utilisation is fitted the same way on (1, sequences, prompts), both
saturating, where telemetry has it.

What is predicted never rests on extrapolation alone: latency lies within `REACH` times of what the engine's mean pace
gives, utilisation within [0, 1]. Pure and deterministic; about 20 us to learn, 4 us to predict.

Source: Equinox (arXiv 2508.16646), whose mapper is not public: the model and the fit are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from equipoise_scheduling.least_squares import LeastSquares
from equipoise_scheduling.prediction_error import ErrorTracker, PredictionError

SECONDS: Final = (0.02, 2.1e-4, 2.25e-2, 1e-4, 9e-7)
"""The prior's coefficients: a request, a prompt token, a step, a sequence in it, a token of context in it."""
REACH: Final = 10.0
VARIANCE: Final = 1000.0
"""Variance of the prior's coefficients, each relative to its value, to that of a sample."""
PACE_WINDOW: Final = 200
"""Requests over which the engine's mean pace fades."""
FULL_SEQUENCES: Final = 32
FULL_PROMPTS: Final = 2_048
UNMEASURED: Final = 256
"""Requests in a row without utilisation after which what was measured before is no longer believed."""
SHORTEST: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Load:
    """What is in flight when a request is dispatched, itself not counted."""

    sequences: int = 0
    prompt_tokens: int = 0
    """Of prompts not yet prefilled."""
    context_tokens: int = 0
    """Prefilled and generated so far, of all that is in flight."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a request is like: expected, or measured."""

    latency: float
    """Seconds from dispatch to the end; above 0."""
    tokens_per_second: float
    """(prompt + output) / latency."""
    utilisation: float
    """Of the GPU over the request's life, in [0, 1]; 1 where nobody measures it: throughput alone counts."""


class MetricMapper:
    """Predicts `Metrics` and learns from requests that ended."""

    def __init__(self) -> None:
        self._latency = LeastSquares([1.0] * len(SECONDS), [VARIANCE] * len(SECONDS))
        self._utilisation = _utilisation_fit()
        self._samples = 0
        self._pace = 1.0
        """Mean of latency to the prior's."""
        self._unmeasured = UNMEASURED
        self._errors = {"latency_seconds": ErrorTracker(), "utilisation": ErrorTracker()}

    def predict(self, prompt: int, output: int, load: Load) -> Metrics:
        """Return what a request of that many tokens is expected to be like. O(1)."""
        x, scale = _steps(prompt, output, load)
        ratio = min(max(self._latency.predict(x), self._pace / REACH), self._pace * REACH)
        latency = max(SHORTEST, ratio * scale)
        return Metrics(latency, (prompt + output) / latency, self._utilisation_of(prompt, load))

    def learn(
        self, prompt: int, output: int, load: Load, *, latency: float, utilisation: float | None = None
    ) -> None:
        """Take in a request that ended; `load` is that of its dispatch. ValueError for what cannot be. O(1)."""
        if not 0 <= latency < float("inf"):
            raise ValueError(f"latency={latency} must be a number not below 0")
        if utilisation is not None and not 0 <= utilisation <= 1:
            raise ValueError(f"utilisation={utilisation} must lie within [0, 1]")
        expected = self.predict(prompt, output, load)
        self._errors["latency_seconds"].add(expected.latency, latency)
        x, scale = _steps(prompt, output, load)
        ratio = max(latency, SHORTEST) / scale
        if self._samples:
            # A hang says nothing of the engine's pace; a slower engine shows within a few requests all the same.
            ratio = min(ratio, self._pace * REACH)
        self._samples += 1
        self._pace += (ratio - self._pace) / min(self._samples, PACE_WINDOW)
        self._latency.learn(x, ratio)
        self._learn_utilisation(prompt, load, expected.utilisation, utilisation)

    def _learn_utilisation(self, prompt: int, load: Load, expected: float, measured: float | None) -> None:
        if measured is None:
            self._unmeasured = min(self._unmeasured + 1, UNMEASURED)
            if self._unmeasured == UNMEASURED:
                self._utilisation = _utilisation_fit()
            return
        self._unmeasured = 0
        self._errors["utilisation"].add(expected, measured)
        self._utilisation.learn(_business(prompt, load), measured)

    def _utilisation_of(self, prompt: int, load: Load) -> float:
        if self._unmeasured == UNMEASURED:
            return 1.0
        return min(max(self._utilisation.predict(_business(prompt, load)), 0.0), 1.0)

    def errors(self) -> Mapping[str, PredictionError]:
        """Return how far predictions were off, by what was predicted."""
        return {name: tracker.error() for name, tracker in self._errors.items()}

    def snapshot(self) -> dict[str, Any]:
        """Return what was learnt, as plain data."""
        return {
            "latency": self._latency.snapshot(),
            "utilisation": self._utilisation.snapshot(),
            "samples": self._samples,
            "pace": self._pace,
            "unmeasured": self._unmeasured,
        }

    def restore(self, data: Any) -> None:
        """Take over a snapshot. ValueError if it cannot be read; then nothing changes."""
        data = data if isinstance(data, dict) else {}
        samples, pace, unmeasured = data.get("samples"), data.get("pace"), data.get("unmeasured")
        if type(samples) is not int or samples < 0:
            raise ValueError("snapshot: mapper.samples must be a count")
        if not isinstance(pace, int | float) or not isfinite(pace) or pace <= 0:
            raise ValueError("snapshot: mapper.pace must be a positive number")
        if type(unmeasured) is not int or not 0 <= unmeasured <= UNMEASURED:
            raise ValueError(f"snapshot: mapper.unmeasured must be a count up to {UNMEASURED}")
        other = MetricMapper()
        other._latency.restore(data.get("latency"))
        other._utilisation.restore(data.get("utilisation"))
        self._latency, self._utilisation = other._latency, other._utilisation
        self._samples, self._pace, self._unmeasured = samples, float(pace), unmeasured


def _utilisation_fit() -> LeastSquares:
    return LeastSquares([1.0, 0.0, 0.0], [VARIANCE] * 3)


def _steps(prompt: int, output: int, load: Load) -> tuple[tuple[float, ...], float]:
    """Return the prior's seconds by cause as shares of their sum, and the sum."""
    request, prefill, step, sequence, context = SECONDS
    seconds = (
        request,
        prefill * (prompt + load.prompt_tokens),
        step * output,
        sequence * output * load.sequences,
        context * output * load.context_tokens,
    )
    total = sum(seconds)
    return tuple(part / total for part in seconds), total


def _business(prompt: int, load: Load) -> tuple[float, float, float]:
    waiting = prompt + load.prompt_tokens
    return (1.0, load.sequences / (load.sequences + FULL_SEQUENCES), waiting / (waiting + FULL_PROMPTS))
