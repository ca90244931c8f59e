"""Whom to serve: the tenant with the least key, without sorting tenants at every token."""

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=tuple[Any, ...])
"""A totally ordered key that never equals another member's."""


class LeastKey(Generic[K]):
    """A set of tenants whose member with the least key is found in O(log n) amortised.

    Keys live outside and mostly rise (charges), so the heap is lazy: a risen key is noticed when its entry reaches the
    top, and only a key that fell (a refund, a request put back) must be announced, with `add`. Each token therefore
    costs nothing here; each entry that is moved down is paid for by the charge that raised it.
    """

    __slots__ = ("_entries", "_heap", "_key")

    def __init__(self, key: Callable[[str], K]) -> None:
        self._key = key
        self._entries: dict[str, tuple[K, str]] = {}
        self._heap: list[tuple[K, str]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def add(self, name: str) -> None:
        """Make `name` a member, or announce that its key fell. O(log n)."""
        entry = (self._key(name), name)
        self._entries[name] = entry
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = list(self._entries.values())
            heapify(self._heap)

    def discard(self, name: str) -> None:
        """Remove `name` if it is a member. O(1)."""
        self._entries.pop(name, None)

    def least(self) -> str | None:
        """Return the member with the least key, None when there are none."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            name = entry[1]
            if entries.get(name) is not entry:
                heappop(heap)
                continue
            key = self._key(name)
            if key == entry[0]:
                return name
            risen = (key, name)
            entries[name] = risen
            heapreplace(heap, risen)
        return None
