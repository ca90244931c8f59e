"""What operator, Prometheus and a person at the debug tables are told, from one scene on the test loop's clock."""

import asyncio
import json

import httpx2
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from equipoise_api.sidecar_state import SidecarState
from equipoise_scheduling.mapper import Load
from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.config_store import ConfigStore
from equipoise_sidecar.debug import MOST_ROWS, queue_rows, request_rows, table, tenant_rows
from equipoise_sidecar.exposition import exposition
from equipoise_sidecar.feedback import Feedback
from equipoise_sidecar.health import health_app
from equipoise_sidecar.metrics import TENANTS_AT_A_TIME, SidecarMetrics
from equipoise_sidecar.report import ROWS_AT_A_TIME, Reporter

BLUE, RED = "team/blue", "team/red"

pytestmark = pytest.mark.looptime


@pytest.fixture
async def reporter(line):
    store = ConfigStore(line.dispatcher.apply, None)
    yield Reporter(line.dispatcher, Feedback(line.dispatcher, None), store, "pod-uid", "incarnation")
    await store.close()


@pytest.fixture
def play(line, reporter, tenant):
    """Return the scene, to be played in the test: fixtures are made before its clock runs.

    Red runs one request and queues two, blue queues one; one of blue's ended, one was refused.
    """

    async def scene():
        slo = {"ttftMilliseconds": 500}
        line.configure(tenants=[tenant(BLUE, weight=2, slo=slo, limits={"maxQueued": 1}), tenant(RED)])
        first = line.send(BLUE)
        await asyncio.sleep(0.4)
        first.first_token()
        first.progress(90, 10, exact=True)
        await asyncio.sleep(1)
        first.finish(Outcome.FINISHED, Usage(90, 20, cached=30))
        line.send(RED, request_id="red,1\n")
        await asyncio.sleep(1)
        line.send(RED)
        line.send(RED)
        line.send(BLUE)
        line.refused(BLUE)
        await asyncio.sleep(1)
        return reporter

    return scene


async def test_the_state_says_what_each_tenant_got_and_waits_for(play):
    scene = await play()
    state = SidecarState.strictly(scene.state().document())
    blue, red = state.tenants
    assert (blue.id, blue.weight, blue.queued, blue.running) == (BLUE, 2, 1, 0)
    assert (blue.prompt_tokens, blue.cached_tokens, blue.generated_tokens) == (90, 30, 20)
    assert blue.service == 90 + 2 * 20
    assert blue.demand > blue.service
    assert blue.rejected == {"tenant-queue-full": 1}
    assert (blue.slo_kept, blue.slo_total) == (1, 1)
    assert blue.ttft.quantile(0.5) == pytest.approx(0.4, rel=0.06)
    assert blue.wait.total == 1
    assert (red.queued, red.running, red.service, red.wait.total) == (2, 1, 0, 0)
    assert (state.load.queued, state.load.running, state.load.max_in_flight) == (3, 1, 1)
    assert state.load.saturation == 1.0
    assert (state.ready, state.pod_uid, state.window_seconds) == (True, "pod-uid", 60)
    assert state.fairness.bounded
    assert state.fairness.outstanding > 0
    assert state.fairness.bound_met


async def test_under_the_prompt_gate_no_bound_is_published(line, play):
    scene = await play()
    line.configure(capacity={"gate": "Prompt", "maxInFlight": 1})
    fairness = scene.state().fairness
    assert not fairness.bounded
    assert fairness.bound is fairness.bound_met is None


async def test_a_tenant_with_nothing_to_tell_is_left_out(line, reporter, tenant):
    line.configure(tenants=[tenant(f"many/{i}") for i in range(1000)])
    line.send("many/7").finish(Outcome.FINISHED, Usage(1, 1))
    assert [each.id for each in reporter.state().tenants] == ["many/7"]
    await asyncio.sleep(120)
    assert reporter.state().tenants == []


async def test_the_figures_of_the_window_pass_and_those_of_the_present_stay(play):
    scene = await play()
    await asyncio.sleep(90)
    blue, red = scene.state().tenants
    assert (blue.queued, blue.service, blue.rejected, blue.slo_total) == (1, 0, {}, 0)
    assert (red.queued, red.running) == (2, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.drain(), "draining"),
        (lambda d: d.engine_answers(reachable=False), "the engine cannot be reached"),
    ],
)
async def test_what_is_missing_for_readiness_is_named(line, reporter, change, said):
    assert reporter.missing() == []
    change(line.dispatcher)
    assert reporter.missing() == [said]
    assert not reporter.state().ready


class TestMetrics:
    def exposition(self, reporter):
        registry = CollectorRegistry()
        registry.register(SidecarMetrics(reporter))
        text = generate_latest(registry).decode()
        samples = {}
        for family in text_string_to_metric_families(text):
            assert family.name.startswith("equipoise_")
            assert family.documentation.endswith(".")
            for sample in family.samples:
                samples[sample.name, *sorted(sample.labels.values())] = sample.value
        return samples

    async def test_they_agree_with_the_state(self, play):
        scene = await play()
        samples = self.exposition(scene)
        assert samples["equipoise_queued_requests", RED] == 2
        assert samples["equipoise_running_requests", RED] == 1
        assert samples["equipoise_requests_total", "finished", BLUE] == 1
        assert samples["equipoise_rejections_total", BLUE, "tenant-queue-full"] == 1
        assert samples["equipoise_service_total", BLUE] == 130
        assert samples["equipoise_cached_tokens_total", BLUE] == 30
        assert samples["equipoise_slo_requests_total", BLUE, "true"] == 1
        assert samples["equipoise_time_to_first_token_seconds_count", BLUE] == 1
        assert samples["equipoise_time_to_first_token_seconds_sum", BLUE] == pytest.approx(0.4)
        assert samples["equipoise_ready",] == 1
        assert samples["equipoise_gate_info", "peak"] == 1
        assert samples["equipoise_gate_outstanding_tokens",] > 0
        assert samples["equipoise_fairness_bounded",] == 1
        assert samples["equipoise_fairness_bound",] > 0

    async def test_without_a_bound_there_is_none_to_see(self, line, play):
        scene = await play()
        line.configure(capacity={"gate": "Prompt", "maxInFlight": 1})
        samples = self.exposition(scene)
        assert samples["equipoise_fairness_bounded",] == 0
        assert ("equipoise_fairness_bound",) not in samples

    async def test_equinox_shows_its_parts_and_what_it_expected_and_others_do_not(self, play, line):
        scene = await play()
        assert not any("equinox" in sample[0] for sample in self.exposition(scene))
        line.configure(algorithm={"type": "Equinox"})
        line.send(RED)
        samples = self.exposition(scene)
        user, resource = line.dispatcher.scheduler.counters(RED)
        assert samples["equipoise_equinox_counter", RED, "user"] == user > 0
        assert samples["equipoise_equinox_counter", "resource", RED] == resource > 0
        assert ("equipoise_equinox_latency_error_seconds",) not in samples
        line.dispatcher.scheduler.mapper.learn(10, 10, Load(), latency=1.0)
        assert self.exposition(scene)["equipoise_equinox_latency_error_seconds",] > 0

    async def test_the_error_of_predictions_is_shown_once_there_was_one(self, reporter, play):
        assert not any("prediction" in sample[0] for sample in self.exposition(reporter))
        scene = await play()
        samples = self.exposition(scene)
        error = scene.dispatcher.scheduler.books.predictor.errors()["moving_average"]
        assert error.requests == 1
        assert samples["equipoise_prediction_error_tokens", "moving_average"] == error.mean_absolute > 0
        assert samples["equipoise_prediction_bias_tokens", "moving_average"] == error.bias
        assert samples["equipoise_saturation_ratio",] == 1

    async def test_a_histograms_buckets_hold_what_is_not_above_them(self, play):
        scene = await play()
        samples = self.exposition(scene)
        name = "equipoise_time_to_first_token_seconds_bucket"
        buckets = {
            key[1] if key[1] != BLUE else key[2]: value
            for key, value in samples.items()
            if key[0] == name and BLUE in key
        }
        assert all(value == (float(limit) >= 0.4) for limit, value in buckets.items())

    async def test_what_clients_send_becomes_no_label(self, line, reporter):
        line.send(model="invented", user="somebody", application="anything", request_id="x" * 99)
        assert not any(
            {"invented", "somebody", "anything", "x" * 99} & set(key) for key in self.exposition(reporter)
        )

    async def test_a_tenant_that_is_gone_and_idle_leaves_no_series(self, play, line, tenant):
        scene = await play()
        line.configure(tenants=[tenant(RED)])
        for ticket in list(line.dispatcher.tickets()):
            ticket.finish(Outcome.CANCELLED)
        # Who stays has had more than who is gone, so that to be forgotten and come back would be no gain.
        line.send(RED).finish(Outcome.FINISHED, Usage(prompt=1000, generated=1000))
        for _ in range(20):
            await asyncio.sleep(10)
            line.dispatcher.tick()
        assert not any(BLUE in key for key in self.exposition(scene))


class TestDebugTables:
    async def test_a_request_says_why_it_waits(self, play, line):
        await play()
        now = line.dispatcher.clock()
        why = [(row["tenant"], row["why"]) for row in request_rows(line.dispatcher, now)]
        assert why == [
            (RED, "in the engine for 2.0 s"),
            (RED, "next: when one of 1 places is free (1 taken)"),
            (RED, "behind 1 of its tenant's"),
            (BLUE, f"{RED} goes first under VTC"),
        ]

    async def test_a_queue_says_what_its_head_waits_for(self, play, line):
        await play()
        red = queue_rows(line.dispatcher, line.dispatcher.clock())[1]
        assert (red["tenant"], red["queued"], red["queued_bytes"]) == (RED, 2, 2000)
        assert red["head_wait_seconds"] == pytest.approx(1)
        assert red["expires_in_seconds"] == pytest.approx(299)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda d: d.engine_answers(reachable=False), "the engine cannot be reached"),
            (lambda d: next(d.tickets()).busy(), "the engine answered 503: next try within 100 ms"),
        ],
    )
    async def test_what_holds_everybody_is_said_first(self, play, line, change, why):
        await play()
        change(line.dispatcher)
        rows = queue_rows(line.dispatcher, line.dispatcher.clock())
        assert {row["why"] for row in rows} == {why}

    async def test_a_full_kv_cache_is_told_from_full_places(self, line):
        line.configure(capacity={"maxInFlight": 100, "kvTokens": 300})
        line.send()
        line.send()
        (row,) = queue_rows(line.dispatcher, line.dispatcher.clock())
        assert row["why"] == "next: when its KV cache fits (95 % of 300 tokens may be planned)"

    async def test_a_tenant_at_its_own_limit_is_told(self, line, tenant):
        line.configure(capacity={"maxInFlight": 9}, tenants=[tenant(BLUE, limits={"maxInFlight": 1})])
        line.send()
        line.send()
        (row,) = queue_rows(line.dispatcher, line.dispatcher.clock())
        assert row["why"] == "its tenant has 1 in flight, its own limit"

    async def test_under_deadlines_it_is_said_who_really_goes_next(self, line, tenant):
        urgent = tenant(BLUE, slo={"ttftMilliseconds": 100})
        line.configure(
            algorithm={"type": "Equipoise", "equipoise": {"bandTokens": 100_000}},
            tenants=[urgent, tenant(RED)],
        )
        line.send(RED)
        line.send(RED)
        late, soon = line.send(BLUE, ttft_milliseconds=60_000), line.send(BLUE)
        why = {row["request"]: row["why"] for row in request_rows(line.dispatcher, line.dispatcher.clock())}
        assert why[soon.request.id] == "next: when one of 1 places is free (1 taken)"
        assert why[late.request.id] == f"its tenant's {soon.request.id} goes before it"
        assert why[next(iter(queue_rows(line.dispatcher, 0.0)))["head"]] == why[soon.request.id]
        red = queue_rows(line.dispatcher, line.dispatcher.clock())[1]
        assert red["why"] == f"{BLUE} goes first under Equipoise"

    async def test_a_request_says_what_its_client_declared(self, line):
        line.send(application="rag", user="ann", interaction="run-7", call_index=2)
        (row,) = request_rows(line.dispatcher, line.dispatcher.clock())
        assert (row["application"], row["user"], row["interaction"], row["call"]) == (
            "rag",
            "ann",
            "run-7",
            2,
        )

    async def test_a_client_cannot_forge_a_row(self, play, line):
        await play()
        text = table(request_rows(line.dispatcher, line.dispatcher.clock()))
        assert "red_1_" in text
        assert len({line.count(",") for line in text.splitlines()}) == 1

    def test_a_long_table_is_cut_and_says_so(self):
        text = table([{"a": i, "b": None} for i in range(MOST_ROWS + 5)])
        assert text.endswith("... and 5 more\n")
        assert len(text.splitlines()) == MOST_ROWS + 2

    async def test_tenants_show_entitled_and_actual(self, play, line):
        await play()
        blue, _red = tenant_rows(line.dispatcher, line.dispatcher.clock())
        assert (blue["tenant"], blue["actual_percent"]) == (BLUE, 100)


class TestPlainPort:
    @pytest.fixture
    def get(self, reporter):
        app = health_app(reporter, lambda: exposition(SidecarMetrics(reporter), CollectorRegistry()))

        async def ask(path, client="127.0.0.1"):
            transport = httpx2.ASGITransport(app, client=(client, 1))
            async with httpx2.AsyncClient(transport=transport, base_url="http://pod") as session:
                return await session.get(path)

        return ask

    async def test_debug_tables_are_for_the_pod_alone(self, get):
        assert (await get("/debug/fairness/tenants")).status_code == 200
        assert (await get("/debug/fairness/tenants", client="10.1.2.3")).status_code == 403
        assert (await get("/debug/fairness/nonsense")).status_code == 404

    async def test_probes_and_metrics_are_for_everybody(self, get, line):
        assert (await get("/healthz", client="10.1.2.3")).text == "ok\n"
        assert (await get("/readyz", client="10.1.2.3")).status_code == 200
        line.dispatcher.drain()
        refused = await get("/readyz", client="10.1.2.3")
        assert (refused.status_code, refused.text) == (503, "draining\n")
        assert "equipoise_ready 0.0" in (await get("/metrics", client="10.1.2.3")).text

    async def test_one_tenants_rows_can_be_asked_for(self, get, play):
        await play()
        text = (await get(f"/debug/fairness/requests?tenant={BLUE}")).text
        assert BLUE in text
        assert RED + "," not in text.splitlines()[1]
        assert len(text.splitlines()) == 2


class TestByPieces:
    """Thousands of tenants: nobody waits for a report to be finished."""

    @pytest.fixture
    def crowd(self, line):
        for number in range(400):
            ticket = line.send(f"many/{number}")
            ticket.first_token()
            ticket.finish(Outcome.FINISHED, Usage(prompt=100, generated=50))
        return line

    async def turns_during(self, making):
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(count())
        made = await making
        task.cancel()
        return made, turns

    async def test_the_state_is_the_same_and_others_get_their_turn(self, crowd, reporter):
        whole = reporter.state()
        pieces, turns = await self.turns_during(reporter.encoded())
        assert SidecarState.model_validate_json(pieces).tenants == whole.tenants
        assert SidecarState.strictly(json.loads(pieces)) == whole
        assert len(whole.tenants) == 400
        assert turns >= 400 // ROWS_AT_A_TIME

    async def test_a_scrape_is_the_same_and_others_get_their_turn(self, crowd, reporter):
        metrics = SidecarMetrics(reporter)
        registry = CollectorRegistry()
        registry.register(metrics)
        whole = generate_latest(registry).decode()
        pieces, turns = await self.turns_during(exposition(metrics, CollectorRegistry()))
        assert pieces.decode() == whole
        assert turns >= 2 * 400 // TENANTS_AT_A_TIME

    async def test_tenants_may_come_and_go_meanwhile(self, crowd, reporter):
        making = asyncio.create_task(reporter.encoded())
        await asyncio.sleep(0)
        crowd.configure(tenants=[])
        crowd.send("late/1")
        crowd.dispatcher.tick()
        assert len(json.loads(await making)["tenants"]) >= 400
