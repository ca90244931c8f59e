"""What is in the cluster, as far as the operator knows: filled by watch events, put right by listings.

Objects are held by namespace and name together with their uid, so that a late event of a deleted object cannot touch its
successor. Events add and drop; a listing of names only drops, so a stale one brings nothing back. All compare resource
versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from equipoise_api.policy import FairnessPolicy
from equipoise_api.tenant import Tenant
from equipoise_operator.kube import Listing
from equipoise_operator.objects import Key, Pod, Secret, Stored

T = TypeVar("T")
Essence = Callable[[Stored[T]], object]
"""What of an object decides anything: two with equal essence are the same to the operator."""


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """An object came, went or changed its essence."""

    key: Key
    before: Stored[T] | None
    after: Stored[T] | None


class Shelf(Generic[T]):
    """The objects of one kind."""

    def __init__(self, essence: Essence[T]) -> None:
        self._essence = essence
        self._objects: dict[Key, Stored[T]] = {}
        self._by_namespace: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> Stored[T] | None:
        """Return the object of that namespace and name."""
        return self._objects.get(key)

    def items(self) -> Iterator[tuple[Key, Stored[T]]]:
        """Return all, in no order."""
        return iter(self._objects.items())

    def parsed(self, namespace: str | None = None) -> list[T]:
        """Return the objects that could be parsed, of one namespace or of all."""
        return [stored.object for _, stored in self._within(namespace) if stored.object is not None]

    def _within(self, namespace: str | None) -> Iterable[tuple[Key, Stored[T]]]:
        if namespace is None:
            return self._objects.items()
        keys = [(namespace, name) for name in self._by_namespace.get(namespace, ())]
        return [(key, self._objects[key]) for key in keys]

    def put(self, key: Key, stored: Stored[T]) -> Change[T] | None:
        """Take an object from an event. Returns the change; None where nothing that decides anything changed."""
        before = self._objects.get(key)
        if before is not None and before.version >= stored.version:
            return None
        if stored.object is None:
            stored = stored.after(before)
        self._objects[key] = stored
        self._by_namespace.setdefault(key[0], set()).add(key[1])
        if before is not None and self._essence(before) == self._essence(stored):
            return None
        return Change(key, before, stored)

    def drop(self, key: Key, uid: str) -> Change[T] | None:
        """Forget an object that is gone; another one of that name stays."""
        held = self._objects.get(key)
        if held is None or held.uid != uid:
            return None
        del self._objects[key]
        self._by_namespace[key[0]].discard(key[1])
        if not self._by_namespace[key[0]]:
            del self._by_namespace[key[0]]
        return Change(key, held, None)

    def reconcile(self, listing: Listing, namespace: str | None = None) -> list[Change[T]]:
        """Drop what the listing, of one namespace or of all, lacks, but for what came after it."""
        gone = [
            (key, held.uid)
            for key, held in self._within(namespace)
            if held.version <= listing.version and listing.uids.get(key) != held.uid
        ]
        return [change for key, uid in gone if (change := self.drop(key, uid)) is not None]


def _spec(stored: Stored[Tenant] | Stored[FairnessPolicy]) -> object:
    if stored.object is None:
        return stored.uid, stored.labels, stored.error
    # The generation, too: a status says which it is of, though the change be to a field that is not known here.
    return stored.uid, stored.object.metadata.generation, stored.object.spec, stored.labels, stored.error


def _whole(stored: Stored[Pod] | Stored[Secret]) -> object:
    return stored.object


@dataclass(slots=True)
class Store:
    """The objects of every kind that the operator watches."""

    tenants: Shelf[Tenant] = field(default_factory=lambda: Shelf[Tenant](_spec))
    policies: Shelf[FairnessPolicy] = field(default_factory=lambda: Shelf[FairnessPolicy](_spec))
    pods: Shelf[Pod] = field(default_factory=lambda: Shelf[Pod](_whole))
    secrets: Shelf[Secret] = field(default_factory=lambda: Shelf[Secret](_whole))
    unlabelled: set[Key] = field(default_factory=set)
    """Secrets that are named, exist and lack the credential label; their data was not read."""
