"""The frame of schedulers that serve the backlogged tenant with the least counter, and lift who comes back from idle."""

from abc import abstractmethod
from collections.abc import Mapping
from math import floor
from typing import Any, ClassVar, Generic, TypeVar

from typing_extensions import override

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.books import Tenant
from equipoise_scheduling.counters import SCALE, Account

A = TypeVar("A", bound=Account)


class LeastCounter(TenantScheduler, Generic[A]):
    """An account a tenant; least value first, the older head where values are equal.

    A tenant that becomes backlogged is lifted to the least of the backlogged or, when nobody is, to the value of the tenant
    that left the queue last. What an account counts, and when, is the scheduler's.
    """

    unit: ClassVar[int] = SCALE
    """Of an account's value, in one cost unit over weight."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what TenantScheduler takes."""
        super().__init__(*args, **kwargs)
        self._accounts: dict[str, A] = {}
        self._last_left: str | None = None

    @abstractmethod
    def _new_account(self) -> A:
        """Return the account of a tenant that was never seen."""

    def _account(self, name: str) -> A:
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = self._new_account()
        return account

    @override
    def _key(self, name: str) -> tuple[int, ...]:
        return (self._accounts[name].value, self.books.tenants[name].queue.head().number)

    @override
    def _priority(self, name: str) -> int:
        return floor(self._accounts[name].value / self.unit)

    @override
    def _counter(self, name: str) -> float | None:
        account = self._accounts.get(name)
        return 0.0 if account is None else account.value / self.unit

    # -- lift

    def _lift_level(self, name: str) -> int | None:
        """Return the counter that the returning tenant `name` is lifted to."""
        least = self.choice.least()
        if least is not None:
            return self._accounts[least].value
        # Its own counter would lift it over nobody, and only keep it from the refunds that are due to it.
        if self._last_left is None or self._last_left == name:
            return None
        return self._accounts[self._last_left].value

    def _least_counter(self) -> float | None:
        """Return the least counter of the backlogged, in cost units over weight; None where there are none."""
        least = self.choice.least()
        return None if least is None else self._accounts[least].value / self.unit

    @override
    def _left(self, tenant: Tenant) -> None:
        self._last_left = tenant.name

    @override
    def _forgettable(self, name: str) -> bool:
        level = self._lift_level(name)
        return name != self._last_left and self._account(name).value <= (0 if level is None else level)

    @override
    def _forgotten(self, name: str) -> None:
        self._accounts.pop(name, None)

    # -- a change of algorithm, a restart

    def _guess_last_left(self, history: Mapping[str, float]) -> None:
        """Say who left last where nobody knows: of those still served the least served, else the most served."""
        serving = {flight.tenant.name for flight in self.books.flights.values()}
        if serving:
            self._last_left = min(serving, key=lambda name: (history.get(name, 0.0), name))
        else:
            self._last_left = max(history, key=lambda name: (history[name], name), default=None)

    def _leaving_last(self) -> str | None:
        """Return who will have left last after a restart, when nothing is queued: of the backlogged the least counter."""
        return self.choice.least() or self._last_left
