"""How fast the engine generates: tokens a second for one sequence in flight, waiting in the engine included.

Answers that do not stream show nothing until their end. Charging only then would break every bound and make cancelling
at 95 % free, so their progress is taken from the clock: age times this pace.

Two measurements of the same ratio, tokens over sequence-seconds: of the whole engine, from its token counter and our
own count of sequences in flight; and of our own requests that ended with exact usage, for an engine without metrics.
"""

from __future__ import annotations

import math

_TIME_CONSTANT_SECONDS = 10.0
_FRESH_SECONDS = 10.0


class _Ratio:
    """Sum of tokens over sum of sequence-seconds, older ones forgotten."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._at = -math.inf

    def add(self, tokens: float, sequence_seconds: float, now: float) -> None:
        keep = math.exp(-max(0.0, now - self._at) / _TIME_CONSTANT_SECONDS)
        self._tokens = self._tokens * keep + tokens
        self._seconds = self._seconds * keep + sequence_seconds
        self._at = now

    def value(self) -> float | None:
        return self._tokens / self._seconds if self._seconds > 0 else None

    def is_fresh(self, now: float) -> bool:
        return now - self._at <= _FRESH_SECONDS


class Pace:
    """Measures it. All times in seconds on one clock; O(1) an event."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._changed = 0.0
        self._sequence_seconds = 0.0
        """Integral of the sequences in flight since the last reading of the engine's counter."""
        self._counter: int | None = None
        self._engine = _Ratio()
        self._own = _Ratio()

    def started(self, sequences: int, now: float) -> None:
        """Note sequences that went to the engine."""
        self._integrate(now)
        self._in_flight += sequences

    def ended(self, sequences: int, now: float, *, seconds: float, generated: int | None) -> None:
        """Note sequences that left it after `seconds`; `generated` tokens over all of them, None if not known exactly."""
        self._integrate(now)
        self._in_flight -= sequences
        if generated is not None and seconds > 0:
            self._own.add(generated, seconds * sequences, now)

    def read_counter(self, generated_total: int | None, now: float) -> None:
        """Take in the engine's own count of generated tokens; a lower one than before is a restarted engine's."""
        self._integrate(now)
        if (
            generated_total is not None
            and self._counter is not None
            and generated_total >= self._counter
            and self._sequence_seconds > 0
        ):
            self._engine.add(generated_total - self._counter, self._sequence_seconds, now)
        self._counter = generated_total
        self._sequence_seconds = 0.0

    def tokens_per_second(self, now: float) -> float | None:
        """Return the pace of one sequence; None before anything was measured."""
        engine, own = self._engine.value(), self._own.value()
        if engine is None or (own is not None and not self._engine.is_fresh(now)):
            return own if own is not None else engine
        return engine

    def _integrate(self, now: float) -> None:
        self._sequence_seconds += self._in_flight * (now - self._changed)
        self._changed = now
