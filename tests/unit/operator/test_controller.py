"""What an event makes dirty, and what is done about it, with real parts but for API server and fleet."""

import asyncio
import time

import pytest

from equipoise_operator import objects
from equipoise_operator.controller import Controller
from equipoise_operator.leader import NotLeadingError
from equipoise_operator.objects import Stored
from equipoise_operator.store import Change, Store

pytestmark = pytest.mark.looptime


class FakeFleet:
    def __init__(self):
        self.configs = {}
        self.assigned = {}
        self.compiles = 0

    def configure(self, policy, compiled):
        self.compiles += 1
        self.configs[policy] = compiled

    def forget(self, policy):
        self.configs.pop(policy, None)

    def assign(self, namespace, pods, governed):
        self.assigned[namespace] = dict(governed)


class World:
    def __init__(self, api, make):
        self.make = make
        self.store, self.fleet = Store(), FakeFleet()
        self.leading = True
        self.controller = Controller(
            kube=api,
            store=self.store,
            fleet=self.fleet,
            install="equipoise",
            class_name="equipoise",
            require=self.require,
        )
        self.version = 1000

    def require(self):
        if not self.leading:
            raise NotLeadingError("no")

    def _meta(self, meta):
        self.version += 1
        return {"version": self.version} | (meta or {})

    def tenant(self, name, namespace="team", **spec):
        body = self.make.tenant_body(name, namespace, meta=self._meta(None), **spec)
        change = self.store.tenants.put((namespace, name), objects.tenant(body))
        if change:
            self.controller.tenant_changed(change)

    def policy(self, name="policy", namespace="team", meta=None, **spec):
        body = self.make.policy_body(name, namespace, meta=self._meta(meta), **spec)
        change = self.store.policies.put((namespace, name), objects.policy(body))
        if change:
            self.controller.policy_changed(change)

    def pod(self, name, namespace="team", **more):
        body = self.make.pod_body(name, namespace, meta=self._meta(None), **more)
        change = self.store.pods.put((namespace, name), objects.pod(body))
        if change:
            self.controller.pod_changed(change)

    def secret(self, name, namespace="team", **more):
        body = self.make.secret_body(name, namespace, meta=self._meta(None), **more)
        change = self.store.secrets.put((namespace, name), objects.secret(body))
        if change:
            self.controller.secret_changed(change)

    def drop(self, kind, name, namespace="team"):
        shelf = getattr(self.store, kind)
        stored = shelf.get((namespace, name))
        change = shelf.drop((namespace, name), stored.uid)
        {"tenants": self.controller.tenant_changed, "policies": self.controller.policy_changed}[kind](change)


@pytest.fixture
def world(api, make):
    made = World(api, make)
    yield made
    made.controller.stop()


async def settle():
    # Compiling is on a thread, which the loop's clock does not wait for.
    for _ in range(40):
        await asyncio.sleep(0.2)


async def test_a_policy_is_compiled_from_the_whole_store(world):
    world.secret("keys", a="k" * 32)
    world.tenant("blue", secrets=["keys"])
    world.policy()
    world.controller.start()
    await settle()
    (compiled,) = world.fleet.configs.values()
    assert len(compiled.tenants["team/blue"].key_digests) == 1


async def test_ten_thousand_events_are_one_compile(world):
    world.policy()
    world.controller.start()
    await settle()
    before = world.fleet.compiles
    for number in range(10_000):
        change = Change(("team", f"t{number}"), None, Stored("u", 1, None, {}))
        world.controller.tenant_changed(change)
    await settle()
    assert world.fleet.compiles == before + 1


async def test_a_tenant_of_another_namespace_concerns_only_policies_that_admit_it(world):
    world.policy("own")
    world.policy("open", "platform", tenants={"from": "All"})
    world.controller.start()
    await settle()
    world.fleet.configs.clear()
    world.tenant("blue", "guest")
    await settle()
    assert list(world.fleet.configs) == ["uid-platform-open"]


async def test_pods_go_to_their_policy_and_the_rest_pass_through(world):
    world.policy(labels={"app": "vllm"})
    world.pod("a", labels={"app": "vllm"})
    world.pod("b", labels={"app": "other"})
    world.controller.start()
    await settle()
    assert world.fleet.assigned == {"team": {"uid-team-a": "uid-team-policy", "uid-team-b": None}}


async def test_a_policy_that_goes_leaves_its_pods_to_pass_through(world):
    world.policy()
    world.pod("a")
    world.controller.start()
    await settle()
    world.drop("policies", "policy")
    await settle()
    assert world.fleet.assigned["team"] == {"uid-team-a": None}
    assert world.fleet.configs == {}


async def test_a_policy_made_again_is_another_one(world):
    world.policy()
    world.controller.start()
    await settle()
    world.policy(meta={"uid": "second"})
    await settle()
    assert list(world.fleet.configs) == ["second"]


async def test_a_policy_that_changes_its_class_is_let_go(world):
    forgotten = []
    world.controller.on_forgotten = forgotten.append
    world.policy()
    world.pod("a")
    world.controller.start()
    await settle()
    world.policy(className="another")
    await settle()
    assert forgotten == [("team", "policy")]
    assert world.fleet.configs == {}
    assert world.fleet.assigned["team"] == {"uid-team-a": None}


async def test_another_installs_pods_and_policies_are_left_alone(world):
    world.policy("foreign", className="another")
    world.pod("a", env=[{"name": "EQUIPOISE_INSTALL", "value": "another"}])
    world.pod("b", env=[{"name": "EQUIPOISE_INSTALL", "value": "equipoise"}])
    world.controller.start()
    await settle()
    assert world.fleet.configs == {}
    assert world.fleet.assigned["team"] == {"uid-team-b": None}


async def test_beside_a_policy_that_cannot_be_read_nobody_is_given_a_pass_through(world):
    world.policy("readable", labels={"app": "a"})
    world.policy("from-the-future", mode="Sometimes")
    world.pod("a", labels={"app": "a"})
    world.pod("b", labels={"app": "b"})
    world.controller.start()
    await settle()
    assert world.fleet.assigned["team"] == {"uid-team-a": "uid-team-readable"}


async def test_two_policies_on_one_pod_are_remembered_for_the_status(world):
    world.policy("old", meta={"created": "2026-01-01T00:00:00Z"})
    world.policy("young", meta={"created": "2026-02-01T00:00:00Z"})
    world.pod("a")
    world.controller.start()
    await settle()
    assert list(world.controller.placements["team"].conflicts) == ["uid-team-young"]


async def test_the_namespaces_that_need_certificates(world):
    world.policy(namespace="a")
    world.pod("p", "b", running=False)
    world.pod("q", "c", env=[{"name": "EQUIPOISE_INSTALL", "value": "another"}])
    assert world.controller.served_namespaces() == {"a", "b"}


async def test_a_standby_remembers_and_does_nothing(world, api):
    world.policy()
    world.tenant("blue")
    world.pod("a")
    await settle()
    assert (world.fleet.configs, world.fleet.assigned, api.calls) == ({}, {}, [])
    world.controller.start()
    await settle()
    assert len(world.fleet.configs) == len(world.fleet.assigned) == 1


async def test_one_that_lost_the_lease_writes_no_key(world, api):
    world.leading = False
    world.policy()
    world.controller.start()
    await settle()
    assert api.calls == []
    world.leading = True
    deadline = time.monotonic() + 60
    while not world.fleet.configs:  # the thread's time is not the loop's
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    assert len(world.fleet.configs) == 1


async def test_an_api_server_that_refuses_is_asked_again(world, api):
    from equipoise_operator.kube import ApiError

    api.fail_next = [ApiError(500, "InternalError", "etcd")] * 3
    failures = []
    world.controller.policies.on_failure = lambda: failures.append(1)
    world.policy()
    world.controller.start()
    await settle()
    assert len(failures) == 3
    assert len(world.fleet.configs) == 1


async def test_a_policy_of_another_class_that_cannot_be_read_is_none_of_ours(world):
    world.policy("theirs", mode="Sometimes", className="another")
    world.pod("a")
    world.controller.start()
    await settle()
    assert world.fleet.assigned["team"] == {"uid-team-a": None}
    assert world.controller.unreadable() == []
    world.policy("ours", mode="Sometimes")
    assert [key for key, _ in world.controller.unreadable()] == [("team", "ours")]


async def test_why_a_policy_cannot_be_compiled_is_known_until_it_is(world, api):
    from equipoise_operator.kube import ApiError

    api.fail_next = [ApiError(403, "Forbidden", "secrets")] * 8
    world.policy()
    world.controller.start()
    await asyncio.sleep(1)
    assert world.controller.problems == {("team", "policy"): "403 Forbidden: secrets"}
    api.fail_next.clear()
    for _ in range(4):
        await settle()
    assert world.controller.problems == {}
    assert len(world.fleet.configs) == 1


async def test_of_a_namespace_with_nothing_left_nothing_is_kept(world):
    world.policy(namespace="brief")
    world.controller.start()
    await settle()
    assert "brief" in world.controller.placements
    world.drop("policies", "policy", "brief")
    await settle()
    assert world.controller.placements == {}
    assert world.controller.namespaces._tasks == {}
    world.pod("a", "brief")
    await settle()
    assert world.fleet.assigned["brief"] == {"uid-brief-a": None}
