"""A latency distribution that several sidecars' figures can be added up in: a histogram with log-spaced buckets."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from equipoise_api.model import ApiModel

GROWTH = 1.1
"""Ratio of neighbouring bucket limits: a quantile is at most 5 % off."""
SMALLEST_SECONDS = 1e-4
LAST = 400
"""Index of the last bucket, which no duration of this world reaches."""


class LatencyHistogram(ApiModel):
    """Counts of durations by bucket; bucket `i` holds `(SMALLEST * GROWTH**(i-1), SMALLEST * GROWTH**i]` seconds.

    Sparse, so an idle tenant costs nothing on the wire. Immutable: `LatencyRecorder`s in the sidecar count, this is the copy.
    """

    counts: dict[Annotated[int, Field(ge=0, le=LAST)], Annotated[int, Field(ge=0, le=2**40)]] = {}
    """Observations by bucket index."""

    @property
    def total(self) -> int:
        """Number of observations."""
        return sum(self.counts.values())

    def quantile(self, q: float) -> float | None:
        """Return the `q` quantile (0 to 1) in seconds, the bucket's geometric middle; None without observations."""
        total = self.total
        if total == 0:
            return None
        rank = max(1, math.ceil(q * total))
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= rank:
                return middle(index)
        raise AssertionError("ranks are at most the total")


def bucket(seconds: float) -> int:
    """Return the index of the bucket that holds a duration; what is below the smallest limit is in bucket 0."""
    if seconds <= SMALLEST_SECONDS:
        return 0
    return math.ceil(math.log(seconds / SMALLEST_SECONDS, GROWTH) - 1e-9)


def middle(index: int) -> float:
    """Return the geometric middle of a bucket, in seconds; bucket 0 reads as 0."""
    return 0.0 if index == 0 else float(SMALLEST_SECONDS * GROWTH ** (index - 0.5))


def merged(histograms: Iterable[LatencyHistogram]) -> LatencyHistogram:
    """Add histograms up, bucket by bucket."""
    counts: dict[int, int] = {}
    for histogram in histograms:
        for index, count in histogram.counts.items():
            counts[index] = counts.get(index, 0) + count
    # Not validated again: what a histogram of one peer may count is less than what all of them have.
    return LatencyHistogram.model_construct(counts=counts)
