"""Recursive least squares with forgetting, in Bierman's U-D form: a linear fit that never stops and never breaks.

    minimise  sum over the past of  lambda^age * (y - x' theta)^2  +  the prior's pull,   0 < lambda <= 1

The covariance is kept as P = U D U' (U unit upper triangular, D diagonal), so that rounding cannot make it indefinite.
Forgetting divides D by lambda, but never above where it began: in a direction of which nothing new is heard P would
otherwise grow without limit, and the next odd sample would throw the fit (wind-up).

Source: Bierman, *Factorization Methods for Discrete Sequential Estimation* (1977), section V.3.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any


class LeastSquares:
    """theta in y = x' theta. O(n^2) to learn, O(n) to predict, n = length of x."""

    __slots__ = ("_diagonal", "_forgetting", "_theta", "_upper", "_variance")

    def __init__(self, prior: Sequence[float], variance: Sequence[float], forgetting: float = 0.995) -> None:
        """Start from `prior`, which is as uncertain as `variance` says: in units of the samples' own noise variance."""
        size = len(prior)
        self._theta = list(prior)
        self._variance = tuple(variance)
        self._diagonal = list(variance)
        self._upper = [[0.0] * row for row in range(size)]  # _upper[j][i] is U[i, j], i < j
        self._forgetting = forgetting

    def predict(self, x: Sequence[float]) -> float:
        """Return x' theta."""
        return sum(weight * value for weight, value in zip(self._theta, x, strict=True))

    def learn(self, x: Sequence[float], y: float) -> None:
        """Take in one sample."""
        theta, diagonal, upper = self._theta, self._diagonal, self._upper
        error = y - self.predict(x)
        forgetting = self._forgetting
        alpha = forgetting
        gain: list[float] = []
        for j, column in enumerate(upper):
            f = x[j]
            for i, value in enumerate(column):
                f += value * x[i]
            v = diagonal[j] * f
            before, alpha = alpha, alpha + v * f
            diagonal[j] = min(self._variance[j], diagonal[j] * before / alpha / forgetting)
            scale = -f / before
            for i, value in enumerate(column):
                column[i] = value + gain[i] * scale
                gain[i] += value * v
            gain.append(v)
        for i, value in enumerate(gain):
            theta[i] += value / alpha * error

    def snapshot(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "theta": list(self._theta),
            "diagonal": list(self._diagonal),
            "upper": [list(column) for column in self._upper],
        }

    def restore(self, data: Any) -> None:
        """Take over a snapshot of the same size. ValueError if it cannot be read."""
        size = len(self._theta)
        try:
            theta, diagonal = list(data["theta"]), list(data["diagonal"])
            upper = [list(column) for column in data["upper"]]
        except (TypeError, KeyError) as error:
            raise ValueError("snapshot: a fit must have theta, diagonal and upper") from error
        shape = [len(theta), len(diagonal), *map(len, upper)]
        numbers = [*theta, *diagonal, *(value for column in upper for value in column)]
        if shape != [size, size, *range(size)]:
            raise ValueError(f"snapshot: a fit must be of {size} coefficients")
        if not all(isinstance(value, int | float) and isfinite(value) for value in numbers) or any(
            value <= 0 for value in diagonal
        ):
            raise ValueError("snapshot: a fit must hold finite numbers, and positive ones in its diagonal")
        self._theta, self._diagonal, self._upper = theta, diagonal, upper
