"""L: the share of the engine's KV cache that may be planned with, lowered by preemptions and raised by quiet.

A preemption takes 2 points off, at most once in 10 s; a quiet minute gives 1 back; L is never below 70.

A preemption is not free of use: the room that was planned too boldly held more requests. What it costs is the time to
compute the victim's tokens again. Preemptions whose cost is known count only where it exceeds `ALLOWANCE` of the time, a
minute's worth saved up at most; while the cost is unknown each one counts.
"""

PREEMPTION_STEP = 2.0
PREEMPTION_SECONDS = 10.0
QUIET_SECONDS = 60.0
LEAST_PERCENT = 70.0
ALLOWANCE = 0.02
"""Share of time that preemptions may cost. `benchmarks/results/gate.md` compares it with a reaction to each, which costs
2 % of throughput where prompts are cheap, and with none, which where they are dear has twice the preemptions and gains
nothing by them."""


class KvLimit:
    """L, in percent. O(1)."""

    def __init__(self, most: float) -> None:
        self.percent = most
        self._most = most
        self._allowed = 0.0
        """Seconds that preemptions may cost."""
        self._now: float | None = None
        self._lowered = float("-inf")
        self._disturbed = float("-inf")

    def restart(self, most: float) -> None:
        """Begin anew from another setting."""
        self.percent = self._most = most

    def preempted(self, now: float, cost: float | None) -> None:
        """Note preemptions that cost so many seconds; None: nobody knows."""
        if cost is not None:
            self._allowed -= cost
            if self._allowed >= 0:
                return
            self._allowed = 0.0
        self._disturbed = now
        if now - self._lowered >= PREEMPTION_SECONDS:
            self._lowered = now
            self.percent = max(min(LEAST_PERCENT, self.percent), self.percent - PREEMPTION_STEP)

    def tick(self, now: float) -> None:
        """Let it recover, and the allowance grow."""
        if self._now is not None:
            earned = (now - self._now) * ALLOWANCE
            self._allowed = min(QUIET_SECONDS * ALLOWANCE, self._allowed + earned)
        self._now = now
        if self.percent < self._most and now - self._disturbed >= QUIET_SECONDS:
            self._disturbed = now
            self.percent = min(self._most, self.percent + 1)
