"""Ages, means over a request's life, and whose the GPU time was; then the same through dispatcher and report."""

import asyncio
import itertools
import json
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from equipoise_api.gpu import Gpu
from equipoise_api.sidecar_state import SidecarState
from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.config_store import ConfigStore
from equipoise_sidecar.dcgm import GR_ENGINE_ACTIVE, DcgmError, Reading
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.exposition import exposition as by_pieces
from equipoise_sidecar.feedback import Feedback
from equipoise_sidecar.gpu import GpuTelemetry
from equipoise_sidecar.metrics import SidecarMetrics
from equipoise_sidecar.report import Reporter

BLUE, RED = "team/blue", "team/red"
URL = "http://10.0.0.9:9400/metrics"


def reading(utilisation=0.5, watts=100.0, devices=1, **more):
    values = {"least_utilisation": utilisation, "busy_devices": (utilisation or 0) * devices}
    fields = (GR_ENGINE_ACTIVE,)
    return Reading(
        devices=devices, utilisation=utilisation, power_watts=watts, fields=fields, **{**values, **more}
    )


@pytest.fixture
def gpu():
    """Reads an exporter on the node, stale after 90 s."""
    made = GpuTelemetry()
    made.point(URL, 0.0)
    return made


def see(gpu, now, *, service=None, busy=True, **values):
    gpu.observe(reading(**values), service or {}, busy=busy, now=now)


class TestWhere:
    def test_the_policy_says_where_and_the_operator_where_the_nodes_exporter_is(self, gpu):
        assert gpu.url == URL
        gpu.configure(Gpu(dcgm="Exporter"), 1)
        assert gpu.url == URL
        gpu.configure(Gpu(dcgm="Endpoint", endpoint="http://p/federate"), 1)
        assert gpu.url == "http://p/federate"
        gpu.configure(Gpu(dcgm="Off"), 1)
        assert gpu.url is None

    def test_another_exporter_begins_anew_and_wakes_the_reader(self, gpu):
        see(gpu, 10)
        gpu.moved.clear()
        gpu.point(URL, 11)
        assert gpu.is_fresh(11)
        assert not gpu.moved.is_set()
        gpu.point("http://10.0.0.10:9400/metrics", 12)
        assert gpu.moved.is_set()
        assert not gpu.is_fresh(12)
        assert not gpu.is_stale(12)


class TestAge:
    def test_nothing_to_read_is_not_stale(self):
        gpu = GpuTelemetry()
        assert not gpu.is_stale(1e6)
        assert gpu.state(1e6).utilisation is None

    def test_what_should_be_read_and_cannot_be_is_stale_after_its_time(self, gpu):
        gpu.failed(DcgmError("Unreachable", "connection refused"), 80)
        assert not gpu.is_stale(90)
        assert gpu.is_stale(91)
        state = gpu.state(91)
        assert (state.stale, state.problem, state.message) == (True, "Unreachable", "connection refused")

    def test_a_reading_counts_until_it_is_stale(self, gpu):
        see(gpu, 10, utilisation=0.8)
        gpu.failed(DcgmError("Unreachable", "gone"), 50)
        assert gpu.state(100).utilisation == 0.8
        assert gpu.state(100.5).utilisation is None
        assert gpu.is_stale(100.5)

    def test_the_same_values_read_again_are_as_old_as_they_were(self, gpu):
        for now in (0, 15, 30):
            see(gpu, now)
        assert gpu.state(30).age_seconds == 30
        see(gpu, 45, watts=101)
        assert gpu.state(45).age_seconds == 0

    def test_values_that_stand_still_while_the_gpu_is_busy_are_stale(self, gpu):
        for now in range(0, 120, 10):
            see(gpu, now)
        assert gpu.is_stale(110)
        assert gpu.state(110).problem == "Frozen"
        see(gpu, 120, watts=101)
        assert not gpu.is_stale(120)
        assert gpu.state(120).problem == ""

    @pytest.mark.parametrize(
        "values",
        [{"utilisation": 0.0, "watts": 16.2}, {"utilisation": 1.0, "watts": None, "tensor_active": 0.0}],
    )
    def test_an_idle_gpu_may_say_the_same_for_ever_and_so_may_round_numbers(self, gpu, values):
        for now in range(0, 1000, 10):
            see(gpu, now, **values)
        assert not gpu.is_stale(1000)

    def test_time_stamps_alone_make_no_new_values(self, gpu):
        for now in range(0, 120, 10):
            gpu.observe(replace(reading(), sampled_at=float(now)), {}, busy=True, now=now)
        assert gpu.is_stale(110)


class TestMeanOverALife:
    def test_each_reading_counts_for_as_long_as_it_was_the_newest(self, gpu):
        see(gpu, 0, utilisation=0.2)
        mark = gpu.mark(5)
        see(gpu, 10, utilisation=0.8)
        assert gpu.mean_since(mark, 20) == pytest.approx((5 * 0.2 + 10 * 0.8) / 15)

    def test_of_a_life_shorter_than_a_reading_it_is_that_reading(self, gpu):
        see(gpu, 0, utilisation=0.2)
        assert gpu.mean_since(gpu.mark(3), 3) == pytest.approx(0.2)

    def test_time_of_which_nothing_is_known_counts_not(self, gpu):
        mark = gpu.mark(0)
        assert gpu.mean_since(mark, 5) is None
        see(gpu, 10, utilisation=0.6)
        assert gpu.mean_since(mark, 20) == pytest.approx(0.6)
        assert gpu.mean_since(mark, 500) == pytest.approx(0.6), "stale from 100 s on"
        assert gpu.mean_since(gpu.mark(200), 500) is None

    def test_power_without_utilisation_gives_no_mean(self, gpu):
        see(gpu, 0, utilisation=None)
        assert gpu.mean_since(gpu.mark(1), 9) is None


class TestWhoseTheTimeWas:
    def test_it_is_shared_by_the_service_delivered_between_two_readings(self, gpu):
        see(gpu, 0, service={BLUE: 1000.0})
        see(gpu, 10, service={BLUE: 1300.0, RED: 100.0}, watts=200)
        assert gpu.ledger.of(BLUE).seconds == pytest.approx(0.5 * 10 * 0.75)
        assert gpu.ledger.of(RED).joules == pytest.approx(200 * 10 * 0.25)

    def test_a_long_prompt_that_delivers_nothing_yet_pays_when_it_does(self, gpu):
        see(gpu, 0, service={RED: 5.0})
        see(gpu, 10, service={RED: 5.0}, watts=101)
        assert gpu.ledger.waiting.seconds == 5
        see(gpu, 20, service={RED: 5.0, BLUE: 1.0}, watts=102)
        assert (gpu.ledger.of(BLUE).seconds, gpu.ledger.waiting.seconds) == (10, 0)

    def test_what_runs_while_nothing_is_in_flight_is_nobodys(self, gpu):
        see(gpu, 0)
        see(gpu, 10, busy=False, watts=20)
        assert (gpu.ledger.nobody.joules, gpu.ledger.waiting.joules) == (200, 0)

    def test_a_gap_longer_than_a_reading_counts_is_left_out(self, gpu):
        see(gpu, 0, service={BLUE: 0.0})
        see(gpu, 200, service={BLUE: 50.0})
        assert gpu.ledger.total.seconds == 0
        see(gpu, 210, service={BLUE: 60.0}, watts=1)
        assert gpu.ledger.of(BLUE).seconds == 5

    def test_the_window_is_the_last_minute(self, gpu):
        for step in range(20):
            see(gpu, 10 * step, service={BLUE: float(step)}, watts=100 + step)
        assert gpu.ledger.window(BLUE, 190).seconds == pytest.approx(60 * 0.5)
        assert gpu.ledger.of(BLUE).seconds == pytest.approx(190 * 0.5)
        assert gpu.ledger.window(BLUE, 300).seconds == 0

    def test_a_tenant_that_is_gone_leaves_no_account(self, gpu):
        see(gpu, 0, service={BLUE: 0.0})
        see(gpu, 10, service={BLUE: 1.0}, watts=1)
        see(gpu, 80, service={}, watts=2, busy=False)
        assert list(gpu.ledger.totals()) == []
        assert gpu.ledger.nobody.seconds == pytest.approx(gpu.ledger.total.seconds)


class TestInTheSidecar:
    pytestmark = pytest.mark.looptime

    @pytest.fixture
    async def reporter(self, line):
        store = ConfigStore(line.dispatcher.apply, None)
        yield Reporter(line.dispatcher, Feedback(line.dispatcher, None), store, "pod-uid", "incarnation")
        await store.close()

    @pytest.fixture
    def settled(self, line, monkeypatch):
        """The utilisations that requests were settled with."""
        seen, settle = [], line.dispatcher.scheduler.settle

        def listen(request, usage, *rest):
            seen.append(usage.gpu_utilisation)
            settle(request, usage, *rest)

        monkeypatch.setattr(line.dispatcher.scheduler, "settle", listen)
        return seen

    async def test_a_request_is_settled_with_the_mean_utilisation_of_its_life(self, line, settled):
        line.dispatcher.engine.gpu.point(URL, line.dispatcher.clock())
        line.send().finish(Outcome.FINISHED, Usage(100, 1))
        line.dispatcher.observe_gpu(reading(0.2))
        ticket = line.send()
        await asyncio.sleep(10)
        line.dispatcher.observe_gpu(reading(0.6))
        await asyncio.sleep(10)
        ticket.finish(Outcome.FINISHED, Usage(100, 1))
        assert settled == [None, pytest.approx(0.4)]

    async def test_waiting_in_the_queue_is_not_part_of_that_life(self, line, settled):
        line.dispatcher.engine.gpu.point(URL, line.dispatcher.clock())
        first, second = line.send(), line.send()
        line.dispatcher.observe_gpu(reading(0.2))
        await asyncio.sleep(10)
        first.finish(Outcome.FINISHED, Usage(100, 1))
        line.dispatcher.observe_gpu(reading(0.9))
        await asyncio.sleep(10)
        second.finish(Outcome.FINISHED, Usage(100, 1))
        assert settled == [pytest.approx(0.2), pytest.approx(0.9)]

    async def test_it_settles_equinoxs_resource_counter(self, line):
        line.configure(algorithm={"type": "Equinox"})
        dispatcher = line.dispatcher
        dispatcher.engine.gpu.point(URL, dispatcher.clock())
        spent = [0]
        for utilisation in (0.2, 0.8, None):
            if utilisation is None:
                dispatcher.engine.gpu.point(None, dispatcher.clock())
            else:
                dispatcher.observe_gpu(reading(utilisation, 100 * utilisation))
            ticket = line.send(BLUE)
            await asyncio.sleep(2)
            ticket.finish(Outcome.FINISHED, Usage(100, 50))
            spent.append(dispatcher.scheduler._account(BLUE).resource)
        low, high, unknown = (after - before for before, after in itertools.pairwise(spent))
        assert high == pytest.approx(4 * low, rel=1e-6)
        assert low < unknown, "without telemetry it goes on, by what it expects"

    async def test_a_restart_remembers_where_to_read(self, line):
        line.dispatcher.engine.gpu.point(URL, 0)
        again = Dispatcher(line.dispatcher.clock)
        again.restore(json.loads(json.dumps(line.dispatcher.snapshot())))
        assert again.engine.gpu.url == URL
        again.restore({"gpu_exporter": 7})
        assert again.engine.gpu.url is None

    async def test_state_and_metrics_say_what_each_tenant_cost(self, line, reporter):
        dispatcher = line.dispatcher
        assert reporter.state().gpu.exporter is None
        assert "equipoise_gpu" not in exposition(reporter)
        dispatcher.engine.gpu.point(URL, dispatcher.clock())
        line.send(BLUE).finish(Outcome.FINISHED, Usage(100, 50))
        assert reporter.state().tenants[0].gpu_seconds is None
        dispatcher.observe_gpu(reading(0.5, 100.0))
        await asyncio.sleep(10)
        line.send(BLUE).finish(Outcome.FINISHED, Usage(100, 50))
        line.send(RED).finish(Outcome.FINISHED, Usage(300, 150))
        dispatcher.observe_gpu(reading(0.8, 200.0, xid=0))
        state = SidecarState.strictly(reporter.state().document())
        blue, red = state.tenants
        assert (blue.gpu_seconds, red.gpu_seconds) == (pytest.approx(2), pytest.approx(6))
        assert (blue.energy_joules, red.energy_joules) == (pytest.approx(500), pytest.approx(1500))
        assert (state.gpu.utilisation, state.gpu.power_watts, state.gpu.stale) == (0.8, 200, False)
        text = exposition(reporter)
        assert 'equipoise_gpu_busy_seconds_total{tenant="team/red"} 6.0' in text
        assert "equipoise_gpu_utilisation_ratio 0.8" in text
        assert "equipoise_gpu_metrics_stale 0.0" in text
        pieces = (await by_pieces(SidecarMetrics(reporter), CollectorRegistry())).decode()
        samples = {line for line in text.splitlines() if line.startswith("equipoise_gpu")}
        assert samples == {line for line in pieces.splitlines() if line.startswith("equipoise_gpu")}
        await asyncio.sleep(200)
        assert "equipoise_gpu_utilisation_ratio" not in exposition(reporter)
        assert "equipoise_gpu_metrics_stale 1.0" in exposition(reporter)

    async def test_an_exporter_that_is_asked_for_and_not_there_shows(self, line, reporter):
        line.configure(gpu={"dcgm": "Auto"})
        assert "equipoise_gpu" not in exposition(reporter)
        line.configure(gpu={"dcgm": "Exporter"})
        assert "equipoise_gpu_metrics_stale 1.0" in exposition(reporter)
        line.dispatcher.engine.gpu.point(URL, line.dispatcher.clock())
        assert "equipoise_gpu_metrics_stale 0.0" in exposition(reporter)


def exposition(reporter):
    registry = CollectorRegistry()
    registry.register(SidecarMetrics(reporter))
    return generate_latest(registry).decode()
