"""Metrics correct, never stop: fresh, stale, gone, and from an engine that was restarted."""

import asyncio

import pytest

from equipoise_sidecar.engine.errors import EngineError, EngineUnreachableError
from equipoise_sidecar.engine.signals import EngineSignals
from equipoise_sidecar.facts import EngineProfile
from equipoise_sidecar.feedback import Feedback
from equipoise_sidecar.ticket import Phase

pytestmark = pytest.mark.looptime

SIGNALS = {"running": 3, "waiting": 0, "kv_usage": 0.1, "kv_tokens": 10_000, "block_tokens": 16}


class Engine:
    """Answers scrapes and probes as told."""

    def __init__(self):
        self.signals = EngineSignals(**SIGNALS, generated_tokens=100, preemptions=0)
        self.error = None
        self.probe_error = None
        self.probe_seconds = self.scrape_seconds = 0.0
        self.keys = []
        self.scrapes = self.probes = 0

    async def scrape(self, _pool):
        self.scrapes += 1
        await asyncio.sleep(self.scrape_seconds)
        if self.error is not None:
            raise self.error
        return self.signals

    async def probe(self, _pool, *, api_key):
        self.probes += 1
        self.keys.append(api_key)
        await asyncio.sleep(self.probe_seconds)
        if self.probe_error is not None:
            raise self.probe_error
        return EngineProfile(system_fingerprint=f"fp-{self.probes}", max_model_len=2048, models=("m",))


@pytest.fixture
def engine(monkeypatch):
    engine = Engine()
    monkeypatch.setattr("equipoise_sidecar.feedback.scrape", engine.scrape)
    monkeypatch.setattr("equipoise_sidecar.feedback.probe", engine.probe)
    return engine


@pytest.fixture
async def watch(line, engine):
    """Start the watch of an engine that nothing is known of; tests first say how it answers."""
    line.dispatcher.availability.reachable = None
    feedback, tasks = Feedback(line.dispatcher, None), []

    def start():
        assert engine.scrapes == 0
        tasks.append(asyncio.create_task(feedback.run()))
        return feedback

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_engine_is_probed_before_it_counts_as_reachable(line, engine, watch):
    engine.probe_seconds = 2
    watch()
    await asyncio.sleep(1)
    assert line.dispatcher.availability.reachable is None
    await asyncio.sleep(1.5)
    assert line.dispatcher.availability.reachable
    assert line.dispatcher.engine.profile.system_fingerprint == "fp-1"
    assert line.dispatcher.engine.capacity.gate.settings.context_tokens == 2048


async def test_a_probe_that_hangs_holds_requests_up_for_five_seconds_at_most(line, engine, watch):
    engine.probe_seconds = 50
    watch()
    await asyncio.sleep(5.5)
    assert line.dispatcher.availability.reachable
    assert engine.probes == 1


async def test_a_probe_that_fails_is_tried_again_and_requests_go_meanwhile(line, engine, watch):
    engine.probe_error = EngineError("401")
    watch()
    await asyncio.sleep(1)
    assert line.dispatcher.availability.reachable
    engine.probe_error = None
    await asyncio.sleep(12)
    assert engine.probes == 2
    assert line.dispatcher.engine.profile.models == ("m",)


async def test_it_looks_once_a_second_and_no_more(engine, watch):
    watch()
    await asyncio.sleep(30)
    assert 28 <= engine.scrapes <= 32
    assert engine.probes == 1


async def test_metrics_that_stop_are_stale_after_three_scrapes_and_dispatch_goes_on(line, engine, watch):
    watching = watch()
    await asyncio.sleep(1.5)
    now = line.dispatcher.clock
    assert not watching.is_stale(now())
    engine.error = EngineError("/metrics answered 404")
    await asyncio.sleep(3)
    assert watching.is_stale(now())
    assert watching.heard.signals.running == 3
    assert line.send().phase is Phase.IN_FLIGHT


async def test_an_engine_that_is_gone_is_knocked_at_four_times_a_second(line, engine, watch):
    watch()
    await asyncio.sleep(1.5)
    engine.error = EngineUnreachableError("nobody")
    await asyncio.sleep(1)
    assert line.dispatcher.availability.reachable is False
    before = engine.scrapes
    await asyncio.sleep(10)
    assert 38 <= engine.scrapes - before <= 42
    engine.error = None
    await asyncio.sleep(0.3)
    assert line.dispatcher.availability.reachable
    assert engine.probes == 2


async def test_a_request_that_finds_nobody_makes_it_look_at_once(line, engine, watch):
    watch()
    await asyncio.sleep(1.5)
    ticket = line.send()
    before = engine.scrapes
    ticket.unreachable()
    await asyncio.sleep(0.01)
    assert engine.scrapes == before + 1
    assert ticket.phase is Phase.IN_FLIGHT


async def test_a_restarted_engine_is_probed_again(line, engine, watch):
    watch()
    await asyncio.sleep(1.5)
    engine.signals = EngineSignals(**SIGNALS, generated_tokens=5, preemptions=0)
    await asyncio.sleep(1.5)
    assert engine.probes == 2
    assert line.dispatcher.engine.profile.system_fingerprint == "fp-2"


async def test_a_preemption_makes_the_plan_smaller(line, engine, watch):
    watching = watch()
    await asyncio.sleep(1.5)
    before = line.dispatcher.engine.capacity.gate.percent
    engine.signals = EngineSignals(**SIGNALS, generated_tokens=200, preemptions=3)
    await asyncio.sleep(1.5)
    assert line.dispatcher.engine.capacity.gate.percent == before - 2
    assert watching.preemptions == 3


async def test_the_kv_cache_is_as_large_as_the_engine_says_unless_the_policy_does(line, watch):
    watch()
    await asyncio.sleep(1.5)
    assert line.dispatcher.engine.capacity.kv_tokens == 10_000
    assert line.dispatcher.scheduler.books.kv_tokens == 10_000
    line.configure(capacity={"kvTokens": 5000}, algorithm={"type": "DRR"})
    assert line.dispatcher.engine.capacity.kv_tokens == 5000
    assert line.dispatcher.scheduler.books.kv_tokens == 5000


async def test_an_engine_that_takes_connections_and_says_nothing_is_told_from_one_that_is_gone(
    line, engine, watch
):
    watching = watch()
    await asyncio.sleep(1.5)
    engine.scrape_seconds = 60
    await asyncio.sleep(8)
    assert not watching.is_silent(line.dispatcher.clock())
    await asyncio.sleep(5)
    assert watching.is_silent(line.dispatcher.clock())
    assert line.dispatcher.availability.reachable
    assert line.send().phase is Phase.IN_FLIGHT
    engine.scrape_seconds = 0
    await asyncio.sleep(5)
    assert not watching.is_silent(line.dispatcher.clock())


async def test_a_key_that_comes_with_the_configuration_is_tried_at_once(line, engine, watch):
    engine.probe_error = EngineError("401")
    watch()
    await asyncio.sleep(1.5)
    engine.probe_error = None
    line.configure(engineApiKey="the-engines-own-key")
    await asyncio.sleep(1.5)
    assert line.dispatcher.engine.profile.models == ("m",)
    assert engine.keys == [None, "the-engines-own-key"]
