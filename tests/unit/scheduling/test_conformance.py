"""What every scheduler in the registry must do, whatever its order."""

import json

import pytest
from scheduling_harness import Client, World, drain, finish, make_request

from equipoise_scheduling.contract import SchedulerSettings, TenantSettings
from equipoise_scheduling.history import carry_over
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.registry import SCHEDULERS, create
from equipoise_scheduling.request import Outcome, Reason, Usage

EVERY = sorted(SCHEDULERS)
SKIPPING = {"Equipoise"}
BOUNDED = {"VTC", "FairServe", "Equipoise"}


@pytest.fixture(params=EVERY)
def algorithm(request):
    return request.param


@pytest.fixture
def make(algorithm):
    """Build the scheduler under test; keyword arguments are settings."""

    def build(tenants=None, **settings):
        if algorithm == "RPM":
            settings.setdefault("requests_per_minute", 1_000_000)
        return SCHEDULERS[algorithm](SCHEDULERS[algorithm].settings_type(**settings), tenants or {})

    return build


def fill(scheduler, pattern, *, now=0.0, **fields):
    """Enqueue one request a letter, the letter being its tenant."""
    requests = [
        make_request(f"{now}-{at}", tenant, arrival=now, **fields) for at, tenant in enumerate(pattern)
    ]
    for request in requests:
        assert scheduler.enqueue(request, now) is None
    return requests


def settle_turns(scheduler, now):
    """Let a pass in which nobody fits move the turns on, as it may once."""
    assert scheduler.next(now, lambda _: False) is None


def test_serves_each_accepted_request_once_and_a_tenants_in_order(make):
    scheduler = make()
    requests = fill(scheduler, "aabacbbca")
    order = drain(scheduler)
    assert sorted(order, key=lambda r: r.number) == requests
    for tenant in "abc":
        numbers = [request.number for request in order if request.tenant == tenant]
        assert numbers == sorted(numbers)
    assert scheduler.queued == 0
    assert scheduler.in_flight == len(requests)


def test_empty_queue_gives_nobody(make):
    assert make().next(0.0, lambda _: True) is None


def test_pass_ends_at_a_head_that_does_not_fit_and_nothing_is_charged(make):
    scheduler = make()
    fill(scheduler, "ab", prompt=50)
    fill(scheduler, "ab", now=1.0, prompt=1)
    settle_turns(scheduler, 1.0)
    before = scheduler.snapshot()
    asked = []

    def fits(request):
        asked.append(request)
        return request.prompt_tokens < 10

    assert scheduler.next(1.0, fits) is None
    # One that may skip asks for other tenants' heads, never for what is queued behind a head.
    assert {request.prompt_tokens for request in asked} == {50}
    assert len(asked) == 1 or scheduler.algorithm in SKIPPING
    assert scheduler.snapshot() == before
    assert scheduler.queued == 4


def test_never_idles_while_something_is_queued_and_fits(make):
    scheduler = make()
    clients = [Client("a", 3), Client("b", 9, prompt=100), Client("c", 1, output=5)]
    world = World(scheduler, clients, slots=6)
    for _ in range(400):
        world.run(0.05)
        world._dispatch()
        assert scheduler.queued == 0 or len(world.running) == world.slots


def test_same_events_give_the_same_order(make):
    def run():
        clients = [Client("a", 3, prompt=50), Client("b", 5), Client("c", 2, output=90, cancel_at=0.5)]
        world = World(make(), clients, slots=4)
        world.run(60)
        return [request.id for request in world.order]

    first = run()
    assert len(first) > 50
    assert first == run()


def test_nobody_starves_beside_an_aggressor(make):
    clients = [Client("light", 2), Client("aggressor", 40, prompt=200, output=60)]
    world = World(make(), clients, slots=4)
    world.run(120)
    waits = [request.dispatched - request.arrival for request in world.order if request.tenant == "light"]
    waiting = [world.now - r.arrival for r in world.scheduler.books.waiting.values() if r.tenant == "light"]
    one_round = (60 + 1) * 0.05 * 42 / 4
    assert len(waits) > 1
    assert max(waits + waiting) <= 2 * one_round


def test_cancelled_while_queued_is_never_served_and_costs_nothing(make):
    scheduler = make()
    requests = fill(scheduler, "aba")
    before = scheduler.snapshot()
    scheduler.cancel(requests[0], 1.0)
    scheduler.cancel(requests[1], 1.0, Outcome.EXPIRED)
    assert drain(scheduler) == [requests[2]]
    finish(scheduler, [requests[2]], 0)
    assert [request.outcome for request in requests] == [Outcome.CANCELLED, Outcome.EXPIRED, Outcome.FINISHED]
    assert scheduler.books.outcomes == {Outcome.CANCELLED: 1, Outcome.EXPIRED: 1, Outcome.FINISHED: 1}
    assert set(before["state"]) == set(scheduler.snapshot()["state"])


def test_request_cannot_end_twice_or_out_of_its_state(make):
    scheduler = make()
    (request,) = fill(scheduler, "a")
    with pytest.raises(ValueError, match="was not dispatched"):
        scheduler.settle(request, Usage(1, 1), Outcome.FINISHED, 0.0)
    with pytest.raises(ValueError, match="queued or in flight already"):
        scheduler.enqueue(request, 0.0)
    drain(scheduler)
    with pytest.raises(ValueError, match="in flight: settle it"):
        scheduler.cancel(request, 0.0)
    scheduler.settle(request, Usage(1, 1), Outcome.FAILED, 0.0)
    for again in (
        lambda: scheduler.settle(request, Usage(1, 1), Outcome.FINISHED, 0.0),
        lambda: scheduler.progress(request, 1, 1, 0.0),
        lambda: scheduler.requeue(request, 0.0),
        lambda: scheduler.enqueue(request, 0.0),
    ):
        with pytest.raises(ValueError, match="has ended as failed"):
            again()
    with pytest.raises(ValueError, match="is not queued"):
        scheduler.cancel(request, 0.0)


def test_busy_engine_puts_a_request_back_as_if_it_had_never_left(make):
    scheduler = make()
    fill(scheduler, "abab")
    first = scheduler.next(0.0, lambda _: True)
    finish(scheduler, [first], 7)
    settle_turns(scheduler, 1.0)
    before = scheduler.snapshot()
    expected = scheduler.next(1.0, lambda _: True)
    scheduler.requeue(expected, 1.0)
    assert scheduler.snapshot() == before
    assert expected.dispatched is None
    assert expected.outcome is None
    assert scheduler.next(2.0, lambda _: True) is expected


def test_request_put_back_is_served_before_its_tenants_younger_ones(make):
    scheduler = make()
    requests = fill(scheduler, "aaa")
    first, second = scheduler.next(0.0, lambda _: True), scheduler.next(0.0, lambda _: True)
    scheduler.requeue(second, 0.0)
    scheduler.requeue(first, 0.0)
    assert drain(scheduler) == requests


def test_tenant_at_its_own_limit_is_passed_over_until_one_ends(make):
    scheduler = make(tenants={"a": TenantSettings(max_in_flight=2)})
    requests = fill(scheduler, "aaaab")
    order = drain(scheduler)
    assert [r.tenant for r in order].count("a") == 2
    assert requests[4] in order
    row = next(share for share in scheduler.shares(0.0) if share.tenant == "a")
    assert (row.held, row.queued, row.in_flight) == (True, 2, 2)
    finish(scheduler, [requests[0]], 1)
    assert drain(scheduler) == [requests[2]]


def test_full_queue_refuses_with_reason_and_measured_retry_after(make):
    scheduler = make(max_queued=2)
    fill(scheduler, "ab")
    refusal = scheduler.enqueue(make_request("late", "b"), 0.0)
    assert (refusal.reason, refusal.retry_after_seconds) == (Reason.QUEUE_FULL, None)
    assert scheduler.queued == 2
    finish(scheduler, drain(scheduler), 1, now=4.0)
    fill(scheduler, "ab", now=4.0)
    refusal = scheduler.enqueue(make_request("late", "b", arrival=4.0), 4.0)
    assert 1 <= refusal.retry_after_seconds <= 120


def test_full_tenant_queue_refuses_that_tenant_alone(make):
    scheduler = make(tenants={"a": TenantSettings(max_queued=1)})
    fill(scheduler, "ab")
    refusal = scheduler.enqueue(make_request("late", "a"), 0.0)
    assert refusal.reason is Reason.TENANT_QUEUE_FULL
    assert "tenant a has 1 requests queued" in refusal.message
    assert scheduler.enqueue(make_request("fine", "b"), 0.0) is None


def test_refused_request_may_be_sent_again(make):
    scheduler = make(max_queued=1)
    (first,) = fill(scheduler, "a")
    late = make_request("late", "b")
    assert scheduler.enqueue(late, 0.0) is not None
    drain(scheduler)
    assert scheduler.enqueue(late, 1.0) is None
    assert late.number == first.number + 1


def test_nothing_changes_when_a_reconfiguration_is_wrong(make, algorithm):
    scheduler = make(tenants={"a": TenantSettings(weight=2, max_queued=3)})
    fill(scheduler, "ab")
    before = scheduler.shares(0.0)
    with pytest.raises(TypeError, match=r"tenants\['b'\] must be TenantSettings"):
        scheduler.reconfigure(scheduler.settings_type(max_queued=1), {"a": TenantSettings(), "b": 3}, 0.0)
    with pytest.raises(TypeError, match=f"{algorithm} takes"):
        scheduler.reconfigure({"max_queued": 1}, {}, 0.0)
    with pytest.raises(ValueError, match="window_seconds cannot change"):
        scheduler.reconfigure(scheduler.settings_type(window_seconds=5.0), {}, 0.0)
    assert scheduler.shares(0.0) == before
    assert scheduler.books.settings.max_queued is None


def test_reconfiguration_keeps_queue_and_flights_and_acts_at_once(make):
    scheduler = make()
    requests = fill(scheduler, "aab")
    flying = scheduler.next(0.0, lambda _: True)
    scheduler.reconfigure(scheduler.settings_type(max_queued=2), {"a": TenantSettings(max_in_flight=1)}, 0.0)
    assert scheduler.enqueue(make_request("late", "b"), 0.0).reason is Reason.QUEUE_FULL
    assert drain(scheduler) == [requests[2]]
    scheduler.reconfigure(scheduler.settings_type(), {}, 0.0)
    assert [row.held for row in scheduler.shares(0.0)] == [True, False]
    finish(scheduler, [flying], 3)
    assert drain(scheduler) == [requests[1]]


def test_removed_tenant_keeps_its_settings_until_its_last_request_has_ended(make):
    scheduler = make(tenants={"a": TenantSettings(weight=5)})
    requests = fill(scheduler, "ab")
    scheduler.reconfigure(scheduler.settings_type(), {"b": TenantSettings()}, 0.0)
    assert scheduler.shares(0.0)[0].weight == 5
    assert sorted(r.tenant for r in drain(scheduler)) == ["a", "b"]
    finish(scheduler, requests, 1)
    fill(scheduler, "a", now=1.0)
    assert scheduler.shares(1.0)[0].weight == 1


def test_removed_idle_tenant_loses_its_settings_at_once(make):
    scheduler = make(tenants={"a": TenantSettings(weight=5)})
    fill(scheduler, "a")
    finish(scheduler, drain(scheduler), 1)
    scheduler.reconfigure(scheduler.settings_type(), {}, 1.0)
    assert scheduler.shares(1.0)[0].weight == 1


def test_tenants_of_a_snapshot_that_nobody_knows_any_more_are_forgotten(make, algorithm):
    if algorithm == "LCF":
        pytest.skip("remembers service for ever")
    old = make()
    fill(old, "ab")
    finish(old, drain(old), 5)
    scheduler = make()
    scheduler.restore(old.snapshot())
    for at in range(3):
        fill(scheduler, "c", now=100.0 + at, prompt=500)
        finish(scheduler, drain(scheduler, now=100.0 + at), 90, now=100.0 + at)
    scheduler.tick(103.0)
    assert set(scheduler.books.tenants) == {"c"}
    assert scheduler.snapshot()["tenants"] == ["c"]
    assert set(scheduler.books.predictor.snapshot()["mean"]) == {"c"}


def test_idle_strangers_are_forgotten(make, algorithm):
    if algorithm == "LCF":
        pytest.skip("remembers service for ever")
    scheduler = make(tenants={"known": TenantSettings()})
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


def test_snapshot_is_json_and_a_restored_scheduler_goes_on_the_same_way(make):
    first = make(tenants={"a": TenantSettings(weight=3)})
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
    second = make(tenants={"a": TenantSettings(weight=3)})
    second.restore(data)
    orders = []
    for scheduler in (first, second):
        fill(scheduler, "abcabcaabbcc", now=3.0)
        orders.append([request.id for request in drain(scheduler, now=3.0)])
    assert orders[0] == orders[1]


@pytest.mark.parametrize("former", EVERY)
def test_restart_into_another_algorithm_keeps_history_and_what_was_learnt(make, algorithm, former):
    old = create(former, SCHEDULERS[former].settings_type(), {})
    requests = [make_request(str(number), "busy", max_tokens=50) for number in range(4)]
    for request in requests:
        assert old.enqueue(request, 0.0) is None
    finish(old, drain(old), 50, 1.0)
    scheduler = make()
    scheduler.restore(json.loads(json.dumps(old.snapshot())))
    assert scheduler.books.predictor.snapshot() == old.books.predictor.snapshot()
    history = old.snapshot()["history"]
    if history and scheduler.snapshot()["history"]:
        assert scheduler.snapshot()["history"] == pytest.approx(history)


def test_snapshot_that_cannot_be_read_is_refused_with_what_is_wrong(make):
    scheduler = make()
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


def test_shares_say_what_everybody_had_wants_and_may_have(make):
    scheduler = make(tenants={"a": TenantSettings(weight=1), "b": TenantSettings(weight=3)})
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


def test_early_end_gives_back_what_was_only_predicted(make):
    scheduler = make()
    (request,) = fill(scheduler, "a", prompt=10, max_tokens=100)
    drain(scheduler)
    assert scheduler.shares(0.0)[0].demand == 10 + 2 * 100
    scheduler.progress(request, 10, 5, 1.0)
    scheduler.settle(request, Usage(10, 5), Outcome.FINISHED, 1.0)
    row = scheduler.shares(1.0)[0]
    assert row.demand == row.window.cost == 20
    assert row.counter in {None, 20}


def test_wrong_prompt_estimate_is_corrected_once_the_prompt_is_known(make):
    scheduler = make(prediction=PredictionSettings(kind="None"))
    (low, high) = fill(scheduler, "ab", prompt=10)
    drain(scheduler)
    scheduler.progress(low, 25, 1, 1.0)
    scheduler.progress(high, 4, 1, 1.0)
    assert [row.window.cost for row in scheduler.shares(1.0)] == [27, 6]
    assert [row.counter for row in scheduler.shares(1.0)] in ([None, None], [27, 6])


def test_cumulative_counts_never_run_backwards(make):
    scheduler = make()
    (request,) = fill(scheduler, "a", prompt=10)
    drain(scheduler)
    scheduler.progress(request, 10, 8, 1.0)
    scheduler.progress(request, 10, 3, 2.0)
    assert scheduler.shares(2.0)[0].total.generated == 8


def test_estimated_usage_never_takes_back_what_was_seen(make):
    scheduler = make()
    (request,) = fill(scheduler, "a", prompt=10)
    drain(scheduler)
    scheduler.progress(request, 10, 95, 1.0)
    scheduler.settle(request, Usage(0, 0, exact=False), Outcome.CANCELLED, 1.0)
    assert scheduler.shares(1.0)[0].total.cost == 10 + 2 * 95


def test_sequences_count_together(make):
    scheduler = make(prediction=PredictionSettings(prior_tokens=20))
    (request,) = fill(scheduler, "a", prompt=10, max_tokens=50, sequences=4)
    assert request.predicted_tokens == 20
    drain(scheduler)
    scheduler.settle(request, Usage(10, 120), Outcome.FINISHED, 1.0)
    assert scheduler.shares(1.0)[0].total.cost == 10 + 2 * 120
    assert scheduler.books.predictor.predict(make_request("next", "a")) == (4 * 20 + 30) // 5


@pytest.mark.parametrize("other", EVERY)
def test_change_of_algorithm_keeps_queue_flights_and_arrival_numbers(make, other):
    old = make(tenants={"a": TenantSettings(max_in_flight=2)})
    requests = fill(old, "aabbaabb")
    flying = drain(old, most=3)
    old.progress(flying[0], 10, 6, 1.0)
    numbers = [request.number for request in requests]
    new = create(other, SCHEDULERS[other].settings_type(), {"a": TenantSettings(max_in_flight=9)})
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
        carry_over(make(), new, 3.0)


def test_request_put_back_after_a_change_of_algorithm_costs_nothing(make):
    from equipoise_scheduling.schedulers.fcfs import FCFS

    old = FCFS()
    fill(old, "ab")
    request = old.next(0.0, lambda _: True)
    new = carry_over(old, make(), 0.0)
    new.requeue(request, 0.0)
    assert (new.queued, new.in_flight) == (2, 0)
    assert [row.counter for row in new.shares(0.0)] in ([None, None], [0, 0])
    assert len(drain(new)) == 2


def test_unknown_algorithm_names_those_there_are():
    with pytest.raises(ValueError, match=f"'LIFO' is unknown: use one of {', '.join(SCHEDULERS)}"):
        create("LIFO", SchedulerSettings(), {})


def test_state_of_a_snapshot_that_makes_no_sense_is_refused_by_name():
    for algorithm, state, complaint in [
        ("RoundRobin", {"places": 3, "served": [0, 0]}, "state.places must be a list"),
        ("RoundRobin", {"places": [], "served": [0]}, "state.served a pair"),
        ("VTC", {"counters": {"a": 1.5}, "last_left": None}, "state.counters must map tenants to integers"),
        ("VTC", {"counters": {"a": 1}, "last_left": "b"}, "state.last_left must be one of"),
    ]:
        scheduler = SCHEDULERS[algorithm]()
        with pytest.raises(ValueError, match=complaint):
            scheduler.restore({**scheduler.snapshot(), "state": state})


def test_new_prediction_settings_replace_the_predictor_and_equal_ones_keep_what_it_learnt(make):
    scheduler = make()
    finish(scheduler, fill(scheduler, "a") and drain(scheduler), 6)
    scheduler.reconfigure(scheduler.settings_type(max_queued=9), {}, 0.0)
    (request,) = fill(scheduler, "a", now=1.0, max_tokens=1000)
    assert request.predicted_tokens == (4 * 256 + 6) // 5
    nothing = scheduler.settings_type(prediction=PredictionSettings(kind="None"))
    scheduler.reconfigure(nothing, {}, 0.0)
    assert drain(scheduler) == [request]
    assert request.predicted_tokens is None
    fresh = make(prediction=PredictionSettings(kind="None"))
    fresh.restore(json.loads(json.dumps(scheduler.snapshot())))


def test_only_token_counting_schedulers_publish_a_bound(make, algorithm):
    assert (make().bound(0.0) is None) == (algorithm not in BOUNDED)
    assert make().refused() == []
