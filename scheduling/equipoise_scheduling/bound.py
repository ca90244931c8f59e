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
arrives, and a request put back does not lift its tenant. Then c_f(s-) <= c_g + R where g joined after s. R is the most by
which anybody joined below the highest least counter seen before; without refunds and requests put back R = 0. It counts
once: if f has no dispatch in the interval it gets u_f <= A + P at most; if it has, g was backlogged at the last of them,
so R is in the other end of the range alone.

A tenant whose c_f does not rest on a dispatch that is remembered (one that another scheduler or a former process served
far beyond the others, or that waits for long because its weight is small) is ahead by what its counter says. R covers
that too: when such a tenant joins, and when a generation of dispatches is forgotten.

A refund that the lift has forestalled (see `Account`) takes p_f down and leaves c_f: q_f rises by l and S_f does not. The
range holds for q_f + l as well from g's or f's last dispatch on, since what is in flight is delivered, refunded or so
forestalled but once, and so the claim does.

Where a weight changes w_f is the least that f had.

E is how far above the least counter of the backlogged a scheduler may choose (0 for one that serves the least): the
chain above becomes c_f(s-) <= c_g(s-) + E, each end of the range moves by E, and the bound is

    |W_f/w_f - W_g/w_g| <= (A + P)/w_f + (A + P)/w_g + R + 2E.

Equipoise's E is its band and the refunds outstanding (see there).

VTC's paper (arXiv 2401.00588, theorem 4.4) has |W_f - W_g| <= 2U with U = max(wp*Lin, wq*M), for weights 1, output
charged on delivery and counting input as served at dispatch. That U holds where every request reserves in + max_tokens;
this one is measured, and holds under any gate.

**Exactness.** U, A, P, R, E are exact up to estimates: output beyond its prediction, a prompt longer than estimated and
an estimate taken back raise the past dispatches at which they were in flight. They cover the generations that are
remembered (`generations.py`) and the requests still in flight. The gap is measured between ticks, over the intervals
from about eight past ticks (1 to `MAX_AGE` ticks old) to this one, for all pairs at once (above 1,000 backlogged tenants
from some of them in turn): it can miss a gap that opens and closes between ticks and never invents one.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from equipoise_scheduling.books import Tenant
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

MAX_AGE = 256
"""Of the intervals compared, in ticks; at most a generation."""
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


def _maximum() -> RecentMaximum[float]:
    return RecentMaximum(0.0)


@dataclass(slots=True)
class Seat:
    """What the watch knows of one tenant. Cost units, `service` over weight."""

    weight: float
    since: int | None = None
    """The tick before which it became backlogged; None while it is not."""
    dispatches: int = 0
    dispatched: int = NEVER
    """The generation of its last dispatch."""
    service: float = 0.0
    undelivered: float = 0.0
    pending: float = 0.0
    lightest: RecentMaximum[float] = field(default_factory=_maximum)
    """1 over the weights that it had."""
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


class BoundWatch:
    """Keeps U, A, P, R and E as requests come and go, and compares the gaps between tenants with the bound at ticks."""

    def __init__(self) -> None:
        self._seats: dict[str, Seat] = {}
        self._ticks = 0
        self._next_look = float("-inf")
        self._landmarks: list[Landmark] = []
        self._lag = Lag()
        self._slack = _maximum()
        """E."""
        self._closest = RecentMaximum(NO_GAP)
        """The pair that came closest to its limit."""
        self._most_undelivered = self._most_arriving = self._most_charged = 0.0
        """U, A and P."""

    # -- events

    def reached(self, least: float) -> None:
        """Note the least counter of the backlogged, over weight, at a dispatch or a lift."""
        self._lag.reached(least)

    def strayed(self, slack: float) -> None:
        """Note how far above the least counter of the backlogged, over weight, the scheduler may choose or lift."""
        self._slack.note(slack)

    def joined(self, name: str, weight: float, counter: float, level: float | None) -> None:
        """Note that a tenant becomes backlogged with `counter`, after its lift.

        `level` is the least of those that are backlogged already, or what a lift takes to; None where there are none.
        """
        seat = self._seat(name, weight)
        seat.since = self._ticks
        if not self._remembers(seat):
            self._lag.stands(counter, level)
        self._lag.joined(counter)

    def left(self, name: str) -> None:
        """Note that a tenant is no longer backlogged."""
        self._seats[name].since = None

    def dispatched(self, flight: Flight) -> None:
        """Note a request that goes into flight; its costs are set."""
        seat = self._seat(flight.tenant.name, flight.weight)
        seat.dispatches += 1
        seat.dispatched = self._generation
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
        seat.total.raise_last(cost)
        seat.arriving.raise_last(cost)
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
        seat.weight = weight
        seat.lightest.note(1 / weight)
        return seat

    @property
    def _generation(self) -> int:
        return self._ticks // GENERATION

    def _remembers(self, seat: Seat) -> bool:
        """Say whether the seat's last dispatch will be remembered as long as this generation is compared."""
        return seat.dispatched >= self._generation - 1

    # -- looking

    def tick(self, now: float, flights: Iterable[Flight], counter: Callable[[str], float]) -> None:
        """Compare gaps and bound. O(backlogged tenants), in looks spaced so that a second costs a fixed amount.

        `counter` gives a tenant's counter over weight.
        """
        if now < self._next_look:
            return
        self._ticks += 1
        backlogged = {name: seat for name, seat in self._seats.items() if seat.since is not None}
        self._next_look = now + max(1.0, len(backlogged) / SEATS_A_SECOND)
        if self._ticks % GENERATION == 0:
            self._age(flights, {name: counter(name) for name in backlogged})
        if len(backlogged) > 1:
            self._look(backlogged)
        self._landmarks.append(
            Landmark(self._ticks, {name: seat.service for name, seat in backlogged.items()})
        )
        self._landmarks = [mark for mark in self._landmarks if self._ticks - mark.tick <= _worth(mark.tick)]

    def _look(self, backlogged: dict[str, Seat]) -> None:
        reach, allowance = self.reach, self.allowance
        margins = {name: reach * seat.lightest.value for name, seat in backlogged.items()}
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
                    rows.append((seat.service - then, margins[name]))
            if len(rows) < 2:
                continue
            # Two of each: with unequal weights one tenant may be first at both ends, and a pair has two members.
            ahead = heapq.nlargest(2, range(len(rows)), key=lambda row: rows[row][0] - rows[row][1])
            behind = heapq.nsmallest(2, range(len(rows)), key=lambda row: rows[row][0] + rows[row][1])
            for first, second in itertools.product(ahead, behind):
                if first != second:
                    gap = rows[first][0] - rows[second][0]
                    limit = rows[first][1] + rows[second][1] + allowance
                    self._closest.note(Gap.of(gap, limit))

    def _age(self, flights: Iterable[Flight], backlogged: dict[str, float]) -> None:
        """Start a generation; `backlogged` gives their counters."""
        oldest: dict[str, int] = {}
        lightest: dict[str, float] = {}
        for flight in flights:
            name = flight.tenant.name
            oldest[name] = min(flight.instant, oldest.get(name, flight.instant))
            lightest[name] = max(1 / flight.weight, lightest.get(name, 0.0))
        self._most_undelivered = self._most_arriving = self._most_charged = 0.0
        for name, seat in list(self._seats.items()):
            first = oldest.get(name)
            for maximum in (seat.total, seat.charged, seat.arriving):
                maximum.age(first)
            seat.lightest.age()
            seat.lightest.note(max(1 / seat.weight, lightest.get(name, 0.0)))
            self._widen(seat)
            if first is None:
                seat.undelivered = seat.pending = 0.0
                if seat.since is None and not (seat.total.value or seat.charged.value):
                    del self._seats[name]
        self._lag.age()
        self._slack.age()
        self._closest.age()
        least = min(backlogged.values(), default=0.0)
        for name, counter in backlogged.items():
            if not self._remembers(self._seats[name]):
                self._lag.stands(counter, least)

    # -- figures

    @property
    def reach(self) -> float:
        """A + P."""
        return self._most_arriving + self._most_charged

    @property
    def lag(self) -> float:
        """R."""
        return self._lag.value

    @property
    def slack(self) -> float:
        """E."""
        return self._slack.value

    @property
    def allowance(self) -> float:
        """R + 2E."""
        return self.lag + 2 * self.slack

    @property
    def undelivered(self) -> float:
        """U."""
        return self._most_undelivered

    def limit(self, f_weight: float, g_weight: float) -> float:
        """Return the most by which the service over weight of two tenants may differ."""
        return self.reach / f_weight + self.reach / g_weight + self.allowance

    def bound(self) -> Bound:
        """Return the bound and the pair that came closest to it, of the generations remembered. O(1) once two were."""
        closest = self._closest.value
        undelivered = self._most_undelivered
        if closest is NO_GAP:
            least = sorted(seat.weight for seat in self._seats.values())[:2]
            limit = self.reach * sum(1 / weight for weight in least) + self.allowance
            return Bound(undelivered=undelivered, limit=limit, gap=0.0, met=True)
        return Bound(undelivered=undelivered, limit=closest.limit, gap=closest.gap, met=closest.met)


def _worth(tick: int) -> int:
    """Return the age in ticks up to which a landmark is kept: the rounder its number, the longer."""
    worth = 2
    while tick % 4 == 0 and worth < MAX_AGE:
        tick //= 4
        worth *= 4
    return worth
