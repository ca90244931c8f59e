"""Listings: what they drop, when they are made."""

import asyncio

import pytest

from equipoise_operator.kube import ApiUnreachableError, Listing
from equipoise_operator.observe import channels
from equipoise_operator.relist import Relister
from equipoise_operator.store import Store

pytestmark = pytest.mark.looptime


class Names:
    """Answers listings of names from a dict: plural to (namespace, name) to uid."""

    def __init__(self):
        self.there = {"tenants": {}, "fairnesspolicies": {}, "pods": {}, "secrets": {}}
        self.asked = []
        self.down = False

    async def names(self, where, *, selector="", deadline=0):
        self.asked.append((asyncio.get_running_loop().time(), where, selector))
        if self.down:
            raise ApiUnreachableError("down")
        parts = where.split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts else None
        found = self.there[parts[-1]]
        return Listing({key: uid for key, uid in found.items() if namespace in (None, key[0])}, 1000)

    def times(self, plural):
        return [at for at, where, _ in self.asked if where.endswith(plural)]


@pytest.fixture
def world(make):
    store, names, changes = Store(), Names(), []
    made = channels(
        store,
        tenant=lambda change: changes.append(("tenant", change)),
        policy=lambda change: changes.append(("policy", change)),
        pod=lambda change: changes.append(("pod", change)),
        secret=lambda change: changes.append(("secret", change)),
    )
    return store, names, changes, made


async def test_what_is_gone_is_dropped_and_told(make, world):
    store, names, changes, made = world
    body = make.tenant_body("blue", meta={"version": 1})
    made.tenants.event("ADDED", body)
    changes.clear()
    await Relister(names, store, made).relist()
    assert len(store.tenants) == 0
    assert [(kind, change.key, change.after) for kind, change in changes] == [
        ("tenant", ("team", "blue"), None)
    ]


async def test_secrets_are_listed_by_their_label(world):
    store, names, _, made = world
    await Relister(names, store, made).relist()
    assert {selector for _, where, selector in names.asked if where.endswith("secrets")} == {
        "equipoise.dev/credential=true"
    }


async def test_watched_namespaces_are_listed_one_by_one_and_none_drops_anothers(make, world):
    store, names, _, made = world
    for namespace in ("a", "b"):
        body = make.tenant_body("blue", namespace, meta={"version": 1})
        made.tenants.event("ADDED", body)
        names.there["tenants"][namespace, "blue"] = body["metadata"]["uid"]
    await Relister(names, store, made, ("a", "b")).relist()
    assert len(store.tenants) == 2
    assert [where for _, where, _ in names.asked if where.endswith("tenants")] == [
        "/apis/equipoise.dev/v1alpha1/namespaces/a/tenants",
        "/apis/equipoise.dev/v1alpha1/namespaces/b/tenants",
    ]


async def test_it_lists_every_minute_on_request_and_soon_again_after_a_failure(world):
    store, names, _, made = world
    relister = Relister(names, store, made)
    began = asyncio.get_running_loop().time()
    task = asyncio.create_task(relister.run())
    await asyncio.sleep(130)
    assert [round(at - began) for at in names.times("pods")] == [0, 60, 120]
    relister.request()
    relister.request()
    await asyncio.sleep(1)
    assert [round(at - began, 1) for at in names.times("pods")][3:] == [130.2]
    names.down = True
    relister.request()
    await asyncio.sleep(2.5)
    assert len([at for at, *_ in names.asked if at - began > 131.1]) == 3
    task.cancel()


async def test_complete_means_that_all_that_was_listed_was_seen(make, world):
    store, names, _, made = world
    body = make.tenant_body("blue")
    names.there["tenants"]["team", "blue"] = body["metadata"]["uid"]
    relister = Relister(names, store, made)
    task = asyncio.create_task(relister.run())
    waiting = asyncio.create_task(relister.complete())
    await asyncio.sleep(10)
    assert not waiting.done()
    made.tenants.event(None, body)
    await asyncio.sleep(0.1)
    assert waiting.done()
    task.cancel()


async def test_what_goes_before_it_is_seen_does_not_hold_up_the_start(make, world):
    store, names, _, made = world
    names.there["tenants"]["team", "blue"] = "uid"
    relister = Relister(names, store, made)
    task = asyncio.create_task(relister.run())
    waiting = asyncio.create_task(relister.complete())
    await asyncio.sleep(3)
    names.there["tenants"].clear()
    await asyncio.sleep(1.1)
    assert waiting.done()
    task.cancel()


async def test_an_object_that_marks_itself_for_deletion_counts_as_gone_but_a_pod_stays(make, world):
    store, _, changes, made = world
    made.tenants.event("ADDED", make.tenant_body("blue"))
    made.pods.event("ADDED", make.pod_body("p"))
    changes.clear()
    leaving = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    made.tenants.event("MODIFIED", make.tenant_body("blue", meta=leaving))
    made.pods.event("MODIFIED", make.pod_body("p", meta=leaving))
    assert (len(store.tenants), len(store.pods)) == (0, 1)
    assert [kind for kind, _ in changes] == ["tenant"]
    made.pods.event("DELETED", make.pod_body("p", meta=leaving))
    assert len(store.pods) == 0
