"""Two counters a tenant that are scheduled by as one: what its users felt and what the engine spent, exact in integers.

HF = A * user + B * resource with A + B = `WHOLE`, all integers, so that undoing a charge gives back exactly what was
there. Charging, settling, refunds and the floor that keeps an idle tenant from banking credit are those of `counters`,
of HF as one counter; the parts follow. Where HF is raised without a charge (a lift, a refund from before one), both
parts rise by the same amount.
"""

from typing import Final

from typing_extensions import override

from equipoise_scheduling.counters import SCALE, Account, Charge

WHOLE: Final = 1000
UNIT: Final = SCALE * WHOLE
"""Units of HF in one weighted token of a tenant of weight 1."""


class Dues:
    """What a request in flight has been charged, in parts."""

    __slots__ = ("resource", "user")

    def __init__(self, user: int = 0, resource: int = 0) -> None:
        self.user = user
        self.resource = resource


class DualAccount(Account):
    """One tenant's HF, with its parts."""

    __slots__ = ("resource", "user")

    def __init__(self, value: int = 0, user: int = 0, resource: int = 0) -> None:
        super().__init__(value)
        self.user = user
        self.resource = resource

    @override
    def copy(self) -> "DualAccount":
        other = DualAccount(self.value, self.user, self.resource)
        other.floor, other.lifts = self.floor, self.lifts
        return other

    @override
    def lift(self, level: int) -> None:
        shortfall = max(0, level - self.value)
        super().lift(level)
        self._raise(shortfall)

    def add_both(self, amount: int) -> None:
        """Count service that belongs to no request in flight, in parts of SCALE."""
        self.add(amount * WHOLE)
        self._raise(amount * WHOLE)

    def charge(self, charge: Charge, old: Dues, new: Dues, share: int) -> int:
        """Replace what a request was charged, `share` of WHOLE by its user part; return how HF changed."""
        before = self.value
        self.settle(charge, share * new.user + (WHOLE - share) * new.resource)
        user, resource = new.user - old.user, new.resource - old.resource
        self.user += user
        self.resource += resource
        change = self.value - before
        self._raise(change - share * user - (WHOLE - share) * resource)
        return change

    def _raise(self, amount: int) -> None:
        self.user += amount // WHOLE
        self.resource += amount // WHOLE
