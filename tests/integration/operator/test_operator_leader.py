"""Two operators, or one that comes back: never two that push, and nothing is lost. Read from the sidecars' logs of pushes."""

import asyncio
import contextlib
import json
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
from patience import eventually, stretch

KEY = "k" * 40


async def prepared(world, *, links=(None, None)):
    """A policy, a tenant, two sidecars; operator-a leads, operator-b stands by."""
    first = world.operator("operator-a", link=links[0])
    await world.apply(
        world.policy("policy"), world.secret("keys", KEY), world.tenant("blue", secrets=("keys",))
    )
    await first.leading()
    for number in range(2):
        await world.run_pod(f"vllm-{number}")
    await world.within(time.monotonic(), lambda s: s.config is not None and s.tenants(), limit=60)
    second = world.operator("operator-b", link=links[1])
    await eventually(
        lambda: second.said("observed") and second.said("listening", what="issuer"), also=second.tail
    )
    return first, second


@contextlib.asynccontextmanager
async def restless(world):
    """Change a tenant's weight several times a second, as long as the block runs; yields the weights that were set."""
    weights = [1]

    ends = asyncio.Event()

    async def change():
        while not ends.is_set():
            weight = weights[-1] + 1
            await world.patch("Tenant", "blue", {"spec": {"weight": weight}})
            weights.append(weight)
            await asyncio.sleep(0.3)

    task = asyncio.create_task(change())
    try:
        yield weights
    finally:
        # Not cancelled: a change that is on its way would be made and not be known.
        ends.set()
        await asyncio.wait([task])


def fenced(world):
    for sidecar in world.sidecars.values():
        assert sidecar.never_went_back(), [(p.epoch, p.sequence, p.status) for p in sidecar.log]


async def converged(world, began, weight):
    blue = f"{world.namespace}/blue"
    return await world.within(began, lambda s: s.tenants().get(blue) == weight)


async def lease(world):
    return (await world.get("lease", f"{world.install}-operator"))["spec"]


async def renewal(world):
    """Wait until the leader has just renewed its Lease: it then has six seconds, and not what was left of them."""
    before = await lease(world)

    async def another():
        return (await lease(world))["renewTime"] != before["renewTime"]

    await eventually(another, what="no renewal", also=world.tails)


async def test_a_terminated_leader_hands_over_at_once(world):
    first, second = await prepared(world)
    async with restless(world) as weights:
        await asyncio.sleep(1)
        first.signal(signal.SIGTERM)
        assert await first.ended() == 0
        ended = time.monotonic()
        assert not (await lease(world))["holderIdentity"].startswith("operator-a"), "released"
        await second.leading()
        took = time.monotonic() - ended
    began = time.monotonic()
    await converged(world, began, weights[-1])
    fenced(world)
    epochs = lambda: {push.epoch for push in world.sidecars["vllm-0"].log}  # noqa: E731
    await eventually(lambda: 2 in epochs(), also=world.tails)
    assert epochs() == {1, 2}
    assert took < 8 * stretch(), "a Lease that is not released is taken after ten seconds"
    assert (await lease(world))["leaseTransitions"] == 2


async def test_a_stopped_leader_pushes_nothing_when_it_wakes(world):
    first, second = await prepared(world)
    async with restless(world) as weights:
        await asyncio.sleep(1)
        first.signal(signal.SIGSTOP)
        await second.leading()
        await asyncio.sleep(1)
        first.signal(signal.SIGCONT)
        assert await first.ended() == 1
        await asyncio.sleep(1)
    await converged(world, time.monotonic(), weights[-1])
    fenced(world)
    assert first.said("leadership-lost")
    assert second.alive


async def fresh(world):
    """Whether the leader has had the time to renew its Lease lately, on a machine however slow."""
    renewed = datetime.fromisoformat((await lease(world))["renewTime"])
    return datetime.now(UTC) - renewed < timedelta(seconds=3)


async def test_many_short_stops_do_not_confuse_anybody(world):
    first, second = await prepared(world)
    async with restless(world) as weights:
        for _ in range(8):
            first.signal(signal.SIGSTOP)
            await asyncio.sleep(0.7)
            first.signal(signal.SIGCONT)
            await asyncio.sleep(0.3)
            await eventually(lambda: fresh(world), what="no renewal", also=world.tails)
    await converged(world, time.monotonic(), weights[-1])
    fenced(world)
    assert first.alive
    assert second.alive


@pytest.mark.parametrize("fault", ["hang", "cut"])
async def test_a_leader_without_its_api_server_stops_and_another_takes_over(world, fault):
    link = await world.link()
    first, second = await prepared(world, links=(link, None))
    async with restless(world) as weights:
        await asyncio.sleep(1)
        lost = time.monotonic()
        if fault == "hang":
            link.stall()
        else:
            await link.cut()
        assert await first.ended() == 1
        ended = time.monotonic() - lost
        await second.leading()
        took = time.monotonic() - lost
    began = time.monotonic()
    await converged(world, began, weights[-1])
    fenced(world)
    for sidecar in world.sidecars.values():
        last = max(push.at for push in sidecar.log if push.epoch == 1)
        assert last - lost < 6 + 4, "a push of a leader that could not renew"
    assert ended < 15 * stretch()
    assert took < 30 * stretch()


async def test_an_operator_killed_and_restarted_while_tenants_change(world):
    operator = world.operator("operator-a")
    await world.apply(
        world.policy("policy"), world.secret("keys", KEY), world.tenant("blue", secrets=("keys",))
    )
    await operator.leading()
    for number in range(2):
        await world.run_pod(f"vllm-{number}")
    await world.within(time.monotonic(), lambda s: s.tenants(), limit=60)
    for _ in range(2):
        async with restless(world) as weights:
            await asyncio.sleep(0.7)
            operator.signal(signal.SIGKILL)
            await operator.ended()
            await world.apply(world.tenant("while-away"))
            operator.spawn()
            await eventually(lambda: operator.said("observed"), also=operator.tail)
        began = time.monotonic()
        await converged(world, began, weights[-1])
        assert f"{world.namespace}/while-away" in world.sidecars["vllm-0"].tenants()
        await world.remove("Tenant", "while-away")
        await world.within(time.monotonic(), lambda s: f"{world.namespace}/while-away" not in s.tenants())
    fenced(world)
    assert [push.epoch for push in world.sidecars["vllm-0"].log][-1] == 3


async def test_tenant_and_secret_deleted_while_the_operators_watch_was_down(world):
    """The link is down for less than the Lease's deadline: the same leader goes on, and hears of it within two seconds."""
    link = await world.link()
    operator = world.operator("operator-a", link=link)
    await world.apply(
        world.policy("policy"),
        *(world.secret(f"{name}-keys", name * 40) for name in "abc"),
        *(world.tenant(name, secrets=(f"{name}-keys",)) for name in "abc"),
    )
    await operator.leading()
    await world.run_pod("vllm-0")
    of = lambda name: f"{world.namespace}/{name}"  # noqa: E731
    await world.within(time.monotonic(), lambda s: all(s.keys_of(of(name)) for name in "abc"), limit=60)
    await renewal(world)
    await link.cut()
    await asyncio.gather(
        world.remove("Tenant", "a"),
        world.remove("Secret", "b-keys"),
        world.patch("Tenant", "c", {"spec": {"weight": 5}}),
        asyncio.sleep(1.5),
    )
    await link.start()
    began = time.monotonic()
    await world.within(
        began,
        lambda s: of("a") not in s.tenants() and s.keys_of(of("b")) == [] and s.tenants().get(of("c")) == 5,
    )
    assert operator.alive
    assert len(operator.said("leading")) == 1
    await world.says("tenant", "b", "IdentityResolved", "False", "SecretNotFound")


async def test_all_of_a_kind_deleted_while_the_watch_was_down(world):
    """kopf says nothing of a kind that is empty."""
    link = await world.link()
    operator = world.operator("operator-a", link=link)
    await world.apply(
        world.policy("policy"), world.secret("keys", KEY), world.tenant("blue", secrets=("keys",))
    )
    await operator.leading()
    await world.run_pod("vllm-0")
    await world.within(time.monotonic(), lambda s: s.tenants(), limit=60)
    await renewal(world)
    await link.cut()
    await asyncio.gather(
        world.remove("Tenant", "blue"), world.remove("FairnessPolicy", "policy"), asyncio.sleep(1)
    )
    await link.start()
    began = time.monotonic()
    await world.within(began, lambda s: s.config.policy is None)


async def test_the_api_server_restarted_under_it_and_objects_deleted_meanwhile(world, control_plane):
    """What a restart takes may cost the Lease; the process then ends and is started anew, as a kubelet does."""
    link = await world.link()
    operator = world.operator("operator-a", link=link)
    await world.apply(
        world.policy("policy"),
        *(world.secret(f"{name}-keys", name * 40) for name in "ab"),
        *(world.tenant(name, secrets=(f"{name}-keys",)) for name in "ab"),
    )
    await operator.leading()
    await world.run_pod("vllm-0")
    of = lambda name: f"{world.namespace}/{name}"  # noqa: E731
    await world.within(time.monotonic(), lambda s: all(s.keys_of(of(name)) for name in "ab"), limit=60)

    anew = False
    began = 0.0

    async def kubelet():
        nonlocal anew, began
        while True:
            if not operator.alive:
                operator.spawn()
                anew = True
            elif anew and operator.said("observed"):
                anew, began = False, time.monotonic()
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(kubelet())
    try:
        await link.cut()
        await asyncio.to_thread(control_plane.restart_apiserver, kill=True)
        await world.remove("Tenant", "a")
        await world.remove("Secret", "b-keys")
        await link.start()
        began = time.monotonic()
        gone = lambda s: of("a") not in s.tenants() and s.keys_of(of("b")) == []  # noqa: E731
        await eventually(lambda: not anew and all(map(gone, world.sidecars.values())), also=world.tails)
        await world.within(began, gone)
    finally:
        watching.cancel()
    fenced(world)


async def test_the_api_server_hangs_for_a_while_and_goes_on(world, control_plane):
    operator = world.operator("operator-a")
    await world.apply(
        world.policy("policy"), world.secret("keys", KEY), world.tenant("blue", secrets=("keys",))
    )
    await operator.leading()
    await world.run_pod("vllm-0")
    await world.within(time.monotonic(), lambda s: s.tenants(), limit=60)
    await renewal(world)
    control_plane.pause_apiserver()
    try:
        await asyncio.sleep(3)
    finally:
        control_plane.resume_apiserver()
    began = await world.patch("Tenant", "blue", {"spec": {"weight": 4}})
    await converged(world, began, 4)
    assert operator.alive


async def test_a_deleted_lease_is_taken_again_and_sidecars_stay_fenced(world):
    first, second = await prepared(world)
    async with restless(world) as weights:
        await asyncio.sleep(1)
        await world.delete("lease", f"{world.install}-operator")
        await asyncio.sleep(6)
        await eventually(lambda: taken_again(world), also=world.tails)
    await converged(world, time.monotonic(), weights[-1])
    fenced(world)
    assert first.alive
    assert second.alive
    assert (await lease(world))["leaseTransitions"] == 2


async def taken_again(world):
    return "lease" in await world.kubectl("get", "leases", "--output=name", "--ignore-not-found")


async def test_a_lease_deleted_between_operators_has_its_term_raised_above_the_sidecars(world):
    first, second = await prepared(world)
    for operator in (first, second):
        operator.signal(signal.SIGKILL)
        await operator.ended()
    for sidecar in world.sidecars.values():
        sidecar.pair = (40, 7)
    await world.delete("lease", f"{world.install}-operator")
    third = world.operator("operator-c")
    await world.patch("Tenant", "blue", {"spec": {"weight": 6}})
    await third.leading()
    await converged(world, time.monotonic() + 5, 6)
    assert (await lease(world))["leaseTransitions"] == 41
    assert {sidecar.pair[0] for sidecar in world.sidecars.values()} == {41}


async def test_a_standby_writes_and_pushes_nothing(world):
    first, second = await prepared(world)
    async with restless(world):
        await asyncio.sleep(3)
    assert await second.metric("leading") == 0
    assert await first.metric("leading") == 1
    assert await second.metric("objects", kind="tenants") == 1
    text = json.dumps(second.read())
    assert "compiled" not in text
    for verb in ("POST", "PUT", "PATCH"):
        for resource in ("leases", "secrets", "configmaps", "tenants", "fairnesspolicies", "events"):
            for status in ("200", "201"):
                labels = {"method": verb, "resource": resource, "status": status}
                assert await second.metric("api_seconds_count", **labels) is None
    assert await second.metric("pushes_total", method="PUT", status="200") is None
