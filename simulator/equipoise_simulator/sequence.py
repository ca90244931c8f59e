"""What the engine model works on, a sequence to generate, and what it tells, a step's events."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class SequenceState(Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"
    ABORTED = "aborted"


class Sequence:
    """One sequence to generate: `prompt_tokens` in, exactly `output_tokens` out."""

    __slots__ = (
        "arrival",
        "context_at_join",
        "ends",
        "generated_at_join",
        "joined",
        "number",
        "output_tokens",
        "owner",
        "preemptions",
        "prefilled",
        "priority",
        "prompt_tokens",
        "state",
    )

    def __init__(
        self,
        prompt_tokens: int,
        output_tokens: int,
        *,
        priority: int = 0,
        arrival: float = 0.0,
        owner: Any = None,
    ) -> None:
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError(f"a sequence needs tokens in and out, not {prompt_tokens} and {output_tokens}")
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.priority = priority
        self.arrival = arrival
        self.owner = owner
        self.state = SequenceState.WAITING
        self.number = 0
        self.prefilled = 0
        self.preemptions = 0
        self.joined = 0
        self.context_at_join = 0
        self.ends = 0
        self.generated_at_join = 0

    def __lt__(self, other: Sequence) -> bool:
        return (self.priority, self.arrival, self.number) < (other.priority, other.arrival, other.number)


@dataclass(slots=True)
class Step:
    """What one step, or a run of equal decode steps, did; read it after `finish`."""

    begins: float
    ends: float
    count: int
    """Decode steps in this run; every sequence of `advanced` got that many tokens."""
    prefill_tokens: int
    prefilled: list[tuple[Sequence, int]]
    """Prompt chunks: which sequence, how many tokens."""
    preempted: list[Sequence] = field(default_factory=list)
    """Sequences that lost their KV when the step was planned."""
    advanced: list[Sequence] = field(default_factory=list)
    """Sequences that decoded."""
    first: list[Sequence] = field(default_factory=list)
    """Sequences whose prompt is complete, with one token from it (their first, unless they were preempted)."""
    finished: list[Sequence] = field(default_factory=list)
