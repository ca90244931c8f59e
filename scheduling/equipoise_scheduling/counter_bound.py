"""The bound on the distance of two counters that are charged by prediction and corrected later: live, and watched.

For schedulers whose counter is not delivered service (`bound` is for those): c_f is what f was charged, over weight.
Serve the backlogged tenant with the least counter, lift whoever joins to the least of the backlogged; then for two
backlogged tenants at any time

    c_f - c_g <= D + E+ + E- + R.

Derivation. Let s be f's last dispatch. c_f(s-) <= c_g(s-), for g backlogged at s. After it f's counter rises by that
dispatch's charge (at most D) and by upward corrections of f's requests then in flight (E+); g's falls by at most
the downward corrections of its requests in flight at s (E-), a dispatch undone counting as one. If g joined after s,
it joined at most R below the highest least counter seen before, and c_f(s-) was such a one.

Over an interval the difference moves from one end of that range to the other: twice the bound.

D + E+ and E- are measured: each dispatch's charge, raised by every later upward correction to a request that was in
flight after it, and the sum of the downward ones; the maxima cover the last one to two generations (`GENERATION`
ticks each) and all that is in flight. Ticks compare the counters of all backlogged tenants, so a gap that opens and
closes between two ticks may be missed, and none is invented.

Source: the argument of VTC (arXiv 2401.00588, theorem 4.4), with corrections; Equinox (arXiv 2508.16646) needs it.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from equipoise_scheduling.books import Flight
from equipoise_scheduling.bound import GENERATION, RisingMaximum
from equipoise_scheduling.contract import Bound


@dataclass(slots=True)
class _Seat:
    """What the watch knows of one tenant, in the counter's unit."""

    dispatches: int = 0
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
        self._reached = [float("-inf")] * 2
        """Highest least counter in this generation and the last."""
        self._lag = [0.0] * 2
        """R of this generation and the last."""
        self._gap = [0.0] * 2
        """Largest gap between two of the backlogged in this generation and the last."""

    # -- events

    def reached(self, least: float) -> None:
        """Note the least counter of the backlogged, at a dispatch or a lift."""
        self._reached[0] = max(self._reached[0], least)

    def joined(self, counter: float) -> None:
        """Note that a tenant becomes backlogged with `counter`, after its lift."""
        self._lag[0] = max(self._lag[0], max(self._reached) - counter)

    def dispatched(self, flight: Flight, charge: float) -> None:
        """Note a request that goes into flight and what that adds to its tenant's counter."""
        seat = self._seats.setdefault(flight.tenant.name, _Seat())
        seat.dispatches += 1
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
        seat.rise.add(seat.dispatches, 0.0)
        seat.rise.raise_since(seat.dispatches, change)
        self._widen(seat)

    def _widen(self, seat: _Seat) -> None:
        self._most_rise = max(self._most_rise, seat.rise.value)
        self._most_fall = max(self._most_fall, seat.fall.value)

    # -- looking

    @property
    def limit(self) -> float:
        """D + E+ + E- + R."""
        return self._most_rise + self._most_fall + max(self._lag)

    def tick(self, backlogged: Collection[float], flights: Iterable[Flight]) -> None:
        """Compare the counters of the backlogged with the bound. O(backlogged)."""
        self._ticks += 1
        if self._ticks % GENERATION == 0:
            self._age(flights)
        if len(backlogged) > 1:
            self._gap[0] = max(self._gap[0], max(backlogged) - min(backlogged))

    def _age(self, flights: Iterable[Flight]) -> None:
        oldest: dict[str, int] = {}
        for flight in flights:
            name = flight.tenant.name
            oldest[name] = min(flight.instant, oldest.get(name, flight.instant))
        self._most_rise = self._most_fall = 0.0
        for name, seat in list(self._seats.items()):
            first = oldest.get(name)
            if first is None and not seat.rise.value and not seat.fall.value:
                del self._seats[name]
                continue
            seat.rise.age(first)
            seat.fall.age(first)
            self._widen(seat)
        self._reached = [float("-inf"), self._reached[0]]
        self._lag = [0.0, self._lag[0]]
        self._gap = [0.0, self._gap[0]]

    def bound(self) -> Bound:
        """Return the bound and the largest gap, of this generation and the last.

        The limit only rises within a generation, as what was in flight turns out: a gap is compared with the last word.
        """
        limit, gap = self.limit, max(self._gap)
        return Bound(undelivered=self._most_rise, limit=limit, gap=gap, met=gap <= limit * (1 + 1e-6) + 0.01)
