"""What an engine did, and the cost profile that explains it best.

    seconds = sum of its steps' decode seconds + a1 * prefill tokens + a3 * context tokens  (+ latency, for a prompt alone)

Decode seconds are a line `a0 + a2 * sequences` for no engine, so they are found for batches of several sizes, with lines
between them. Latency is what no step shows: the way of a request to the engine and of its first token back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import nnls

from equipoise_simulator.calibration.steps import WINDOW

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
    """The costs, seconds each, and how far they are off."""

    a0: float
    a1: float
    a2: float
    a3: float
    decode_steps: tuple[tuple[int, float], ...]
    """As in `Profile`; a0 and a2 are the line through them."""
    latency: float
    errors: dict[int, Error]
    """By the number of clients; 0 is a prompt alone."""
    disturbed: int
    """Observations that were left out."""

    def expected(self, seen: Observation) -> float:
        """Return the seconds that the costs give for it."""
        if seen.clients:
            sizes, seconds = zip(*self.decode_steps, strict=True)
            decode = sum(steps * np.interp(size, sizes, seconds) for size, steps in seen.batches.items())
        else:
            decode = self.a0 + self.latency
        return float(decode + self.a1 * seen.prefill_tokens + self.a3 * seen.context_tokens)

    def speed(self, observations: Sequence[Observation]) -> float:
        """Return how many times as fast as by these costs the engine was under load."""
        loaded = [seen for seen in observations if seen.clients]
        return sum(map(self.expected, loaded)) / sum(seen.seconds for seen in loaded)

    @property
    def costs(self) -> dict[str, Any]:
        """What a `Profile` takes of it."""
        return {name: getattr(self, name) for name in ("a0", "a1", "a2", "a3", "decode_steps", "latency")}


def fit(observations: Sequence[Observation]) -> Fit:
    """Fit non-negative costs, such that the expected time of all observations together is the observed one.

    The variance of an observation is taken to grow with its length. ValueError with too few observations of a kind.
    """
    loaded = sum(1 for seen in observations if seen.clients)
    if loaded < FEWEST or loaded == len(observations):
        raise ValueError(
            f"{loaded} observations under load and {len(observations) - loaded} of a prompt alone do not tell the costs "
            f"apart: at least {FEWEST} and 1 are needed"
        )
    sizes = _sizes(observations)
    rows = np.array([_row(seen, sizes) for seen in observations])
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
    a1, a3, alone, *decode = (float(value) for value in found)
    a0, a2 = _line(sizes, decode, rows[kept][:, 3:].sum(axis=0))
    return Fit(
        a0=a0,
        a1=a1,
        a2=a2,
        a3=a3,
        decode_steps=tuple((size, took) for size, took in zip(sizes, decode, strict=True) if took > 0),
        # No prompt alone shows how much of its time is a step's: as much as the line through the batches begins with.
        latency=max(0.0, alone - a0),
        errors=errors,
        disturbed=int((~kept).sum()),
    )


def _sizes(observations: Sequence[Observation]) -> list[int]:
    """Return the sizes of batches of which enough steps were seen: those that were offered, and ran."""
    sizes = sorted({seen.clients for seen in observations if seen.clients})
    steps = np.sum([_shares(seen, sizes) for seen in observations if seen.clients], axis=0)
    return [size for size, seen in zip(sizes, steps, strict=True) if seen >= WINDOW]


def _shares(seen: Observation, sizes: Sequence[int]) -> np.ndarray:
    """Return its steps by size of batch: each counts for the sizes next to its own, the nearer one more."""
    batches, hats = [*seen.batches], np.eye(len(sizes))
    return np.array([np.interp(batches, sizes, hat) @ [*seen.batches.values()] for hat in hats])


def _row(seen: Observation, sizes: Sequence[int]) -> np.ndarray:
    decode = _shares(seen, sizes) if seen.clients else np.zeros(len(sizes))
    return np.array([seen.prefill_tokens, seen.context_tokens, float(not seen.clients), *decode])


def _line(sizes: Sequence[int], seconds: Sequence[float], steps: np.ndarray) -> tuple[float, float]:
    """Return a0 and a2: the line through what batches of these sizes take, by how many steps there were of each."""
    weight = np.sqrt(steps)
    rows = np.array([np.ones(len(sizes)), sizes if len(sizes) > 1 else [0.0]]).T
    found = nnls(weight[:, None] * rows, weight * np.array(seconds))[0]
    return max(float(found[0]), 1e-9), float(found[1])


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
