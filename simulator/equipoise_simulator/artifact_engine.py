"""The engine of the VTC paper's artifact (S-LoRA's router loop): passes at intervals, prefill in steps of its own.

One turn of its loop: with nothing running, a pass admits a batch and prefills it; else, once 10 decode steps were
taken since the last batch joined, a pass is tried before every decode step until one admits something. A prefill is a
step in which nobody decodes, of at most `PREFILL_TOKENS`. Memory is counted in tokens, and each distinct tenant of a
batch holds a LoRA adapter of 4 * rank tokens.

Source: Ying1123/VTC-artifact (Apache-2.0), described in arXiv 2401.00588, section 5; lengths are known to its gate.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from equipoise_scheduling.request import Reason, Refusal
from equipoise_simulator.engine_model import steps_to_cover
from equipoise_simulator.sequence import Sequence, SequenceState, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from equipoise_scheduling.request import Request
    from equipoise_simulator.profiles import Profile

PASS_EVERY = 10
PREFILL_TOKENS = 3_072


class ArtifactEngine:
    """Runs what it is given; `open` says when a pass may add to it. O(1) a step, O(log n) an end."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.preemptions = 0
        self.recomputed_tokens = 0
        self._added: list[Sequence] = []
        self._decoding: dict[Sequence, None] = {}
        self._ends: list[tuple[int, int, Sequence]] = []
        self._clock = 0
        self._context = 0
        self._since_batch = 0
        self._numbers = 0
        self._step: Step | None = None

    @property
    def open(self) -> bool:
        """Whether the loop is at a pass."""
        return not self._decoding or self._since_batch >= PASS_EVERY

    @property
    def running(self) -> int:
        """Sequences that hold memory."""
        return len(self._decoding) + len(self._added)

    def generated(self, sequence: Sequence) -> int:
        """Return the tokens generated so far."""
        if sequence.state is SequenceState.DECODING:
            return sequence.generated_at_join + self._clock - sequence.joined
        return sequence.generated_at_join

    def decoded(self) -> list[tuple[Sequence, int]]:
        """Return the sequences that decode, with the tokens generated so far."""
        clock = self._clock
        return [
            (sequence, sequence.generated_at_join + clock - sequence.joined) for sequence in self._decoding
        ]

    def add(self, sequence: Sequence) -> bool:
        """Take a sequence into the batch that is prefilled next."""
        self._numbers += 1
        sequence.number = self._numbers
        sequence.state = SequenceState.WAITING
        self._added.append(sequence)
        return True

    def abort(self, sequence: Sequence) -> None:
        """Remove a sequence; nothing happens when it has ended."""
        if sequence.state is SequenceState.DECODING:
            sequence.generated_at_join = self.generated(sequence)
            self._leave(sequence)
        elif sequence in self._added:
            self._added.remove(sequence)
        elif sequence.state is not SequenceState.PREFILLING:
            return
        sequence.state = SequenceState.ABORTED

    def begin(self, now: float, *, until: float | None = None) -> Step | None:
        """Start a prefill of what was added, else decode steps up to the first that ends at or after `until`."""
        assert self._step is None, "the step before has not been finished"
        profile = self.profile
        if self._added:
            batch, self._added = self._added, []
            for sequence in batch:
                sequence.state = SequenceState.PREFILLING
            tokens = sum(sequence.prompt_tokens for sequence in batch)
            seconds = profile.step_seconds(tokens, 0, 0)
            chunks = [(sequence, sequence.prompt_tokens) for sequence in batch]
            self._step = Step(now, now + seconds, 0, tokens, chunks)
            return self._step
        count = len(self._decoding)
        if not count:
            return None
        seconds = profile.step_seconds(0, count, self._context)
        growth = profile.a3 * count
        steps = self._steps_to_next_end()
        if not self.open:
            steps = min(steps, PASS_EVERY - self._since_batch)
        if until is None:
            steps = 1
        elif until - now < steps * seconds + growth * steps * (steps - 1) / 2:
            steps = min(steps, steps_to_cover(until - now, seconds, growth))
        self._clock += steps
        self._since_batch += steps
        self._context += count * steps
        ends = now + steps * seconds + growth * steps * (steps - 1) / 2
        self._step = Step(now, ends, steps, 0, [])
        return self._step

    def finish(self) -> Step:
        """End the step under way and return it with its events."""
        step, self._step = self._step, None
        assert step is not None, "no step is under way"
        step.advanced = list(self._decoding) if step.count else []
        while self._ends and self._ends[0][0] <= self._clock:
            at, _, sequence = heapq.heappop(self._ends)
            if sequence.state is SequenceState.DECODING and sequence.ends == at:
                self._end(sequence, step)
        for sequence, _ in step.prefilled:
            if sequence.state is SequenceState.PREFILLING:
                self._join(sequence, step)
        if step.prefilled:
            self._since_batch = 0
        return step

    def _steps_to_next_end(self) -> int:
        while self._ends[0][2].state is not SequenceState.DECODING:
            heapq.heappop(self._ends)
        return self._ends[0][0] - self._clock

    def _join(self, sequence: Sequence, step: Step) -> None:
        sequence.state = SequenceState.DECODING
        sequence.generated_at_join = 1
        sequence.joined = self._clock
        sequence.context_at_join = sequence.prompt_tokens
        sequence.ends = self._clock + sequence.output_tokens - 1
        self._decoding[sequence] = None
        self._context += sequence.prompt_tokens
        step.first.append(sequence)
        if sequence.output_tokens == 1:
            self._end(sequence, step)
        else:
            heapq.heappush(self._ends, (sequence.ends, sequence.number, sequence))

    def _end(self, sequence: Sequence, step: Step) -> None:
        self._leave(sequence)
        sequence.generated_at_join = sequence.output_tokens
        sequence.state = SequenceState.FINISHED
        step.finished.append(sequence)

    def _leave(self, sequence: Sequence) -> None:
        del self._decoding[sequence]
        self._context -= sequence.prompt_tokens + self._clock - sequence.joined


class ArtifactGate:
    """The artifact's admission: the future peak of memory with true lengths, 100 % of the pool less the adapters.

    Times are ignored. `fits` is O(n log n) in the requests in flight.
    """

    def __init__(self, profile: Profile, lengths: Mapping[str, int], adapter_rank: int) -> None:
        self.percent = 100.0
        self._profile = profile
        self._lengths = lengths
        self._adapter = 4 * adapter_rank
        self._held: dict[str, tuple[int, int]] = {}
        self._tenants: dict[str, int] = {}
        self._batch = 0

    def refuse(self, request: Request) -> Refusal | None:
        """Refuse what no pass could ever admit."""
        total = request.prompt_tokens + self._lengths[request.id]
        most = min(self._profile.max_model_len, self._profile.kv_tokens - self._adapter - 1)
        if total <= most and request.prompt_tokens <= PREFILL_TOKENS:
            return None
        return Refusal(Reason.NEVER_FITS, f"{total} tokens never fit")

    def pass_begins(self) -> None:
        """Start counting the prompts that a pass admits."""
        self._batch = 0

    def fits(self, request: Request, now: float) -> bool:
        """Say whether `request` can join the batch."""
        del now
        if self._batch + request.prompt_tokens > PREFILL_TOKENS:
            return False
        if len(self._held) >= self._profile.max_num_seqs:
            return False
        tenants = len(self._tenants) + (request.tenant not in self._tenants)
        limit = self._profile.kv_tokens - self._adapter * tenants
        candidate = (request.prompt_tokens + 1, self._lengths[request.id] - 1)
        ordered = sorted((*self._held.values(), candidate), key=lambda held: -held[1])
        kv = highest = 0
        for count, (tokens, left) in enumerate(ordered, 1):
            kv += tokens
            highest = max(highest, kv + count * left)
        return highest < limit

    def start(self, request: Request) -> None:
        """Count a request that was dispatched."""
        self._batch += request.prompt_tokens
        self._held[request.id] = (request.prompt_tokens + 1, self._lengths[request.id] - 1)
        self._tenants[request.tenant] = self._tenants.get(request.tenant, 0) + 1

    def progress(self, request: Request, prompt: int, generated: int) -> None:
        """Count delivery."""
        self._held[request.id] = (prompt + generated, max(1, self._lengths[request.id] - generated - 1))

    def finish(self, request: Request) -> None:
        """Free what a request held."""
        if self._held.pop(request.id, None) is None:
            return
        self._tenants[request.tenant] -= 1
        if not self._tenants[request.tenant]:
            del self._tenants[request.tenant]

    def preempted(self, now: float, count: int = 1) -> None:
        """Never happens: lengths are known."""

    def tick(self, now: float) -> None:
        """Have nothing that passes with time."""
