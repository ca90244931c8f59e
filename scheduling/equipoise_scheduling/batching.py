"""Adaptive batching: how long a step of the engine takes, learnt from what streams, and what that lets join the batch.

After Equinox (arXiv 2508.16646; the paper gives no formulas, these are ours). Two limits, both off by default:

- *Inter-token target.* A request joins while the predicted time of a step, with it in the batch, stays under the target:

      step seconds = b0 + b1 * prefill tokens + b2 * sequences + b3 * context tokens

  The prefill of a step is what a step has lately had on average, so the target is for the mean over an answer; a single
  long prefill shows in the other limit.
- *Stall-free dispatch.* Prompt tokens dispatched and not yet prefilled are held within a limit, so that a queue of long
  prompts does not hold up what decodes. A prompt that is larger than the limit goes when no other is being prefilled.

The model is fitted by recursive least squares over intervals of about a second. A request that decoded through a whole
interval got as many tokens as there were steps (the median over all such requests is taken, so preempted ones do not
count), all requests together got one token for each sequence and step, and prompts are known when their first token
comes. So, summed over the steps of the interval,

    seconds = b0 * steps + b1 * prefill tokens + b2 * generated tokens + b3 * context * steps.

A batch that never changes does not tell the four apart, but where the target binds the batch is at its predicted limit,
and there a wrong split shows as an error and is corrected.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from equipoise_scheduling.kv_plan import Held

Vector = tuple[float, float, float, float]

SCALE: Vector = (10.0, 1000.0, 100.0, 100_000.0)
"""Typical regressors of a second, by which they are divided: the numbers of the fit are then of one size."""
PRIOR: Vector = (1.0, 0.1, 0.1, 0.1)
"""Variances before the first observation: what cannot be told apart is put down to the step itself, so that the batch
grows and shows the truth."""
FORGET = 0.99
"""Weight of an observation one interval ago against the newest."""
LARGEST_VARIANCE = 10.0
"""Times the prior's: forgetting ends there, for a coefficient of which nothing is seen would be forgotten without end."""
OUTLIER = 3.0
"""A residual beyond that many times the usual one counts as that many ..."""
CHANGED = 3
"""... unless it is the third on end to the same side: then the engine has changed, and what was learnt of it counts less."""
FORGET_CHANGED = 0.05
LEAST_OBSERVATIONS = 5
SURE_OBSERVATIONS = 30
"""Before a single coefficient is believed."""


class StepTimeModel:
    """Recursive least squares of a step's seconds; robust, coefficients never negative. O(1) an observation."""

    def __init__(self) -> None:
        self._weights = [0.0] * 4
        self._covariance = [[PRIOR[i] if i == j else 0.0 for j in range(4)] for i in range(4)]
        self._usual = 0.0
        """Usual size of a residual, seconds in a second."""
        self._streak = 0
        """Outliers on end, below 0 where the prediction was too high."""
        self.observations = 0

    def observe(
        self, seconds: float, *, steps: float, prefill_tokens: int, tokens: int, context_tokens: float
    ) -> None:
        """Learn from an interval in which the engine was busy throughout.

        `tokens`: generated over all sequences; `context_tokens`: held on average. Raises ValueError for an interval
        without steps or length.
        """
        if not (seconds > 0 and steps > 0):
            raise ValueError(f"seconds={seconds} and steps={steps} must be above 0")
        raw = (steps, prefill_tokens, tokens, context_tokens * steps)
        x = [value / scale / seconds for value, scale in zip(raw, SCALE, strict=True)]
        residual, forget = self._weighed(1.0 - sum(self._weights[i] * x[i] for i in range(4)))
        covariance = self._covariance
        gain = [sum(row[j] * x[j] for j in range(4)) for row in covariance]
        total = forget + sum(gain[i] * x[i] for i in range(4))
        self._weights = [max(0.0, self._weights[i] + gain[i] / total * residual) for i in range(4)]
        for i in range(4):
            for j in range(4):
                covariance[i][j] = (covariance[i][j] - gain[i] * gain[j] / total) / forget
        for i in range(4):
            excess = covariance[i][i] / (LARGEST_VARIANCE * PRIOR[i])
            if excess > 1:
                for j in range(4):
                    covariance[i][j] /= math.sqrt(excess)
                    covariance[j][i] /= math.sqrt(excess)
        self.observations += 1

    def _weighed(self, residual: float) -> tuple[float, float]:
        """Return what of a residual counts, and how much of the past."""
        size, forget = abs(residual), FORGET
        if self.observations >= LEAST_OBSERVATIONS:
            most = OUTLIER * self._usual + 0.01
            side = 0 if size <= most else (1 if residual > 0 else -1)
            size = min(size, most)
            self._streak = self._streak + side if self._streak * side > 0 else side
            if self._streak and self._streak % CHANGED == 0:
                forget = FORGET_CHANGED
            elif abs(self._streak) < CHANGED:
                residual = math.copysign(size, residual)
        self._usual += (min(size, 1.0) - self._usual) / min(self.observations + 1, 20)
        return residual, forget

    def step_seconds(self, *, prefill_tokens: float, sequences: float, context_tokens: float) -> float | None:
        """Predict a step's seconds; None before enough was seen. Rises with each argument."""
        if self.observations < LEAST_OBSERVATIONS:
            return None
        raw = (1.0, prefill_tokens, sequences, context_tokens)
        return sum(w * value / scale for w, value, scale in zip(self._weights, raw, SCALE, strict=True))

    def prefill_seconds(self, tokens: float) -> float | None:
        """Predict what computing so many prompt tokens adds to steps; None before that was seen."""
        weight = self._weights[1]
        if self.observations < SURE_OBSERVATIONS or weight == 0:
            return None
        return weight / SCALE[1] * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingLimits:
    """What may join the batch besides slots and KV. None: no limit."""

    inter_token_seconds: float | None = None
    prefill_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("inter_token_seconds", "prefill_tokens"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be above 0, or None for no limit")


class AdaptiveBatching:
    """Watches the requests in flight and applies the limits. O(1) an event or question, O(in flight) a tick."""

    INTERVAL = 1.0
    LONGEST_INTERVAL = 10.0
    LEAST_STEPS = 4
    RECENT_SECONDS = 20.0
    """Time constant of the prefill tokens a step."""

    def __init__(self) -> None:
        self.model = StepTimeModel()
        self.prefill_held = 0
        """Prompt tokens dispatched and not prefilled."""
        self.generated = 0
        """Output tokens since the start."""
        self._began: float | None = None
        self._context = 0
        """KV tokens held when the interval began."""
        self._prefilled = 0
        self._generated_before = 0
        self._recent = (0.0, 0.0)
        """Prefill tokens and steps, older ones forgotten."""

    def holds(self, limits: BatchingLimits, candidate: Held, sequences: int, context: int) -> str | None:
        """Say what holds `candidate` back, for people; None: nothing."""
        most = limits.prefill_tokens
        if most is not None and self.prefill_held and self.prefill_held + candidate.prefill > most:
            return (
                f"when its prompt fits in {most} tokens to be prefilled ({self.prefill_held} are under way)"
            )
        target = limits.inter_token_seconds
        if target is None:
            return None
        seconds = self.step_seconds(sequences + candidate.sequences, context + candidate.kv)
        if seconds is None or seconds <= target:
            return None
        return f"when a step with it takes less than {1000 * target:.0f} ms (predicted: {1000 * seconds:.0f})"

    def step_seconds(self, sequences: int, context: int) -> float | None:
        """Predict the step of a batch with the present prefill; None before enough was seen."""
        prefill, steps = self._recent
        return self.model.step_seconds(
            prefill_tokens=prefill / steps if steps else 0.0, sequences=sequences, context_tokens=context
        )

    def started(self, held: Held) -> None:
        """Count a dispatch."""
        self.prefill_held += held.prefill

    def progressed(self, held: Held, *, prefill: int, generated: int) -> None:
        """Count a delivery: `prefill` and `generated` are the request's before it."""
        if not generated and held.generated:
            self.prefill_held -= prefill
            self._prefilled += max(0, held.prompt - held.request.cached_tokens)
        self.generated += held.generated - generated

    def finished(self, held: Held) -> None:
        """Count an end."""
        self.prefill_held -= held.prefill

    def tick(self, now: float, flying: Iterable[Held], context: int) -> None:
        """Learn from the interval since the last, about once a second. `context`: KV tokens held now."""
        if self._began is None:
            self._mark(now, flying, context)
            return
        seconds = now - self._began
        if seconds < self.INTERVAL:
            return
        flying = list(flying)
        made = [
            (held.generated - held.mark) / held.sequences
            for held in flying
            if held.mark is not None and not held.estimated
        ]
        steps = median(made) if made else 0.0
        if made and steps < self.LEAST_STEPS and seconds < self.LONGEST_INTERVAL:
            return
        if steps >= self.LEAST_STEPS and seconds <= self.LONGEST_INTERVAL:
            self.model.observe(
                seconds,
                steps=steps,
                prefill_tokens=self._prefilled,
                tokens=self.generated - self._generated_before,
                context_tokens=(self._context + context) / 2,
            )
            keep = math.exp(-seconds / self.RECENT_SECONDS)
            self._recent = (self._recent[0] * keep + self._prefilled, self._recent[1] * keep + steps)
        self._mark(now, flying, context)

    def _mark(self, now: float, flying: Iterable[Held], context: int) -> None:
        self._began, self._context = now, context
        self._prefilled, self._generated_before = 0, self.generated
        for held in flying:
            held.mark = held.generated or None
