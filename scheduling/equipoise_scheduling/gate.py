"""The capacity gate: whether one more request can join the running batch, by slots, by KV cache and by step time.

It counts its own requests in flight and what they are predicted to need. The engine's metrics only correct it, since a
scrape is always late. The caller tells it of every start, delivery and end, whatever the scheduler.

`reserve`: the sum of prompt + all the output that a request may make is within the limit.

`peak`: the *future peak* (see `kv_plan`) is within the limit, the idea of LightLLM's past-future scheduler (arXiv
2507.10150), and the outputs to come sum to at most the pool (`maxOutstanding`), which keeps the fairness bound finite.

The limit of these two is L % of the pool: see `kv_limit`.

`prompt`: the prompt's blocks fit beside what is held at present, over the whole pool, as an engine alone admits. Outputs
to come are not looked at, so preemptions are to be expected, change nothing, and no fairness bound holds.

Headroom: L leaves some of the pool free, since predictions err. Urgent requests, those with an SLO of at most
`URGENT_SECONDS` that they can still keep, may use so many points more, so that one of them finds room at once.

Stalls: what an urgent request finds in the engine is computed before it. While such come, the prompts of others go one
after another where those under way would take the engine more than `STALL_SECONDS`.

Under every kind adaptive batching (see `batching`) may hold a request back: by the predicted time of a step, and by the
prompt tokens that are still to be prefilled.
"""

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal

from equipoise_scheduling.batching import AdaptiveBatching, BatchingLimits
from equipoise_scheduling.kv_limit import KvLimit
from equipoise_scheduling.kv_plan import Held, future_peak
from equipoise_scheduling.request import Reason, Refusal, Request
from equipoise_scheduling.slo import URGENT_MEMORY_SECONDS, urgent

STALL_SECONDS = 0.1
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
    """Points of the pool above L that only urgent requests may use, which a scheduler has given a deadline."""
    context_tokens: int | None = None
    """The model's context length; output is never longer than that."""
    batching: BatchingLimits = field(default_factory=BatchingLimits)

    @property
    def bounded(self) -> bool:
        """Whether outputs to come are limited, without which a scheduler's fairness bound says nothing."""
        return self.kind != "prompt"

    def __post_init__(self) -> None:
        if not 0 < self.utilisation_percent <= 100:
            raise ValueError(f"utilisation_percent={self.utilisation_percent} must be within (0, 100]")
        if not 0 <= self.headroom_percent <= 100:
            raise ValueError(f"headroom_percent={self.headroom_percent} must be within [0, 100]")


class Gate:
    """Slots, KV and step time of one engine. `fits` and an end are at most linear in the requests in flight, other events O(1).

    Invariants: with nothing in flight everything fits that `refuse` lets pass; while the pool is unknown slots and
    batching alone decide.
    """

    def __init__(self, settings: GateSettings | None = None) -> None:
        self.settings = settings or GateSettings()
        self.max_in_flight: int | None = None
        """Sequences in flight; the caller sets it, from the policy or from `InFlightWindow`. None: no limit."""
        self.batching = AdaptiveBatching()
        self.sequences = 0
        """Sequences in flight."""
        self.used = 0
        """KV tokens that the requests in flight hold, by our own count."""
        self.outstanding = 0
        """Output tokens still to come, as predicted."""
        self.reserved = 0
        """KV tokens that the requests in flight may come to hold at most."""
        self._pool: int | None = None
        self._block = 16
        self._held: dict[str, Held] = {}
        self._ordered: list[Held] = []
        """What is in flight; by remaining output, falling, where `_sorted`."""
        self._sorted = True
        self._surplus: list[int] = []
        self._last_urgent = float("-inf")
        """Arrival of the latest urgent request that was started."""
        self._kv_limit = KvLimit(self.settings.utilisation_percent)

    def reconfigure(self, settings: GateSettings) -> None:
        """Replace the settings; what is in flight stays. L starts anew only where its setting changed."""
        if settings.utilisation_percent != self.settings.utilisation_percent:
            self._kv_limit.restart(settings.utilisation_percent)
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
            self._count(held, -1)
            held.update(self._block, self.settings.context_tokens)
            self._count(held, 1)
        self._sorted = False

    def _count(self, held: Held, sign: int) -> None:
        self.used += sign * held.kv
        self.outstanding += sign * held.remaining * held.sequences
        self.reserved += sign * held.reserved

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
        candidate = Held(request, self._block, self.settings.context_tokens)
        if self._holds(candidate, now) is not None:
            return False
        if self._pool is None:
            return True
        limit = self._limit(self._pool)
        if self.settings.kind == "prompt":
            return self.used + candidate.kv <= limit
        if _presses(request, now):
            headroom = min(self.settings.headroom_percent, 100 - self.percent)
            limit += self._pool * headroom / 100
        if self.settings.kind == "reserve":
            return self.reserved + candidate.reserved <= limit
        outstanding = self.outstanding + candidate.remaining * candidate.sequences
        if outstanding > self._pool:
            return False
        kv = self.used + candidate.kv
        if kv + outstanding <= limit:  # the peak is never higher: most answers need no pass
            return True
        return kv <= limit and self._peak_with(candidate) <= limit

    def _stalls(self, candidate: Held, now: float) -> bool:
        """Say whether a prompt would hold up urgent requests, beside those that are under way."""
        request, held = candidate.request, self.batching.prefill_held
        if not held or now - self._last_urgent > URGENT_MEMORY_SECONDS:
            return False
        if request.deadline is None or _presses(request, now):
            return False
        seconds = self.batching.model.prefill_seconds(held + candidate.prefill)
        return seconds is not None and seconds > STALL_SECONDS

    @property
    def percent(self) -> float:
        """L, the share of the pool that may be planned with, in percent."""
        return 100.0 if self.settings.kind == "prompt" else self._kv_limit.percent

    def batching_holds(self, request: Request, now: float) -> str | None:
        """Say what but slots and KV holds `request` back, for people; None: nothing."""
        if not self._held:
            return None
        return self._holds(Held(request, self._block, self.settings.context_tokens), now)

    def _holds(self, candidate: Held, now: float) -> str | None:
        if self._stalls(candidate, now):
            return f"when it adds no more than {1000 * STALL_SECONDS:.0f} ms of prompts: urgent requests come"
        return self.batching.holds(self.settings.batching, candidate, self.sequences, self.used)

    def _limit(self, pool: int) -> float:
        """Return the KV tokens that may be planned with."""
        return pool * self.percent / 100 - self.surplus

    def _in_order(self) -> list[Held]:
        """Sort what is in flight by remaining output, falling; nearly sorted already, so about linear."""
        if not self._sorted:
            self._ordered.sort(key=attrgetter("remaining"), reverse=True)
            self._sorted = True
        return self._ordered

    def _peak_with(self, candidate: Held) -> int:
        ordered = self._in_order()
        place = len(ordered)
        while place and ordered[place - 1].remaining < candidate.remaining:
            place -= 1
        kv, sequences, highest = future_peak(ordered[:place], 0, 0)
        kv, sequences, peak = future_peak((candidate,), kv, sequences)
        highest = max(highest, peak)
        return max(highest, future_peak(ordered[place:], kv, sequences)[2])

    @property
    def peak(self) -> int:
        """KV tokens that the requests in flight are predicted to reach."""
        return future_peak(self._in_order(), 0, 0)[2]

    @property
    def planned(self) -> int:
        """KV tokens that count against the limit, by the kind of gate."""
        if self.settings.kind == "prompt":
            return self.used
        return self.peak if self.settings.kind == "peak" else self.reserved

    @property
    def widest(self) -> int:
        """Most sequences of a request in flight; 1 with nothing in flight."""
        return max((held.sequences for held in self._held.values()), default=1)

    @property
    def surplus(self) -> int:
        """KV tokens that the engine has lastingly shown in use beyond our own count."""
        return min(self._surplus) if len(self._surplus) == CORRECTIONS else 0

    @property
    def step_seconds(self) -> float | None:
        """Predicted time of a step of what is in flight; None before enough was seen, and with nothing in flight."""
        return self.batching.step_seconds(self.sequences, self.used) if self._held else None

    def saturation(self) -> float:
        """Use of slots, of the planned KV cache or of the step's time, whichever is fuller, as a fraction of 1."""
        fullest = 0.0
        if self.max_in_flight is not None:
            fullest = self.sequences / self.max_in_flight
        if self._pool is not None:
            limit = self._limit(self._pool)
            fullest = max(fullest, self.planned / limit if limit > 0 else 1.0)
        target = self.settings.batching.inter_token_seconds
        if target is not None and (seconds := self.step_seconds) is not None:
            fullest = max(fullest, seconds / target)
        return min(1.0, fullest)

    # -- events

    def start(self, request: Request) -> None:
        """Count a request that was dispatched. ValueError when it is counted already."""
        if request.id in self._held:
            raise ValueError(f"request {request.id} is in flight already")
        held = self._held[request.id] = Held(request, self._block, self.settings.context_tokens)
        self.sequences += request.sequences
        self._count(held, 1)
        self._ordered.append(held)
        self._sorted = False
        self.batching.started(held)
        if urgent(request):
            self._last_urgent = max(self._last_urgent, request.arrival)

    def progress(self, request: Request, prompt: int, generated: int, *, estimated: bool = False) -> None:
        """Count delivery, cumulative over the sequences; with anything generated `prompt` is the whole prompt.

        `estimated`: by the clock, since the answer does not show it.
        """
        held = self._held[request.id]
        held.estimated = estimated
        before = held.generated
        if generated <= before:
            return
        prefill = held.prefill
        held.generated = generated
        if prompt:
            held.prompt = prompt
        self._count(held, -1)
        held.update(self._block, self.settings.context_tokens)
        self._count(held, 1)
        self._sorted = False
        self.batching.progressed(held, prefill=prefill, generated=before)

    def finish(self, request: Request) -> None:
        """Free what a request held, however it ended, put back included. Nothing happens when it held nothing."""
        held = self._held.pop(request.id, None)
        if held is None:
            return
        self.sequences -= request.sequences
        self._count(held, -1)
        self._ordered.remove(held)
        self.batching.finished(held)

    def preempted(self, now: float, count: int = 1) -> None:
        """Note that the engine preempted `count` sequences: plan with less, unless that costs little.

        Which ones it does not say: the cost is that of as many of average length.
        """
        if self.settings.kind == "prompt":
            return
        tokens = count * self.used / self.sequences if self.sequences else 0.0
        self._kv_limit.preempted(now, self.batching.model.prefill_seconds(tokens))

    def observe(self, kv_used: int | None) -> None:
        """Take in the engine's own count of KV tokens in use; None when the metrics are stale.

        More than we count, for several scrapes on end, is use by others, and room that we do not have.
        """
        if kv_used is None:
            self._surplus.clear()
            return
        self._surplus = [*self._surplus, max(0, kv_used - self.used)][-CORRECTIONS:]

    def tick(self, now: float) -> None:
        """Let L recover and learn how long a step takes. About once a second."""
        self.batching.tick(now, self._held.values(), self.used)
        self._kv_limit.tick(now)


def _presses(request: Request, now: float) -> bool:
    """Say whether it is an urgent request that can still keep its SLO, of a scheduler that orders by deadline."""
    return request.deadline is not None and now <= request.deadline and urgent(request)
