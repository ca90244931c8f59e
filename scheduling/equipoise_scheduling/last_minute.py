"""The last minute in slices of five seconds: a figure over them covers between 55 and 60 seconds."""

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

WINDOW_SECONDS = 60.0
_SLICES = 12
SLICE_SECONDS = WINDOW_SECONDS / _SLICES

Slice = TypeVar("Slice")


class LastMinute(Generic[Slice]):
    """Slices in which something happened. Time must not run backwards; O(1) amortised an event, bounded memory."""

    __slots__ = ("_make", "_slices")

    def __init__(self, make: Callable[[], Slice]) -> None:
        """Start empty; `make` gives an empty slice."""
        self._make = make
        self._slices: deque[tuple[int, Slice]] = deque()

    def at(self, now: float) -> Slice:
        """Return the slice of `now`, to count in."""
        index = int(now // SLICE_SECONDS)
        if not self._slices or self._slices[-1][0] != index:
            self._forget(now)
            self._slices.append((index, self._make()))
        return self._slices[-1][1]

    def slices(self, now: float) -> list[Slice]:
        """Return those of the last minute, the oldest first."""
        self._forget(now)
        return [part for _, part in self._slices]

    def _forget(self, now: float) -> None:
        oldest = int(now // SLICE_SECONDS) - _SLICES
        while self._slices and self._slices[0][0] <= oldest:
            self._slices.popleft()
