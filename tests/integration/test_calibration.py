"""Calibrating a stand-in engine over HTTP gives the profile back that it was started with."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise_cluster.ports import choose
from equipoise_simulator.calibration.calibrate import calibrate
from equipoise_simulator.calibration.probe import ProbeError
from equipoise_simulator.profiles import PROFILES, read_profile
from equipoise_simulator.standin import Settings, StandIn

EQUIPOISE = Path(sys.executable).with_name("equipoise")


async def test_the_profile_of_an_engine_is_found_from_outside():
    true = dataclasses.replace(
        PROFILES["fast"], a2=0.001, a3=0.000004, max_num_seqs=6, kv_tokens=4096, max_model_len=1024
    )
    (port,) = choose(1)
    async with StandIn(profile=true, host="127.0.0.1", port=port, settings=Settings(model="m")):
        made = await calibrate(
            f"http://127.0.0.1:{port}",
            name="found",
            max_num_batched_tokens=1024,
            rounds=1,
            seconds=4.0,
            tell=lambda _: None,
        )
    found = made.profile
    assert (found.name, found.block_size, found.max_model_len) == ("found", true.block_size, 1024)
    assert found.max_num_seqs == 6
    # A busy machine disturbs single steps; these bounds hold whenever the costs are told apart at all.
    assert found.step_seconds(500, 0, 0) == pytest.approx(true.step_seconds(500, 0, 0), rel=0.2)
    assert found.step_seconds(0, 6, 3000) == pytest.approx(true.step_seconds(0, 6, 3000), rel=0.2)
    assert found.step_seconds(0, 1, 16) == pytest.approx(true.step_seconds(0, 1, 16), rel=0.2)


async def test_an_engine_that_does_not_say_its_cache_needs_the_size(aiohttp_engine_without_metrics):
    with pytest.raises(ProbeError, match="--kv-tokens"):
        await calibrate(aiohttp_engine_without_metrics, name="x", tell=lambda _: None)


@pytest.fixture
async def aiohttp_engine_without_metrics():
    from aiohttp import web

    async def models(_):
        return web.json_response({"data": [{"id": "m", "max_model_len": 100}]})

    async def metrics(_):
        return web.Response(text="up 1\n")

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.get("/metrics", metrics)])
    runner = web.AppRunner(app)
    await runner.setup()
    (port,) = choose(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


def test_nobody_at_the_address_is_said_on_one_line(tmp_path):
    ran = subprocess.run(
        [EQUIPOISE, "calibrate", "--url", "http://127.0.0.1:9", "--output", tmp_path / "p.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("equipoise calibrate: Cannot connect")
    assert len(ran.stderr.splitlines()) == 1


def test_what_calibrate_writes_is_what_simulate_reads(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(PROFILES["fast"].document()))
    assert read_profile(path) == PROFILES["fast"]
