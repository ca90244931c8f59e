"""Who may be chosen: the backlogged tenants whose counter is at most a level, in their order; the rest wait outside.

The level only rises and counters mostly do, so tenants move one way, out after a charge and in after a rise of the
level: each move out is paid for by the charge that caused it. Charges therefore cost nothing here; a charged tenant is
noticed when it comes to the top.
"""

from collections.abc import Callable

from equipoise_scheduling.choice import LeastKey

Key = tuple[int, ...]


class Band:
    """Backlogged tenants by urgency inside the band, by the age of their overdue request too, by counter outside.

    `counter` gives a tenant's counter, `urgency` the order of its head (unique), `overdue` the arrival number of its
    oldest overdue request, None where none may go. What falls must be announced with `changed`. O(log n) amortised.
    """

    def __init__(
        self,
        counter: Callable[[str], int],
        urgency: Callable[[str], Key],
        overdue: Callable[[str], int | None],
    ) -> None:
        self._counter = counter
        self._overdue = overdue
        self._inside: LeastKey[Key] = LeastKey(urgency)
        self._late: LeastKey[Key] = LeastKey(lambda name: (overdue(name) or 0,))
        self._outside: LeastKey[tuple[int, str]] = LeastKey(lambda name: (counter(name), name))

    def changed(self, name: str) -> None:
        """Take in a tenant, or anything about it but a charge."""
        if name not in self._inside:
            self._outside.add(name)
        else:
            self._enter(name)

    def discard(self, name: str) -> None:
        """Forget a tenant that is no longer backlogged. O(1)."""
        self._outside.discard(name)
        self._inside.discard(name)
        self._late.discard(name)

    def admit(self, level: int) -> None:
        """Let in all whose counter is at most `level`."""
        while (name := self._outside.least()) is not None and self._counter(name) <= level:
            self._outside.discard(name)
            self._enter(name)

    def _enter(self, name: str) -> None:
        self._inside.add(name)
        if self._overdue(name) is None:
            self._late.discard(name)
        else:
            self._late.add(name)

    def first(self, level: int) -> str | None:
        """Return the most urgent tenant at or below `level`; None when there is none."""
        return self._least(self._inside, level)

    def longest_overdue(self, level: int) -> str | None:
        """Return the tenant at or below `level` with the oldest overdue request; None when there is none."""
        return self._least(self._late, level)

    def _least(self, tenants: LeastKey[Key], level: int) -> str | None:
        while (name := tenants.least()) is not None:
            if self._counter(name) <= level:
                return name
            self.discard(name)
            self._outside.add(name)
        return None

    def most_urgent(self, level: int, most: int) -> list[str]:
        """Return up to `most` tenants at or below `level`, the most urgent first. O(most * log n)."""
        found: list[str] = []
        while len(found) < most and (name := self.first(level)) is not None:
            found.append(name)
            self._inside.discard(name)
        for name in found:
            self._inside.add(name)
        return found
