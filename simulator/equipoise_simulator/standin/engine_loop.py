"""Drives the engine model in real time and hands its tokens to the answers.

The loop is the only writer of the model's steps. When the process is late (another process had the core), steps follow one another without
a pause until the model has caught up, so load elsewhere does not slow the engine that is stood for; beyond `CATCH_UP`
seconds the time is given up and counted.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from equipoise_simulator.engine_model import EngineModel
from equipoise_simulator.sequence import Sequence, SequenceState
from equipoise_simulator.standin.errors import busy

if TYPE_CHECKING:
    from equipoise_simulator.sequence import Step
    from equipoise_simulator.standin.answer import Answer, Choice
    from equipoise_simulator.standin.stats import Stats

CATCH_UP = 1.0


class EngineLoop:
    """The engine's own task."""

    def __init__(self, model: EngineModel, stats: Stats) -> None:
        self.model = model
        self.stats = stats
        self._work = asyncio.Event()
        self._going = asyncio.Event()
        self._going.set()
        self._last_end = 0.0

    def pause(self) -> None:
        """Begin no step until `resume`; requests are taken and metrics told meanwhile."""
        self._going.clear()

    def resume(self) -> None:
        """Go on; what the pause took is not caught up."""
        self._going.set()

    def submit(self, answer: Answer) -> None:
        """Queue all sequences of an answer, or raise the busy error and queue none."""
        limit = self.model.max_num_queued_reqs
        if limit is not None and self.model.waiting + len(answer.choices) > limit:
            self.stats.rejected += 1
            raise busy(f"The engine's queue of {limit} requests is full; try again later.")
        answer.arrived_at = time.monotonic()
        for choice in answer.choices:
            choice.sequence.arrival = answer.arrived_at
            self.model.add(choice.sequence)
        self._work.set()

    def cancel(self, answer: Answer) -> None:
        """Free what the answer's unfinished sequences hold."""
        for choice in answer.choices:
            if choice.finish_reason is None:
                self.model.abort(choice.sequence)

    async def run(self) -> None:
        """Step for ever."""
        free_at = time.monotonic()
        while True:
            if not self._going.is_set():
                await self._going.wait()
                free_at = time.monotonic()
            earliest = time.monotonic() - CATCH_UP
            if free_at < earliest:
                self.stats.late_seconds += earliest - free_at
                free_at = earliest
            step = self.model.begin(free_at)
            if step is None:
                self._work.clear()
                await self._work.wait()
                free_at = self._last_end = time.monotonic()
                continue
            await asyncio.sleep(max(0.0, step.ends - time.monotonic()))
            self._deliver(self.model.finish())
            free_at = step.ends

    def _deliver(self, step: Step) -> None:
        stats = self.stats
        stats.busy_seconds += step.ends - step.begins
        stats.prefill_seconds += self.model.profile.a1 * step.prefill_tokens
        for sequence, tokens in step.prefilled:
            stats.prompt_tokens += tokens
            choice: Choice = sequence.owner
            if choice.scheduled_at is None:
                choice.scheduled_at = step.begins
                stats.queue.observe(max(0.0, step.begins - choice.answer.arrived_at))
        for sequence in step.first:
            choice = sequence.owner
            if choice.first_at is None:
                choice.first_at = step.ends
                stats.ttft.observe(step.ends - choice.answer.arrived_at)
                stats.prefill.observe(step.ends - (choice.scheduled_at or step.begins))
            self._token(sequence)
        for sequence in step.advanced:
            self._token(sequence)
        stats.generation_tokens += len(step.first) + len(step.advanced)
        stats.inter_token.observe(step.ends - self._last_end, len(step.advanced))
        self._last_end = step.ends
        for sequence in step.finished:
            choice = sequence.owner
            stats.success[choice.finish_reason or "abort"] += 1
            stats.e2e.observe(step.ends - choice.answer.arrived_at)
            stats.decode.observe(step.ends - (choice.first_at or step.ends))
            if stats.prefix_cache is not None:
                stats.prefix_cache.complete(choice)

    def _token(self, sequence: Sequence) -> None:
        choice: Choice = sequence.owner
        choice.advance(last=sequence.state is SequenceState.FINISHED)
