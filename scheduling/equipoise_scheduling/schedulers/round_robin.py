"""Round robin: one request a turn."""

from typing import Any

from typing_extensions import override

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.books import Flight, Tenant
from equipoise_scheduling.request import Outcome, Usage

Turn = tuple[int, int]
"""(round, the tenant's place in the fixed order)"""


class RoundRobin(TenantScheduler):
    """One request a turn over the tenants that have a queue, in a fixed order: that of their first requests.

    A pass stops at a head that does not fit, and the tenant keeps its turn. Weights and sizes play no part: a tenant
    with long requests gets more service, which is what the token counting schedulers mend.
    """

    algorithm = "RoundRobin"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what TenantScheduler takes."""
        super().__init__(*args, **kwargs)
        self._places: dict[str, int] = {}
        self._next_place = 0
        self._turns: dict[str, Turn] = {}
        self._served: Turn = (0, -1)
        """The turn served last: who joins gets the first turn of its place after it."""
        self._given: dict[str, tuple[Turn, Turn]] = {}
        """Of each request in flight: its turn, and the turn served before it."""

    @override
    def _key(self, name: str) -> tuple[int, ...]:
        return self._turns[name]

    def _turn_after_served(self, name: str) -> Turn:
        if name not in self._places:
            self._places[name] = self._next_place
            self._next_place += 1
        place = self._places[name]
        lap, last = self._served
        return (lap, place) if place > last else (lap + 1, place)

    @override
    def _joined(self, tenant: Tenant, now: float) -> None:
        self._turns[tenant.name] = self._turn_after_served(tenant.name)

    @override
    def _returned(self, tenant: Tenant) -> None:
        self._turns.setdefault(tenant.name, self._turn_after_served(tenant.name))

    @override
    def _dispatched(self, flight: Flight) -> None:
        name = flight.tenant.name
        turn = self._turns[name]
        self._given[flight.request.id] = (turn, self._served)
        self._served = turn
        self._turns[name] = self._turn_after_served(name)

    @override
    def _undone(self, flight: Flight) -> None:
        given = self._given.pop(flight.request.id, None)
        if given is None:  # dispatched by a scheduler that this one replaced
            return
        turn, before = given
        if self._served == turn:
            self._served = before
        self._turns[flight.tenant.name] = turn

    @override
    def _settled(self, flight: Flight, usage: Usage, outcome: Outcome, now: float) -> None:
        self._given.pop(flight.request.id, None)

    @override
    def _forgotten(self, name: str) -> None:
        self._places.pop(name, None)
        self._turns.pop(name, None)

    @override
    def _state(self) -> dict[str, Any]:
        return {"places": sorted(self._places, key=self._places.__getitem__), "served": list(self._served)}

    @override
    def _restore_state(self, state: dict[str, Any]) -> None:
        places, served = state.get("places"), state.get("served")
        if not isinstance(places, list) or not isinstance(served, list) or len(served) != 2:
            raise ValueError("snapshot: state.places must be a list of names and state.served a pair")
        self._places = {str(name): place for place, name in enumerate(places)}
        self._next_place = len(places)
        self._served = (int(served[0]), int(served[1]))
