"""Token buckets: at most so many a second, with a burst after quiet; one for all, or one for each key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Budget:
    """`rate` a second, `burst` at once."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst = rate, burst
        self._clock = clock
        self._tokens = burst
        self._at = clock()

    def take(self) -> float:
        """Take one token and return 0, or return the seconds until there is one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        # Not quite one is one: what is missing is the clock's rounding, and waiting for it would spin.
        if self._tokens >= 1 - 1e-6:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate

    async def wait(self) -> None:
        """Take one token, waiting for it."""
        seconds = self.take()
        while seconds:
            await asyncio.sleep(seconds)
            seconds = self.take()


class Budgets:
    """A bucket for each key. One that is full again is forgotten: it is as a new one."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate, self._burst = rate, burst
        self._clock = clock
        self._held: dict[str, tuple[Budget, float]] = {}
        """With the time of the last use, the one that was longest unused first."""

    def __len__(self) -> int:
        return len(self._held)

    def take(self, key: str) -> float:
        """Take one of the key's tokens and return 0, or return the seconds until there is one. O(1) amortised."""
        now = self._clock()
        while self._held:
            oldest, (_, used) = next(iter(self._held.items()))
            if now - used < self._burst / self._rate:
                break
            del self._held[oldest]
        held = self._held.pop(key, None)
        budget = held[0] if held is not None else Budget(self._rate, self._burst, self._clock)
        self._held[key] = budget, now
        return budget.take()
