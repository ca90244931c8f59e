"""A gate before a model of vLLM: who waits goes as soon as the gate lets it, in order of arrival. Pure and seeded."""

import random
from dataclasses import dataclass, field

from scheduling_harness import make_request

from equipoise_scheduling.gate import Gate
from equipoise_scheduling.request import Request
from equipoise_simulator.engine_model import EngineModel
from equipoise_simulator.sequence import Sequence


@dataclass
class EngineWorld:
    """Requests wait without end; the sizes are drawn anew for each."""

    engine: EngineModel
    gate: Gate
    prompts: tuple[int, int] = (20, 600)
    outputs: tuple[int, int] = (20, 400)
    seed: int = 0
    now: float = 0.0
    steps: list[tuple[float, float, int, int]] = field(default_factory=list)
    """Begin, seconds, prompt tokens and sequences of each step (or run of equal steps)."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between two tokens of a sequence."""
    made: int = 0
    _number: int = 0
    _tick: float = 0.0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        profile = self.engine.profile
        self.gate.set_pool(profile.kv_blocks * profile.block_size, profile.block_size)
        self.gate.max_in_flight = profile.max_num_seqs
        self._head = self._next()

    def run(self, seconds: float) -> "EngineWorld":
        until = self.now + seconds
        while self.now < until:
            self._deliver()
            if self.now >= self._tick:
                self.gate.tick(self.now)
                self._tick = int(self.now) + 1.0
            while self.gate.fits(self._head[0], self.now):
                request, output = self._head
                self.gate.start(request)
                self.engine.add(Sequence(request.prompt_tokens, output, owner=request))
                self._head = self._next()
            step = self.engine.begin(self.now)
            self.engine.finish()
            self.now = step.ends
            seconds = step.ends - step.begins
            self.steps.append((step.begins, seconds, step.prefill_tokens, len(step.advanced)))
            self.gaps += [seconds] * len(step.advanced)
            self.made += len(step.advanced) + len(step.first)
            for sequence in step.first:
                self.gate.progress(sequence.owner, sequence.prompt_tokens, self.engine.generated(sequence))
            for sequence in step.finished:
                self.gate.finish(sequence.owner)
            if step.preempted:
                self.gate.preempted(self.now, len(step.preempted))
        return self

    def _deliver(self) -> None:
        for sequence, generated in self.engine.decoded():
            self.gate.progress(sequence.owner, sequence.prompt_tokens, generated)

    def _next(self) -> tuple[Request, int]:
        self._number += 1
        prompt, output = self._rng.randint(*self.prompts), self._rng.randint(*self.outputs)
        request = make_request(
            str(self._number), prompt=prompt, max_tokens=max(self.outputs), predicted_tokens=output
        )
        return request, output
