"""One tenant's waiting requests, and which of them is its head.

First in, first out by arrival number unless a scheduler brings an ordering of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Sized
from heapq import heapify, heappop, heappush

from typing_extensions import override

from equipoise_scheduling.request import Request


class TenantQueue(ABC):
    """A tenant's waiting requests.

    Where a request stands follows from the request alone, so one that is put back stands where it stood.
    Invariants: `_living` holds what waits, by arrival number; `_cost` is the sum of its expected costs.
    """

    __slots__ = ("_cost", "_living")

    _living: Sized
    _cost: float

    def __len__(self) -> int:
        return len(self._living)

    @property
    def expected_cost(self) -> float:
        """Sum of what the queued requests are expected to cost."""
        return self._cost

    @abstractmethod
    def push(self, request: Request, expected_cost: float) -> None:
        """Add `request` at its place."""

    @abstractmethod
    def head(self) -> Request:
        """Return the request to go first. IndexError when the queue is empty."""

    @abstractmethod
    def remove(self, request: Request) -> None:
        """Take `request` out, wherever it stands. KeyError when it is not queued here."""


class FifoQueue(TenantQueue):
    """FIFO by `Request.number`. Push, pop and remove are O(log n) amortised, head O(1) amortised.

    A heap instead of a deque, because a request that the engine would not take goes back to its old place and one that
    is cancelled leaves from anywhere.
    """

    __slots__ = ("_gone", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[int, Request]] = []
        self._gone: set[int] = set()
        """Numbers in the heap whose requests are not in the queue: one that comes back finds its old entry."""
        self._living: dict[int, float] = {}
        self._cost = 0.0

    @override
    def push(self, request: Request, expected_cost: float) -> None:
        if request.number in self._gone:
            self._gone.discard(request.number)
        else:
            heappush(self._heap, (request.number, request))
        self._living[request.number] = expected_cost
        self._cost += expected_cost

    @override
    def head(self) -> Request:
        while self._heap[0][0] in self._gone:
            self._gone.discard(heappop(self._heap)[0])
        return self._heap[0][1]

    @override
    def remove(self, request: Request) -> None:
        self._cost -= self._living.pop(request.number)
        if not self._living:
            self._cost = 0.0
            self._heap.clear()
            self._gone.clear()
        elif self._heap[0][1] is request:
            heappop(self._heap)
        else:
            self._gone.add(request.number)
            if len(self._gone) > len(self._living) + 16:
                self._heap = [entry for entry in self._heap if entry[0] not in self._gone]
                self._gone.clear()
                heapify(self._heap)
