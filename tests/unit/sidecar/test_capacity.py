"""What the engine can take: how metrics reach the gate and the window, and what the gate exports."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from equipoise_api.policy import Capacity as CapacityPolicy
from equipoise_scheduling.request import Request
from equipoise_sidecar.capacity import Capacity
from equipoise_sidecar.engine.signals import EngineSignals
from equipoise_sidecar.gate_metrics import gate_metrics


@pytest.fixture
def capacity():
    made = Capacity()
    made.configure(CapacityPolicy(), enforced=True, context_tokens=None)
    return made


def request(name, prompt=100, **fields):
    return Request(id=name, tenant="t", arrival=0.0, prompt_tokens=prompt, max_tokens=50, **fields)


def see(capacity, now, *, queued=50, **signals):
    defaults = {"running": capacity.gate.sequences, "waiting": 0, "preemptions": 0}
    capacity.observe(EngineSignals(**(defaults | signals)), queued=queued, now=now)


def fill(capacity, now):
    while capacity.fits(request("next"), now):
        capacity.start(request(f"r{capacity.gate.sequences}"), now)


def test_policy_reaches_the_gate_and_the_number_it_names_replaces_the_window(capacity):
    policy = CapacityPolicy(gate="Prompt", inter_token_milliseconds=40, prefill_tokens=1000, max_in_flight=3)
    capacity.configure(policy, enforced=True, context_tokens=2048)
    settings = capacity.gate.settings
    assert (settings.kind, settings.context_tokens) == ("prompt", 2048)
    assert (settings.batching.inter_token_seconds, settings.batching.prefill_tokens) == (0.04, 1000)
    assert capacity.gate.max_in_flight == capacity.max_in_flight == 3
    assert not capacity.bounded
    capacity.configure(policy, enforced=False, context_tokens=2048)
    assert capacity.fits(request("r"), 0.0)


def test_the_window_grows_while_the_engine_runs_all_it_gets(capacity):
    for now in range(20):
        fill(capacity, float(now))
        see(capacity, now + 0.5)
    assert capacity.max_in_flight >= 128


def test_requests_that_went_a_moment_ago_do_not_wait_in_the_engine(capacity):
    for now in range(4):
        fill(capacity, float(now))
        see(capacity, now + 0.5)
    size = capacity.max_in_flight
    for now in range(10, 16):
        fresh = [request(f"{now}-{at}") for at in range(6)]
        for sent in fresh:
            capacity.start(sent, now + 0.45)
        see(capacity, now + 0.5, waiting=6)
        for sent in fresh:
            capacity.gate.finish(sent)
    assert capacity.max_in_flight >= size
    for now in range(20, 24):
        see(capacity, now + 0.5, waiting=6)
    assert capacity.max_in_flight < size


def test_preemptions_are_the_gates_where_the_pool_is_known_and_the_windows_where_it_is_not(capacity):
    see(capacity, 0.0, preemptions=3)
    see(capacity, 1.0, preemptions=5)
    assert capacity.max_in_flight == 7
    known = Capacity()
    known.configure(CapacityPolicy(), enforced=True, context_tokens=None)
    for now, preemptions in ((0.0, 3), (1.0, 5)):
        see(known, now, preemptions=preemptions, kv_tokens=10_000, block_tokens=16)
    assert known.max_in_flight == 8
    assert known.gate.percent == 93


def test_a_restarted_engines_lower_count_is_no_preemption(capacity):
    for now, preemptions in ((0.0, 9), (1.0, 2), (2.0, None), (3.0, 7)):
        see(capacity, now, preemptions=preemptions, kv_tokens=10_000)
    assert capacity.gate.percent == 95


def test_stale_metrics_forget_what_others_held_and_stop_nothing(capacity):
    capacity.start(request("a"), 0.0)
    for now in range(3):
        see(capacity, float(now), kv_usage=0.99, kv_tokens=1000, block_tokens=1)
    assert not capacity.fits(request("b"), 3.0)
    capacity.observe(None, queued=1, now=4.0)
    assert capacity.fits(request("b"), 4.0)


def exported(capacity):
    registry = CollectorRegistry()

    class Collector:
        def collect(self):
            yield from gate_metrics(capacity)

    registry.register(Collector())
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert all(family.documentation.endswith(".") for family in families)
    return {sample.name: sample.value for family in families for sample in family.samples}, families


def test_the_gate_exports_what_it_plans_with(capacity):
    see(capacity, 0.0, kv_tokens=10_000, block_tokens=1)
    sent = request("a", 100, predicted_tokens=40)
    capacity.start(sent, 0.0)
    values, _ = exported(capacity)
    assert values == {
        "equipoise_gate_info": 1,
        "equipoise_gate_planned_tokens": 140,
        "equipoise_gate_peak_tokens": 140,
        "equipoise_gate_outstanding_tokens": 40,
        "equipoise_gate_limit_ratio": 0.95,
        "equipoise_gate_surplus_tokens": 0,
        "equipoise_gate_prefill_tokens": 100,
    }
    for second in range(20):
        capacity.gate.progress(sent, 100, 1 + 25 * second)
        capacity.tick(float(second))
    values, families = exported(capacity)
    assert values["equipoise_gate_prefill_tokens"] == 0
    assert values["equipoise_gate_step_seconds"] == pytest.approx(0.04, rel=0.1)
    assert families[0].samples[0].labels == {"kind": "peak"}
