"""How many requests to keep in an engine that does not say how many it can run: `maxInFlight: Auto`.

The aim is an engine whose own queue is short and never empty: 1 to 2 requests waiting *in* the engine. An empty engine
queue costs throughput, a long one costs fairness, since its order is the engine's.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One look at the engine and at our own counts."""

    in_flight: int
    """Sequences in flight, by our own count."""
    queued: int
    """Requests that wait for the gate."""
    waiting: int | None
    """Requests that wait in the engine; None when its metrics are stale."""
    tokens: int
    """Tokens delivered since the start, prompts included: their rate is the throughput."""


class InFlightWindow:
    """A window that grows while that helps.

    - More than `TARGET` waiting in the engine: shrink by the excess.
    - Full over a whole period with nothing waiting: grow, by doubling until the first setback, then by an eighth; if
      throughput has not risen by 2 % a period later and still nothing waits, go back and try again after 30 s.
    - A 503 or a preemption: nine tenths, at most once a second or once in 10 s.
    """

    TARGET = 2
    PERIOD = 1.0
    RISE = 1.02
    RETRY_SECONDS = 30.0
    SHRINK = 0.9
    PREEMPTION_SECONDS = 10.0

    def __init__(self, start: int = 8, most: int = 4096) -> None:
        self.size = start
        """Sequences that may be in flight."""
        self._most = most
        self._doubling = True
        self._last: tuple[float, Observation] | None = None
        self._trial: tuple[int, float] | None = None
        """Size before the last growth and the throughput there, until that growth is judged."""
        self._hold_until = float("-inf")
        self._last_busy = float("-inf")
        self._last_preemption = float("-inf")

    def observe(self, now: float, seen: Observation) -> None:
        """Adjust the size; at most once in `PERIOD` seconds, whatever the rate of observations."""
        last = self._last
        if last is not None and now - last[0] < self.PERIOD:
            return
        self._last = (now, seen)
        if seen.waiting is not None and seen.waiting > self.TARGET:
            self._shrink(self.size - (seen.waiting - self.TARGET))
            return
        if last is None or not self._full(last[1]) or not self._full(seen):
            return
        throughput = (seen.tokens - last[1].tokens) / (now - last[0])
        if self._trial is not None:
            before, rate = self._trial
            self._trial = None
            if not seen.waiting and throughput < rate * self.RISE:
                self._shrink(before)
                self._hold_until = now + self.RETRY_SECONDS
                return
        if not seen.waiting and now >= self._hold_until:
            self._trial = (self.size, throughput)
            step = self.size if self._doubling and seen.waiting is not None else max(1, self.size // 8)
            self.size = min(self._most, self.size + step)
            # The next period starts half full: judge the one after it.
            self._last = None

    def _full(self, seen: Observation) -> bool:
        return seen.queued > 0 and seen.in_flight >= self.size

    def busy(self, now: float) -> None:
        """Note that the engine answered 503."""
        if now - self._last_busy >= self.PERIOD:
            self._last_busy = now
            self._shrink(int(self.size * self.SHRINK))

    def preempted(self, now: float) -> None:
        """Note that the engine preempted a request."""
        if now - self._last_preemption >= self.PREEMPTION_SECONDS:
            self._last_preemption = now
            self._shrink(int(self.size * self.SHRINK))

    def _shrink(self, size: int) -> None:
        self.size = max(1, min(self.size, size))
        self._doubling = False
        self._trial = None
