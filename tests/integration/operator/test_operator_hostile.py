"""Sidecars that answer nonsense or not at all, objects that change hands: nobody else is held up, and the status is true."""

import asyncio
import signal
import time

import pytest
from patience import SLACK, eventually

KEYS = [f"{letter}" * 40 for letter in "ab"]


@pytest.fixture
async def running(world):
    """One operator that leads, a policy, a tenant with a key, two sidecars that hold it."""
    world.operator()
    await world.apply(
        world.policy("policy"),
        world.secret("blue-keys", KEYS[0]),
        world.tenant("blue", secrets=("blue-keys",)),
    )
    for number in range(2):
        await world.run_pod(f"vllm-{number}")
    await world.within(time.monotonic(), lambda s: s.keys_of(f"{world.namespace}/blue"), limit=60)
    await settled(world)
    return world


async def settled(world):
    """Wait until the status is of both sidecars: what was written of the first alone may say the same, and flips."""

    async def both():
        status = (await world.get("fairnesspolicy", "policy")).get("status", {})
        return status.get("sidecars", {}).get("syncedOfTotal") == "2/2"

    await eventually(both, also=world.tails)
    await world.says("fairnesspolicy", "policy", "Ready", "True")
    await world.says("tenant", "blue", "Ready", "True")
    await world.says("tenant", "blue", "Synced", "True")


def message(status, kind):
    return next((each["message"] for each in status.get("conditions", ()) if each["type"] == kind), "")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"<html>",
        b'{"tenants": [{"id": "ns/blue", "service": NaN, "demand": 1e999}]}',
        b'{"tenants": [{"id": "ns/blue", "weight": 0, "rejected": {"": -1}}]}',
        b'{"gpu": {"problem": "no word", "utilisation": 7e300}}',
    ],
    ids=["html", "no number", "out of range", "gpu"],
)
async def test_a_sidecar_that_tells_nonsense_spoils_no_others_figures_and_is_configured(running, nonsense):
    world = running
    blue = f"{world.namespace}/blue"
    liar, honest = world.sidecars["vllm-0"], world.sidecars["vllm-1"]
    liar.raw_state = nonsense.replace(b"ns/blue", blue.encode())
    honest.state = {"tenants": [{"id": blue, "queued": 3, "service": 10.0, "demand": 20.0}]}

    async def shown():
        tenant = (await world.get("tenant", "blue"))["status"]
        policy = (await world.get("fairnesspolicy", "policy"))["status"]
        return tenant["usage"]["queued"] == 3 and "vllm-0 (state: " in message(policy, "Programmed")

    await eventually(shown, also=world.tails)
    began = await world.remove("Secret", "blue-keys")
    await world.within(began, lambda s: s.keys_of(blue) == [])
    await world.says("tenant", "blue", "IdentityResolved", "False", "SecretNotFound")
    liar.raw_state = None
    await eventually(lambda: no_message(world), also=world.tails)
    (operator,) = world.operators
    assert operator.alive
    assert len(operator.said("leading")) == 1


async def no_message(world):
    return message((await world.get("fairnesspolicy", "policy"))["status"], "Programmed") == ""


async def test_a_sidecar_that_fails_at_pushes_is_named_and_its_figures_go_on(running):
    world = running
    blue = f"{world.namespace}/blue"
    broken, sound = world.sidecars["vllm-0"], world.sidecars["vllm-1"]
    broken.fault = 500
    broken.state = {"tenants": [{"id": blue, "queued": 5}]}
    began = await world.patch("Tenant", "blue", {"spec": {"weight": 4}})
    await world.within(began, lambda s: s.tenants().get(blue) == 4, sound)
    await world.says("fairnesspolicy", "policy", "Programmed", "False", "Refused")
    told = message((await world.get("fairnesspolicy", "policy"))["status"], "Programmed")
    assert "vllm-0: answered 500: out of order" in told
    await asyncio.sleep(11)
    broken.state = {"tenants": [{"id": blue, "queued": 7}]}

    async def queued():
        return (await world.get("tenant", "blue"))["status"]["usage"]["queued"] == 7

    await eventually(queued, also=world.tails)
    broken.fault = None
    await world.says("fairnesspolicy", "policy", "Programmed", "True")
    assert broken.tenants()[blue] == 4


async def test_a_status_that_says_programmed_is_of_what_every_sidecar_holds(running):
    """Whoever waits for observedGeneration and Programmed, as GitOps tools do, is told the truth."""
    world = running
    looks, ends = [], asyncio.Event()

    async def look():
        while not ends.is_set():
            status = (await world.get("fairnesspolicy", "policy"))["status"]
            programmed = next(each for each in status["conditions"] if each["type"] == "Programmed")
            held = min(sidecar.config.policy.generation for sidecar in world.sidecars.values())
            looks.append((programmed["observedGeneration"], programmed["status"], held))

    looking = asyncio.create_task(look())
    for seconds in range(12):
        await world.patch("FairnessPolicy", "policy", {"spec": {"queue": {"maxWaitSeconds": 100 + seconds}}})
        await asyncio.sleep(0.9)
    await eventually(lambda: looks and looks[-1][0] == 13 and looks[-1][1] == "True", also=world.tails)
    ends.set()
    await looking
    untrue = [each for each in looks if each[1] == "True" and each[2] < each[0]]
    assert untrue == []


async def test_a_pod_replaced_under_the_same_name_is_another_one(running):
    world = running
    blue = f"{world.namespace}/blue"
    former = world.sidecars["vllm-0"]
    await world.delete_pod("vllm-0")
    successor = await world.run_pod("vllm-0")
    assert successor.uid != former.uid
    began = time.monotonic()
    await world.within(began, lambda s: s.keys_of(blue), successor, limit=5)
    calls = len(former.log)
    began = await world.patch("Tenant", "blue", {"spec": {"weight": 6}})
    await world.within(began, lambda s: s.tenants().get(blue) == 6, successor, world.sidecars["vllm-1"])
    assert len(former.log) == calls

    async def counted():
        return (await world.get("fairnesspolicy", "policy"))["status"]["sidecars"]["syncedOfTotal"] == "2/2"

    await eventually(counted, also=world.tails)
    await former.stop()


async def test_a_tenant_renamed_takes_its_keys_along_once_the_former_is_gone(running):
    world = running
    blue, azure = f"{world.namespace}/blue", f"{world.namespace}/azure"
    await asyncio.sleep(1)  # creationTimestamp has seconds
    await world.create(world.tenant("azure", secrets=("blue-keys",)))
    await world.says("tenant", "azure", "IdentityResolved", "False", "Conflict")
    began = await world.remove("Tenant", "blue")
    await world.within(began, lambda s: len(s.keys_of(azure)) == 1 and blue not in s.tenants())
    await world.says("tenant", "azure", "Ready", "True")


async def test_the_versions_that_sidecars_run_are_shown(running):
    world = running
    world.sidecars["vllm-1"].state = {"softwareVersion": "0.9.0"}

    async def both():
        sidecars = (await world.get("fairnesspolicy", "policy"))["status"]["sidecars"]
        return {each["version"]: each["sidecars"] for each in sidecars["versions"]} == {
            "1.0.0": 1,
            "0.9.0": 1,
        }

    await eventually(both, also=world.tails)
    wide = await world.kubectl("get", "fairnesspolicies", "--output=wide")
    header, row = wide.splitlines()
    assert header.split()[-1] == "VERSIONS"
    assert row.split()[-1] == "0.9.0,1.0.0"


async def test_a_watched_namespace_that_is_gone_ends_nobody_elses_service(world):
    """It went with its Role, so that the operator may not even ask; restarted, it serves the others."""
    world.operator(EQUIPOISE_WATCH_NAMESPACES=f"{world.namespace}-gone,{world.namespace}")
    await world.apply(world.policy("policy"), world.secret("keys", KEYS[0]))
    await world.apply(world.tenant("blue", secrets=("keys",)))
    blue = f"{world.namespace}/blue"
    (operator,) = world.operators
    await operator.leading()
    sidecar = await world.run_pod("vllm-0")
    await world.within(time.monotonic(), lambda s: s.keys_of(blue), sidecar, limit=60)
    began = await world.remove("Secret", "keys")
    await world.within(began, lambda s: s.keys_of(blue) == [], sidecar)
    await asyncio.sleep(6)
    assert operator.alive


async def test_an_operator_that_is_killed_and_started_again_takes_nothing_back(running):
    """Whoever waits for Ready sees no flap, though the new leader begins with knowing nothing."""
    world = running
    (operator,) = world.operators
    both = (("fairnesspolicy", "policy"), ("tenant", "blue"))

    async def ready():
        found = []
        for kind, name in both:
            status = (await world.get(kind, name))["status"]
            found += [
                each for each in status["conditions"] if each["type"] in {"Ready", "Programmed", "Synced"}
            ]
        return [(each["type"], each["status"], each["lastTransitionTime"]) for each in found]

    before = await ready()
    assert {status for _, status, _ in before} == {"True"}
    operator.signal(signal.SIGKILL)
    await operator.ended()
    operator.spawn()
    deadline = time.monotonic() + SLACK
    while not (operator.said("leading") and operator.said("compiled")):
        assert await ready() == before
        assert time.monotonic() < deadline, operator.tail()
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        assert await ready() == before
    began = await world.patch("Tenant", "blue", {"spec": {"weight": 8}})
    await world.within(began, lambda s: s.tenants().get(f"{world.namespace}/blue") == 8)
