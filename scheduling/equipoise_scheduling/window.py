"""How many requests to keep in an engine that does not say how many it can run: `maxInFlight: Auto`.

The aim is an engine whose own queue is short and never empty: 1 to 2 requests waiting *in* the engine. An empty engine
queue costs throughput, a long one costs fairness, since its order is the engine's.

A scrape is one look at something that moves fast: what the last step admitted still waits in it, and what the last step
ended is missing from what runs. So nothing is decided on one look, nor on the throughput of one second, in which a few
long prompts more or less are a tenth.
"""

from collections import deque
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One look at the engine and at our own counts."""

    in_flight: int
    """Sequences in flight, by our own count."""
    queued: int
    """Requests that wait for the gate."""
    running: int | None
    """Sequences in the engine's batch; None when its metrics are stale."""
    waiting: int | None
    """Requests that wait in the engine, without those just sent; None when its metrics are stale."""
    generated: int
    """Output tokens since the start: their rate is the throughput. Prompts come in lumps that hide any change."""
    widest: int = 1
    """Most sequences of one request: with fewer slots free the window is full."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """A growth that has to show in throughput: where it began, and tokens a second there."""

    size: int
    rate: float


class InFlightWindow:
    """A window that grows while that helps. O(1) a look.

    - More than `TARGET` waiting in the engine at `LOOKS` looks on end, while no more of them run at the last than at the
      first (else it is still computing prompts and takes them in): shrink by the least excess.
    - Full at as many looks, and mostly nothing waiting: grow, by doubling until the first setback; then by an eighth, a
      quarter, a half, so that a wrong shrink is made good within half a minute.
    - A growth by half or more that brings too little throughput over `LONG_LOOKS` looks: back, and another try after 30 s,
      60 s, ... 5 minutes.
    - A 503 or a preemption: nine tenths, at most once a second or once in 10 s.
    - Never below what was seen running within the last half minute, unless something was preempted since.
    """

    TARGET = 2
    PERIOD = 1.0
    LOOKS = 3
    LONG_LOOKS = 12
    GAP_SECONDS = 5.0
    """Looks farther apart than that do not belong together."""
    RISE = 0.07
    """Exponent: a growth by a factor f has to bring f**RISE in throughput, 5 % for a doubling."""
    BLIND_RISE = 0.3
    """The same without metrics, where nothing else stops it: 23 % for a doubling."""
    JUDGED_GROWTH = 1.5
    FIRST_STRIDE = 1 / 8
    BLIND_STRIDE = 1 / 4
    """Most that it grows at a time while the engine's metrics are stale."""
    RETRY_SECONDS = 30.0
    LONGEST_RETRY_SECONDS = 300.0
    SHRINK = 0.9
    PREEMPTION_SECONDS = 10.0
    REMEMBER_SECONDS = 30.0

    def __init__(self, start: int = 8, most: int = 4096) -> None:
        self.size = start
        """Sequences that may be in flight."""
        self._most = most
        self._stride = 1.0
        """The next growth, as a share of the size."""
        self._waits: deque[tuple[int, int]] = deque(maxlen=self.LOOKS)
        """Waiting and running at the last looks."""
        self._full: list[tuple[float, Observation]] = []
        """Looks on end at which the window was full, since it last changed."""
        self._looked = float("-inf")
        self._trial: _Trial | None = None
        self._retry = self.RETRY_SECONDS
        self._hold_until = float("-inf")
        self._proven = (0, 0)
        """Most seen running in this half minute and in the one before."""
        self._proven_since = float("-inf")
        self._last_busy = float("-inf")
        self._last_preemption = float("-inf")

    def observe(self, now: float, seen: Observation) -> None:
        """Adjust the size; at most once in `PERIOD` seconds, whatever the rate of observations."""
        gap = now - self._looked
        if gap < self.PERIOD:
            return
        self._looked = now
        if gap > self.GAP_SECONDS:
            self._forget_looks()
        self._remember(now, seen)
        if seen.waiting is None:
            self._waits.clear()
        else:
            self._waits.append((seen.waiting, seen.running or 0))
        excess = self._excess()
        if excess > 0:
            self._shrink(max(self.size - excess, *self._proven))
        elif seen.queued > 0 and seen.in_flight + seen.widest > self.size:
            self._full.append((now, seen))
            self._judge(now)
        else:
            self._full.clear()

    def _excess(self) -> int:
        """Return how many sequences lastingly wait in the engine beyond the target."""
        looks = self._waits
        if len(looks) < self.LOOKS or looks[-1][1] > looks[0][1]:
            return 0
        return min(waiting for waiting, _ in looks) - self.TARGET

    def _judge(self, now: float) -> None:
        """Decide on growth after a stretch in which the window alone held requests back."""
        looks = self._full
        if len(looks) <= self.LOOKS:
            return
        (began, first), (_, last) = looks[0], looks[-1]
        rate = (last.generated - first.generated) / (now - began)
        waiting = [seen.waiting for _, seen in looks[-self.LONG_LOOKS :] if seen.waiting is not None]
        if waiting and median(waiting) > 0:
            self._trial = None  # the engine has its slack: no need to grow, nor to go back
            return
        if first.in_flight > self.size:
            self._trial, rate = None, 0.0  # more than the window were in flight: nothing to compare with
        trial = self._trial
        if trial is not None and self.size >= trial.size * self.JUDGED_GROWTH:
            rise = self.RISE if waiting else self.BLIND_RISE
            wanted = trial.rate * (self.size / trial.size) ** rise
            if rate < wanted:
                if len(looks) > self.LONG_LOOKS:
                    self._shrink(trial.size)
                    self._hold_until = now + self._retry
                    self._retry = min(2 * self._retry, self.LONGEST_RETRY_SECONDS)
                return
            self._trial = None
            self._retry = self.RETRY_SECONDS
        if now >= self._hold_until and self.size < self._most and (waiting or rate > 0):
            self._grow(rate, blind=not waiting)

    def _grow(self, rate: float, *, blind: bool) -> None:
        if self._trial is None and rate > 0:
            self._trial = _Trial(self.size, rate)
        stride = min(self._stride, self.BLIND_STRIDE) if blind else self._stride
        self._stride = min(1.0, 2 * self._stride)
        self.size = min(self._most, self.size + max(1, int(self.size * stride)))
        self._waits.clear()
        del self._full[:-1]

    def _remember(self, now: float, seen: Observation) -> None:
        if now - self._proven_since >= self.REMEMBER_SECONDS:
            self._proven = (0, self._proven[0])
            self._proven_since = now
        if seen.running is not None:
            running = min(seen.running, seen.in_flight)  # others may use the engine too
            self._proven = (max(running, self._proven[0]), self._proven[1])

    def busy(self, now: float) -> None:
        """Note that the engine answered 503."""
        if now - self._last_busy >= self.PERIOD:
            self._last_busy = now
            self._shrink(max(int(self.size * self.SHRINK), *self._proven))

    def preempted(self, now: float) -> None:
        """Note that the engine preempted a request, where nobody else (see `kv_limit`) takes care of it."""
        if now - self._last_preemption >= self.PREEMPTION_SECONDS:
            self._last_preemption = now
            self._proven = (0, 0)
            self._shrink(int(self.size * self.SHRINK))
            self._hold_until = max(self._hold_until, now + self.PREEMPTION_SECONDS)

    def _shrink(self, size: int) -> None:
        self.size = max(1, min(self.size, size))
        self._stride = self.FIRST_STRIDE
        self._trial = None
        self._forget_looks()

    def _forget_looks(self) -> None:
        self._waits.clear()
        self._full.clear()
