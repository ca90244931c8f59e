"""What is remembered by names that clients make up: bounded, and no tenant can push out what is known of another.

Beyond the limit the oldest entry of the tenant that has the most goes, of equals the oldest of all, so a tenant that floods the
memory forgets its own.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from equipoise_scheduling.choice import LeastKey

V = TypeVar("V")


class ClientMemory(Generic[V]):
    """At most `most` values by (tenant, name, ...), in the order in which they were put. O(log tenants) a change."""

    __slots__ = ("_largest", "_of_tenant", "_puts", "_values", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[tuple[str, ...], V] = OrderedDict()
        self._of_tenant: dict[str, OrderedDict[tuple[str, ...], int]] = {}
        """Keys, and which of all puts each was."""
        self._largest: LeastKey[tuple[int, int]] = LeastKey(self._size_and_age)
        self._puts = 0

    def _size_and_age(self, tenant: str) -> tuple[int, int]:
        keys = self._of_tenant[tenant]
        return (-len(keys), next(iter(keys.values())))

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """Iterate over keys, the oldest first."""
        return iter(self._values)

    def get(self, key: tuple[str, ...]) -> V | None:
        """Return the value, None where nothing is remembered."""
        return self._values.get(key)

    def items(self) -> Iterator[tuple[tuple[str, ...], V]]:
        """Iterate over keys and values, the oldest first."""
        yield from self._values.items()

    def oldest(self) -> tuple[tuple[str, ...], V] | None:
        """Return the entry that was put before all others."""
        return next(iter(self._values.items()), None)

    def put(self, key: tuple[str, ...], value: V) -> None:
        """Remember `value` as the newest."""
        self.pop(key)
        self._values[key] = value
        self._of_tenant.setdefault(key[0], OrderedDict())[key] = self._puts
        self._puts += 1
        self._largest.add(key[0])
        while len(self._values) > self.most:
            largest = self._largest.least()
            assert largest is not None
            self.pop(next(iter(self._of_tenant[largest])))

    def pop(self, key: tuple[str, ...]) -> V | None:
        """Forget and return a value, None where nothing is remembered."""
        if key not in self._values:
            return None
        keys = self._of_tenant[key[0]]
        del keys[key]
        if not keys:
            del self._of_tenant[key[0]]
            self._largest.discard(key[0])
        return self._values.pop(key)

    def clear(self) -> None:
        """Forget all."""
        for key in list(self._values):
            self.pop(key)
