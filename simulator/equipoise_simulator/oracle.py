"""Predictors that only a simulation can have: they know the lengths to come, or say one number for all."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from typing_extensions import override

from equipoise_scheduling.prediction import NoPrediction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from equipoise_scheduling.request import Request


class Oracle(NoPrediction):
    """Knows every length. O(1)."""

    def __init__(self, lengths: Mapping[str, int]) -> None:
        """Take the output tokens of each request, by id."""
        self._lengths = dict(lengths)

    @override
    def predict(self, request: Request) -> int:
        return min(self._lengths[request.id], request.max_tokens)


class Noisy(Oracle):
    """Knows every length to within a uniform error of +-`spread`, the same for a seed. O(1)."""

    def __init__(self, lengths: Mapping[str, int], *, seed: int, spread: float = 0.5) -> None:
        """Draw each request's error once."""
        source = random.Random(seed)  # noqa: S311 - a reproducible error, no secret
        super().__init__(
            {
                name: max(1, round(length * source.uniform(1 - spread, 1 + spread)))
                for name, length in lengths.items()
            }
        )


class Constant(NoPrediction):
    """Says the same of every request. O(1)."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    @override
    def predict(self, request: Request) -> int:
        return min(self._tokens, request.max_tokens)
