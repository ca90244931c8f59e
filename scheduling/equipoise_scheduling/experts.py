"""A router, its three experts and one expert alone: five online regressions over the same sparse binary features.

A request is a list of features, each of which has a row of weights. With s(x) the sum of weight x over its rows:

    router    P(class) = softmax(s(short), s(medium), s(long));  classes are terciles of the outputs seen
    expert k  tokens = base_k * exp(s(k)), learnt from requests of its class alone
    mixture   sum over k of P(k) * tokens_k
    single    tokens = prior * exp(s(single)), learnt from every request

The mixture weighs the experts by the router's probabilities. Sending a request to the likeliest expert alone guesses
too little or too much by a whole class wherever the router is unsure: measured, its error was 0 to 15 % higher.

Learning is stochastic gradient descent: cross entropy for the router, gamma deviance with a log link for lengths, so
a step is relative to the prediction and the mean is what is aimed at (not the median: charges and KV plans add up over
requests). A row's rate falls with the square root of the times it was seen, down to a floor that follows drift.

Source: Jacobs et al., *Adaptive Mixtures of Local Experts* (1991), and the prediction of Equinox (arXiv 2508.16646),
whose features and models are not public.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Final

Row = list[float]
"""Times seen; router short, medium, long; experts short, medium, long; single."""

ROW_LENGTH: Final = 8
RATE: Final = 0.45
FLOOR: Final = 0.02
"""Least share of `RATE` that a row is moved by."""
MOST_STEP: Final = 1.0
"""Most that all rows of a request move together, so that many new features at once do not overshoot."""
LENGTH_STEP: Final = 0.5
"""Steps of the lengths, to those of the router: their errors have the longer tail."""
MOST_ERROR: Final = 3.0
"""Relative error that still counts: one answer 20 times as long as expected must not undo a hundred others."""
MOST_LOG: Final = 8.0
SEEN: Final = 300
"""Outputs that the terciles are of."""
BASES: Final = (0.25, 0.75, 2.0)
"""The experts' first predictions, to the prior: their mean is the prior."""


@dataclass(frozen=True, slots=True)
class Belief:
    """What is expected of one request: tokens, before rounding and clipping."""

    router: tuple[float, float, float]
    experts: tuple[float, float, float]
    mixture: float
    single: float


class Terciles:
    """The class limits: terciles of the last `SEEN` outputs. O(log n) to find, O(n) to move, n = `SEEN`."""

    __slots__ = ("_prior", "_recent", "_sorted")

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, output: float) -> None:
        """Take in one output."""
        self._recent.append(output)
        insort(self._sorted, output)
        if len(self._recent) > SEEN:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def classify(self, output: float) -> int:
        """Return 0 for short, 1 for medium, 2 for long."""
        seen = self._sorted
        if seen:
            low, high = seen[(len(seen) - 1) // 3], seen[(2 * len(seen) - 1) // 3]
        else:
            low, high = self._prior / 2, self._prior * 1.25
        return 0 if output <= low else 1 if output <= high else 2

    def snapshot(self) -> list[float]:
        """Return the outputs seen, oldest first."""
        return list(self._recent)

    def restore(self, outputs: Sequence[float]) -> None:
        """Take over a snapshot."""
        self._recent = deque(outputs[-SEEN:])
        self._sorted = sorted(self._recent)


class Experts:
    """The five regressions. Weights live in the rows, which the caller keeps. O(rows) each way."""

    __slots__ = ("_bases", "_prior", "terciles")

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._bases = tuple(prior * base for base in BASES)
        self.terciles = Terciles(prior)

    def believe(self, rows: Sequence[Row]) -> Belief:
        """Predict from the rows of a request's features."""
        short = medium = long = brief = middling = lengthy = alone = 0.0
        for row in rows:
            short += row[1]
            medium += row[2]
            long += row[3]
            brief += row[4]
            middling += row[5]
            lengthy += row[6]
            alone += row[7]
        top = max(short, medium, long)
        short, medium, long = exp(short - top), exp(medium - top), exp(long - top)
        scale = 1 / (short + medium + long)
        router = (short * scale, medium * scale, long * scale)
        bases = self._bases
        experts = (bases[0] * _exp(brief), bases[1] * _exp(middling), bases[2] * _exp(lengthy))
        mixture = router[0] * experts[0] + router[1] * experts[1] + router[2] * experts[2]
        return Belief(router, experts, mixture, self._prior * _exp(alone))

    def learn(self, rows: Sequence[Row], output: float) -> None:
        """Move the rows towards an output of one sequence, which was at least 1."""
        belief = self.believe(rows)
        kind = self.terciles.classify(output)
        errors = [-probability for probability in belief.router]
        errors[kind] += 1
        length = LENGTH_STEP * min(output / belief.experts[kind] - 1, MOST_ERROR)
        alone = LENGTH_STEP * min(output / belief.single - 1, MOST_ERROR)
        rates = []
        for row in rows:
            row[0] += 1
            rates.append(RATE * max(FLOOR, (row[0] + 1) ** -0.5))
        brake = min(1.0, MOST_STEP / sum(rates))
        for row, rate in zip(rows, rates, strict=True):
            step = brake * rate
            row[1] += step * errors[0]
            row[2] += step * errors[1]
            row[3] += step * errors[2]
            row[4 + kind] += step * length
            row[7] += step * alone
        self.terciles.add(output)


def _exp(value: float) -> float:
    return exp(max(-MOST_LOG, min(MOST_LOG, value)))
