"""A run, event by event: what a call waits for, what its client does, what scheduler and gate are told."""

import pytest
from clock_profile import CLOCK

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.gate import Gate, GateSettings
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome
from equipoise_simulator.simulation import simulate
from equipoise_simulator.suites import suite
from equipoise_simulator.workload import Call, Workload


def call(name, arrival=0.0, *, tenant="blue", prompt=10, output=3, **facts):
    facts = {"max_tokens": output, **facts}
    return Call(id=name, tenant=tenant, arrival=arrival, prompt_tokens=prompt, output_tokens=output, **facts)


def workload(*calls, seconds=20.0, **facts):
    return Workload(name="test", calls=calls, seconds=seconds, **facts)


def by_id(result):
    return {record.call.id: record for record in result.records}


def test_a_call_alone_takes_its_steps():
    record = by_id(simulate(workload(call("a", 5.0)), "FCFS", profile=CLOCK))["a"]
    # The prompt's step gives the first token, two more follow.
    assert (record.dispatched, record.first_token, record.ended) == (5.0, 6.0, 8.0)
    assert (record.queue_delay, record.ttft, record.tpot) == (0.0, 1.0, 1.0)
    assert record.outcome is Outcome.FINISHED
    assert record.generated == 3


def test_who_finds_all_slots_taken_waits_for_an_end():
    result = simulate(workload(call("a"), call("b"), call("c")), "FCFS", profile=CLOCK)
    third = by_id(result)["c"]
    assert (third.dispatched, third.first_token, third.ended) == (3.0, 4.0, 6.0)
    assert result.simulated_seconds == 6.0
    assert result.tokens_per_second == pytest.approx(3 * 13 / 6)


def test_the_schedulers_order_is_the_order_of_dispatch():
    calls = [call(f"blue{n}", 0.0) for n in range(6)] + [call("green", 1.0, tenant="green")]
    fcfs = by_id(simulate(workload(*calls), "FCFS", profile=CLOCK))
    vtc = by_id(simulate(workload(*calls), "VTC:oracle", profile=CLOCK))
    assert fcfs["green"].dispatched == 9.0
    assert vtc["green"].dispatched == 3.0


def test_weights_are_the_workloads():
    calls = [call(f"{tenant}{n}", tenant=tenant) for n in range(30) for tenant in ("blue", "green")]
    result = simulate(workload(*calls, weights={"blue": 3.0}), "VTC:oracle", profile=CLOCK)
    first = sorted(result.records, key=lambda record: (record.dispatched, record.call.id))[:24]
    assert sum(record.tenant == "blue" for record in first) == 18
    assert result.service("blue") == pytest.approx(result.series["blue"].total(20.0))


def test_a_client_that_waits_too_long_leaves_the_queue_or_the_engine():
    calls = [call("running", output=30), call("short", output=3), call("queued", output=3)]
    result = simulate(workload(*calls, client_timeout=2.0), "FCFS", profile=CLOCK)
    records = by_id(result)
    assert records["running"].outcome is Outcome.CANCELLED
    assert (records["running"].ended, records["running"].generated) == (2.0, 2)
    assert records["queued"].outcome is Outcome.CANCELLED
    assert records["queued"].dispatched is None
    assert records["queued"].queue_delay == 2.0
    requests = result.document()["requests"]
    assert (requests["arrived"], requests["finished"], requests["cancelled"]) == (3, 0, 3)


def test_a_later_call_is_sent_when_the_one_before_has_finished():
    calls = [
        call("first", 1.0, interaction="i"),
        call("second", 0.5, interaction="i", call_index=2, after="first"),
        call("third", 0.0, interaction="i", call_index=3, after="second"),
    ]
    records = by_id(simulate(workload(*calls), "FCFS", profile=CLOCK))
    assert records["first"].ended == 4.0
    assert records["second"].arrival == 4.5
    assert records["third"].arrival == records["second"].ended


def test_what_would_have_followed_a_failed_call_is_never_sent_and_what_went_before_is_wasted():
    calls = [
        call("first", interaction="i"),
        call("second", interaction="i", call_index=2, after="first", prompt=300, output=100),
        call("third", interaction="i", call_index=3, after="second"),
    ]
    result = simulate(workload(*calls), "FCFS", profile=CLOCK)
    assert set(by_id(result)) == {"first", "second"}
    document = result.document()
    assert document["requests"]["rejected"] == {"never-fits": 1}
    assert document["wasted_tokens"] == 13
    assert document["wasted_prompt_tokens"] == 10


def test_preemptions_are_counted_and_the_victims_tokens_come_once():
    load = workload(*(call(str(n), prompt=100, output=100) for n in range(2)))
    result = simulate(load, "FCFS:10", gate="prompt", profile=CLOCK)
    assert result.preemptions > 0
    assert result.recomputed_tokens > 0
    assert result.series["blue"].total(1e9) == 2 * (100 + 2 * 100)


def test_the_reserve_gate_keeps_room_for_every_limit_and_the_peak_gate_does_not():
    load = workload(*(call(str(n), prompt=20, output=5, max_tokens=250) for n in range(2)))
    one_by_one = by_id(simulate(load, "FCFS:none", gate="reserve", profile=CLOCK))
    together = by_id(simulate(load, "FCFS:5", gate="peak", profile=CLOCK))
    assert one_by_one["1"].dispatched == one_by_one["0"].ended
    assert together["1"].dispatched == 0.0


def test_an_open_gate_leaves_the_queue_to_the_engine():
    load = workload(*(call(str(n)) for n in range(5)))
    result = simulate(load, "FCFS", gate="open", profile=CLOCK)
    assert all(record.queue_delay == 0.0 for record in result.records)
    assert by_id(result)["4"].ttft == 7.0


def test_gate_settings_are_taken_as_they_are():
    load = workload(call("a", prompt=150, output=5), call("b", prompt=150, output=5))
    tight = GateSettings(kind="peak", utilisation_percent=60.0, headroom_percent=0.0)
    assert by_id(simulate(load, "FCFS:oracle", gate=tight, profile=CLOCK))["b"].queue_delay == 5.0
    assert by_id(simulate(load, "FCFS:oracle", profile=CLOCK))["b"].queue_delay == 5.0
    roomy = GateSettings(kind="peak", utilisation_percent=100.0, headroom_percent=0.0)
    assert by_id(simulate(load, "FCFS:oracle", gate=roomy, profile=CLOCK))["b"].queue_delay == 0.0


def test_two_runs_are_equal_and_a_seed_moves_the_noisy_predictor():
    calls = [call(str(n), n * 0.3, tenant="bg"[n % 2], output=3 + n % 17) for n in range(40)]
    load = workload(*calls)
    one, two, other = (simulate(load, "VTC:noisy", profile=CLOCK, seed=seed).document() for seed in (1, 1, 2))
    assert one == two
    assert one["prediction_error_tokens"] != other["prediction_error_tokens"]


def test_telling_the_scheduler_of_tokens_in_chunks_changes_little():
    calls = [call(str(n), n * 0.2, tenant="bg"[n % 3 == 0], output=20 + n % 50) for n in range(60)]
    load = workload(*calls)
    fine, coarse = (simulate(load, "VTC:none", profile=CLOCK, gate="open", resolution=n) for n in (1, 8))
    assert fine.tokens_per_second == pytest.approx(coarse.tokens_per_second, rel=0.01)
    for tenant in ("b", "g"):
        assert fine.series[tenant].total(1e9) == coarse.series[tenant].total(1e9)


def test_a_scheduler_that_holds_everything_back_is_found_out(monkeypatch):
    from equipoise_scheduling.schedulers.fcfs import FCFS

    monkeypatch.setattr(FCFS, "next", lambda self, now, fits: None)
    with pytest.raises(RuntimeError, match="FCFS lets none of 1 requests go while the engine is empty"):
        simulate(workload(call("a")), "FCFS", profile=CLOCK)


def test_a_bound_that_is_broken_even_once_is_said_to_be_broken(monkeypatch):
    from dataclasses import replace

    from equipoise_scheduling.schedulers.vtc import VTC

    honest = VTC.bound

    def broken_at_three(self, now):
        bound = honest(self, now)
        return replace(bound, met=False, gap=bound.limit + 1) if now == 3.0 else bound

    calls = [call(f"{t}{n}", tenant=t) for n in range(5) for t in ("blue", "green")]
    assert simulate(workload(*calls), "VTC:oracle", profile=CLOCK).document()["bound"]["met"]
    monkeypatch.setattr(VTC, "bound", broken_at_three)
    assert not simulate(workload(*calls), "VTC:oracle", profile=CLOCK).document()["bound"]["met"]


@pytest.mark.parametrize(("gate", "bounded"), [("peak", True), ("reserve", True), ("prompt", False)])
def test_a_bound_is_published_where_the_gate_looks_at_outputs_to_come(gate, bounded):
    calls = [call(f"{t}{n}", tenant=t) for n in range(5) for t in ("blue", "green")]
    bound = simulate(workload(*calls), "VTC:oracle", gate=gate, profile=CLOCK).document()["bound"]
    assert (bound is not None) == bounded


def test_progress_is_told_and_ends_at_all():
    told = []
    simulate(workload(call("a"), call("b", 4.0)), "FCFS", profile=CLOCK, progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


def test_the_gate_hears_of_preemptions(monkeypatch):
    heard = []
    monkeypatch.setattr(Gate, "preempted", lambda self, now, count=1: heard.append(count))
    load = workload(*(call(str(n), prompt=100, output=100) for n in range(2)))
    result = simulate(load, "FCFS:10", gate="prompt", profile=CLOCK)
    assert sum(heard) == result.preemptions > 0


def test_the_scheduler_is_told_the_engines_pool(monkeypatch):
    told = []
    monkeypatch.setattr(TenantScheduler, "set_pool", lambda self, tokens: told.append(tokens))
    simulate(workload(call("a")), "VTC", profile=CLOCK)
    assert told == [320]


@pytest.mark.parametrize("name", ["overload_weighted", "poisson_short_long_2", "exfairs_5", "interactions"])
def test_every_published_bound_holds_on_a_piece_of_every_kind_of_suite(name):
    seen = {}
    for scheduler in sorted(SCHEDULERS):
        result = simulate(suite(name).first(5 if name == "interactions" else 60), scheduler, resolution=4)
        seen[scheduler] = result.document()["bound"]
    published = {scheduler: bound for scheduler, bound in seen.items() if bound is not None}
    assert {"VTC", "Equipoise"} <= published.keys()
    assert not {"FCFS", "RoundRobin", "LCF", "RPM"} & published.keys()
    assert all(bound["met"] for bound in published.values()), published
