"""The capacity gate: whether one more request can join the running batch, by slots and by KV cache.

It counts its own requests in flight and what they are predicted to need. The engine's metrics only correct it, since a
scrape is always late. The caller tells it of every start, delivery and end, whatever the scheduler.

`prompt`: the prompt fits beside what is held at present, as an engine alone admits: outputs to come are not looked at,
so preemptions are likely and no fairness bound holds.

`reserve`: the sum of prompt + all the output that a request may make is within the limit.

`peak`: the *future peak* is within the limit, the idea of LightLLM's past-future scheduler (arXiv 2507.10150). With
kv_i the tokens that a request holds now, rem_i what it is predicted to generate still, sorted by rem falling, and
all advancing a token a step, the cache is fullest just before one of them ends:

    peak = max over j of (kv_1 + ... + kv_j) + j * rem_j        (a request of n sequences counts n in j)

and the outputs to come sum to at most the pool (`maxOutstanding`), which keeps the fairness bound finite.

The limit is L % of the pool: L starts at its setting, a preemption takes 2 off (at most once in 10 s), a quiet minute
gives 1 back, and it never falls below 70.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from equipoise_scheduling.request import Reason, Refusal, Request

PREEMPTION_STEP = 2.0
PREEMPTION_SECONDS = 10.0
QUIET_SECONDS = 60.0
LEAST_PERCENT = 70.0
CORRECTIONS = 3
"""The engine's surplus over our own count is believed once it has lasted this many scrapes."""


GateKind = Literal["peak", "prompt", "reserve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """When the engine has room for one more request."""

    kind: GateKind = "peak"
    utilisation_percent: float = 95.0
    """L at its start and its highest."""
    headroom_percent: float = 5.0
    """Points of L that only urgent requests may use."""
    urgent_seconds: float = 10.0
    """A request whose deadline is farther away is not urgent; one without a deadline may use all of L."""
    context_tokens: int | None = None
    """The model's context length; output is never longer than that."""

    def __post_init__(self) -> None:
        if not 0 < self.utilisation_percent <= 100:
            raise ValueError(f"utilisation_percent={self.utilisation_percent} must be within (0, 100]")
        if not 0 <= self.headroom_percent < self.utilisation_percent:
            raise ValueError(
                f"headroom_percent={self.headroom_percent} must be at least 0 and below utilisation_percent"
            )


class Held:
    """What one request in flight holds and is expected to hold."""

    __slots__ = ("generated", "kv", "prompt", "remaining", "request", "reserved", "sequences")

    def __init__(self, request: Request, block: int, context: int | None) -> None:
        self.request = request
        self.sequences = request.sequences
        self.prompt = request.prompt_upper
        self.generated = 0
        self.kv = 0
        self.remaining = 0
        self.reserved = 0
        self.update(block, context)

    def update(self, block: int, context: int | None) -> None:
        """Recompute tokens held, to come and reserved. O(1)."""
        request, n = self.request, self.sequences
        made = -(-self.generated // n)
        self.kv = held_tokens(self.prompt, request.prompts, n, made, block)
        most = request.max_tokens
        if context is not None:
            most = min(most, max(0, context - self.prompt // request.prompts))
        left = max(0, most - made)
        predicted = request.predicted_tokens
        if predicted is None:
            self.remaining = left
        elif made < predicted:
            self.remaining = min(predicted - made, left)
        else:
            self.remaining = min(max(16, (3 * made) // 10), left)
        self.reserved = held_tokens(self.prompt, request.prompts, n, most, block)


def held_tokens(prompt: int, prompts: int, sequences: int, generated: int, block: int) -> int:
    """Return the KV tokens, in whole blocks, of a request with `generated` tokens in each sequence.

    The sequences of one prompt share its full blocks; the rest of the prompt and the output are each one's own.
    """
    each = -(-prompt // prompts)
    shared = each // block * block
    own = each - shared + generated
    return shared * prompts + -(-own // block) * block * sequences


class Gate:
    """Slots and KV of one engine. `fits` is linear in the requests in flight, everything else O(1).

    Invariants: with nothing in flight everything fits that `refuse` lets pass; while the pool is unknown slots alone
    decide.
    """

    def __init__(self, settings: GateSettings | None = None) -> None:
        self.settings = settings or GateSettings()
        self.max_in_flight: int | None = None
        """Sequences in flight; the caller sets it, from the policy or from `InFlightWindow`. None: no limit."""
        self.percent = self.settings.utilisation_percent
        """L."""
        self.sequences = 0
        """Sequences in flight."""
        self._pool: int | None = None
        self._block = 16
        self._held: dict[str, Held] = {}
        self._sorted: list[Held] | None = []
        self._surplus: list[int] = []
        self._last_preemption = float("-inf")
        self._quiet_since = float("-inf")

    def reconfigure(self, settings: GateSettings) -> None:
        """Replace the settings; what is in flight stays. L starts anew only where its setting changed."""
        if settings.utilisation_percent != self.settings.utilisation_percent:
            self.percent = settings.utilisation_percent
        self.settings = settings
        self._remeasure()

    def set_pool(self, kv_tokens: int | None, block_tokens: int = 16) -> None:
        """Set the size of the engine's KV cache and of its blocks, in tokens. None: unknown."""
        if (kv_tokens is not None and kv_tokens < 1) or block_tokens < 1:
            raise ValueError(f"kv_tokens={kv_tokens} and block_tokens={block_tokens} must be at least 1")
        self._pool, self._block = kv_tokens, block_tokens
        self._remeasure()

    def _remeasure(self) -> None:
        for held in self._held.values():
            held.update(self._block, self.settings.context_tokens)
        self._sorted = None

    # -- questions

    def refuse(self, request: Request) -> Refusal | None:
        """Refuse on arrival what could never run: one sequence's prompt and output exceed the pool."""
        if self._pool is None:
            return None
        prompt = -(-request.prompt_tokens // request.prompts)
        output = request.max_tokens
        if self.settings.context_tokens is not None:
            output = min(output, self.settings.context_tokens)
        if prompt + output <= self._pool:
            return None
        return Refusal(
            Reason.NEVER_FITS,
            f"prompt ({prompt}) and output ({output}) tokens exceed the engine's KV cache of {self._pool} tokens:"
            " shorten the prompt or lower max_tokens",
        )

    def fits(self, request: Request, now: float) -> bool:
        """Say whether `request` can join what is in flight. Changes nothing."""
        if not self._held:
            return True
        if self.max_in_flight is not None and self.sequences + request.sequences > self.max_in_flight:
            return False
        if self._pool is None:
            return True
        percent = self.percent
        deadline = request.deadline
        if deadline is not None and deadline - now > self.settings.urgent_seconds:
            percent -= self.settings.headroom_percent
        limit = self._pool * percent / 100 - self.surplus
        candidate = Held(request, self._block, self.settings.context_tokens)
        if self.settings.kind == "reserve":
            return sum(held.reserved for held in self._held.values()) + candidate.reserved <= limit
        if self.settings.kind == "prompt":
            return self.used + candidate.kv <= limit
        if self.outstanding + candidate.remaining * candidate.sequences > self._pool:
            return False
        return self._peak_with(candidate) <= limit

    def _ordered(self) -> list[Held]:
        """Sort what is in flight by remaining output, falling; nearly sorted already, so about linear."""
        if self._sorted is None:
            self._sorted = sorted(self._held.values(), key=lambda held: -held.remaining)
        return self._sorted

    def _peak_with(self, candidate: Held) -> int:
        ordered = self._ordered()
        place = len(ordered)
        while place and ordered[place - 1].remaining < candidate.remaining:
            place -= 1
        kv, sequences, highest = future_peak(ordered[:place], 0, 0)
        kv, sequences, peak = future_peak((candidate,), kv, sequences)
        highest = max(highest, peak)
        return max(highest, future_peak(ordered[place:], kv, sequences)[2])

    @property
    def outstanding(self) -> int:
        """Output tokens still to come, as predicted."""
        return sum(held.remaining * held.sequences for held in self._held.values())

    @property
    def peak(self) -> int:
        """KV tokens that the requests in flight are predicted to reach."""
        return future_peak(self._ordered(), 0, 0)[2]

    @property
    def used(self) -> int:
        """KV tokens that the requests in flight hold, by our own count."""
        return sum(held.kv for held in self._held.values())

    @property
    def surplus(self) -> int:
        """KV tokens that the engine has lastingly shown in use beyond our own count."""
        return min(self._surplus) if len(self._surplus) == CORRECTIONS else 0

    def saturation(self) -> float:
        """Use of slots or of the planned KV cache, whichever is fuller, as a fraction of 1."""
        fullest = 0.0
        if self.max_in_flight is not None:
            fullest = self.sequences / self.max_in_flight
        if self._pool is not None:
            planned = (
                self.peak
                if self.settings.kind == "peak"
                else sum(held.reserved for held in self._held.values())
            )
            fullest = max(fullest, (planned + self.surplus) / (self._pool * self.percent / 100))
        return min(1.0, fullest)

    # -- events

    def start(self, request: Request) -> None:
        """Count a request that was dispatched. ValueError when it is counted already."""
        if request.id in self._held:
            raise ValueError(f"request {request.id} is in flight already")
        self._held[request.id] = Held(request, self._block, self.settings.context_tokens)
        self.sequences += request.sequences
        self._sorted = None

    def progress(self, request: Request, prompt: int, generated: int) -> None:
        """Count delivery, cumulative over the sequences; with anything generated `prompt` is the whole prompt."""
        held = self._held[request.id]
        if generated <= held.generated:
            return
        held.generated = generated
        if prompt:
            held.prompt = prompt
        held.update(self._block, self.settings.context_tokens)
        self._sorted = None

    def finish(self, request: Request) -> None:
        """Free what a request held, however it ended, put back included. Nothing happens when it held nothing."""
        if self._held.pop(request.id, None) is not None:
            self.sequences -= request.sequences
            self._sorted = None

    def preempted(self, now: float) -> None:
        """Note that the engine preempted something: plan with less."""
        if now - self._last_preemption >= PREEMPTION_SECONDS:
            self._last_preemption = now
            self.percent = max(min(LEAST_PERCENT, self.percent), self.percent - PREEMPTION_STEP)
        self._quiet_since = now

    def observe(self, kv_used: int | None) -> None:
        """Take in the engine's own count of KV tokens in use; None when the metrics are stale.

        More than we count, for several scrapes on end, is use by others, and room that we do not have.
        """
        if kv_used is None:
            self._surplus.clear()
            return
        self._surplus = [*self._surplus, max(0, kv_used - self.used)][-CORRECTIONS:]

    def tick(self, now: float) -> None:
        """Let L recover: a point for each quiet minute."""
        if self.percent < self.settings.utilisation_percent and now - self._quiet_since >= QUIET_SECONDS:
            self._quiet_since = now
            self.percent = min(self.settings.utilisation_percent, self.percent + 1)


def future_peak(ordered: Iterable[Held], kv: int, sequences: int) -> tuple[int, int, int]:
    """Fold requests, sorted by remaining output falling, into (KV held, sequences, highest KV on the way)."""
    highest = 0
    for held in ordered:
        kv += held.kv
        sequences += held.sequences
        highest = max(highest, kv + sequences * held.remaining)
    return kv, sequences, highest
