"""Observed steps of an engine, and the cost profile that explains them best.

    seconds = a0 + a1 * prefill tokens + a2 * decoding sequences + a3 * context tokens  (+ latency, for a first token)

Latency is what no step shows: the way of a request to the engine and of its first token back.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import least_squares, nnls

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["decode", "mixed", "first"]
KINDS: tuple[Kind, ...] = ("decode", "mixed", "first")

NOISE = 0.05
"""Relative error from which on an observation is taken for disturbed, and counts linearly instead of squared."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One step, or the mean of several like ones, as a client saw it."""

    kind: Kind
    """decode: sequences decode alone. mixed: a prompt joined them. first: a prompt alone, request to first token."""
    prefill_tokens: int
    decode_seqs: int
    context_tokens: float
    """Tokens that the decoding sequences hold."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Fit:
    """The coefficients, seconds each, and how far they are off."""

    a0: float
    a1: float
    a2: float
    a3: float
    latency: float
    errors: dict[Kind, float]
    """Median absolute error relative to the observation, by kind."""
    biases: dict[Kind, float]
    """Mean error relative to the observation, by kind: above 0 where the fit expects more than was seen."""

    def predict(self, seen: Observation) -> float:
        """Return the seconds that the fit expects."""
        return float(_row(seen) @ np.array([self.a0, self.a1, self.a2, self.a3, self.latency]))


def _row(seen: Observation) -> np.ndarray:
    return np.array(
        [
            1.0,
            seen.prefill_tokens,
            seen.decode_seqs,
            seen.context_tokens,
            float(seen.kind == "first"),
        ]
    )


def fit(observations: Sequence[Observation]) -> Fit:
    """Fit non-negative coefficients by relative error, robustly, every kind of observation counting as much as another.

    ValueError with too few kinds of observations.
    """
    kinds = {seen.kind for seen in observations}
    if kinds != set(KINDS) or len(observations) < 8:
        raise ValueError(
            f"{len(observations)} observations of {', '.join(sorted(kinds)) or 'nothing'} do not tell the costs apart"
        )
    rows = np.array([_row(seen) for seen in observations])
    seconds = np.array([seen.seconds for seen in observations])
    relative = rows / seconds[:, None]
    scale = np.abs(relative).max(axis=0)
    scale[scale == 0] = 1.0
    matrix = relative / scale
    counts = Counter(seen.kind for seen in observations)
    weight = np.sqrt([len(observations) / (len(counts) * counts[seen.kind]) for seen in observations])
    # A robust loss has a valley at zero as well, where every prediction is off by its whole: begin at the plain optimum.
    start = np.clip(nnls(weight[:, None] * matrix, weight)[0], 1e-9, None)
    found = least_squares(
        lambda values: weight * (matrix @ values - 1.0),
        start,
        bounds=(0, np.inf),
        loss="soft_l1",
        f_scale=NOISE,
    )
    a0, a1, a2, a3, latency = (float(value) for value in found.x / scale)
    off = matrix @ found.x - 1.0
    errors: dict[Kind, float] = {}
    biases: dict[Kind, float] = {}
    for kind in KINDS:
        these = np.array([error for error, seen in zip(off, observations, strict=True) if seen.kind == kind])
        errors[kind], biases[kind] = float(np.median(np.abs(these))), float(np.mean(these))
    return Fit(max(a0, 1e-9), a1, a2, a3, latency, errors, biases)
