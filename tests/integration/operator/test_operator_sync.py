"""Every selected sidecar has the right configuration within two seconds of what happened, and the status says so."""

import asyncio
import time

import pytest
from patience import eventually

from equipoise_api.sidecar_config import SidecarConfig

KEYS = [f"{letter}" * 40 for letter in "abcdef"]


@pytest.fixture
async def running(world):
    """One operator that leads, a policy, one tenant with a key, three sidecars that hold it."""
    world.operator()
    await world.apply(
        world.policy("policy"),
        world.secret("blue-keys", KEYS[0]),
        world.tenant("blue", secrets=("blue-keys",)),
    )
    for number in range(3):
        await world.run_pod(f"vllm-{number}")
    await world.within(time.monotonic(), lambda s: s.keys_of(f"{world.namespace}/blue"), limit=60)
    return world


async def test_tenants_added_changed_and_deleted(running):
    world = running
    green = f"{world.namespace}/green"
    began = await world.create(world.tenant("green", weight=2))
    await world.within(began, lambda s: s.tenants().get(green) == 2)
    began = await world.patch("Tenant", "green", {"spec": {"weight": 7}})
    await world.within(began, lambda s: s.tenants().get(green) == 7)
    assert (await world.get("tenant", "green"))["metadata"]["generation"] == 2
    await world.says("tenant", "green", "Synced", "True")
    began = await world.remove("Tenant", "green")
    await world.within(began, lambda s: green not in s.tenants())
    assert {push.method for push in world.sidecars["vllm-0"].log[1:]} == {"PATCH"}


async def test_a_hundred_tenants_at_once(running):
    world = running
    before = {name: len(sidecar.log) for name, sidecar in world.sidecars.items()}
    first = time.monotonic()
    # Not by kubectl: it sends one after the other, on a slow machine so far apart that each is a burst of its own.
    await asyncio.gather(*(world.create(world.tenant(f"t{n:03}")) for n in range(100)))
    began = time.monotonic()
    await world.within(began, lambda s: len(s.tenants()) == 101)
    pushes = {name: len(sidecar.log) - before[name] for name, sidecar in world.sidecars.items()}
    took = time.monotonic() - first
    assert max(pushes.values()) < 20 + 4 * took, (
        f"a burst is cut twice a second at most: {pushes} in {took:.1f} s"
    )


async def test_the_policy_changed(running):
    world = running
    began = await world.patch("FairnessPolicy", "policy", {"spec": {"algorithm": {"type": "FCFS"}}})
    await world.within(began, lambda s: s.config.algorithm.type == "FCFS")
    began = await world.patch("FairnessPolicy", "policy", {"spec": {"mode": "Off"}})
    await world.within(began, lambda s: s.config.mode == "PassThrough")
    await world.says("fairnesspolicy", "policy", "Programmed", "True")


async def test_the_policy_deleted_and_another_made(running):
    world = running
    began = await world.remove("FairnessPolicy", "policy")
    await world.within(began, lambda s: s.config == SidecarConfig())
    await world.says("tenant", "blue", "Synced", "False", "NoPolicy")
    began = await world.create(world.policy("policy", algorithm={"type": "RoundRobin"}))
    await world.within(began, lambda s: s.config.algorithm.type == "RoundRobin")
    await world.says("tenant", "blue", "Ready", "True")


async def test_the_selector_moved_to_other_pods(running):
    world = running
    other = await world.run_pod("other", app="other")
    await world.within(time.monotonic(), lambda s: s.config == SidecarConfig(), other, limit=5)
    change = {"spec": {"target": {"selector": {"matchLabels": {"app": "other"}}}}}
    began = await world.patch("FairnessPolicy", "policy", change)
    await world.within(began, lambda s: s.config.policy is not None, other)
    rest = [world.sidecars[f"vllm-{n}"] for n in range(3)]
    await world.within(began, lambda s: s.config == SidecarConfig(), *rest)


async def test_pods_come_go_and_restart(running):
    world = running
    new = await world.run_pod("vllm-new")
    began = time.monotonic()
    await world.within(began, lambda s: s.config is not None, new)

    restarted = world.sidecars["vllm-0"]
    await restarted.stop(forget=True)
    await asyncio.sleep(1)
    began = time.monotonic()
    await world.start_sidecar(restarted, world.operators[0])
    await world.within(began, lambda s: s.config is not None and s.config.policy is not None, restarted)

    await world.delete_pod("vllm-1")
    gone = world.sidecars.pop("vllm-1")
    calls = len(gone.log)
    began = await world.patch("Tenant", "blue", {"spec": {"weight": 3}})
    await world.within(began, lambda s: s.tenants().get(f"{world.namespace}/blue") == 3)
    assert len(gone.log) == calls
    await gone.stop()

    async def counted():
        status = (await world.get("fairnesspolicy", "policy")).get("status", {})
        return status.get("sidecars", {}).get("syncedOfTotal") == "3/3"

    await eventually(counted, also=world.tails)


async def test_a_sidecar_that_is_not_ready_gets_it_too(running):
    world = running
    sidecar = await world.run_pod("vllm-loading")
    await asyncio.to_thread(
        world.cluster.set_pod_running, world.namespace, "vllm-loading", ip=sidecar.ip, ready=False
    )
    began = await world.patch("Tenant", "blue", {"spec": {"weight": 8}})
    await world.within(began, lambda s: s.tenants().get(f"{world.namespace}/blue") == 8, sidecar)


async def test_secrets_rotated(running):
    world = running
    blue = f"{world.namespace}/blue"
    (old,) = world.sidecars["vllm-0"].keys_of(blue)
    began = await world.patch("Secret", "blue-keys", {"stringData": {"second": KEYS[1]}})
    await world.within(began, lambda s: len(s.keys_of(blue)) == 2)
    began = await world.patch("Secret", "blue-keys", {"data": {"key0": None}})
    await world.within(began, lambda s: s.keys_of(blue) and old not in s.keys_of(blue))
    began = await world.remove("Secret", "blue-keys")
    await world.within(began, lambda s: s.keys_of(blue) == [])
    await world.says("tenant", "blue", "IdentityResolved", "False", "SecretNotFound")
    began = await world.create(world.secret("blue-keys", KEYS[2]))
    await world.within(began, lambda s: len(s.keys_of(blue)) == 1)
    await world.says("tenant", "blue", "IdentityResolved", "True")


async def test_a_secret_counts_as_long_as_it_has_the_label(running):
    world = running
    blue = f"{world.namespace}/blue"
    label = "equipoise.dev/credential"
    began = await world.patch("Secret", "blue-keys", {"metadata": {"labels": {label: None}}})
    await world.within(began, lambda s: s.keys_of(blue) == [])
    await world.says("tenant", "blue", "IdentityResolved", "False", "SecretNotLabelled")
    began = await world.patch("Secret", "blue-keys", {"metadata": {"labels": {label: "true"}}})
    await world.within(began, lambda s: len(s.keys_of(blue)) == 1)
    await world.says("tenant", "blue", "IdentityResolved", "True")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stringData": {"key0": "short"}}, "KeyTooShort"),
        ({"data": {"key0": "//////////////////////////////////////////8="}}, "KeyNotUTF8"),
        ({"data": {"key0": None}}, "SecretEmpty"),
    ],
)
async def test_a_secret_that_is_spoilt_says_how(running, change, reason):
    world = running
    began = await world.patch("Secret", "blue-keys", change)
    await world.within(began, lambda s: s.keys_of(f"{world.namespace}/blue") == [])
    await world.says("tenant", "blue", "IdentityResolved", "False", reason)
    await world.says("tenant", "blue", "Ready", "False", reason)


async def test_two_tenants_with_one_key_the_older_keeps_it(running):
    world = running
    blue, thief = f"{world.namespace}/blue", f"{world.namespace}/ant"
    await asyncio.sleep(1)  # creationTimestamp has seconds
    await world.apply(world.secret("ant-keys", KEYS[0], KEYS[3]), world.tenant("ant", secrets=("ant-keys",)))
    began = time.monotonic()
    await world.within(began, lambda s: len(s.keys_of(thief)) == 1 and len(s.keys_of(blue)) == 1, limit=5)
    await world.says("tenant", "ant", "IdentityResolved", "False", "Conflict")
    await world.says("tenant", "blue", "IdentityResolved", "True")

    async def told():
        events = await world.kubectl("get", "events", "--field-selector=involvedObject.name=ant")
        return "Conflict" in events

    await eventually(told, what="no event", also=world.tails)
    began = await world.remove("Tenant", "blue")
    await world.within(began, lambda s: len(s.keys_of(thief)) == 2)
    await world.says("tenant", "ant", "IdentityResolved", "True")


async def test_two_policies_on_one_pod_the_older_has_it(running):
    world = running
    await asyncio.sleep(1)
    await world.create(world.policy("another", algorithm={"type": "FCFS"}))
    await world.says("fairnesspolicy", "another", "Accepted", "False", "Conflict")
    await world.says("fairnesspolicy", "policy", "Accepted", "True")
    assert {s.config.policy.name for s in world.sidecars.values()} == {"policy"}
    began = await world.remove("FairnessPolicy", "policy")
    await world.within(began, lambda s: s.config.policy is not None and s.config.policy.name == "another")
    await world.says("fairnesspolicy", "another", "Accepted", "True")


async def test_a_policy_of_another_class_is_another_installs(running):
    world = running
    other = world.policy("foreign")
    other["spec"]["className"] = "somebody-elses"
    await world.create(other)
    await asyncio.sleep(2)
    assert "status" not in await world.get("fairnesspolicy", "foreign")
    began = await world.patch("FairnessPolicy", "policy", {"spec": {"className": "somebody-elses"}})
    await world.within(began, lambda s: s.config == SidecarConfig())


async def test_the_hmac_key_lost_is_made_anew_and_all_digests_with_it(running):
    world = running
    blue = f"{world.namespace}/blue"
    before = world.sidecars["vllm-0"].keys_of(blue)
    uid = (await world.get("fairnesspolicy", "policy"))["metadata"]["uid"]
    secret = await world.get("secret", f"equipoise-hmac-{uid}")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == uid
    began = await world.remove("Secret", f"equipoise-hmac-{uid}")
    await world.within(began, lambda s: s.keys_of(blue) and s.keys_of(blue) != before)


async def test_a_sidecar_that_refuses_is_named_in_the_status(running):
    world = running
    from equipoise_api.sidecar_config import Problem

    world.sidecars["vllm-2"].refuse = Problem(message="too small for me", field="queue.maxBytes")
    await world.patch("FairnessPolicy", "policy", {"spec": {"queue": {"maxBytes": 2097152}}})
    await world.says("fairnesspolicy", "policy", "Programmed", "False", "Rejected")
    conditions = (await world.get("fairnesspolicy", "policy"))["status"]["conditions"]
    message = next(each["message"] for each in conditions if each["type"] == "Programmed")
    assert "vllm-2" in message
    assert "queue.maxBytes: too small for me" in message
    world.sidecars["vllm-2"].refuse = None
    began = await world.patch("FairnessPolicy", "policy", {"spec": {"queue": {"maxBytes": 4194304}}})
    await world.within(began, lambda s: s.config.queue.max_bytes == 4194304)
    await world.says("fairnesspolicy", "policy", "Programmed", "True")


async def test_a_sidecar_that_hangs_holds_up_nobody(running):
    world = running
    world.sidecars["vllm-0"].hang = True
    began = await world.patch("Tenant", "blue", {"spec": {"weight": 9}})
    rest = [world.sidecars["vllm-1"], world.sidecars["vllm-2"]]
    await world.within(began, lambda s: s.tenants().get(f"{world.namespace}/blue") == 9, *rest)
    await world.says("fairnesspolicy", "policy", "Programmed", "False", "Unreachable")
    await world.says("tenant", "blue", "Synced", "False", "Pending")
    world.sidecars["vllm-0"].hang = False
    await world.says("fairnesspolicy", "policy", "Programmed", "True")
    await world.says("tenant", "blue", "Synced", "True")
