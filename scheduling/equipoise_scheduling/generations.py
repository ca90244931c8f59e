"""What the watches of the fairness bounds remember, and for how long: maxima over the last generations of looks.

A generation is `GENERATION` looks. A watch compares what tenants got since up to one generation ago, and that rests on the
last dispatch before then: this generation is kept and the two before it. What rests on dispatches older than those is
noted anew when they are forgotten: how far apart the tenants are (`Lag`).
"""

from collections import deque
from typing import Generic, NamedTuple, Self, TypeVar

GENERATION = 300
KEPT = 3
"""Generations that are remembered, this one included."""
NEVER = -KEPT
"""A generation before any that is remembered."""


class Gap(NamedTuple):
    """How far two tenants were apart, and the limit of that time; in the order of how close they came to it."""

    part: float
    """Of the limit, which is a little wider for rounding."""
    gap: float
    limit: float

    @classmethod
    def of(cls, gap: float, limit: float) -> Self:
        """Compare a gap with its limit."""
        return cls(gap / (limit * (1 + 1e-6) + 0.01), gap, limit)

    @property
    def met(self) -> bool:
        """It is within the limit."""
        return self.part <= 1


NO_GAP = Gap(float("-inf"), 0.0, 0.0)

T = TypeVar("T", float, Gap)


class RecentMaximum(Generic[T]):
    """Maximum over the generations that are remembered. O(1)."""

    __slots__ = ("_least", "_values")

    def __init__(self, least: T) -> None:
        self._least: T = least
        self._values: deque[T] = deque([least] * KEPT, maxlen=KEPT)

    def note(self, value: T) -> None:
        """Take in a value of this generation."""
        self._values[0] = max(self._values[0], value)

    def age(self) -> None:
        """Start a generation, and forget the oldest."""
        self._values.appendleft(self._least)

    @property
    def value(self) -> T:
        """The maximum; what it was made with if there was nothing above that."""
        return max(self._values)


class RisingMaximum:
    """Maximum over a tenant's dispatches when a later fact may raise all those since a given one.

    A dispatch that is not above a later one never will be, since what raises it raises the later one too: only the
    strictly falling values are kept. O(1) amortised a dispatch, O(kept) a raise.
    """

    __slots__ = ("_before", "_kept", "_past")

    def __init__(self) -> None:
        self._kept: list[tuple[int, float]] = []
        self._past = deque([0.0] * (KEPT - 1), maxlen=KEPT - 1)
        self._before = 0.0
        """Maximum of past generations."""

    def add(self, instant: int, value: float) -> None:
        """Record the value of dispatch number `instant`, from 1 on."""
        kept = self._kept
        while kept and kept[-1][1] <= value:
            kept.pop()
        kept.append((instant, value))

    def raise_since(self, instant: int, amount: float) -> None:
        """Add `amount` to the values of all dispatches from `instant` on."""
        kept = self._kept
        place = len(kept)
        while place and kept[place - 1][0] >= instant:
            place -= 1
            kept[place] = (kept[place][0], kept[place][1] + amount)
        if place == len(kept):
            return
        raised = kept[place:]
        while place and kept[place - 1][1] <= raised[0][1]:
            place -= 1
        kept[place:] = raised

    def raise_last(self, amount: float) -> None:
        """Add `amount` to the value of the last dispatch; one that is forgotten, or never was, counts as 0."""
        if not self._kept:
            self._kept.append((0, 0.0))
        self.raise_since(self._kept[-1][0], amount)

    def age(self, oldest: int | None) -> None:
        """Start a generation, and forget the oldest; only dispatches since `oldest` may still rise."""
        self._past.appendleft(self._kept[0][1] if self._kept else 0.0)
        self._before = max(self._past)
        self._kept = [] if oldest is None else [entry for entry in self._kept if entry[0] >= oldest]

    @property
    def value(self) -> float:
        """The maximum over the generations that are remembered, 0 of nothing."""
        return max(self._before, self._kept[0][1]) if self._kept else self._before


class Lag:
    """R: how much lower a tenant may have begun than what a dispatch before it rested on. Counters over weight.

    A dispatch of f rests on c_f <= c_g for every backlogged g. A g that joins later is lifted to the least counter of then,
    which refunds may have taken below c_f; one that is put back is not lifted. And where f's last dispatch is not
    remembered (a former scheduler's or process's, or long ago), c_f itself is what its counter rests on, and the tenants
    that are below it are so by a known amount.
    """

    __slots__ = ("_lag", "_reached")

    def __init__(self) -> None:
        self._reached = RecentMaximum(float("-inf"))
        self._lag = RecentMaximum(0.0)

    def reached(self, counter: float) -> None:
        """Note the counter that a dispatch or a lift rests on."""
        self._reached.note(counter)

    def stands(self, counter: float, level: float | None) -> None:
        """Note a backlogged tenant of which no dispatch is remembered; the others are at `level` or above, None: nobody."""
        self._reached.note(counter)
        if level is not None:
            self._lag.note(counter - level)

    def joined(self, counter: float) -> None:
        """Note the counter with which a tenant becomes backlogged, after its lift."""
        self._lag.note(self._reached.value - counter)

    def age(self) -> None:
        """Start a generation."""
        self._reached.age()
        self._lag.age()

    @property
    def value(self) -> float:
        """R."""
        return self._lag.value
