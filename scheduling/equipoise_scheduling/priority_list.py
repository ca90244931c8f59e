"""One list of waiting requests in which a better priority moves forward by a bounded, proportional jump.

Source: the queue of ExFairS (AAAI 2026). The limit on how often a request is overtaken is ours: a bounded jump alone
starves a request behind a steady stream of better ones.
"""

from __future__ import annotations

from equipoise_scheduling.tally import Tally


class Place:
    """Where one request stands."""

    __slots__ = ("after", "ahead", "name", "overtaken", "position", "priority", "tenant")

    def __init__(self, name: str, tenant: str, priority: int, position: int) -> None:
        self.name = name
        """The request's id."""
        self.tenant = tenant
        self.priority = priority
        """At its arrival; smaller goes first."""
        self.position = position
        """Rises along the list; a request's own rises each time that it is overtaken."""
        self.overtaken = 0
        self.ahead: Place | None = None
        self.after: Place | None = None


class PriorityList:
    """Proportional insertion: a request of priority p joins at the tail and moves forward by

        min(2 * int(over * (1 - rho)), overtakes, over)

    requests, with over = waiting requests of a larger priority number, rho = rank of p among the distinct priorities
    that wait, p included, from 0 (best) to 1 (worst). It stops early at a request of its own tenant, of an equal or
    better priority, or that has been overtaken `overtakes` times.

    Invariants: positions rise strictly from the first to the last; of equal priorities and of one tenant's requests the
    one that joined first stands first; nobody is overtaken more than `overtakes` times.

    join is O(overtakes + log limit) and remove O(log limit), however many wait. put_back is linear in those that stand
    before the request, which are none but requests of tenants that were passed over.
    """

    def __init__(self, limit: int) -> None:
        """Start empty; priorities are within [-limit, limit]."""
        self._places: dict[str, Place] = {}
        self._priorities = Tally(limit)
        self._first: Place | None = None
        self._last: Place | None = None
        self._next_position = 0

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def join(self, name: str, tenant: str, priority: int, overtakes: int) -> None:
        """Add a request."""
        place = Place(name, tenant, priority, self._next_position)
        self._next_position += 1
        ahead = self._last
        for _ in range(self._jump(priority, overtakes)):
            if (
                ahead is None
                or ahead.priority <= priority
                or ahead.overtaken >= overtakes
                or ahead.tenant == tenant
            ):
                break
            ahead.position, place.position = place.position, ahead.position
            ahead.overtaken += 1
            ahead = ahead.ahead
        self._link(place, ahead)

    def _jump(self, priority: int, overtakes: int) -> int:
        over = self._priorities.above(priority)
        if not over:
            return 0
        # A worse priority than this one waits, so there are at least two distinct ones and rho = rank / worst.
        worst = self._priorities.distinct - (priority in self._priorities)
        rank = self._priorities.rank(priority)
        return min(2 * (over * (worst - rank) // worst), overtakes, over)

    def remove(self, name: str) -> Place:
        """Take a request out; KeyError if it does not wait."""
        place = self._places.pop(name)
        self._priorities.remove(place.priority)
        if place.ahead is None:
            self._first = place.after
        else:
            place.ahead.after = place.after
        if place.after is None:
            self._last = place.ahead
        else:
            place.after.ahead = place.ahead
        place.ahead = place.after = None
        return place

    def put_back(self, place: Place) -> None:
        """Add a request that was taken out where it stood."""
        ahead, after = None, self._first
        while after is not None and after.position < place.position:
            ahead, after = after, after.after
        self._link(place, ahead)

    def _link(self, place: Place, ahead: Place | None) -> None:
        """Put `place` right after `ahead`, or first."""
        after = self._first if ahead is None else ahead.after
        place.ahead, place.after = ahead, after
        if ahead is None:
            self._first = place
        else:
            ahead.after = place
        if after is None:
            self._last = place
        else:
            after.ahead = place
        self._places[place.name] = place
        self._priorities.add(place.priority)

    def order(self) -> list[str]:
        """Return the ids from first to last. O(n)."""
        names, place = [], self._first
        while place is not None:
            names.append(place.name)
            place = place.after
        return names
