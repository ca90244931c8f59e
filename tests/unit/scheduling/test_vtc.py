"""VTC against its definition, case by case, and in scenarios."""

import pytest
from scheduling_harness import Client, UniformScenario, World, drain, finish, make_request

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.cost import LinearCost, ProfiledCost
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.schedulers.fcfs import FCFS
from equipoise_scheduling.schedulers.vtc import VTC, VTCSettings

NO_PREDICTION = PredictionSettings(kind="None")


def room(_):
    return True


def vtc(weights=None, *, prior=None, limits=None, **settings):
    prediction = NO_PREDICTION if prior is None else PredictionSettings(prior_tokens=prior)
    limits = limits or {}
    tenants = {
        name: TenantSettings(weight=weight, max_in_flight=limits.get(name))
        for name, weight in (weights or {}).items()
    }
    return VTC(VTCSettings(prediction=prediction, **settings), tenants)


def send(scheduler, tenant, name, *, prompt=10, max_tokens=100, now=0.0):
    request = make_request(name, tenant, arrival=now, prompt=prompt, max_tokens=max_tokens)
    assert scheduler.enqueue(request, now) is None
    return request


def counters(scheduler):
    return {row.tenant: row.counter for row in scheduler.shares(0.0)}


# -- charge, settle, refund


def test_prompt_is_charged_at_dispatch_and_each_token_as_it_comes():
    scheduler = vtc({"a": 2})
    request = send(scheduler, "a", "r", prompt=10)
    assert counters(scheduler) == {"a": 0}
    drain(scheduler)
    assert counters(scheduler) == {"a": 10 / 2}
    scheduler.progress(request, 10, 3, 0.0)
    assert counters(scheduler) == {"a": (10 + 2 * 3) / 2}
    scheduler.settle(request, Usage(10, 4), Outcome.FINISHED, 0.0)
    assert counters(scheduler) == {"a": (10 + 2 * 4) / 2}


def test_predicted_output_is_charged_at_dispatch_and_tokens_only_beyond_it():
    scheduler = vtc(prior=20)
    request = send(scheduler, "a", "r", prompt=10)
    drain(scheduler)
    assert counters(scheduler) == {"a": 10 + 2 * 20}
    scheduler.progress(request, 10, 20, 0.0)
    assert counters(scheduler) == {"a": 10 + 2 * 20}
    scheduler.progress(request, 10, 27, 0.0)
    assert counters(scheduler) == {"a": 10 + 2 * 27}


def test_any_cost_function_is_charged_with_no_output_at_dispatch_and_its_rise_with_each_token():
    h = ProfiledCost()
    scheduler = vtc({"a": 2}, cost=h)
    request = send(scheduler, "a", "r", prompt=300)
    drain(scheduler)
    assert counters(scheduler)["a"] == pytest.approx(h(300, 0, 0) / 2)
    before = counters(scheduler)["a"]
    for generated in range(1, 40):
        scheduler.progress(request, 300, generated, 0.0)
        after = counters(scheduler)["a"]
        assert after - before == pytest.approx(
            (h(300, 0, generated) - h(300, 0, generated - 1)) / 2, abs=1e-5
        )
        before = after
    scheduler.settle(request, Usage(300, 40), Outcome.FINISHED, 0.0)
    assert counters(scheduler)["a"] == pytest.approx(h(300, 0, 40) / 2)
    assert scheduler.shares(0.0)[0].total.cost == pytest.approx(h(300, 0, 40))


def test_predicted_charge_of_any_cost_function_is_settled_at_what_was_generated():
    h = ProfiledCost()
    scheduler = vtc(prior=80, cost=h)
    request = send(scheduler, "a", "r", prompt=300)
    drain(scheduler)
    assert counters(scheduler)["a"] == pytest.approx(h(300, 0, 80))
    scheduler.progress(request, 300, 50, 0.0)
    assert counters(scheduler)["a"] == pytest.approx(h(300, 0, 80))
    scheduler.progress(request, 300, 90, 0.0)
    assert counters(scheduler)["a"] == pytest.approx(h(300, 0, 90))
    scheduler.settle(request, Usage(300, 10), Outcome.FINISHED, 0.0)
    assert counters(scheduler)["a"] == pytest.approx(h(300, 0, 10))


def test_charge_on_delivery_leaves_the_prediction_to_the_gate():
    scheduler = vtc(prior=20, charge_predicted=False)
    request = send(scheduler, "a", "r", prompt=10)
    drain(scheduler)
    assert request.predicted_tokens == 20
    assert counters(scheduler) == {"a": 10}


def test_unused_prediction_is_refunded_and_an_abort_keeps_what_was_seen():
    scheduler = vtc(prior=50)
    first, second = send(scheduler, "a", "r1"), send(scheduler, "b", "r2")
    drain(scheduler)
    scheduler.settle(first, Usage(10, 5), Outcome.FINISHED, 0.0)
    scheduler.progress(second, 10, 30, 0.0)
    scheduler.settle(second, Usage(10, 30, exact=False), Outcome.CANCELLED, 0.0)
    assert counters(scheduler) == {"a": 20, "b": 70}


def test_engine_error_without_any_work_costs_nothing():
    scheduler = vtc(prior=50)
    request = send(scheduler, "a", "r")
    drain(scheduler)
    scheduler.settle(request, Usage(0, 0), Outcome.FAILED, 0.0)
    assert counters(scheduler) == {"a": 0}


def test_cached_tokens_are_charged_as_expected_and_settled_as_they_were():
    scheduler = vtc(cost=LinearCost(cached=0.25))
    request = make_request("r", "a", prompt=100, cached_tokens=80)
    scheduler.enqueue(request, 0.0)
    drain(scheduler)
    assert counters(scheduler) == {"a": 20 + 80 / 4}
    scheduler.settle(request, Usage(100, 1, cached=40), Outcome.FINISHED, 0.0)
    assert counters(scheduler) == {"a": 60 + 40 / 4 + 2}


def test_refund_puts_its_tenant_in_front_at_once():
    scheduler = vtc(prior=50)
    first = send(scheduler, "a", "a1")
    send(scheduler, "b", "b1")
    send(scheduler, "b", "b2")
    send(scheduler, "a", "a2")
    drain(scheduler, most=2)
    assert counters(scheduler) == {"a": 110, "b": 110}
    scheduler.settle(first, Usage(10, 0), Outcome.FINISHED, 0.0)
    assert [r.id for r in drain(scheduler)] == ["a2", "b2"]


# -- choice


def test_least_counter_goes_next_and_equals_go_by_the_older_head():
    scheduler = vtc()
    for name, tenant in enumerate("bbaa"):
        send(scheduler, tenant, str(name), prompt=10)
    assert [r.tenant for r in drain(scheduler)] == ["b", "a", "b", "a"]


def test_weights_divide_the_charge():
    scheduler = vtc({"a": 1, "b": 3})
    for at in range(12):
        send(scheduler, "a", f"a{at}")
        send(scheduler, "b", f"b{at}")
    first = [r.tenant for r in drain(scheduler, most=8)]
    assert (first.count("a"), first.count("b")) == (2, 6)


def test_a_smaller_request_never_slips_past_the_head_that_does_not_fit():
    scheduler = vtc()
    send(scheduler, "a", "big", prompt=100)
    send(scheduler, "b", "small", prompt=1)
    assert scheduler.next(0.0, lambda r: r.prompt_tokens < 50) is None
    assert [r.id for r in drain(scheduler)] == ["big", "small"]


def test_start_tag_is_the_counter_before_the_charge_floored():
    scheduler = vtc({"a": 4})
    requests = [send(scheduler, "a", str(at), prompt=10) for at in range(4)]
    drain(scheduler)
    assert [request.priority for request in requests] == [0, 2, 5, 7]


# -- lift


def test_returning_tenant_is_lifted_to_the_least_counter_of_those_queued():
    scheduler = vtc()
    for at in range(8):
        send(scheduler, "a", f"a{at}")
        send(scheduler, "b", f"b{at}", prompt=14)
    drain(scheduler, most=9)
    before = counters(scheduler)
    send(scheduler, "idle", "i")
    assert counters(scheduler)["idle"] == min(before.values()) > 0


def test_with_nothing_queued_the_newcomer_is_lifted_to_the_one_that_left_last():
    scheduler = vtc()
    send(scheduler, "a", "a1", prompt=10)
    send(scheduler, "b", "b1", prompt=70)
    drain(scheduler)
    assert scheduler._last_left == "b"
    send(scheduler, "c", "c1")
    assert counters(scheduler)["c"] == 70


def test_lift_never_lowers_a_counter():
    scheduler = vtc()
    send(scheduler, "a", "a1", prompt=90)
    send(scheduler, "b", "b1", prompt=10)
    send(scheduler, "b", "b2", prompt=10)
    drain(scheduler, most=2)
    send(scheduler, "a", "a2")
    assert counters(scheduler) == {"a": 90, "b": 10}


def test_late_refund_does_not_bring_back_credit_from_before_the_lift():
    scheduler = vtc(prior=50)
    early = send(scheduler, "a", "a1", prompt=10)  # charged 110, of which 100 predicted
    drain(scheduler)
    for at in range(4):
        send(scheduler, "b", f"b{at}", prompt=10)
    drain(scheduler, most=2)  # b is lifted to 110, then 330
    again = send(scheduler, "a", "a2", prompt=10)  # a is lifted to 330
    assert counters(scheduler)["a"] == 330
    scheduler.settle(early, Usage(0, 0), Outcome.FAILED, 0.0)
    assert counters(scheduler)["a"] == 330
    assert scheduler.next(0.0, room).id == "b2"
    assert scheduler.next(0.0, room) is again
    scheduler.settle(again, Usage(10, 0), Outcome.FINISHED, 0.0)
    assert counters(scheduler)["a"] == 330 + 10


def test_refund_from_before_a_lift_that_did_not_bind_goes_down_to_the_lift_level():
    scheduler = vtc(prior=50)
    early = send(scheduler, "a", "a1", prompt=10)
    drain(scheduler)  # a: 110
    quick = send(scheduler, "b", "b1", prompt=10)
    drain(scheduler)  # b: lifted to 110, now 220
    scheduler.settle(quick, Usage(10, 0), Outcome.FINISHED, 0.0)  # 120
    send(scheduler, "b", "b2")
    late = send(scheduler, "a", "a2")
    assert counters(scheduler) == {"a": 120, "b": 120}
    scheduler.settle(early, Usage(10, 0), Outcome.FINISHED, 0.0)
    assert counters(scheduler)["a"] == 120
    scheduler.cancel(late, 0.0)


def test_held_tenant_is_not_backlogged_and_is_lifted_when_it_returns():
    scheduler = vtc({"a": 1, "b": 1}, limits={"a": 1})
    held = send(scheduler, "a", "a1", prompt=10)
    send(scheduler, "a", "a2", prompt=10)
    for at in range(9):
        send(scheduler, "b", f"b{at}", prompt=10)
    assert [r.id for r in drain(scheduler, most=6)] == ["a1", "b0", "b1", "b2", "b3", "b4"]
    scheduler.settle(held, Usage(10, 0), Outcome.FINISHED, 0.0)
    assert counters(scheduler) == {"a": 50, "b": 50}


def test_request_put_back_does_not_lift_its_tenant():
    scheduler = vtc()
    request = send(scheduler, "a", "a1", prompt=10)
    for at in range(3):
        send(scheduler, "b", f"b{at}", prompt=10)
    assert scheduler.next(0.0, room) is request
    scheduler.next(0.0, room)
    scheduler.next(0.0, room)
    scheduler.requeue(request, 0.0)
    assert counters(scheduler) == {"a": 0, "b": 20}
    assert scheduler.next(0.0, room) is request


@pytest.mark.parametrize("weight", [0.9, 1.0, 7.3])
def test_put_back_undoes_the_charge_to_the_last_unit_whatever_comes_between(weight):
    def run(*, busy):
        scheduler = vtc({"a": weight, "b": 3.7}, prior=33)
        for at in range(4):
            send(scheduler, "a", f"a{at}", prompt=17)
            send(scheduler, "b", f"b{at}", prompt=3)
        flying = drain(scheduler, most=4)
        refused = scheduler.next(0.0, room) if busy else None
        for request in flying:
            scheduler.progress(request, request.prompt_tokens, 41, 0.0)
        if refused is not None:
            scheduler.requeue(refused, 0.0)
        return {name: account.value for name, account in scheduler._accounts.items()}

    assert run(busy=True) == run(busy=False)


def test_put_back_undoes_the_charge_of_a_tenant_that_came_back_alone_meanwhile():
    scheduler = vtc()
    request = send(scheduler, "a", "a1", prompt=100)
    assert scheduler.next(0.0, room) is request
    send(scheduler, "a", "a2", prompt=100)
    scheduler.requeue(request, 0.0)
    assert counters(scheduler) == {"a": 0}


def test_service_elsewhere_counts_as_service():
    scheduler = vtc({"a": 2, "b": 2})
    for at in range(4):
        send(scheduler, "a", f"a{at}")
        send(scheduler, "b", f"b{at}")
    scheduler.add_service("a", 40.0, 0.0)
    assert counters(scheduler)["a"] == 20
    assert [r.tenant for r in drain(scheduler, most=5)] == ["b", "b", "b", "b", "a"]
    with pytest.raises(ValueError, match="must not be negative"):
        scheduler.add_service("a", -1.0, 0.0)


# -- history


def test_change_from_fcfs_starts_from_the_window_and_charges_what_is_in_flight():
    from equipoise_scheduling.history import carry_over

    old = FCFS(tenants={"a": TenantSettings(weight=2)})
    served, flying = send(old, "a", "a1", prompt=10), send(old, "a", "a2", prompt=30)
    drain(old)
    finish(old, [served], 15)
    old.progress(flying, 30, 5, 0.0)
    send(old, "b", "b1")
    send(old, "a", "a3")
    new = carry_over(old, vtc({"a": 2}, prior=50), 1.0)
    predicted = flying.predicted_tokens
    # The window has 40 + 40 delivered; what of the flight is not delivered is charged on top.
    assert counters(new)["a"] >= (40 + 30 + 2 * predicted) / 2
    assert new.next(1.0, room).tenant == "b"


def test_change_from_vtc_keeps_the_counters():
    from equipoise_scheduling.history import carry_over

    old = vtc({"a": 1, "b": 4}, prior=20)
    for at in range(6):
        send(old, "a", f"a{at}")
        send(old, "b", f"b{at}")
    drain(old, most=5)
    before = counters(old)
    assert counters(carry_over(old, vtc({"a": 1, "b": 4}, prior=20), 0.0)) == before


def test_newcomer_after_a_change_into_an_idle_system_is_lifted_all_the_same():
    from equipoise_scheduling.history import carry_over

    old = vtc()
    served = send(old, "a", "a1", prompt=70)
    drain(old)
    finish(old, [served], 5)
    new = carry_over(old, vtc(), 1.0)
    send(new, "b", "b1")
    assert counters(new) == {"a": 80, "b": 80}


def test_what_the_former_scheduler_left_apart_is_part_of_the_bound():
    from equipoise_scheduling.history import carry_over

    clients = [Client("light", 12), Client("aggressor", 60)]
    world = World(FCFS(), clients, slots=8)
    world.run(60)
    world.scheduler = carry_over(world.scheduler, VTC(), world.now)
    start = world.now
    world.run(60)
    assert world.scheduler.bound(world.now).met
    light, aggressor = (world.series[name].received(start, world.now) for name in ("light", "aggressor"))
    assert light > 1.5 * aggressor, "it catches up on the last minute"


# -- scenarios


def make_vtc(tenants):
    return VTC(tenants=tenants)


@pytest.mark.parametrize(
    "clients",
    [
        [Client("light", 2), Client("heavy", 40)],
        [Client("short", 30, prompt=16, output=8), Client("long", 30, prompt=64, output=64)],
        [Client("a", 1), Client("b", 5), Client("c", 40)],
    ],
    ids=["aggressor", "short-and-long", "three-demands"],
)
def test_backlogged_tenants_share_equally_and_others_get_what_they_ask_for(clients):
    UniformScenario(clients, capacity=8, duration=240, expected_fair=True, margin=0.06).run(make_vtc)


def test_service_follows_the_weights_even_when_one_sends_ten_times_as_much():
    clients = [Client("one", 60, weight=1), Client("three", 12, weight=3)]
    UniformScenario(clients, capacity=8, duration=240, expected_fair=True, margin=0.05).run(make_vtc)


def test_tenant_that_was_idle_gets_no_more_than_its_share_when_it_returns():
    world = World(VTC(), [Client("saver", 20, active=lambda now: now >= 200), Client("steady", 20)], slots=4)
    world.run(260)
    saver, steady = (world.series[name].received(200, 260) for name in ("saver", "steady"))
    assert saver <= 1.1 * steady


@pytest.mark.parametrize("charge_predicted", [True, False])
def test_cancelling_at_95_percent_is_not_free_service(charge_predicted):
    clients = [Client("honest", 20), Client("canceller", 20, cancel_at=0.95)]
    world = World(VTC(VTCSettings(charge_predicted=charge_predicted)), clients, slots=4)
    world.run(200)
    honest, canceller = (world.series[name].received(20, 200) for name in ("honest", "canceller"))
    assert canceller <= 1.03 * honest


def test_light_tenant_waits_far_less_than_under_fcfs():
    def waits(scheduler):
        clients = [Client("light", 1), Client("aggressor", 60)]
        world = World(scheduler, clients, slots=4)
        world.run(120)
        return [r.dispatched - r.arrival for r in world.order if r.tenant == "light"]

    fair, unfair = waits(VTC()), waits(FCFS())
    assert len(fair) > 10
    assert sum(fair) / len(fair) < 0.1 * sum(unfair) / len(unfair)


def test_tenant_that_left_last_is_not_forgotten_since_others_are_lifted_to_it():
    scheduler = vtc()
    request = send(scheduler, "stranger", "r1")
    scheduler.cancel(request, 0.0)
    scheduler.tick(1.0)
    send(scheduler, "other", "r2", now=2.0)
    assert counters(scheduler) == {"other": 0, "stranger": 0}


def test_service_elsewhere_of_an_idle_stranger_is_not_forgotten_before_others_have_had_as_much():
    scheduler = vtc()
    scheduler.add_service("stranger", 40.0, 0.0)
    scheduler.tick(100.0)
    assert counters(scheduler) == {"stranger": 40}
    for name in ("r1", "r2"):
        send(scheduler, "other", name, prompt=50, now=200.0)
        scheduler.next(200.0, room)
    send(scheduler, "other", "r3", now=200.0)
    scheduler.tick(201.0)
    assert counters(scheduler) == {"other": 100}


def test_retry_after_is_the_time_in_which_the_queue_drains_at_its_present_rate():
    scheduler = vtc(max_queued=10)
    for number in range(30):
        request = send(scheduler, "a", f"served-{number}", now=2.0 * number)
        scheduler.next(2.0 * number, room)
        scheduler.settle(request, Usage(10, 1), Outcome.FINISHED, 2.0 * number)
    for number in range(10):
        send(scheduler, "ab"[number % 2], f"waits-{number}", now=60.0)
    refusal = scheduler.enqueue(make_request("late", "a", arrival=60.0), 60.0)
    assert refusal.retry_after_seconds == pytest.approx(20, rel=0.1)
