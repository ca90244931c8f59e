"""One tenant's waiting requests in the order of its users: whoever has had the least goes next.

Users are strings that a client sends, so what is kept of one that is idle is bounded: it is forgotten once it would come
back no better off than it left.
"""

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from equipoise_scheduling.choice import LeastKey
from equipoise_scheduling.counters import Account, Charge
from equipoise_scheduling.request import Request
from equipoise_scheduling.tenant_queue import FifoQueue, TenantQueue

MOST_IDLE = 1_000
"""Idle users of one tenant whose counters are remembered because they are above the others'."""


class User:
    """One user's queue and counter."""

    __slots__ = ("account", "begun", "in_flight", "name", "rest", "seat")

    def __init__(self, name: str, seat: int) -> None:
        self.name = name
        self.seat = seat
        """Which of its tenant's users it was to come: breaks ties."""
        self.account = Account()
        self.begun = FifoQueue()
        """Calls in the middle of an interaction."""
        self.rest = FifoQueue()
        self.in_flight = 0

    @property
    def backlogged(self) -> bool:
        """Something of its waits."""
        return len(self.begun) > 0 or len(self.rest) > 0

    @property
    def head(self) -> Request:
        """The request to go first."""
        return self.begun.head() if len(self.begun) else self.rest.head()


class UserQueue(TenantQueue):
    """Users in the middle of an interaction first, then the user with the least counter; FIFO inside a user.

    A call of an interaction that has begun goes before the user's others. Counters are VTC's: lifted when a user comes
    back to the least of the users that wait, or, when nobody waits, to that of the one who left last.

    Invariants: `_turns` and `_level` hold exactly the users that wait; `_idle` those known that neither wait nor
    have anything in flight; a user that is forgotten had a counter of at most `_floor`, from which unknown users start.
    All is O(log n) amortised in users and requests.
    """

    __slots__ = (
        "_begun",
        "_floor",
        "_idle",
        "_last_left",
        "_level",
        "_newest",
        "_seats",
        "_turns",
        "_users",
    )

    def __init__(self, begun: Callable[[Request], bool]) -> None:
        """Start empty; `begun` says whether a request is in the middle of an interaction."""
        self._begun = begun
        self._users: dict[str, User] = {}
        self._living: dict[int, tuple[User, FifoQueue, float]] = {}
        self._turns: LeastKey[tuple[int, int, int]] = LeastKey(self._turn)
        self._level: LeastKey[tuple[int, int]] = LeastKey(self._height)
        self._idle: LeastKey[tuple[int, int]] = LeastKey(self._height)
        self._last_left: User | None = None
        self._floor = 0
        self._cost = 0.0
        self._newest = -1
        self._seats = 0

    def _turn(self, name: str) -> tuple[int, int, int]:
        user = self._users[name]
        return (0 if len(user.begun) else 1, user.account.value, user.head.number)

    def _height(self, name: str) -> tuple[int, int]:
        user = self._users[name]
        return (user.account.value, user.seat)

    # -- the queue

    @override
    def push(self, request: Request, expected_cost: float) -> None:
        user = self.user(request.user)
        # One that is put back, or queued anew in another order, has been here: it lifts nobody.
        fresh = request.number > self._newest
        self._newest = max(self._newest, request.number)
        if not user.backlogged:
            if fresh:
                self._lift(user)
            self._idle.discard(user.name)
            self._level.add(user.name)
        self._cost += expected_cost
        self._place(request, user, expected_cost)
        if fresh:
            self._forget()

    def _place(self, request: Request, user: User, expected_cost: float) -> None:
        queue = user.begun if self._begun(request) else user.rest
        queue.push(request, expected_cost)
        self._living[request.number] = (user, queue, expected_cost)
        self._turns.add(user.name)

    @override
    def head(self) -> Request:
        name = self._turns.least()
        if name is None:
            raise IndexError("the queue is empty")
        return self._users[name].head

    @override
    def remove(self, request: Request) -> None:
        user, queue, cost = self._living.pop(request.number)
        queue.remove(request)
        self._cost = self._cost - cost if self._living else 0.0
        if not user.backlogged:
            self._turns.discard(user.name)
            self._level.discard(user.name)
            self._last_left = user
            self._rest(user)

    def replace(self, request: Request) -> None:
        """Move a queued request whose interaction has begun since, or has not after all, to where it belongs."""
        user, queue, cost = self._living[request.number]
        queue.remove(request)
        self._place(request, user, cost)

    # -- counters

    def user(self, name: str) -> User:
        """Return the user of that name, made on first sight."""
        user = self._users.get(name)
        if user is None:
            user = self._users[name] = User(name, self._seats)
            self._seats += 1
            if self._floor:
                user.account.lift(self._floor)
        return user

    def _lift(self, user: User) -> None:
        least = self._level.least()
        if least is not None:
            user.account.lift(self._users[least].account.value)
        elif self._last_left is not None and self._last_left is not user:
            user.account.lift(self._last_left.account.value)

    def took_off(self, user: User) -> None:
        """Note that a request of the user's went into flight."""
        user.in_flight += 1
        self._idle.discard(user.name)

    def landed(self, user: User) -> None:
        """Note that one ended, or was put back."""
        user.in_flight -= 1
        self._rest(user)

    def settle(self, user: User, charge: Charge, total: int) -> None:
        """Make `total` what a request in flight was charged."""
        if user.account.settle(charge, total) and user.backlogged:
            self._turns.add(user.name)
            self._level.add(user.name)

    def _rest(self, user: User) -> None:
        if not user.backlogged and not user.in_flight:
            self._idle.add(user.name)
            while len(self._idle) > MOST_IDLE:
                self._forget_least()

    def _forget(self) -> None:
        """Forget idle users that the lift would take to where they are, or above."""
        level = self._level.least()
        while level is not None and (idle := self._idle.least()) is not None:
            if self._users[idle].account.value > self._users[level].account.value:
                return
            self._forget_least()

    def _forget_least(self) -> None:
        name = self._idle.least()
        assert name is not None
        self._idle.discard(name)
        self._floor = max(self._floor, self._users.pop(name).account.value)

    # -- a restart

    def snapshot(self, flights: dict[str, list[tuple[Charge, int]]]) -> dict[str, Any]:
        """Return how far users are above the level, as if what is in flight had ended at these totals by user.

        Nothing else of a user matters: all others would be lifted to the level. Empty where nobody is above it.
        """
        counters = {}
        for name, user in self._users.items():
            account = user.account.copy()
            for charge, total in flights.get(name, ()):
                account.settle(charge.copy(), total)
            counters[name] = account.value
        least = self._level.least()
        if least is not None:
            level = counters[least]
        elif self._last_left is None:
            level = 0
        elif self._users.get(self._last_left.name) is self._last_left:
            level = counters[self._last_left.name]
        else:
            level = self._last_left.account.value
        above = {name: value - level for name, value in counters.items() if value > level}
        floor = max(0, self._floor - level)
        return {"floor": floor, "above": above} if floor or above else {}

    def restore(self, data: Any) -> None:
        """Take over a snapshot that is not empty. ValueError if it cannot be read."""
        if not isinstance(data, dict) or not isinstance(data.get("above"), dict):
            raise ValueError("snapshot: state.users must have floor and above")  # noqa: TRY004 - the contract's error
        floor, above = data.get("floor"), data["above"]
        if type(floor) is not int or not all(type(value) is int for value in above.values()):
            raise ValueError("snapshot: floor and above of state.users must be integers")
        self._floor = floor
        for name, value in above.items():
            user = self.user(name)
            user.account = Account(value)
            self._rest(user)
