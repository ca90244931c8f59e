"""The stand-in's exporter: real shapes, values that follow the engine's load, read by what reads real ones."""

import asyncio
from types import SimpleNamespace

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from equipoise_sidecar.dcgm import PodId, read
from equipoise_simulator.standin import DcgmPlace, StandIn
from equipoise_simulator.standin.dcgm import IDLE_WATTS, LIMIT_WATTS, DcgmExporter

POD = PodId("team", "engine-1", "uid")
PLACE = DcgmPlace(pod="engine-1", namespace="team", interval_seconds=10)


@pytest.fixture
def scene():
    """An exporter, the engine's counters and a clock, all moved by hand."""
    made = SimpleNamespace(now=100.0, stats=SimpleNamespace(busy_seconds=0.0, prefill_seconds=0.0))
    made.exporter = DcgmExporter(made.stats, PLACE, clock=lambda: made.now)

    def after(seconds, *, busy=0.0, prefill=0.0):
        made.now += seconds
        made.stats.busy_seconds += busy
        made.stats.prefill_seconds += prefill
        return read(made.exporter.exposition(), POD)

    made.after = after
    return made


def test_an_idle_engine(scene):
    reading = scene.after(10)
    assert (reading.utilisation, reading.tensor_active, reading.dram_active) == (0, 0, 0)
    assert (reading.power_watts, reading.xid, reading.devices, reading.by_pod) == (IDLE_WATTS, 0, 1, True)


def test_prefill_is_tensor_work_and_decode_memory_traffic(scene):
    reading = scene.after(10, busy=8, prefill=6)
    assert reading.utilisation == pytest.approx(0.8)
    assert reading.tensor_active == pytest.approx(0.6)
    assert reading.dram_active == pytest.approx(0.2)
    assert IDLE_WATTS < reading.power_watts < LIMIT_WATTS


def test_values_stand_still_between_two_samples(scene):
    first = scene.after(10, busy=8)
    assert scene.after(9.9, busy=1) == first
    assert scene.after(0.1).utilisation == pytest.approx(0.1)


def test_a_step_that_ends_just_after_a_sample_makes_no_more_than_all(scene):
    reading = scene.after(10, busy=10.02, prefill=10.02)
    assert (reading.utilisation, reading.tensor_active) == (1.0, 1.0)
    assert reading.power_watts <= LIMIT_WATTS


def test_the_labels_are_the_real_exporters():
    exporter = DcgmExporter(SimpleNamespace(busy_seconds=0.0, prefill_seconds=0.0), PLACE)
    families = {
        each.name: each.samples[0] for each in text_string_to_metric_families(exporter.exposition().decode())
    }
    common = ["gpu", "UUID", "pci_bus_id", "device", "modelName", "Hostname", "DCGM_FI_DRIVER_VERSION"]
    assert families["DCGM_FI_DEV_GPU_UTIL"].labels.keys() == {
        *common,
        *("container", "namespace", "pod", "pod_uid"),
    }
    assert families["DCGM_FI_DEV_XID_ERRORS"].labels["err_msg"] == "No Error"
    nobodys = DcgmExporter(SimpleNamespace(busy_seconds=0.0, prefill_seconds=0.0), DcgmPlace())
    assert not read(nobodys.exposition(), POD).by_pod


async def test_a_real_load_shows(tmp_path):
    place = DcgmPlace(pod="engine-1", namespace="team", interval_seconds=0.0)
    async with (
        StandIn(speed=3, uds=tmp_path / "engine.sock", dcgm=place) as engine,
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(engine.uds))) as session,
        aiohttp.ClientSession() as plain,
    ):

        async def reading():
            async with plain.get(f"http://127.0.0.1:{engine.dcgm_port}/metrics") as reply:
                assert reply.status == 200
                return read(await reply.read(), POD)

        async def load(words, tokens):
            body = {"prompt": "word " * words, "max_tokens": tokens, "ignore_eos": True}
            async with session.post(f"{engine.url}/v1/completions", json=body) as reply:
                assert reply.status == 200, await reply.text()
                await reply.read()

        await reading()
        await asyncio.sleep(0.05)
        assert (await reading()).utilisation == 0
        await load(5, 200)
        decode = await reading()
        await load(3000, 1)
        prefill = await reading()
    assert decode.utilisation > 0.5
    assert decode.dram_active > 5 * decode.tensor_active
    assert prefill.tensor_active > prefill.dram_active


async def test_an_address_that_cannot_be_had_is_named_and_nothing_is_left(tmp_path):
    async with StandIn(dcgm=DcgmPlace()) as first:
        second = StandIn(dcgm=DcgmPlace(port=first.dcgm_port))
        with pytest.raises(OSError, match=str(first.dcgm_port)):
            await second.start()
