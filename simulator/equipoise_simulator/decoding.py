"""What the engine models share: sequences that decode, each one token a step, by a clock that counts decode steps.

What a decoding sequence has generated and holds follows from the clock: it joined with `context_at_join` tokens when
the clock stood at `joined`, and ends at a clock that is known when it joins. So a step costs O(1) however many
sequences decode, a join and an end O(log n), and stretches in which nothing changes are taken in one jump.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from equipoise_simulator.sequence import Sequence, SequenceState, Step

if TYPE_CHECKING:
    from equipoise_simulator.profiles import Profile


class DecodingEngine(ABC):
    """An engine on a `Profile`, except for how it takes prompts in. The caller owns the time.

    `begin` plans and starts a step, `finish` ends it.
    Invariants: `_context` is the sum of what decoding sequences hold; each of them has an entry in `_ends`.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.preemptions = 0
        self.recomputed_tokens = 0
        self._decoding: dict[Sequence, None] = {}
        self._ends: list[tuple[int, int, Sequence]] = []
        """A heap of (clock, number, sequence). Entries of sequences that left or joined anew are skipped."""
        self._clock = 0
        self._context = 0
        self._numbers = 0
        self._step: Step | None = None

    def generated(self, sequence: Sequence) -> int:
        """Return the tokens generated so far, those of a step under way included."""
        if sequence.state is SequenceState.DECODING:
            return sequence.generated_at_join + self._clock - sequence.joined
        return sequence.generated_at_join

    def decoded(self) -> list[tuple[Sequence, int]]:
        """Return the sequences that decode, with the tokens generated so far."""
        clock = self._clock
        return [
            (sequence, sequence.generated_at_join + clock - sequence.joined) for sequence in self._decoding
        ]

    def finish(self) -> Step:
        """End the step under way and return it with its events."""
        step, self._step = self._step, None
        assert step is not None, "no step is under way"
        step.advanced = list(self._decoding) if step.count else []
        ends = self._ends
        while ends and ends[0][0] <= self._clock:
            at, _, sequence = heapq.heappop(ends)
            if sequence.state is SequenceState.DECODING and sequence.ends == at:
                self._end(sequence, step)
        for sequence, tokens in step.prefilled:
            if sequence.state is SequenceState.PREFILLING:  # else it was aborted meanwhile
                self._prefilled(sequence, tokens, step)
        return step

    @abstractmethod
    def _prefilled(self, sequence: Sequence, tokens: int, step: Step) -> None:
        """Take a chunk of a prompt for computed, and join a sequence whose prompt is complete."""

    def _join(self, sequence: Sequence, step: Step) -> None:
        """Turn a sequence whose prompt is complete into a decoding one."""
        sequence.generated_at_join += 1
        step.first.append(sequence)
        sequence.state = SequenceState.DECODING
        sequence.joined = self._clock
        sequence.ends = self._clock + sequence.output_tokens - sequence.generated_at_join
        self._context += sequence.context_at_join
        self._decoding[sequence] = None
        if sequence.ends == self._clock:
            self._end(sequence, step)
        else:
            heapq.heappush(self._ends, (sequence.ends, sequence.number, sequence))

    def _end(self, sequence: Sequence, step: Step) -> None:
        self._leave(sequence)
        sequence.generated_at_join = sequence.output_tokens
        sequence.state = SequenceState.FINISHED
        step.finished.append(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Take out a sequence that decodes."""
        del self._decoding[sequence]
        self._context -= self._held(sequence)

    def _held(self, sequence: Sequence) -> int:
        """Return the tokens of context of a sequence that decodes."""
        return sequence.context_at_join + self._clock - sequence.joined

    def _steps_to_next_end(self) -> int:
        """Return the decode steps until a sequence ends, if none joins or leaves before. IndexError when none decodes."""
        ends = self._ends
        while ends[0][2].state is not SequenceState.DECODING or ends[0][2].ends != ends[0][0]:
            heapq.heappop(ends)
        return ends[0][0] - self._clock


def seconds_of(steps: int, first: float, growth: float) -> float:
    """Return how long decode steps take of which the first lasts `first` seconds, each later one `growth` longer."""
    return steps * first + growth * steps * (steps - 1) / 2


def steps_to_cover(horizon: float, first: float, growth: float) -> int:
    """Return the least number of such steps, at least 1, that last `horizon` seconds or longer."""
    if horizon <= first:
        return 1
    if growth == 0:
        return math.ceil(horizon / first)
    half = first - growth / 2
    return max(1, math.ceil((math.sqrt(half * half + 2 * growth * horizon) - half) / growth))
