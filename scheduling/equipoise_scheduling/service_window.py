"""Each tenant's delivered service over a sliding window, in coarse buckets, and since the start."""

from collections import deque

from equipoise_scheduling.contract import Service

BUCKETS = 12
"""Buckets in one window: a figure covers between one window and one bucket more."""

_NOTHING = Service()


class ServiceWindow:
    """One tenant's delivery and dispatches. Memory O(BUCKETS), O(1) amortised an event."""

    __slots__ = (
        "_buckets",
        "_cached",
        "_cost",
        "_generated",
        "_prompt",
        "_sums",
        "_width",
    )

    def __init__(self, seconds: float) -> None:
        self._width = seconds / BUCKETS
        self._buckets: deque[list[float]] = deque()
        self._sums = [0.0] * 5
        self._prompt = self._cached = self._generated = 0
        self._cost = 0.0

    def deliver(self, now: float, prompt: int, cached: int, generated: int, cost: float) -> None:
        """Count a delivery (or a correction, which may be negative) at `now`."""
        bucket, sums = self._bucket(now), self._sums
        if prompt or cached:
            bucket[1] += prompt
            bucket[2] += cached
            sums[0] += prompt
            sums[1] += cached
            self._prompt += prompt
            self._cached += cached
        bucket[3] += generated
        bucket[4] += cost
        sums[2] += generated
        sums[3] += cost
        self._generated += generated
        self._cost += cost

    def dispatch(self, now: float, count: int = 1) -> None:
        """Count requests that went into flight; -1 for one that was put back."""
        self._bucket(now)[5] += count
        self._sums[4] += count

    def _bucket(self, now: float) -> list[float]:
        index = now // self._width
        if not self._buckets or self._buckets[-1][0] < index:
            self._expire(now)
            self._buckets.append([index, 0, 0, 0, 0.0, 0])
        return self._buckets[-1]

    def _expire(self, now: float) -> None:
        oldest = now // self._width - BUCKETS
        sums = self._sums
        while self._buckets and self._buckets[0][0] < oldest:
            for place, value in enumerate(self._buckets.popleft()[1:]):
                sums[place] -= value
        if not self._buckets:
            # What rounding left behind must not outlive the window.
            self._sums = [0.0] * 5

    def window(self, now: float) -> Service:
        """Return what was delivered in the window that ends at `now`."""
        if not self._buckets:
            return _NOTHING
        self._expire(now)
        prompt, cached, generated, cost, _ = self._sums
        return Service(int(prompt), int(cached), int(generated), max(0.0, cost))

    def cost(self, now: float) -> float:
        """Return the cost of what was delivered in the window that ends at `now`."""
        if self._buckets:
            self._expire(now)
            return max(0.0, self._sums[3])
        return 0.0

    def dispatches(self, now: float) -> int:
        """Return the requests dispatched in the window that ends at `now`."""
        self._expire(now)
        return int(self._sums[4])

    def span(self, now: float) -> float:
        """Return the seconds that the window's buckets cover."""
        self._expire(now)
        return now - self._buckets[0][0] * self._width if self._buckets else 0.0

    @property
    def total_cost(self) -> float:
        """Cost of what was delivered since the start."""
        return self._cost

    @property
    def total(self) -> Service:
        """What was delivered since the start."""
        return Service(self._prompt, self._cached, self._generated, self._cost)
