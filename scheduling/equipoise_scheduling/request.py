"""One request as the scheduling core sees it, what it used, and the ways in which it can end.

All times are seconds on the caller's monotonic clock, all sizes are tokens unless a name says otherwise.
"""

from dataclasses import dataclass
from enum import StrEnum

from equipoise_scheduling.features import Features


class Outcome(StrEnum):
    """How an accepted request ended. Each one ends exactly once; the value is also the metric's label."""

    FINISHED = "finished"
    """The engine answered to the end."""
    REFUSED = "refused"
    """Turned away, on arrival or while queued: by overload throttling, or because the process ends."""
    EXPIRED = "expired"
    """Waited longer in the queue than the policy allows."""
    CANCELLED = "cancelled"
    """The client left, queued or in flight."""
    FAILED = "failed"
    """The engine failed after the request was dispatched, or was never reached."""


class Reason(StrEnum):
    """Why a request is refused: machine-readable, in a response header and as the metric's label."""

    QUEUE_FULL = "queue-full"
    TENANT_QUEUE_FULL = "tenant-queue-full"
    NEVER_FITS = "never-fits"
    RATE_LIMITED = "rate-limited"
    OVERLOADED = "overloaded"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not, or no longer, queued: why, and when it is worth another try."""

    reason: Reason
    message: str
    retry_after_seconds: float | None = None
    """None where trying again is no use (NEVER_FITS), or where nothing has drained yet to measure by."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request consumed, over all its sequences. Given once, when it is settled."""

    prompt: int
    generated: int
    cached: int = 0
    """Prompt tokens served from the engine's prefix cache; at most `prompt`."""
    exact: bool = True
    """From the engine's own usage. False: estimated by event count or by clock. What was only estimated
    stays charged, and predictors do not learn from it."""
    gpu_utilisation: float | None = None
    """Mean over the request's life in [0, 1], where telemetry has it."""

    def __post_init__(self) -> None:
        if self.prompt < 0 or self.generated < 0 or not 0 <= self.cached <= self.prompt:
            raise ValueError(
                f"usage: prompt={self.prompt}, generated={self.generated}, cached={self.cached}: "
                "counts must not be negative and cached must not exceed prompt"
            )
        if self.gpu_utilisation is not None and not 0 <= self.gpu_utilisation <= 1:
            raise ValueError(f"usage: gpu_utilisation={self.gpu_utilisation} must lie within [0, 1]")

    @property
    def teaches(self) -> bool:
        """Whether it says how long answers are: embeddings, and requests that the engine refused, generate nothing."""
        return self.exact and self.generated > 0


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """A request in the queue or in flight.

    The caller fills the first block and changes nothing afterwards; the scheduler owns the second block,
    which the caller may read. Compared by identity; ids must be unique among the living requests.
    """

    id: str
    tenant: str
    arrival: float
    prompt_tokens: int
    """Best estimate, for charging; exact where the prompt came as token ids. Of one sequence's prompt, summed
    over the prompts of a batch."""
    prompt_upper: int = 0
    """Upper quantile of the estimate, for the gate; at least `prompt_tokens`."""
    max_tokens: int
    """Most output tokens of one sequence: the client's limit, or what the context leaves."""
    sequences: int = 1
    """n x prompts x beams: what it takes of the engine's slots; outputs and KV multiply by it."""
    prompts: int = 1
    """Prompts in the body; the sequences of one prompt share its KV blocks."""
    cached_tokens: int = 0
    """Estimate of the prompt tokens that the engine's prefix cache holds. The caller may make it anew while it is asked
    whether the request fits: what it is charged by, and what the gate counts, is the estimate of that moment."""
    application: str = ""
    user: str = ""
    """The tenant's end user. A string that a client sends: never a unit of share by itself."""
    interaction: str = ""
    call_index: int = 1
    """1-based place in the interaction."""
    call_count: int | None = None
    """Calls of the interaction, where the client says so."""
    system_tokens: int = 0
    """Length of the system prompt, part of `prompt_tokens`."""
    ttft_budget: float | None = None
    """SLO: seconds from arrival to the first token."""
    e2e_budget: float | None = None
    """SLO: seconds from arrival to the end."""
    features: Features | None = None
    """What the body shows, for predictors. None where nobody has looked."""

    deadline: float | None = None
    """Fixed on arrival by schedulers that order by deadline, or by the caller before; never moved."""
    number: int = -1
    """Arrival number: 0, 1, 2 ... in the order of `enqueue`. Kept by `requeue` and by a change of algorithm."""
    predicted_tokens: int | None = None
    """Expected output of one sequence, at most `max_tokens`. None: nobody predicts."""
    priority: int = 0
    """For the engine's own queue, smaller first: the virtual start tag, or a list scheduler's key."""
    dispatched: float | None = None
    outcome: Outcome | None = None

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 0), ("max_tokens", 0), ("sequences", 1), ("prompts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"request {self.id}: {name}={getattr(self, name)} must be at least {least}")
        self.prompt_upper = max(self.prompt_upper, self.prompt_tokens)
        self.cached_tokens = min(max(self.cached_tokens, 0), self.prompt_tokens)
        self.sequences = max(self.sequences, self.prompts)

    @property
    def max_output(self) -> int:
        """Most output tokens over all sequences."""
        return self.max_tokens * self.sequences

    @property
    def predicted_output(self) -> int:
        """Expected output tokens over all sequences; 0 where nobody predicts."""
        return (self.predicted_tokens or 0) * self.sequences
