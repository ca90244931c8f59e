"""What is in flight, kept as requests come, are served and go: the load that the metric mapper predicts from."""

from equipoise_scheduling.books import Flight
from equipoise_scheduling.mapper import Load


class FlightLoad:
    """Sums over the requests in flight. O(1) an event."""

    __slots__ = ("_context", "_parts", "_pending", "_sequences")

    def __init__(self) -> None:
        self._sequences = self._pending = self._context = 0
        self._parts: dict[str, tuple[int, int]] = {}
        """Each request's prompt tokens still to prefill, and its context."""

    @property
    def now(self) -> Load:
        """The load at present."""
        return Load(self._sequences, self._pending, self._context)

    def start(self, flight: Flight) -> None:
        """Add a request that goes into flight."""
        self._sequences += flight.request.sequences
        self.update(flight)

    def update(self, flight: Flight) -> None:
        """Take in what was delivered to a request in flight."""
        pending, context = self._parts.get(flight.request.id, (0, 0))
        part = (flight.prompt - flight.prefilled, flight.prefilled + flight.generated)
        self._parts[flight.request.id] = part
        self._pending += part[0] - pending
        self._context += part[1] - context

    def end(self, flight: Flight) -> None:
        """Remove a request."""
        pending, context = self._parts.pop(flight.request.id)
        self._sequences -= flight.request.sequences
        self._pending -= pending
        self._context -= context
