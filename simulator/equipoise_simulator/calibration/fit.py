"""What an engine did, and the cost profile that explains it best.

    seconds = steps * a0 + a1 * prefill tokens + a2 * decoded tokens + a3 * context tokens  (+ latency, for a prompt alone)

Latency is what no step shows: the way of a request to the engine and of its first token back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from equipoise_simulator.calibration.steps import Observation

DISTURBED = 0.5
"""Relative error from which on an observation is of something else (a kernel compiled, a machine that stood still)."""
FEWEST = 8
"""Observations under load below which the costs cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Error:
    """How far a fit is off for one kind of load, relative to what was observed."""

    median: float
    """Median absolute error of single observations."""
    bias: float
    """Error of their sum: above 0 where the fit expects more than was seen."""
    observations: int


@dataclass(frozen=True, slots=True)
class Fit:
    """The coefficients, seconds each, and how far they are off."""

    a0: float
    a1: float
    a2: float
    a3: float
    latency: float
    errors: dict[int, Error]
    """By the number of clients; 0 is a prompt alone."""
    disturbed: int
    """Observations that were left out."""

    def predict(self, seen: Observation) -> float:
        """Return the seconds that the fit expects."""
        return float(_row(seen) @ np.array([self.a0, self.a1, self.a2, self.a3, self.latency]))


def _row(seen: Observation) -> np.ndarray:
    latencies = 1.0 if seen.clients == 0 else 0.0
    return np.array([seen.steps, seen.prefill_tokens, seen.decoded_tokens, seen.context_tokens, latencies])


def fit(observations: Sequence[Observation]) -> Fit:
    """Fit non-negative coefficients, such that the expected time of all observations together is the observed one.

    The variance of an observation is taken to grow with its length. ValueError with too few observations of a kind.
    """
    loaded = sum(1 for seen in observations if seen.clients)
    if loaded < FEWEST or loaded == len(observations):
        raise ValueError(
            f"{loaded} observations under load and {len(observations) - loaded} of a prompt alone do not tell the costs "
            f"apart: at least {FEWEST} and 1 are needed"
        )
    rows = np.array([_row(seen) for seen in observations])
    seconds = np.array([seen.seconds for seen in observations])
    expected = rows @ _solve(rows, seconds)
    kept = np.abs(expected / seconds - 1) <= DISTURBED
    found = _solve(rows[kept], seconds[kept])
    expected = rows @ found
    errors: dict[int, Error] = {}
    for clients in sorted({seen.clients for seen in observations}):
        these = kept & np.array([seen.clients == clients for seen in observations])
        if these.any():
            off = np.abs(expected[these] / seconds[these] - 1)
            bias = expected[these].sum() / seconds[these].sum() - 1
            errors[clients] = Error(float(np.median(off)), float(bias), int(these.sum()))
    a0, a1, a2, a3, latency = (float(value) for value in found)
    return Fit(max(a0, 1e-9), a1, a2, a3, latency, errors, int((~kept).sum()))


def _solve(rows: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Least squares weighted by the expected length: its residuals sum to nothing."""
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    found = np.zeros(rows.shape[1])
    expected = seconds
    for _ in range(4):
        weight = 1 / np.sqrt(np.maximum(expected, 0.1 * seconds))
        found = np.asarray(nnls(weight[:, None] * (rows / scale), weight * seconds)[0] / scale)
        expected = rows @ found
    return found
