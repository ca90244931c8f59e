"""From the cluster to the store: a channel for each kind takes its events and its listings, and tells what they changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from equipoise_api import names
from equipoise_api.policy import FairnessPolicy
from equipoise_api.tenant import Tenant
from equipoise_operator import objects
from equipoise_operator.kube import Listing
from equipoise_operator.objects import Pod, Secret, Stored
from equipoise_operator.store import Change, Shelf, Store

T = TypeVar("T")

CREDENTIALS_ONLY = f"{names.CREDENTIAL_LABEL}=true"


@dataclass(frozen=True, slots=True)
class Channel(Generic[T]):
    """One kind. `changed` is called in the event loop, in the order of each object's events."""

    group_version: str
    plural: str
    shelf: Shelf[T]
    parse: Callable[[Mapping[str, Any]], Stored[T]]
    changed: Callable[[Change[T]], None]
    selector: str = ""
    """Label selector, applied by the API server."""
    stays: bool = False
    """Whether an object that is being deleted counts until it is gone."""

    def event(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """Take an event: ADDED, MODIFIED, DELETED, or None for an object of a listing."""
        metadata = body["metadata"]
        key = (metadata["namespace"], metadata["name"])
        held = self.shelf.get(key)
        if kind is None and held is not None and held.version >= int(metadata["resourceVersion"]):
            return
        if kind == "DELETED" or (metadata.get("deletionTimestamp") and not self.stays):
            change = self.shelf.drop(key, metadata["uid"])
        else:
            change = self.shelf.put(key, self.parse(body))
        if change is not None:
            self.changed(change)

    def reconcile(self, listing: Listing, namespace: str | None = None) -> int:
        """Drop what a listing, of one namespace or of all, lacks. Return how many that were."""
        changes = self.shelf.reconcile(listing, namespace)
        for change in changes:
            self.changed(change)
        return len(changes)


@dataclass(frozen=True, slots=True)
class Channels:
    """All kinds."""

    tenants: Channel[Tenant]
    policies: Channel[FairnessPolicy]
    pods: Channel[Pod]
    secrets: Channel[Secret]

    def all(self) -> tuple[Channel[Any], ...]:
        """Return them as a tuple."""
        return self.tenants, self.policies, self.pods, self.secrets


def channels(
    store: Store,
    *,
    tenant: Callable[[Change[Tenant]], None],
    policy: Callable[[Change[FairnessPolicy]], None],
    pod: Callable[[Change[Pod]], None],
    secret: Callable[[Change[Secret]], None],
) -> Channels:
    """Return the channels into a store, each with whom it tells of changes."""
    return Channels(
        tenants=Channel(names.API_VERSION, names.TENANTS, store.tenants, objects.tenant, tenant),
        policies=Channel(names.API_VERSION, names.FAIRNESS_POLICIES, store.policies, objects.policy, policy),
        pods=Channel("v1", "pods", store.pods, objects.pod, pod, stays=True),
        secrets=Channel("v1", "secrets", store.secrets, objects.secret, secret, selector=CREDENTIALS_ONLY),
    )
