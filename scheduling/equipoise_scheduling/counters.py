"""Virtual counters: charge, settle, refund and lift, in integers so that undoing is exact.

A counter is weighted service over weight, counted in 2**-20 of a cost unit. Integers make "undo" give back exactly
what was there, keep snapshots exact, and have no drift over years of tokens.
"""

SCALE = 1 << 20
"""Counter units in one cost unit of a tenant of weight 1."""


def units(cost: float, weight: float) -> int:
    """Convert a cost of a tenant of that weight into counter units."""
    return round(cost * SCALE / weight)


class Charge:
    """What one request in flight has added to its tenant's counter, before and after the tenant's last lift."""

    __slots__ = ("after", "before", "lift")

    def __init__(self) -> None:
        self.before = 0
        self.after = 0
        self.lift = 0

    def copy(self) -> "Charge":
        """Return an independent copy."""
        other = Charge()
        other.before, other.after, other.lift = self.before, self.after, self.lift
        return other


class Account:
    """One tenant's counter.

    Invariant: value >= floor. `floor` is what the counter would be had everything charged before the last lift been refunded before
    it, so a late refund cannot bring back credit that the lift took (an idle tenant banks nothing).
    """

    __slots__ = ("floor", "lifts", "value")

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.floor = value
        self.lifts = 0

    def copy(self) -> "Account":
        """Return an independent copy."""
        other = Account()
        other.value, other.floor, other.lifts = self.value, self.floor, self.lifts
        return other

    def lift(self, level: int) -> None:
        """Raise the counter of a tenant that comes back to at least `level`."""
        self.value = max(self.value, level)
        self.floor = level
        self.lifts += 1

    def add(self, amount: int) -> None:
        """Count service that belongs to no request in flight."""
        self.value += amount
        self.floor += amount

    def settle(self, charge: Charge, total: int) -> bool:
        """Make `total` what the request has been charged; True if the counter fell (a refund).

        What was charged since the last lift is given back in full; what was charged before it only as far as
        `floor` allows.
        """
        if charge.lift != self.lifts:
            charge.before += charge.after
            charge.after = 0
            charge.lift = self.lifts
        change = total - charge.before - charge.after
        if change >= 0:
            charge.after += change
            self.add(change)
            return False
        recent = max(change, -charge.after)
        charge.after += recent
        self.add(recent)
        old = change - recent
        if old:
            charge.before += old
            self.value = max(self.value + old, self.floor)
        return True
