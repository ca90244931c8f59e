"""Rates measured as events come: O(1) an event, no timers."""

from __future__ import annotations

import math
from collections import deque


class DecayingRate:
    """Events (or amounts) a second, older ones forgotten with a time constant.

    Right from the first seconds on: what the average has not seen yet is not taken for zero.
    """

    def __init__(self, time_constant_seconds: float) -> None:
        self._tau = time_constant_seconds
        self._level = 0.0
        self._seen = 0.0
        """Share of the exponential window that has been watched, 0 to 1."""
        self._at: float | None = None

    def add(self, amount: float, now: float) -> None:
        """Count `amount` at `now`."""
        self._decay(now)
        self._level += amount / self._tau

    def per_second(self, now: float) -> float | None:
        """Return the rate; None before a tenth of the time constant was watched or while it is nil."""
        if self._at is None:
            return None
        self._decay(now)
        return self._level / self._seen if self._seen > 0.1 and self._level > 0 else None

    def _decay(self, now: float) -> None:
        if self._at is None:
            self._at = now
            return
        keep = math.exp(-max(0.0, now - self._at) / self._tau)
        self._at = max(self._at, now)
        self._level *= keep
        self._seen = 1 - (1 - self._seen) * keep


class MinuteLimit:
    """Requests in any 60 seconds, counted by the second: never more than the limit, and the second in which one came stays
    counted until a minute after its end.
    """  # noqa: D205 - one sentence

    _SECONDS = 60

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque()
        self._total = 0

    def wait(self, limit: int, now: float) -> float:
        """Return the seconds until one more is allowed; 0 if it is."""
        self._forget(now)
        if self._total < limit:
            return 0.0
        excess = self._total - limit + 1
        for second, count in self._counts:
            excess -= count
            if excess <= 0:
                return second + 1 + self._SECONDS - now
        raise AssertionError("the counts add up to the total")

    def add(self, now: float) -> None:
        """Count one request."""
        second = math.floor(now)
        if self._counts and self._counts[-1][0] == second:
            self._counts[-1] = (second, self._counts[-1][1] + 1)
        else:
            self._counts.append((second, 1))
        self._total += 1

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] + 1 + self._SECONDS <= now:
            self._total -= self._counts.popleft()[1]
