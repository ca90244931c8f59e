"""The bound on the distance of two counters that are charged by prediction and corrected later: live, and watched.

For schedulers whose counter is not delivered service (`bound` is for those): c_f is what f was charged, over weight.
Serve the backlogged tenant with the least counter, lift whoever joins to the least of the backlogged; then for two
backlogged tenants at any time

    c_f - c_g <= D + E+ + E- + R.

Derivation. Let s be f's last dispatch. c_f(s-) <= c_g(s-), for g backlogged at s. After it f's counter rises by that
dispatch's charge (at most D) and by upward corrections of f's requests then in flight (E+); g's falls by at most
the downward corrections of its requests in flight at s (E-), a dispatch undone counting as one. If g joined after s,
it joined at most R below the highest least counter seen before, and c_f(s-) was such a one. Where s is not remembered c_f
itself is: see `generations.Lag`.

Over an interval the difference moves from one end of that range to the other: twice the bound.

D + E+ and E- are measured: each dispatch's charge, raised by every later upward correction to a request that was in
flight after it, and the sum of the downward ones; the maxima cover the generations that are remembered
(`generations.py`) and all that is in flight. Ticks compare the counters of all backlogged tenants, so a gap that opens
and closes between two ticks may be missed, and none is invented.

Source: the argument of VTC (arXiv 2401.00588, theorem 4.4), with corrections; Equinox (arXiv 2508.16646) needs it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from equipoise_scheduling.books import Flight
from equipoise_scheduling.contract import Bound
from equipoise_scheduling.generations import (
    GENERATION,
    NEVER,
    NO_GAP,
    Gap,
    Lag,
    RecentMaximum,
    RisingMaximum,
)


@dataclass(slots=True)
class _Seat:
    """What the watch knows of one tenant, in the counter's unit."""

    dispatches: int = 0
    dispatched: int = NEVER
    """The generation of its last dispatch."""
    rise: RisingMaximum = field(default_factory=RisingMaximum)
    """D + E+ of each dispatch."""
    fall: RisingMaximum = field(default_factory=RisingMaximum)
    """E- after each dispatch."""


class CounterWatch:
    """Keeps D + E+, E- and R as charges come and go, and compares the counters of the backlogged at ticks."""

    def __init__(self) -> None:
        self._seats: dict[str, _Seat] = {}
        self._ticks = 0
        self._most_rise = self._most_fall = 0.0
        self._lag = Lag()
        self._closest = RecentMaximum(NO_GAP)

    # -- events

    def reached(self, least: float) -> None:
        """Note the least counter of the backlogged, at a dispatch or a lift."""
        self._lag.reached(least)

    def joined(self, name: str, counter: float, level: float | None) -> None:
        """Note that a tenant becomes backlogged with `counter`, after its lift.

        `level` is the least of those that are backlogged already; None where there are none.
        """
        if not self._remembers(name):
            self._lag.stands(counter, level)
        self._lag.joined(counter)

    def dispatched(self, flight: Flight, charge: float) -> None:
        """Note a request that goes into flight and what that adds to its tenant's counter."""
        seat = self._seats.setdefault(flight.tenant.name, _Seat())
        seat.dispatches += 1
        seat.dispatched = self._generation
        flight.instant = seat.dispatches
        seat.rise.add(flight.instant, charge)
        seat.fall.add(flight.instant, 0.0)
        self._widen(seat)

    def corrected(self, flight: Flight, change: float) -> None:
        """Note that a request in flight, or one that ends, corrects its tenant's counter."""
        seat = self._seats[flight.tenant.name]
        if change > 0:
            seat.rise.raise_since(flight.instant, change)
        else:
            seat.fall.raise_since(flight.instant, -change)
        self._widen(seat)

    def added(self, name: str, change: float) -> None:
        """Note service that a tenant had elsewhere: it came all at once, after its last dispatch."""
        seat = self._seats.setdefault(name, _Seat())
        seat.rise.raise_last(change)
        self._widen(seat)

    def _widen(self, seat: _Seat) -> None:
        self._most_rise = max(self._most_rise, seat.rise.value)
        self._most_fall = max(self._most_fall, seat.fall.value)

    @property
    def _generation(self) -> int:
        return self._ticks // GENERATION

    def _remembers(self, name: str) -> bool:
        """Say whether the tenant's last dispatch will be remembered as long as this generation is compared."""
        seat = self._seats.get(name)
        return seat is not None and seat.dispatched >= self._generation - 1

    # -- looking

    @property
    def limit(self) -> float:
        """D + E+ + E- + R."""
        return self._most_rise + self._most_fall + self._lag.value

    def tick(self, backlogged: Mapping[str, float], flights: Iterable[Flight]) -> None:
        """Compare the counters of the backlogged with the bound. O(backlogged)."""
        self._ticks += 1
        if self._ticks % GENERATION == 0:
            self._age(backlogged, flights)
        if len(backlogged) > 1:
            limit, gap = self.limit, max(backlogged.values()) - min(backlogged.values())
            self._closest.note(Gap.of(gap, limit))

    def _age(self, backlogged: Mapping[str, float], flights: Iterable[Flight]) -> None:
        oldest: dict[str, int] = {}
        for flight in flights:
            name = flight.tenant.name
            oldest[name] = min(flight.instant, oldest.get(name, flight.instant))
        self._most_rise = self._most_fall = 0.0
        for name, seat in list(self._seats.items()):
            first = oldest.get(name)
            seat.rise.age(first)
            seat.fall.age(first)
            if first is None and not (seat.rise.value or seat.fall.value):
                del self._seats[name]
            self._widen(seat)
        self._lag.age()
        self._closest.age()
        least = min(backlogged.values(), default=0.0)
        for name, counter in backlogged.items():
            if not self._remembers(name):
                self._lag.stands(counter, least)

    def bound(self) -> Bound:
        """Return the bound and the gap that came closest to it, of the generations remembered."""
        closest = self._closest.value
        if closest is NO_GAP:
            return Bound(undelivered=self._most_rise, limit=self.limit, gap=0.0, met=True)
        return Bound(undelivered=self._most_rise, limit=closest.limit, gap=closest.gap, met=closest.met)
