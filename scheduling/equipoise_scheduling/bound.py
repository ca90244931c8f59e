"""The published fairness bound: derived here, computed live, and watched.

Symbols: c_f is f's counter, w_f its weight, S_f its delivered service over w_f, W_f the service delivered in an
interval; u_f what f has in flight that is expected (or turns out) to come and is not delivered, p_f <= u_f the part of
it that is charged; all just after a dispatch of f where no time is given.

    U = max u_f,   P = max p_f,   A = max (u_f after a dispatch - p_f before it)       over tenants and dispatches

**Claim.** Two tenants f and g that stay backlogged over any interval get, under a scheduler that serves the least
counter and stops when its head does not fit,

    |W_f/w_f - W_g/w_g| <= (A + P)/w_f + (A + P)/w_g + R.

Derivation. While f is backlogged q_f = c_f - p_f/w_f moves exactly as S_f does. At f's last dispatch before time t, at
time s, c_f(s-) <= c_g(s-), and after it f receives at most what was then in flight, so

    q_f(t) <= c_f(s-) - p_f(s-)/w_f + u_f(s+)/w_f <= c_g(s-) + A/w_f = q_g(s-) + p_g(s-)/w_g + A/w_f
           <= q_g(t) + P/w_g + A/w_f.

So D = q_f - q_g lies within [-(A/w_g + P/w_f), A/w_f + P/w_g] at any time, and the service of an interval differs by
at most the width of that range. From a moment when both were level (D = 0) the difference is at most one end of it:
A/w_f + P/w_g <= U/w_f + U/w_g. Over *any* interval it can reach the width: let f be charged and not yet served while g
is served at once, and then the reverse. With output charged token by token A is about U and P the undelivered prompts;
with output charged ahead P is about U and A one request's cost. Either way A + P is U and little more.

R is how far the lift can lag: a tenant is lifted to the least counter of the backlogged, which falls when a refund
arrives, and a request put back does not lift its tenant. R is the most by which anybody joined below the highest
least counter seen before. Without refunds and requests put back R = 0.

E is how far above the least counter of the backlogged a scheduler may choose (0 for one that serves the least): the
chain above becomes c_f(s-) <= c_g(s-) + E, each end of the range moves by E, and the bound is

    |W_f/w_f - W_g/w_g| <= (A + P)/w_f + (A + P)/w_g + R + 2E.

Equipoise's E is its band and the refunds outstanding (see there).

VTC's paper (arXiv 2401.00588, theorem 4.4) has |W_f - W_g| <= 2U with U = max(wp*Lin, wq*M), for weights 1, output
charged on delivery and counting input as served at dispatch. That U holds where every request reserves in + max_tokens;
this one is measured, and holds under any gate.

**Exactness.** U, A, P, R, E are exact up to estimates: output beyond its prediction, a prompt longer than estimated and
an estimate taken back raise the past dispatches at which they were in flight. They cover the last one to two
generations (`GENERATION` ticks each) and the requests still in flight. The gap is measured between ticks, over the
intervals from about eight past ticks (1 to `MAX_AGE` ticks old) to this one, for all pairs at once (above 1,000
backlogged tenants from some of them in turn): it can miss a gap that opens and closes between ticks and never invents
one.
"""

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from equipoise_scheduling.books import Tenant
from equipoise_scheduling.contract import Bound

GENERATION = 300
MAX_AGE = 256
SEATS_A_LOOK = 8_000
"""Comparisons with landmarks that one look may cost; with more to do it takes the landmarks in turn."""
SEATS_A_SECOND = 2_000
"""Backlogged tenants looked at in a second: with more the watch looks less often."""


class Flight(Protocol):
    """What the watch reads and notes of a request in flight: `books.Flight`, or a counter's own account of it."""

    weight: float
    charged: float
    expected: float
    delivered: float
    instant: int
    undelivered: float
    pending: float
    watched: float

    @property
    def tenant(self) -> Tenant:
        """Whose it is."""


class RisingMaximum:
    """Maximum over a tenant's dispatches when a later fact may raise all those since a given one.

    A dispatch that is not above a later one never will be, since what raises it raises the later one too: only the
    strictly falling values are kept. O(1) amortised a dispatch, O(kept) a raise.
    """

    __slots__ = ("_before", "_kept")

    def __init__(self) -> None:
        self._kept: list[tuple[int, float]] = []
        self._before = 0.0

    def add(self, instant: int, value: float) -> None:
        """Record the value of dispatch number `instant`."""
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

    def age(self, oldest: int | None) -> None:
        """Start a generation: forget the one before the last; only dispatches since `oldest` may still rise."""
        self._before = self._kept[0][1] if self._kept else 0.0
        self._kept = [] if oldest is None else [entry for entry in self._kept if entry[0] >= oldest]

    @property
    def value(self) -> float:
        """The maximum over this generation and the last, 0 of nothing."""
        return max(self._before, self._kept[0][1]) if self._kept else self._before


@dataclass(slots=True)
class Seat:
    """What the watch knows of one tenant. Cost units, `service` over weight."""

    weight: float
    since: int | None = None
    """The tick before which it became backlogged; None while it is not."""
    dispatches: int = 0
    service: float = 0.0
    undelivered: float = 0.0
    pending: float = 0.0
    total: RisingMaximum = field(default_factory=RisingMaximum)
    """u after each dispatch."""
    charged: RisingMaximum = field(default_factory=RisingMaximum)
    """p after each dispatch."""
    arriving: RisingMaximum = field(default_factory=RisingMaximum)
    """u after each dispatch less p before it."""


@dataclass(frozen=True, slots=True)
class Landmark:
    """Delivered service of the backlogged tenants at a past tick."""

    tick: int
    service: dict[str, float]


@dataclass(frozen=True, slots=True)
class Gap:
    """The pair that came closest to its limit."""

    excess: float
    gap: float
    limit: float


class BoundWatch:
    """Keeps U, A, P, R and E as requests come and go, and compares the gaps between tenants with the bound at ticks."""

    def __init__(self) -> None:
        self._seats: dict[str, Seat] = {}
        self._ticks = 0
        self._next_look = float("-inf")
        self._landmarks: list[Landmark] = []
        self._reached = [float("-inf")] * 2
        """Highest least counter in this generation and the last."""
        self._lag = [0.0] * 2
        """R of this generation and the last."""
        self._slack = [0.0] * 2
        """E of this generation and the last."""
        self._closest: list[Gap | None] = [None, None]
        self._most_undelivered = self._most_arriving = self._most_charged = 0.0
        """U, A and P."""

    # -- events

    def reached(self, least: float) -> None:
        """Note the least counter of the backlogged, over weight, at a dispatch or a lift."""
        self._reached[0] = max(self._reached[0], least)

    def strayed(self, slack: float) -> None:
        """Note how far above the least counter of the backlogged, over weight, the scheduler may choose or lift."""
        self._slack[0] = max(self._slack[0], slack)

    def joined(self, name: str, weight: float, counter: float) -> None:
        """Note that a tenant becomes backlogged with `counter`, after its lift."""
        seat = self._seat(name, weight)
        seat.since = self._ticks
        highest = max(self._reached)
        if highest > counter:
            self._lag[0] = max(self._lag[0], highest - counter)

    def left(self, name: str) -> None:
        """Note that a tenant is no longer backlogged."""
        self._seats[name].since = None

    def dispatched(self, flight: Flight) -> None:
        """Note a request that goes into flight; its costs are set."""
        seat = self._seat(flight.tenant.name, flight.weight)
        seat.dispatches += 1
        flight.instant = seat.dispatches
        before = seat.pending
        flight.undelivered = max(0.0, flight.expected - flight.delivered)
        flight.pending = max(0.0, flight.charged - flight.delivered)
        flight.watched = flight.delivered
        seat.undelivered += flight.undelivered
        seat.pending += flight.pending
        seat.total.add(flight.instant, seat.undelivered)
        seat.charged.add(flight.instant, seat.pending)
        seat.arriving.add(flight.instant, seat.undelivered - before)
        self._widen(seat)

    def recounted(self, flight: Flight) -> None:
        """Note that a flight's counts changed: something was delivered, or an estimate was corrected."""
        seat = self._seats[flight.tenant.name]
        undelivered = max(0.0, flight.expected - flight.delivered)
        pending = max(0.0, flight.charged - flight.delivered)
        delivered = flight.delivered - flight.watched
        unforeseen = delivered + undelivered - flight.undelivered
        if delivered < 0:
            # Service that was only estimated is taken back: it had been in flight, charged, all the time.
            seat.charged.raise_since(flight.instant, -delivered)
            self._widen(seat)
        elif unforeseen > 0:
            seat.total.raise_since(flight.instant, unforeseen)
            seat.arriving.raise_since(flight.instant, unforeseen)
            self._widen(seat)
        seat.service += delivered / flight.weight
        seat.undelivered += undelivered - flight.undelivered
        seat.pending += pending - flight.pending
        flight.undelivered, flight.pending, flight.watched = undelivered, pending, flight.delivered

    def undone(self, flight: Flight) -> None:
        """Note a dispatch that was undone; nothing of the flight is delivered."""
        seat = self._seats[flight.tenant.name]
        seat.undelivered -= flight.undelivered
        seat.pending -= flight.pending
        seat.service -= flight.watched / flight.weight

    def added(self, name: str, weight: float, cost: float) -> None:
        """Note service that a tenant had elsewhere: it came all at once, after the last dispatch."""
        seat = self._seat(name, weight)
        seat.service += cost / weight
        seat.total.raise_since(seat.dispatches, cost)
        seat.arriving.raise_since(seat.dispatches, cost)
        self._widen(seat)

    def _widen(self, seat: Seat) -> None:
        """Keep the maxima over tenants, which only rise within a generation."""
        self._most_undelivered = max(self._most_undelivered, seat.total.value)
        self._most_arriving = max(self._most_arriving, seat.arriving.value)
        self._most_charged = max(self._most_charged, seat.charged.value)

    def _seat(self, name: str, weight: float) -> Seat:
        seat = self._seats.get(name)
        if seat is None:
            seat = self._seats[name] = Seat(weight)
        elif seat.weight != weight:
            # What is in flight was charged at the old weight and may count for more than the new one says.
            self._lag[0] = max(self._lag[0], 2 * seat.undelivered / min(weight, seat.weight))
            seat.weight = weight
        return seat

    # -- looking

    def tick(self, now: float, flights: Iterable[Flight]) -> None:
        """Compare gaps and bound. O(backlogged tenants), in looks spaced so that a second costs a fixed amount."""
        if now < self._next_look:
            return
        self._ticks += 1
        backlogged = {name: seat for name, seat in self._seats.items() if seat.since is not None}
        self._next_look = now + max(1.0, len(backlogged) / SEATS_A_SECOND)
        if self._ticks % GENERATION == 0:
            self._age(flights)
        if len(backlogged) > 1:
            self._look(backlogged)
        self._landmarks.append(
            Landmark(self._ticks, {name: seat.service for name, seat in backlogged.items()})
        )
        self._landmarks = [mark for mark in self._landmarks if self._ticks - mark.tick <= _worth(mark.tick)]

    def _look(self, backlogged: dict[str, Seat]) -> None:
        reach, allowance = self.reach, self.allowance
        marks = self._landmarks
        at_once = max(1, SEATS_A_LOOK // len(backlogged))
        if len(marks) > at_once:
            start = self._ticks * at_once % len(marks)
            marks = (marks + marks)[start : start + at_once]
        for mark in marks:
            rows: list[tuple[float, float]] = []
            for name, then in mark.service.items():
                seat = backlogged.get(name)
                if seat is not None and seat.since is not None and seat.since < mark.tick:
                    rows.append((seat.service - then, reach / seat.weight))
            if len(rows) < 2:
                continue
            # Two of each: with unequal weights one tenant may be first at both ends, and a pair has two members.
            ahead = heapq.nlargest(2, range(len(rows)), key=lambda row: rows[row][0] - rows[row][1])
            behind = heapq.nsmallest(2, range(len(rows)), key=lambda row: rows[row][0] + rows[row][1])
            for first, second in itertools.product(ahead, behind):
                if first != second:
                    gap = rows[first][0] - rows[second][0]
                    self._note(gap, rows[first][1] + rows[second][1] + allowance)

    def _note(self, gap: float, limit: float) -> None:
        """Keep the pair that came closest to its limit."""
        closest = self._closest[0]
        if closest is None or gap - limit > closest.excess:
            self._closest[0] = Gap(gap - limit, gap, limit)

    def _age(self, flights: Iterable[Flight]) -> None:
        oldest: dict[str, int] = {}
        for flight in flights:
            name = flight.tenant.name
            oldest[name] = min(flight.instant, oldest.get(name, flight.instant))
        for name, seat in list(self._seats.items()):
            first = oldest.get(name)
            if first is None:
                seat.undelivered = seat.pending = 0.0
                if seat.since is None and not seat.dispatches:
                    del self._seats[name]
                    continue
                seat.dispatches = 0
            for maximum in (seat.total, seat.charged, seat.arriving):
                maximum.age(first)
        self._most_undelivered = self._most_arriving = self._most_charged = 0.0
        for seat in self._seats.values():
            self._widen(seat)
        self._reached = [float("-inf"), self._reached[0]]
        self._lag = [0.0, self._lag[0]]
        self._slack = [0.0, self._slack[0]]
        self._closest = [None, self._closest[0]]

    # -- figures

    @property
    def reach(self) -> float:
        """A + P."""
        return self._most_arriving + self._most_charged

    @property
    def allowance(self) -> float:
        """R + 2E."""
        return max(self._lag) + 2 * max(self._slack)

    @property
    def undelivered(self) -> float:
        """U."""
        return self._most_undelivered

    def limit(self, f_weight: float, g_weight: float) -> float:
        """Return the most by which the service over weight of two tenants may differ."""
        return self.reach / f_weight + self.reach / g_weight + self.allowance

    def bound(self) -> Bound:
        """Return the bound and the pair that came closest to it in this generation and the last. O(1) once two were."""
        seen = [gap for gap in self._closest if gap is not None]
        undelivered = self._most_undelivered
        if not seen:
            least = sorted(seat.weight for seat in self._seats.values())[:2]
            limit = self.reach * sum(1 / weight for weight in least) + self.allowance
            return Bound(undelivered=undelivered, limit=limit, gap=0.0, met=True)
        closest = max(seen, key=lambda gap: gap.excess)
        met = closest.excess <= 1e-6 * closest.limit + 0.01
        return Bound(undelivered=undelivered, limit=closest.limit, gap=closest.gap, met=met)


def _worth(tick: int) -> int:
    """Return the age in ticks up to which a landmark is kept: the rounder its number, the longer."""
    worth = 2
    while tick % 4 == 0 and worth < MAX_AGE:
        tick //= 4
        worth *= 4
    return worth
