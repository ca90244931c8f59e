"""Conformance: reconfiguration, snapshots, changes of algorithm, what is told, what is forgotten."""

import json

import pytest
from conformance import EVERY, Subject, case, fill
from scheduling_harness import drain, finish, make_request

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.history import carry_over
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome, Reason, Usage
from equipoise_scheduling.schedulers.fcfs import FCFS
from equipoise_scheduling.schedulers.vtc import VTC


@case()
def nothing_changes_when_a_reconfiguration_is_wrong(subject):
    scheduler = subject.make(tenants={"a": TenantSettings(weight=2, max_queued=3)})
    fill(scheduler, "ab")
    before = scheduler.shares(0.0)
    with pytest.raises(TypeError, match=r"tenants\['b'\] must be TenantSettings"):
        scheduler.reconfigure(scheduler.settings_type(max_queued=1), {"a": TenantSettings(), "b": 3}, 0.0)
    with pytest.raises(TypeError, match=f"{subject.algorithm} takes"):
        scheduler.reconfigure({"max_queued": 1}, {}, 0.0)
    with pytest.raises(ValueError, match="window_seconds cannot change"):
        scheduler.reconfigure(scheduler.settings_type(window_seconds=5.0), {}, 0.0)
    assert scheduler.shares(0.0) == before
    assert scheduler.books.settings.max_queued is None


@case()
def reconfiguration_keeps_queue_and_flights_and_acts_at_once(subject):
    scheduler = subject.make()
    requests = fill(scheduler, "aab")
    flying = scheduler.next(0.0, lambda _: True)
    scheduler.reconfigure(scheduler.settings_type(max_queued=2), {"a": TenantSettings(max_in_flight=1)}, 0.0)
    assert scheduler.enqueue(make_request("late", "b"), 0.0).reason is Reason.QUEUE_FULL
    assert drain(scheduler) == [requests[2]]
    scheduler.reconfigure(scheduler.settings_type(), {}, 0.0)
    assert [row.held for row in scheduler.shares(0.0)] == [True, False]
    finish(scheduler, [flying], 3)
    assert drain(scheduler) == [requests[1]]


@case()
def removed_tenant_keeps_its_settings_until_its_last_request_has_ended(subject):
    scheduler = subject.make(tenants={"a": TenantSettings(weight=5)})
    requests = fill(scheduler, "ab")
    scheduler.reconfigure(scheduler.settings_type(), {"b": TenantSettings()}, 0.0)
    assert scheduler.shares(0.0)[0].weight == 5
    assert sorted(r.tenant for r in drain(scheduler)) == ["a", "b"]
    finish(scheduler, requests, 1)
    fill(scheduler, "a", now=1.0)
    assert scheduler.shares(1.0)[0].weight == 1


@case()
def removed_idle_tenant_loses_its_settings_at_once(subject):
    scheduler = subject.make(tenants={"a": TenantSettings(weight=5)})
    fill(scheduler, "a")
    finish(scheduler, drain(scheduler), 1)
    scheduler.reconfigure(scheduler.settings_type(), {}, 1.0)
    assert scheduler.shares(1.0)[0].weight == 1


@case()
def tenants_of_a_snapshot_that_nobody_knows_any_more_are_forgotten(subject):
    old = subject.make()
    fill(old, "ab")
    finish(old, drain(old), 5)
    scheduler = subject.make()
    scheduler.restore(old.snapshot())
    for at in (100.0, 101.0, 102.0, 210.0):
        fill(scheduler, "c", now=at, prompt=500)
        finish(scheduler, drain(scheduler, now=at), 90, now=at)
        scheduler.tick(at)
    assert set(scheduler.books.tenants) == {"c"}
    assert scheduler.snapshot()["tenants"] == ["c"]
    assert set(scheduler.books.predictor.snapshot()["mean"]) == {"c"}


@case()
def idle_strangers_are_forgotten(subject):
    scheduler = subject.make(tenants={"known": TenantSettings()})
    for at in range(50):
        fill(scheduler, [f"stranger-{at}", "known"], now=float(at))
        finish(scheduler, drain(scheduler, now=float(at)), 5, now=float(at))
    scheduler.tick(50.0)
    assert len(scheduler.books.tenants) > 2
    for at in range(51, 56):
        fill(scheduler, ["known"], now=200.0 + at)
        finish(scheduler, drain(scheduler, now=200.0 + at), 60, now=200.0 + at)
    fill(scheduler, ["known"], now=300.0)
    scheduler.tick(300.0)
    assert set(scheduler.books.tenants) == {"known"}
    assert set(scheduler.books.predictor.snapshot()["mean"]) == {"known"}


@case()
def snapshot_is_json_and_a_restored_scheduler_goes_on_the_same_way(subject):
    first = subject.make(tenants={"a": TenantSettings(weight=3)})
    fill(first, "abcabc", prompt=30)
    flying = drain(first, most=5)
    for request in flying:
        first.progress(request, 30, 4, 1.0)
    data = json.loads(json.dumps(first.snapshot()))
    assert data["version"] == 1
    for request in flying:
        first.settle(request, Usage(30, 4, exact=False), Outcome.FAILED, 2.0)
    for request in list(first.books.waiting.values()):
        first.cancel(request, 2.0)
    second = subject.make(tenants={"a": TenantSettings(weight=3)})
    second.restore(data)
    orders = []
    for scheduler in (first, second):
        fill(scheduler, "abcabcaabbcc", now=3.0)
        orders.append([request.id for request in drain(scheduler, now=3.0)])
    assert orders[0] == orders[1]


@case()
def restart_into_another_algorithm_keeps_history_and_what_was_learnt(subject):
    for former in EVERY:
        old = Subject(SCHEDULERS[former]).make()
        requests = [make_request(str(number), "busy", max_tokens=50) for number in range(4)]
        for request in requests:
            assert old.enqueue(request, 0.0) is None
        finish(old, drain(old), 50, 1.0)
        scheduler = subject.make()
        scheduler.restore(json.loads(json.dumps(old.snapshot())))
        assert scheduler.books.predictor.snapshot() == old.books.predictor.snapshot()
        history = old.snapshot()["history"]
        if history and scheduler.snapshot()["history"]:
            assert scheduler.snapshot()["history"] == pytest.approx(history)


@case()
def snapshot_that_cannot_be_read_is_refused_with_what_is_wrong(subject):
    scheduler = subject.make()
    good = scheduler.snapshot()
    for data, complaint in [
        ({}, "version must be 1"),
        ({**good, "version": 2}, "version must be 1"),
        ({**good, "state": None}, "must be objects"),
        ({**good, "history": {"a": "much"}}, "history must map tenants to their service"),
        ({**good, "tenants": "ab"}, "tenants must be a list of names"),
        ({**good, "predictor": {"mean": {"a": "many"}}}, "must map tenants to numbers"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            scheduler.restore(data)
    fill(scheduler, "a")
    with pytest.raises(ValueError, match="before the first request"):
        scheduler.restore(good)


@case()
def shares_say_what_everybody_had_wants_and_may_have(subject):
    scheduler = subject.make(tenants={"a": TenantSettings(weight=1), "b": TenantSettings(weight=3)})
    requests = fill(scheduler, "ab", prompt=10, max_tokens=100)
    drain(scheduler)
    for request, generated in zip(requests, (45, 20), strict=True):
        scheduler.progress(request, 10, generated, 1.0)
    fill(scheduler, "bb", now=1.0, prompt=30, max_tokens=50)
    a, b = scheduler.shares(2.0)
    assert (a.tenant, a.weight, a.queued, a.in_flight) == ("a", 1, 0, 1)
    assert (a.window.prompt, a.window.generated, a.window.cost) == (10, 45, 100)
    assert (b.window.cost, b.queued, b.head_wait) == (50, 2, 1.0)
    assert a.total == a.window
    assert b.demand == 10 + 2 * 100 + 2 * (30 + 2 * 50)
    assert (a.actual, b.actual) == pytest.approx((100 / 150, 50 / 150))
    assert (a.entitled, b.entitled) == pytest.approx((0.25, 0.75))
    assert b.lag == pytest.approx(0.75 * 150 - 50)
    gone = scheduler.shares(500.0)
    assert [row.window.cost for row in gone] == [0, 0]
    assert [row.total.cost for row in gone] == [100, 50]


@case()
def early_end_gives_back_what_was_only_predicted(subject):
    scheduler = subject.make()
    (request,) = fill(scheduler, "a", prompt=10, max_tokens=100)
    drain(scheduler)
    assert scheduler.shares(0.0)[0].demand == 10 + 2 * 100
    scheduler.progress(request, 10, 5, 1.0)
    scheduler.settle(request, Usage(10, 5), Outcome.FINISHED, 1.0)
    row = scheduler.shares(1.0)[0]
    assert row.demand == row.window.cost == 20
    assert subject.traits.unit == "felt and spent" or row.counter in {None, 20}


@case()
def wrong_prompt_estimate_is_corrected_once_the_prompt_is_known(subject):
    scheduler = subject.make(prediction=PredictionSettings(kind="None"))
    (low, high) = fill(scheduler, "ab", prompt=10)
    drain(scheduler)
    scheduler.progress(low, 25, 1, 1.0)
    scheduler.progress(high, 4, 1, 1.0)
    assert [row.window.cost for row in scheduler.shares(1.0)] == [27, 6]
    if subject.traits.unit == "felt and spent":
        assert scheduler.shares(1.0)[0].counter > 3 * scheduler.shares(1.0)[1].counter > 0
    else:
        counters = [row.counter for row in scheduler.shares(1.0)]
    assert subject.traits.unit != "tokens" or counters in ([None, None], [27, 6])


@case()
def cumulative_counts_never_run_backwards(subject):
    scheduler = subject.make()
    (request,) = fill(scheduler, "a", prompt=10)
    drain(scheduler)
    scheduler.progress(request, 10, 8, 1.0)
    scheduler.progress(request, 10, 3, 2.0)
    assert scheduler.shares(2.0)[0].total.generated == 8


@case()
def estimated_usage_never_takes_back_what_was_seen(subject):
    scheduler = subject.make()
    (request,) = fill(scheduler, "a", prompt=10)
    drain(scheduler)
    scheduler.progress(request, 10, 95, 1.0)
    scheduler.settle(request, Usage(0, 0, exact=False), Outcome.CANCELLED, 1.0)
    assert scheduler.shares(1.0)[0].total.cost == 10 + 2 * 95


@case()
def sequences_count_together(subject):
    scheduler = subject.make(prediction=PredictionSettings(prior_tokens=20))
    (request,) = fill(scheduler, "a", prompt=10, max_tokens=50, sequences=4)
    assert request.predicted_tokens == 20
    drain(scheduler)
    scheduler.settle(request, Usage(10, 120), Outcome.FINISHED, 1.0)
    assert scheduler.shares(1.0)[0].total.cost == 10 + 2 * 120
    assert scheduler.books.predictor.predict(make_request("next", "a")) == (4 * 20 + 30) // 5


@case()
def change_of_algorithm_keeps_queue_flights_and_arrival_numbers(subject):
    for other in EVERY:
        old = subject.make(tenants={"a": TenantSettings(max_in_flight=2)})
        requests = fill(old, "aabbaabb")
        flying = drain(old, most=3)
        old.progress(flying[0], 10, 6, 1.0)
        numbers = [request.number for request in requests]
        new = Subject(SCHEDULERS[other]).make({"a": TenantSettings(max_in_flight=9)})
        assert carry_over(old, new, 1.0) is new
        assert (new.queued, new.in_flight) == (5, 3)
        assert new.shares(1.0)[0].in_flight + new.shares(1.0)[1].in_flight == 3
        finish(new, flying, 10, now=2.0)
        late = make_request("late", "c", arrival=2.0)
        new.enqueue(late, 2.0)
        order = drain(new, now=2.0)
        assert sorted(order, key=lambda r: r.number) == [r for r in requests if r not in flying] + [late]
        assert [request.number for request in requests] == numbers
        assert late.number == len(requests)
        for tenant in "ab":
            mine = [request.number for request in order if request.tenant == tenant]
            assert mine == sorted(mine)
        with pytest.raises(ValueError, match="that has requests cannot take over"):
            carry_over(subject.make(), new, 3.0)


@case(lambda traits: traits.unit == "tokens")
def service_of_a_request_that_runs_through_a_change_of_algorithm_counts_once(subject):
    old = VTC()
    (request,) = fill(old, "a", prompt=10)
    drain(old)
    old.progress(request, 10, 40, 1.0)
    new = carry_over(old, subject.make(), 1.0)
    assert new.shares(1.0)[0].counter in {None, 10 + 2 * 40, 10 + 2 * 100}
    finish(new, [request], 60, now=2.0)
    assert new.shares(2.0)[0].counter in {None, 10 + 2 * 60}


@case()
def request_put_back_after_a_change_of_algorithm_costs_nothing(subject):
    old = FCFS()
    fill(old, "ab")
    request = old.next(0.0, lambda _: True)
    new = carry_over(old, subject.make(), 0.0)
    new.requeue(request, 0.0)
    assert (new.queued, new.in_flight) == (2, 0)
    assert [row.counter for row in new.shares(0.0)] in ([None, None], [0, 0])
    assert len(drain(new)) == 2


@case()
def new_prediction_settings_replace_the_predictor_and_equal_ones_keep_what_it_learnt(subject):
    scheduler = subject.make()
    finish(scheduler, fill(scheduler, "a") and drain(scheduler), 6)
    scheduler.reconfigure(scheduler.settings_type(max_queued=9), {}, 0.0)
    (request,) = fill(scheduler, "a", now=1.0, max_tokens=1000)
    assert request.predicted_tokens == (4 * 256 + 6) // 5
    nothing = scheduler.settings_type(prediction=PredictionSettings(kind="None"))
    scheduler.reconfigure(nothing, {}, 0.0)
    assert drain(scheduler) == [request]
    assert request.predicted_tokens is None
    fresh = subject.make(prediction=PredictionSettings(kind="None"))
    fresh.restore(json.loads(json.dumps(scheduler.snapshot())))


@case()
def bound_is_published_where_there_is_one(subject):
    assert (subject.make().bound(0.0) is not None) == subject.traits.bound
    assert subject.make().refused() == []
