"""kopf against a fake API server: every event reaches its channel, and nothing is ever written."""

import asyncio
import contextlib
import itertools

import aiohttp
import kopf
import pytest

from equipoise_operator import handlers
from equipoise_operator.observe import channels
from equipoise_operator.store import Store

TENANTS = "equipoise.dev/v1alpha1/tenants"
BLUE = ("team", "blue")
POLICIES = "equipoise.dev/v1alpha1/fairnesspolicies"


class Observed:
    def __init__(self):
        self.store = Store()
        self.changes = []
        self.listed = 0
        self.channels = channels(
            self.store, tenant=self.note, policy=self.note, pod=self.note, secret=self.note
        )

    def note(self, change):
        self.changes.append(change)

    def count(self):
        self.listed += 1

    async def until(self, holds, seconds=60.0):
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.01)


@pytest.fixture
def kubernetes(kmock):
    kmock.resources.load_bundled()
    for name, kind in ((TENANTS, "Tenant"), (POLICIES, "FairnessPolicy")):
        kmock.resources[name] = {
            "namespaced": True,
            "kind": kind,
            "singular": kind.lower(),
            "verbs": {"get", "list", "watch", "patch"},
            "shortnames": set(),
            "categories": set(),
            "subresources": {"status"},
        }
    return kmock


@contextlib.asynccontextmanager
async def watching(kubernetes, *, namespaces=()):
    """Run kopf inside the test's own task: on its way out it cancels every task that is younger than itself."""
    made = Observed()
    ready = asyncio.Event()
    task = asyncio.create_task(
        kopf.operator(
            registry=handlers.registry(
                made.channels,
                login=lambda: kopf.ConnectionInfo(server=str(kubernetes.url)),
                on_listed=made.count,
            ),
            settings=handlers.settings(made.channels),
            standalone=True,
            ready_flag=ready,
            clusterwide=not namespaces,
            namespaces=namespaces,
        )
    )
    await ready.wait()
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=60)


async def test_what_is_there_and_what_comes_reaches_the_store_and_nothing_is_written(make, kubernetes):
    kubernetes.objects[TENANTS, "team", "blue"] = make.tenant_body("blue", weight=3)
    kubernetes.objects["v1/pods", "team", "p"] = make.pod_body("p")
    kubernetes.objects["v1/secrets", "team", "keys"] = make.secret_body("keys", a="x" * 32)
    kubernetes.objects[POLICIES, "team", "policy"] = make.policy_body()
    async with watching(kubernetes) as observed:
        store = observed.store
        await observed.until(
            lambda: all(map(len, (store.tenants, store.pods, store.secrets, store.policies)))
        )
        assert store.tenants.get(BLUE).object.spec.weight == 3
        assert observed.listed >= 4

        observed.changes.clear()
        url = f"{str(kubernetes.url).rstrip('/')}/apis/equipoise.dev/v1alpha1/namespaces/team/tenants/blue"
        async with aiohttp.ClientSession(headers={"User-Agent": "somebody"}) as somebody:
            await somebody.patch(url, json={"metadata": {"resourceVersion": "999999"}, "spec": {"weight": 5}})
            await observed.until(lambda: store.tenants.get(BLUE).object.spec.weight == 5)
            await somebody.delete(url)
            await observed.until(lambda: len(store.tenants) == 0)
        assert [change.after is None for change in observed.changes] == [False, True]
    ours = [request for request in kubernetes if request.headers.get("User-Agent") != "somebody"]
    assert len(ours) >= 8
    assert {request.method.value for request in ours} == {"GET"}


async def test_the_api_server_sends_labelled_secrets_alone(kubernetes):
    async with watching(kubernetes) as observed:
        asked = kubernetes[kubernetes.resource("v1/secrets")]
        await observed.until(lambda: len(asked) >= 2)
        assert {request.params.get("labelSelector") for request in asked} == {"equipoise.dev/credential=true"}
        others = kubernetes[kubernetes.resource("v1/pods")]
        await observed.until(lambda: len(others) >= 2)
        assert not any("labelSelector" in request.params for request in others)


async def test_only_the_named_namespaces_are_asked_for_and_neither_namespaces_nor_crds(kubernetes):
    async with watching(kubernetes, namespaces=("team-a", "team-b")) as observed:
        asked = kubernetes[kubernetes.resource("v1/pods")]
        await observed.until(lambda: {request.namespace for request in asked} == {"team-a", "team-b"})
        assert len(kubernetes[kubernetes.resource("v1/namespaces")]) == 0
        assert len(kubernetes[kubernetes.resource("apiextensions.k8s.io/v1/customresourcedefinitions")]) == 0


def test_retries_never_end_and_are_at_most_a_second_apart():
    pauses = list(itertools.islice(handlers.Backoffs(), 1000))
    assert len(pauses) == 1000
    assert max(pauses) == 1.0
    assert pauses[0] <= 0.1
