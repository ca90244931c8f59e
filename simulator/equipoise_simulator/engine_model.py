"""A model of vLLM's continuous batching: pure, with time as an argument.

One step, as in vLLM's scheduler:

1. Every decoding sequence gets one token. Those that cross into a new KV block need one; while there are too few,
   a running sequence is preempted: the largest (priority, arrival) in priority mode, else the one admitted last.
   It loses its KV and waits again (recompute: prompt and generated tokens are prefilled together).
2. What is left of the token budget goes to prompts: chunks of those under way, then waiting ones in order (arrival,
   or priority then arrival) while sequence slots and KV blocks last. Nothing is admitted in a step that preempted.
3. The step takes `Profile.step_seconds`. A prompt whose last chunk ran yields a token.

Differences from vLLM: a prompt's blocks are taken whole when it is admitted, not chunk by chunk; there is no prefix cache,
but whoever drives the model may say which tokens need no computing (`cached`). They hold blocks of their own all the same.

Cost: O(1) a step plus O(log n) for each admission and end, however many sequences decode: by the clock of `decoding`,
a sequence needs a block whenever that is congruent to `joined - context_at_join` modulo the block size.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

from typing_extensions import override

from equipoise_simulator.decoding import DecodingEngine, seconds_of, steps_to_cover
from equipoise_simulator.sequence import Sequence, SequenceState, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from equipoise_simulator.profiles import Profile


class EngineModel(DecodingEngine):
    """vLLM's scheduler and KV pool on a `Profile`.

    `add` and `abort` may come at any time.
    Invariants: free blocks plus the blocks of running sequences are the pool; a sequence is in exactly one place.
    """

    def __init__(
        self, profile: Profile, *, priority_scheduling: bool = False, max_num_queued_reqs: int | None = None
    ) -> None:
        super().__init__(profile)
        self.priority_scheduling = priority_scheduling
        self.max_num_queued_reqs = max_num_queued_reqs
        self.free_blocks = profile.kv_blocks
        self.cached: Callable[[Sequence], int] | None = None
        """Asked at each admission: tokens of the prompt, less than all, that need no computing."""
        self._block = profile.block_size
        self._waiting_fcfs: deque[Sequence] = deque()
        self._waiting_heap: list[Sequence] = []
        self._waiting_count = 0
        self._running: dict[Sequence, None] = {}
        self._prefilling: deque[Sequence] = deque()
        self._crossings = [0] * self._block

    # -- what an observer sees

    @property
    def waiting(self) -> int:
        """Sequences that wait for admission."""
        return self._waiting_count

    @property
    def running(self) -> int:
        """Sequences that hold KV."""
        return len(self._running)

    @property
    def kv_usage(self) -> float:
        """Share of the pool in use, 0 to 1."""
        return 1 - self.free_blocks / self.profile.kv_blocks

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._running and not self._waiting_count

    @property
    def full(self) -> bool:
        """Whether `add` would refuse."""
        return self.max_num_queued_reqs is not None and self._waiting_count >= self.max_num_queued_reqs

    # -- what a client does

    def add(self, sequence: Sequence) -> bool:
        """Queue a sequence; False when the queue is full.

        Raises ValueError when it can never fit the pool.
        """
        tokens = sequence.prompt_tokens + sequence.output_tokens
        if tokens > self.profile.kv_blocks * self._block:
            raise ValueError(f"{tokens} tokens never fit a KV pool of {self.profile.kv_blocks * self._block}")
        if self.full:
            return False
        self._numbers += 1
        sequence.number = self._numbers
        self._enqueue(sequence, front=False)
        return True

    def abort(self, sequence: Sequence) -> None:
        """Remove a sequence, wherever it is; nothing happens when it has ended."""
        if sequence.state is SequenceState.WAITING:
            self._waiting_count -= 1  # the entry is skipped when it comes up
        elif sequence.state is SequenceState.PREFILLING:
            self._leave(sequence)
        elif sequence.state is SequenceState.DECODING:
            sequence.generated_at_join = self.generated(sequence)
            self._leave(sequence)
        else:
            return
        sequence.state = SequenceState.ABORTED

    # -- steps

    def begin(self, now: float, *, until: float | None = None) -> Step | None:
        """Plan and start a step at `now`; None when there is nothing to run.

        With `until` (seconds), steps that only decode are taken together, up to the first that ends at or after `until`, the next end of a
        sequence or the next shortage of KV: exact as long as nobody adds or aborts before then.
        """
        assert self._step is None, "the step before has not been finished"
        preempted = self._make_room()
        crossing = self._crossings[self._clock % self._block]
        self.free_blocks -= crossing
        chunks = self._schedule_prompts(admit=not preempted)
        decode_seqs = len(self._decoding)
        if not chunks and not decode_seqs:
            return None
        profile = self.profile
        prefill_tokens = sum(tokens for _, tokens in chunks)
        seconds = profile.step_seconds(prefill_tokens, decode_seqs, self._context)
        count = 1
        if until is not None and not chunks and not preempted:
            count = self._jump(seconds, until - now)
            seconds = seconds_of(count, seconds, profile.a3 * decode_seqs)
        self._clock += count
        self._context += decode_seqs * count
        self._step = Step(now, now + seconds, count, prefill_tokens, chunks, preempted)
        return self._step

    # -- inside

    def _enqueue(self, sequence: Sequence, *, front: bool) -> None:
        sequence.state = SequenceState.WAITING
        self._waiting_count += 1
        if self.priority_scheduling:
            heapq.heappush(self._waiting_heap, sequence)
        elif front:
            self._waiting_fcfs.appendleft(sequence)
        else:
            self._waiting_fcfs.append(sequence)

    def _head(self) -> Sequence | None:
        queue: deque[Sequence] | list[Sequence] = (
            self._waiting_heap if self.priority_scheduling else self._waiting_fcfs
        )
        while queue:
            if queue[0].state is SequenceState.WAITING:
                return queue[0]
            self._drop_head()
        return None

    def _drop_head(self) -> None:
        if self.priority_scheduling:
            heapq.heappop(self._waiting_heap)
        else:
            self._waiting_fcfs.popleft()

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._block)

    def _make_room(self) -> list[Sequence]:
        preempted: list[Sequence] = []
        while self._crossings[self._clock % self._block] > self.free_blocks:
            victim = max(self._running) if self.priority_scheduling else next(reversed(self._running))
            if victim.state is SequenceState.DECODING:
                victim.generated_at_join = self.generated(victim)
                self.recomputed_tokens += victim.prompt_tokens + victim.generated_at_join - 1
            else:
                self.recomputed_tokens += victim.prefilled
            self._leave(victim)
            victim.preemptions += 1
            self.preemptions += 1
            self._enqueue(victim, front=True)
            preempted.append(victim)
        return preempted

    def _schedule_prompts(self, *, admit: bool) -> list[tuple[Sequence, int]]:
        budget = self.profile.max_num_batched_tokens - len(self._decoding)
        chunks: list[tuple[Sequence, int]] = []
        for sequence in self._prefilling:
            tokens = min(sequence.context_at_join - sequence.prefilled, budget)
            if tokens == 0:
                break
            budget -= tokens
            chunks.append((sequence, tokens))
        while admit and budget > 0 and self._waiting_count and len(self._running) < self.profile.max_num_seqs:
            head = self._head()
            assert head is not None, "the count of waiting sequences is wrong"
            context = head.prompt_tokens + head.generated_at_join
            blocks = self._blocks(context)
            if blocks > self.free_blocks:
                break
            self._drop_head()
            self._waiting_count -= 1
            self.free_blocks -= blocks
            head.state = SequenceState.PREFILLING
            head.prefilled = 0 if self.cached is None else self.cached(head)
            head.context_at_join = context
            self._running[head] = None
            self._prefilling.append(head)
            tokens = min(context - head.prefilled, budget)
            budget -= tokens
            chunks.append((head, tokens))
        return chunks

    @override
    def _prefilled(self, sequence: Sequence, tokens: int, step: Step) -> None:
        sequence.prefilled += tokens
        if sequence.prefilled == sequence.context_at_join:
            self._prefilling.popleft()
            self._crossings[(self._clock - sequence.context_at_join) % self._block] += 1
            self._join(sequence, step)

    @override
    def _leave(self, sequence: Sequence) -> None:
        """Give back all that a running sequence holds."""
        del self._running[sequence]
        if sequence.state is SequenceState.PREFILLING:
            self._prefilling.remove(sequence)
            self.free_blocks += self._blocks(sequence.context_at_join)
            return
        super()._leave(sequence)
        self._crossings[(sequence.joined - sequence.context_at_join) % self._block] -= 1
        self.free_blocks += self._blocks(self._held(sequence))

    def _jump(self, first_seconds: float, horizon: float) -> int:
        """Return how many decode steps to take at once; the blocks of all of them are taken here.

        The first step lasts `first_seconds`; each later one takes a3 * decoding sequences longer.
        """
        count = self._steps_to_next_end()
        growth = self.profile.a3 * len(self._decoding)
        if horizon < seconds_of(count, first_seconds, growth):
            count = min(count, steps_to_cover(horizon, first_seconds, growth))
        taken = 1  # the blocks of the first step are taken already
        cycles = min((count - taken) // self._block, self.free_blocks // len(self._decoding))
        taken += cycles * self._block
        self.free_blocks -= cycles * len(self._decoding)
        while taken < count:
            crossing = self._crossings[(self._clock + taken) % self._block]
            if crossing > self.free_blocks:
                break
            self.free_blocks -= crossing
            taken += 1
        return taken
