"""What kubectl shows: figures from every sidecar, conditions with reasons, events; and how seldom it is written."""

import asyncio
import json
import time

import aiohttp
import pytest
from patience import SLACK, eventually, stretch

from equipoise_api.latency import bucket
from equipoise_api.policy import FairnessPolicyStatus
from equipoise_api.tenant import TenantStatus


@pytest.fixture
async def running(world):
    world.operator()
    slo = {"ttftMilliseconds": 500, "objectivePercent": 90}
    await world.apply(
        world.policy("policy"),
        world.secret("keys", "k" * 40),
        world.secret("more-keys", "m" * 40),
        world.tenant("blue", secrets=("keys",), slo=slo),
        world.tenant("green", weight=3, secrets=("more-keys",)),
    )
    for number in range(2):
        await world.run_pod(f"vllm-{number}")
    await world.within(time.monotonic(), lambda s: len(s.tenants()) == 2, limit=60)
    # What was written of the first sidecar alone may say the same, and flips once more.
    await comes(
        world,
        "fairnesspolicy",
        "policy",
        lambda s: s.get("sidecars", {}).get("syncedOfTotal") == "2/2",
    )
    for tenant in ("blue", "green"):
        await world.says("tenant", tenant, "Ready", "True")
        await world.says("tenant", tenant, "Synced", "True")
    return world


def busy(world, *, gap=100.0, met=True, slo_kept=8):
    """Return a sidecar's state in which green gets three times what blue gets, and both want more."""
    histogram = {"counts": {str(bucket(0.4)): 100}}
    blue, green = f"{world.namespace}/blue", f"{world.namespace}/green"
    return {
        "engine": {"reachable": True, "signalStale": False, "signalSeen": True, "kvUsage": 0.5},
        "load": {"queued": 12, "running": 4, "maxInFlight": 8, "saturation": 0.5},
        "fairness": {"bounded": True, "bound": 1000.0, "largestGap": gap, "boundMet": met},
        "tenants": [
            {
                "id": blue,
                "queued": 10,
                "running": 1,
                "promptTokens": 1000,
                "generatedTokens": 500,
                "service": 2000.0,
                "demand": 20000.0,
                "rejected": {"tenant-queue-full": 3},
                "ttft": histogram,
                "wait": histogram,
                "sloKept": slo_kept,
                "sloTotal": 10,
            },
            {
                "id": green,
                "queued": 2,
                "running": 3,
                "promptTokens": 3000,
                "generatedTokens": 1500,
                "service": 6000.0,
                "demand": 60000.0,
            },
        ],
    }


async def shown(world, kind, name):
    return (await world.get(kind, name)).get("status", {})


async def comes(world, kind, name, holds):
    deadline = time.monotonic() + SLACK
    while not holds(status := await shown(world, kind, name)):
        assert time.monotonic() < deadline, json.dumps(status, indent=1)
        await asyncio.sleep(0.2)
    return status


async def test_shares_usage_and_latency_of_both_sidecars_reach_the_status(running):
    world = running
    for sidecar in world.sidecars.values():
        sidecar.state = busy(world)
    status = await comes(world, "tenant", "blue", lambda s: s.get("usage", {}).get("queued") == 20)
    TenantStatus.strictly(status)
    assert status["share"] == {"entitledPercent": 25, "actualPercent": 25, "demandPercent": 250}
    assert status["usage"]["tokensPerMinute"] == 3000
    assert status["usage"]["rejected"] == [{"reason": "tenant-queue-full", "perMinute": 6}]
    assert abs(status["latency"]["ttftP99Milliseconds"] - 400) <= 40
    assert status["latency"]["sloAttainmentPercent"] == 80
    await world.says("tenant", "blue", "SLOMet", "False", "Missed")
    (entry,) = status["policies"]
    assert (entry["namespace"], entry["name"]) == (world.namespace, "policy")

    policy = await comes(world, "fairnesspolicy", "policy", lambda s: s["load"].get("queued") == 24)
    FairnessPolicyStatus.strictly(policy)
    assert policy["load"] == {"queued": 24, "running": 8, "saturationPercent": 50, "kvPercent": 50}
    assert policy["fairness"] == {"jainPermille": 1000, "largestGap": 100, "bound": 1000}
    assert policy["sidecars"] == {
        "total": 2,
        "ready": 2,
        "synced": 2,
        "outdated": 0,
        "versions": [{"version": "1.0.0", "sidecars": 2}],
        "syncedOfTotal": "2/2",
        "versionNames": "1.0.0",
    }
    assert policy["tenants"] == 2
    await world.says("fairnesspolicy", "policy", "FairnessBoundMet", "True")

    table = await world.kubectl("get", "tenants")
    assert table.splitlines()[1].split()[:5] == ["blue", "1", "25", "25", "20"]
    table = await world.kubectl("get", "fairnesspolicies")
    assert table.splitlines()[1].split()[:5] == ["policy", "Equipoise", "Enforce", "2/2", "2"]


async def test_a_broken_bound_and_a_missed_slo_are_told_as_events(running):
    world = running
    for sidecar in world.sidecars.values():
        sidecar.state = busy(world, gap=2000.0, met=False)
    await world.says("fairnesspolicy", "policy", "FairnessBoundMet", "False", "BoundExceeded")
    await world.says("tenant", "blue", "SLOMet", "False")

    async def told():  # in the background, after the status is written
        events = await world.kubectl("get", "events", "--output=wide")
        return "BoundExceeded" in events and "Missed" in events

    await eventually(told, what="no events", also=world.tails)
    for sidecar in world.sidecars.values():
        sidecar.state = busy(world, slo_kept=10)
    await world.says("tenant", "blue", "SLOMet", "True")
    await world.says("fairnesspolicy", "policy", "FairnessBoundMet", "True")


async def test_an_idle_tenant_and_a_quiet_policy_are_not_written_again(running):
    world = running

    async def versions():
        return [(await world.get(*what))["metadata"]["resourceVersion"] for what in QUIET]

    async def quiet():
        before = await versions()
        await asyncio.sleep(3)
        return await versions() == before

    await eventually(quiet, also=world.tails)
    before = await versions()
    await asyncio.sleep(5)
    assert await versions() == before


QUIET = [("tenant", "blue"), ("tenant", "green"), ("fairnesspolicy", "policy")]


async def test_transition_times_move_on_flips_only(running):
    world = running

    async def times():
        return {
            c["type"]: c["lastTransitionTime"] for c in (await shown(world, "tenant", "blue"))["conditions"]
        }

    before = await times()
    await asyncio.sleep(1.5)
    for sidecar in world.sidecars.values():
        sidecar.state = busy(world)
    await comes(world, "tenant", "blue", lambda s: s["usage"]["queued"] == 20)
    after = await times()
    assert after["Ready"] == before["Ready"]
    assert after["IdentityResolved"] == before["IdentityResolved"]
    await world.remove("Secret", "keys")
    await world.says("tenant", "blue", "Ready", "False")
    assert (await times())["Ready"] > before["Ready"]


async def test_observed_generation_follows_the_spec(running):
    world = running
    await world.patch("Tenant", "blue", {"spec": {"weight": 5}})
    status = await comes(world, "tenant", "blue", lambda s: s.get("observedGeneration") == 2)
    assert {each["observedGeneration"] for each in status["conditions"]} == {2}


async def test_three_hundred_tenants_are_told_at_ten_a_second(running):
    world = running
    await world.apply(*(world.tenant(f"t{n:03}") for n in range(300)))
    began = time.monotonic()
    (operator,) = world.operators

    async def written():
        return await operator.metric("status_writes_total", kind="Tenant", status="200") or 0

    start = await written()

    async def most():
        return await written() - start >= 100

    await eventually(most, seconds=25 * stretch(), what="no four a second", also=world.tails)
    count, seconds = await written() - start, time.monotonic() - began
    assert count <= 10 * seconds + 15


async def test_probes_and_metrics(running):
    world = running
    (operator,) = world.operators
    async with aiohttp.ClientSession() as session:
        for probe in ("/healthz", "/readyz"):
            async with session.get(operator.http + probe) as response:
                assert (response.status, await response.text()) == (200, "ok")
        async with session.get(operator.http + "/metrics") as response:
            text = await response.text()
    assert 'equipoise_operator_sidecars{state="synced"} 2.0' in text
    assert 'equipoise_operator_objects{kind="tenants"} 2.0' in text
    assert "equipoise_operator_leading 1.0" in text
    # The chart's rules suffice: nothing that the operator asked for was forbidden.
    assert 'status="403"' not in text


async def test_an_operator_is_not_ready_before_it_has_seen_everything(world):
    link = await world.link()
    link.stall()
    operator = world.operator(link=link)
    await eventually(lambda: operator.said("listening", what="http"), also=operator.tail)
    async with aiohttp.ClientSession() as session:
        async with session.get(operator.http + "/readyz") as response:
            assert response.status == 503
            assert "not all seen" in await response.text()
        async with session.get(operator.http + "/healthz") as response:
            assert response.status == 200
        link.resume()

        async def ready():
            async with session.get(operator.http + "/readyz") as response:
                return response.status == 200

        await eventually(ready, also=operator.tail)


async def test_bad_settings_end_the_process_with_the_variables_name(world):
    operator = world.operator(EQUIPOISE_HTTP_PORT="http")
    assert await operator.ended() == 2
    assert "EQUIPOISE_HTTP_PORT" in operator.tail()
