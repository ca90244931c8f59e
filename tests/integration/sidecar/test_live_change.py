"""The real process: another algorithm while requests wait, shadows beside it, and after a kill."""

import asyncio

import pytest

from equipoise_api.sidecar_config import SidecarConfig

BLUE = {"id": "team/blue", "headerValues": ["blue"]}
RED = {"id": "team/red", "headerValues": ["red"]}


def make_config(algorithm, **settings) -> SidecarConfig:
    return SidecarConfig.model_validate(
        {
            "mode": "Enforce",
            "algorithm": {"type": algorithm},
            "capacity": {"maxInFlight": 1},
            "trustedHeader": {"name": "X-Tenant", "peers": ["127.0.0.0/8"]},
            "tenants": [BLUE, RED],
            **settings,
        }
    )


async def test_all_that_waits_is_served_through_two_changes_and_the_shadow_tells_of_it(sidecar, engine):
    await sidecar.put(make_config("FCFS", shadow=[{"type": "VTC"}]), 1, 1)
    await sidecar.until(sidecar.ready)
    engine.loop.pause()

    async def waiting(count):
        return (await sidecar.state()).load.queued == count

    flood = [asyncio.create_task(sidecar.chat("red", max_tokens=40)) for _ in range(8)]
    await sidecar.until(lambda: waiting(7))
    late = [asyncio.create_task(sidecar.chat("blue", max_tokens=40)) for _ in range(2)]
    await sidecar.until(lambda: waiting(9))
    for sequence, algorithm in enumerate(("VTC", "Equipoise"), start=2):
        status, said = await sidecar.put(make_config(algorithm, shadow=[{"type": "FCFS"}]), 1, sequence)
        assert (status, said["applied"]) == (200, True)
    engine.loop.resume()
    answers = await asyncio.gather(*flood, *late)
    assert [status for status, _, _ in answers] == [200] * 10
    assert {headers["x-equipoise-scheduler"] for _, headers, _ in answers} <= {"FCFS", "VTC", "Equipoise"}
    assert answers[-1][1]["x-equipoise-scheduler"] == "Equipoise"
    state = await sidecar.state()
    served = {tenant.id: tenant.generated_tokens for tenant in state.tenants}
    assert served == {"team/red": 8 * 40, "team/blue": 2 * 40}
    (shadow,) = state.shadow
    assert (shadow.algorithm, shadow.off) == ("FCFS", None)
    again = [asyncio.create_task(sidecar.chat(tenant)) for tenant in ("red", "red", "red", "blue")]
    await asyncio.gather(*again)
    (shadow,) = (await sidecar.state()).shadow
    assert shadow.compared >= 4
    assert 'equipoise_shadow_running{algorithm="FCFS"} 1.0' in (await sidecar.health("/metrics"))[1]


@pytest.mark.parametrize("after", ["VTC", "DRR"])
async def test_counters_survive_a_kill_and_a_change_of_algorithm_at_once(sidecar, after):
    await sidecar.put(make_config("Equipoise"), 1, 1)
    for _ in range(3):
        await sidecar.chat("red", max_tokens=40)
    await sidecar.written("team/red")
    await sidecar.kill()
    (sidecar.directory / "state" / "config.json").unlink()
    await sidecar.start()
    await sidecar.until(sidecar.state)
    assert (await sidecar.put(make_config(after), 1, 2))[0] == 200
    log = sidecar.log.read_text()
    assert "counters restored" in log
    assert "not restored" not in log
    await sidecar.chat("red")
    if after == "VTC":
        assert (await sidecar.tenant("team/red")).counter > 3 * 2 * 40
