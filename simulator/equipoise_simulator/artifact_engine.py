"""The engine of the VTC paper's artifact (S-LoRA's router loop): passes at intervals, prefill in steps of its own.

One turn of its loop: with nothing running, a pass admits a batch and prefills it; else, once 10 decode steps were
taken since the last batch joined, a pass is tried before every decode step until one admits something. A prefill is a
step in which nobody decodes, of at most `PREFILL_TOKENS`. Memory is counted in tokens, and each distinct tenant of a
batch holds a LoRA adapter of 4 * rank tokens.

Source: Ying1123/VTC-artifact (Apache-2.0), described in arXiv 2401.00588, section 5; lengths are known to its gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from equipoise_scheduling.request import Reason, Refusal
from equipoise_simulator.decoding import DecodingEngine, seconds_of, steps_to_cover
from equipoise_simulator.sequence import Sequence, SequenceState, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from equipoise_scheduling.request import Request
    from equipoise_simulator.profiles import Profile

PASS_EVERY = 10
PREFILL_TOKENS = 3_072


class ArtifactEngine(DecodingEngine):
    """Runs what it is given; `open` says when a pass may add to it. O(1) a step, O(log n) an end."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self._added: list[Sequence] = []
        self._since_batch = 0

    @property
    def open(self) -> bool:
        """Whether the loop is at a pass."""
        return not self._decoding or self._since_batch >= PASS_EVERY

    @property
    def running(self) -> int:
        """Sequences that hold memory."""
        return len(self._decoding) + len(self._added)

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
                sequence.context_at_join = sequence.prompt_tokens
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
        elif until - now < seconds_of(steps, seconds, growth):
            steps = min(steps, steps_to_cover(until - now, seconds, growth))
        self._clock += steps
        self._since_batch += steps
        self._context += count * steps
        self._step = Step(now, now + seconds_of(steps, seconds, growth), steps, 0, [])
        return self._step

    @override
    def finish(self) -> Step:
        step = super().finish()
        if step.prefilled:
            self._since_batch = 0
        return step

    @override
    def _prefilled(self, sequence: Sequence, tokens: int, step: Step) -> None:
        self._join(sequence, step)


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
