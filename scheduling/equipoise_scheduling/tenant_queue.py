"""One tenant's waiting requests: first in, first out by arrival number.

A heap instead of a deque, because a request that the engine would not take goes back to its old place and one that
is cancelled leaves from anywhere.
"""

from heapq import heapify, heappop, heappush

from equipoise_scheduling.request import Request


class TenantQueue:
    """FIFO by `Request.number`. Push, pop and remove are O(log n) amortised, head O(1) amortised."""

    __slots__ = ("_cost", "_heap", "_living")

    def __init__(self) -> None:
        self._heap: list[tuple[int, Request]] = []
        self._living: dict[int, float] = {}
        self._cost = 0.0

    def __len__(self) -> int:
        return len(self._living)

    @property
    def expected_cost(self) -> float:
        """Sum of what the queued requests are expected to cost."""
        return self._cost

    def push(self, request: Request, expected_cost: float) -> None:
        """Add `request` at the place that its arrival number gives it."""
        heappush(self._heap, (request.number, request))
        self._living[request.number] = expected_cost
        self._cost += expected_cost

    def head(self) -> Request:
        """Return the oldest request. IndexError when the queue is empty."""
        while self._heap[0][0] not in self._living:
            heappop(self._heap)
        return self._heap[0][1]

    def remove(self, request: Request) -> None:
        """Take `request` out, wherever it stands. KeyError when it is not queued here."""
        self._cost -= self._living.pop(request.number)
        if not self._living:
            self._cost = 0.0
            self._heap.clear()
        elif self._heap[0][1] is request:
            heappop(self._heap)
        elif len(self._heap) > 2 * len(self._living) + 16:
            self._heap = [entry for entry in self._heap if entry[0] in self._living]
            heapify(self._heap)
