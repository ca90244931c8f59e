"""Listings: what they drop, when they are made."""

import asyncio

import pytest

from equipoise_operator import relist
from equipoise_operator.kube import ApiError, ApiUnreachableError, Listing
from equipoise_operator.observe import channels
from equipoise_operator.relist import Relister
from equipoise_operator.store import Store

pytestmark = pytest.mark.looptime


class Lists:
    """Answers listings from a dict: plural to bodies."""

    def __init__(self):
        self.there = {"tenants": [], "fairnesspolicies": [], "pods": [], "secrets": []}
        self.asked = []
        self.whole = []
        self.down = False
        self.closed = set()
        """Namespaces, or paths, that answer 403."""

    def find(self, where):
        if self.down:
            raise ApiUnreachableError("down")
        parts = where.split("/")
        namespace = parts[parts.index("namespaces") + 1] if "namespaces" in parts else None
        if self.closed & {namespace, where}:
            raise ApiError(403, "Forbidden", where)
        return [body for body in self.there[parts[-1]] if namespace in (None, body["metadata"]["namespace"])]

    async def names(self, where, *, selector="", deadline=0):
        self.asked.append((asyncio.get_running_loop().time(), where, selector))
        bodies = self.find(where)
        metadata = [body["metadata"] for body in bodies]
        return Listing({(m["namespace"], m["name"]): m["uid"] for m in metadata}, 10_000)

    async def pages(self, where, *, selector="", size=0, deadline=0):
        self.whole.append((where, selector))
        bodies = self.find(where)
        for start in range(0, len(bodies), size):
            yield {"items": bodies[start : start + size]}
        if not bodies:
            yield {"items": None}

    def times(self, plural):
        return [at for at, where, _ in self.asked if where.endswith(plural)]


@pytest.fixture
def world(make):
    store, names, changes = Store(), Lists(), []
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
    await Relister(names, made).relist()
    assert len(store.tenants) == 0
    assert [(kind, change.key, change.after) for kind, change in changes] == [
        ("tenant", ("team", "blue"), None)
    ]


async def test_secrets_are_listed_by_their_label(world):
    _, names, _, made = world
    await Relister(names, made).relist()
    assert {selector for _, where, selector in names.asked if where.endswith("secrets")} == {
        "equipoise.dev/credential=true"
    }


async def test_watched_namespaces_are_listed_one_by_one_and_none_drops_anothers(make, world):
    store, names, _, made = world
    for namespace in ("a", "b"):
        body = make.tenant_body("blue", namespace, meta={"version": 1})
        made.tenants.event("ADDED", body)
        names.there["tenants"].append(body)
    await Relister(names, made, ("a", "b")).relist()
    assert len(store.tenants) == 2
    assert [where for _, where, _ in names.asked if where.endswith("tenants")] == [
        "/apis/equipoise.dev/v1alpha1/namespaces/a/tenants",
        "/apis/equipoise.dev/v1alpha1/namespaces/b/tenants",
    ]


async def test_everything_is_taken_whole_once_page_by_page(make, world, monkeypatch):
    store, names, changes, made = world
    monkeypatch.setattr(relist, "OBJECTS", 10)
    names.there["tenants"] = [make.tenant_body(f"t{n}") for n in range(25)]
    names.there["pods"] = [make.pod_body("p")]
    relister = Relister(names, made)
    await relister.fill()
    assert relister.filled.is_set()
    assert (len(store.tenants), len(store.pods)) == (25, 1)
    assert len(changes) == 26
    assert ("/api/v1/secrets", "equipoise.dev/credential=true") in names.whole


async def test_what_kopf_lists_afterwards_is_known_already(make, world):
    store, names, changes, made = world
    body = make.tenant_body("blue")
    names.there["tenants"] = [body]
    await Relister(names, made).fill()
    changes.clear()
    made.tenants.event(None, body)
    assert changes == []
    made.tenants.event(None, make.tenant_body("blue", weight=5))
    assert len(changes) == 1
    assert store.tenants.get(("team", "blue")).object.spec.weight == 5


async def test_an_api_server_that_is_down_at_the_start_is_waited_for(make, world):
    store, names, _, made = world
    names.there["tenants"] = [make.tenant_body("blue")]
    names.down = True
    relister = Relister(names, made)
    task = asyncio.create_task(relister.fill())
    await asyncio.sleep(10)
    assert not relister.filled.is_set()
    names.down = False
    await asyncio.sleep(1.1)
    assert task.done()
    assert len(store.tenants) == 1


async def test_a_namespace_that_is_gone_with_its_role_keeps_the_others_waiting_for_a_while_only(make, world):
    store, names, _, made = world
    names.there["tenants"] = [make.tenant_body("blue", "a"), make.tenant_body("green", "b")]
    names.closed = {"b"}
    relister = Relister(names, made, ("a", "b"))
    task = asyncio.create_task(relister.fill())
    await asyncio.sleep(10)
    assert not relister.filled.is_set(), "its Role may be on its way"
    await asyncio.sleep(15)
    assert task.done()
    assert relister.filled.is_set()
    assert [key for key, _ in store.tenants.items()] == [("a", "blue")]


async def test_a_namespace_that_opens_in_time_is_filled_before_anything_is_done(make, world):
    store, names, _, made = world
    names.there["tenants"] = [make.tenant_body("blue", "a"), make.tenant_body("green", "b")]
    names.closed = {"b"}
    relister = Relister(names, made, ("a", "b"))
    task = asyncio.create_task(relister.fill())
    await asyncio.sleep(10)
    names.closed = set()
    await asyncio.sleep(1.1)
    assert task.done()
    assert len(store.tenants) == 2


@pytest.mark.parametrize("closed", [{"a", "b"}, {"/api/v1/namespaces/b/secrets"}])
async def test_without_any_namespace_or_with_half_of_one_nothing_begins(make, world, closed):
    """Tenants whose Secrets may not be read would have their keys revoked."""
    _, names, _, made = world
    names.there["tenants"] = [make.tenant_body("green", "b")]
    names.closed = closed
    relister = Relister(names, made, ("a", "b"))
    task = asyncio.create_task(relister.fill())
    await asyncio.sleep(100)
    assert not relister.filled.is_set()
    task.cancel()


async def test_a_listing_goes_past_a_namespace_that_refuses_and_drops_nothing_of_it(make, world):
    store, names, _, made = world
    for namespace in ("a", "b", "c"):
        made.tenants.event("ADDED", make.tenant_body("blue", namespace, meta={"version": 1}))
    names.closed = {"b"}
    await Relister(names, made, ("a", "b", "c")).relist()
    assert [key for key, _ in store.tenants.items()] == [("b", "blue")]
    names.closed = {None}
    with pytest.raises(ApiError):
        await Relister(names, made).relist()


@pytest.fixture
async def running(world):
    _, names, _, made = world
    relister = Relister(names, made)
    yield relister, names
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def begin(relister):
    relister.filled.set()
    task = asyncio.create_task(relister.run())
    await asyncio.sleep(0)
    return task, asyncio.get_running_loop().time()


async def test_it_lists_every_minute_on_request_and_soon_again_after_a_failure(running):
    relister, names = running
    task, began = await begin(relister)
    await asyncio.sleep(130)
    assert [round(at - began) for at in names.times("pods")] == [1, 61, 121]
    relister.request()
    relister.request()
    await asyncio.sleep(1)
    assert [round(at - began, 1) for at in names.times("pods")][3:] == [130.3]
    names.down = True
    relister.request()
    await asyncio.sleep(2.5)
    assert len([at for at, *_ in names.asked if at - began > 131.1]) == 3
    task.cancel()


async def test_a_listing_of_kopfs_asks_once_for_every_object_and_gets_a_few_listings(running):
    relister, names = running
    task, _ = await begin(relister)
    await asyncio.sleep(1)
    for _ in range(1000):
        relister.request()
        await asyncio.sleep(0.01)
    await asyncio.sleep(1)
    assert 2 <= len(names.times("pods")) <= 4
    task.cancel()


async def test_nothing_is_listed_by_name_before_all_is_filled(running):
    relister, names = running
    task = asyncio.create_task(relister.run())
    relister.request()
    await asyncio.sleep(100)
    assert names.asked == []
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
