"""Queues ordered by deadline, and the clock that says whose time has come.

Earliest-deadline-first goes on serving what is lost anyway and so loses the rest too: requests that are *overdue* go
behind all others. When a request is overdue is the scheduler's to say.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from typing_extensions import override

from equipoise_scheduling.request import Request
from equipoise_scheduling.tenant_queue import FifoQueue, TenantQueue

Place = tuple[int, ...]
Order = Callable[[Request], Place]
"""Places a request among those that are not overdue; fixes the deadline of one that has none."""
OVERDUE = 2
"""What the place of an overdue request begins with: those of the others begin with less."""


def patient(request: Request) -> bool:
    """Say whether a request has no SLO, so that its deadline is only where it stands."""
    return request.ttft_budget is None and request.e2e_budget is None


class TimedQueue(TenantQueue):
    """A tenant's requests, each overdue or not. A request is overdue from `expire` until it leaves or is moved."""

    __slots__ = ()

    @abstractmethod
    def expire(self, request: Request) -> None:
        """Make a request that waits here overdue."""

    @abstractmethod
    def move(self, request: Request) -> None:
        """Place anew a request that waits here."""

    @abstractmethod
    def late(self, request: Request) -> bool:
        """Say whether a request that waits here is overdue."""

    @abstractmethod
    def overdue(self) -> Request | None:
        """Return the request to go first of those that are overdue, if one may go."""

    @abstractmethod
    def first(self) -> tuple[Place, int]:
        """Return where the head stands among other queues' heads, and its arrival number. IndexError when empty."""


class DeadlineQueue(TimedQueue):
    """By place, the overdue ones last; every change is O(log n) amortised.

    Patient requests, those without an SLO, stand in a line of their own that being overdue does not change: nothing is
    lost when their deadline passes, so none of them goes before an older one because of it.
    """

    __slots__ = ("_late", "_lines", "_order", "_overdue", "_places")

    def __init__(self, order: Order) -> None:
        self._order = order
        self._living: dict[int, tuple[Request, float]] = {}
        """By arrival number, with the expected cost."""
        self._places: dict[int, Place] = {}
        self._lines: tuple[list[tuple[Place, int]], list[tuple[Place, int]]] = ([], [])
        """Requests with an SLO, and patient ones."""
        self._late: list[int] = []
        self._overdue: set[int] = set()
        self._cost = 0.0

    @override
    def push(self, request: Request, expected_cost: float) -> None:
        self._living[request.number] = (request, expected_cost)
        self._cost += expected_cost
        self.move(request)

    @override
    def move(self, request: Request) -> None:
        self._overdue.discard(request.number)
        self._put(request, self._order(request))

    @override
    def expire(self, request: Request) -> None:
        number = request.number
        if number not in self._overdue:
            self._overdue.add(number)
            heappush(self._late, number)
            if not patient(request):
                self._put(request, (OVERDUE, *self._places[number][1:]))

    def _put(self, request: Request, place: Place) -> None:
        self._places[request.number] = place
        heappush(self._lines[patient(request)], (place, request.number))

    @override
    def late(self, request: Request) -> bool:
        return request.number in self._overdue

    @override
    def head(self) -> Request:
        return self._living[self.first()[1]][0]

    @override
    def first(self) -> tuple[Place, int]:
        promised, patient = self._lines
        aimed = self._first_of(promised) if promised else None
        waiting = self._first_of(patient) if patient else None
        if aimed is None or waiting is None:
            first = aimed or waiting
            if first is None:
                raise IndexError("the queue is empty")
            return first
        return min(aimed, waiting)

    def _first_of(self, line: list[tuple[Place, int]]) -> tuple[Place, int] | None:
        places = self._places
        while line:
            place, number = line[0]
            if places.get(number) == place:
                return ((OVERDUE, *place[1:]) if number in self._overdue else place), number
            heappop(line)
        return None

    @override
    def overdue(self) -> Request | None:
        heap = self._late
        while heap and heap[0] not in self._overdue:
            heappop(heap)
        return self._living[heap[0]][0] if heap else None

    @override
    def remove(self, request: Request) -> None:
        self._cost -= self._living.pop(request.number)[1]
        del self._places[request.number]
        self._overdue.discard(request.number)
        if not self._living:
            self._cost = 0.0
        if sum(map(len, self._lines)) + len(self._late) > 3 * len(self._living) + 16:
            self._compact()

    def _compact(self) -> None:
        for line in self._lines:
            line[:] = {entry for entry in line if self._places.get(entry[1]) == entry[0]}
            heapify(line)
        self._late = list(self._overdue)
        heapify(self._late)


class TimedFifoQueue(FifoQueue, TimedQueue):
    """By arrival, overdue or not: an overdue request goes when it is the head."""

    __slots__ = ("_order", "_overdue")

    def __init__(self, order: Order) -> None:
        super().__init__()
        self._order = order
        self._overdue: set[int] = set()

    @override
    def push(self, request: Request, expected_cost: float) -> None:
        self._order(request)
        super().push(request, expected_cost)

    @override
    def expire(self, request: Request) -> None:
        self._overdue.add(request.number)

    @override
    def move(self, request: Request) -> None:
        self._overdue.discard(request.number)

    @override
    def first(self) -> tuple[Place, int]:
        head = self.head()
        place = self._order(head)
        return ((OVERDUE, *place[1:]) if self.late(head) else place), head.number

    @override
    def late(self, request: Request) -> bool:
        return request.number in self._overdue

    @override
    def overdue(self) -> Request | None:
        head = self.head() if len(self) else None
        return head if head is not None and self.late(head) else None

    @override
    def remove(self, request: Request) -> None:
        super().remove(request)
        self._overdue.discard(request.number)


class Alarms:
    """Tells whose time has come. O(log n) amortised a request, however often it comes back."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []

    def set(self, at: float, request: Request, waiting: Mapping[str, Request]) -> None:
        """Watch for a time of a request that waits; `waiting` are all that do, by id."""
        heappush(self._heap, (at, request.number, request.id))
        if len(self._heap) > 2 * len(waiting) + 64:
            self._heap = [entry for entry in set(self._heap) if self._living(entry, waiting)]
            heapify(self._heap)

    def passed(self, now: float, waiting: Mapping[str, Request]) -> Iterator[Request]:
        """Yield the requests that wait and whose time has come since the last call; more may be set meanwhile."""
        while self._heap and self._heap[0][0] < now:
            request = self._living(heappop(self._heap), waiting)
            if request is not None:
                yield request

    @staticmethod
    def _living(entry: tuple[float, int, str], waiting: Mapping[str, Request]) -> Request | None:
        request = waiting.get(entry[2])
        return request if request is not None and request.number == entry[1] else None
