"""The reader against a small HTTP server, and the operator's word on where to read."""

import asyncio
import contextlib

import aiohttp
import httpx2
import pytest
from aiohttp import web
from loopback import served

from equipoise_api.names import GPU_EXPORTER_PATH
from equipoise_sidecar import gpu_scrape
from equipoise_sidecar.admin import admin_app
from equipoise_sidecar.config_store import ConfigStore
from equipoise_sidecar.dcgm import PodId
from equipoise_sidecar.feedback import Feedback
from equipoise_sidecar.gpu_scrape import GpuScraper
from equipoise_sidecar.report import Reporter

TEXT = 'DCGM_FI_DEV_GPU_UTIL{{gpu="0",UUID="GPU-0",pod="vllm-0",namespace="team"}} {}\n'


class Exporter:
    def __init__(self):
        self.answer = lambda: web.Response(text=TEXT.format(40))
        self.asked = 0

    async def handle(self, request):
        self.asked += 1
        answer = self.answer()
        return await answer if asyncio.iscoroutine(answer) else answer


@pytest.fixture
async def exporter():
    made = Exporter()
    app = web.Application()
    app.router.add_get("/metrics", made.handle)
    async with served(app) as port:
        made.url = f"http://127.0.0.1:{port}/metrics"
        yield made


@pytest.fixture
async def look(line, exporter):
    """Read once; return the telemetry."""
    line.dispatcher.engine.gpu.point(exporter.url, line.dispatcher.clock())
    scraper = GpuScraper(line.dispatcher, PodId("team", "vllm-0"), seed=1)

    async def once(seconds=60.0):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session:
            await scraper.look(session)
        return line.dispatcher.engine.gpu

    return once


async def test_a_reading_reaches_the_dispatcher(look):
    gpu = await look()
    assert (gpu.reading.utilisation, gpu.problem, gpu.failures) == (0.4, "", 0)


async def hang():
    await asyncio.sleep(30)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda: web.Response(status=500), "BadAnswer"),
        (lambda: web.Response(status=302, headers={"Location": "/elsewhere"}), "BadAnswer"),
        (lambda: web.Response(text="x" * 5000), "BadAnswer"),
        (lambda: web.Response(text="<html>"), "NoRows"),
        (lambda: web.Response(text=TEXT.format(1).replace("vllm-0", "other")), "NoMatch"),
        (lambda: web.Response(text=TEXT.format("1 1600000000000")), "Frozen"),
        (hang, "Unreachable"),
    ],
)
async def test_what_is_no_reading_is_told_in_one_word(look, exporter, monkeypatch, answer, problem):
    monkeypatch.setattr(gpu_scrape, "LARGEST_ANSWER", 4096)
    exporter.answer = answer
    gpu = await look(0.5 if answer is hang else 60.0)
    assert (gpu.reading, gpu.problem, gpu.failures) == (None, problem, 1)
    assert gpu.message


async def test_an_exporter_that_is_not_there_keeps_the_former_reading(look, line):
    gpu = await look()
    gpu.exporter = "http://127.0.0.1:1/metrics"
    await look()
    assert (gpu.problem, gpu.reading.utilisation) == ("Unreachable", 0.4)


async def test_an_answer_that_comes_after_the_place_changed_does_not_count(look, line, exporter):
    def move():
        line.dispatcher.engine.gpu.point("http://127.0.0.1:1/metrics", line.dispatcher.clock())
        return web.Response(text=TEXT.format(40))

    exporter.answer = move
    assert (await look()).reading is None


async def test_it_reads_at_once_where_it_is_told_and_again_in_its_time(line, exporter):
    line.configure(gpu={"scrapeSeconds": 1})
    scraper = GpuScraper(line.dispatcher, PodId("team", "vllm-0"), seed=1)
    task = asyncio.create_task(scraper.run())
    try:
        await asyncio.sleep(0.05)
        assert exporter.asked == 0
        line.dispatcher.engine.gpu.point(exporter.url, line.dispatcher.clock())
        async with asyncio.timeout(60):
            while exporter.asked < 2:
                await asyncio.sleep(0.01)
        assert line.dispatcher.engine.gpu.reading.utilisation == 0.4
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_the_operator_says_where_the_nodes_exporter_is(line):
    store = ConfigStore(line.dispatcher.apply, None)
    reporter = Reporter(line.dispatcher, Feedback(line.dispatcher, None), store, "pod-uid", "incarnation")
    transport = httpx2.ASGITransport(admin_app(store, reporter))
    async with httpx2.AsyncClient(transport=transport, base_url="http://sidecar") as operator:
        url = "http://10.0.0.9:9400/metrics"
        assert (await operator.put(GPU_EXPORTER_PATH, json={"exporter": url})).status_code == 204
        assert line.dispatcher.engine.gpu.url == reporter.state().gpu.exporter == url
        for wrong in ({"exporter": "file:///etc/passwd"}, {"exporter": 7}, []):
            refused = await operator.put(GPU_EXPORTER_PATH, json=wrong)
            assert refused.status_code == 422
            assert refused.json()["message"]
        assert line.dispatcher.engine.gpu.url == url
        assert (await operator.put(GPU_EXPORTER_PATH, json={})).status_code == 204
        assert line.dispatcher.engine.gpu.url is None
    await store.close()
