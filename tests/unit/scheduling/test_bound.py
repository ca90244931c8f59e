"""The bound: what is counted into it, that it is needed in full, and that a breach is seen."""

import pytest
from scheduling_harness import Client, World, drain, make_request

from equipoise_scheduling.bound import GENERATION, MAX_AGE, BoundWatch, RisingMaximum, _worth
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.cost import LinearCost
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.schedulers.fcfs import FCFS
from equipoise_scheduling.schedulers.vtc import VTC, VTCSettings

NO_PREDICTION = PredictionSettings(kind="None")


class TestRisingMaximum:
    def test_is_the_largest_value_seen(self):
        maximum = RisingMaximum()
        for instant, value in enumerate([3.0, 9.0, 4.0], start=1):
            maximum.add(instant, value)
        assert maximum.value == 9.0

    def test_a_later_fact_raises_only_the_dispatches_it_was_in_flight_at(self):
        maximum = RisingMaximum()
        for instant, value in enumerate([9.0, 4.0, 3.0], start=1):
            maximum.add(instant, value)
        maximum.raise_since(2, 4.0)
        assert maximum.value == 9.0
        maximum.raise_since(3, 3.0)
        assert maximum.value == 10.0

    def test_agrees_with_a_plain_list(self):
        import random

        rng = random.Random(7)
        maximum, plain = RisingMaximum(), []
        for _ in range(2_000):
            if not plain or rng.random() < 0.5:
                plain.append(rng.randrange(100))
                maximum.add(len(plain), plain[-1])
            else:
                since, amount = rng.randint(max(1, len(plain) - 10), len(plain)), rng.randrange(20)
                plain[since - 1 :] = [value + amount for value in plain[since - 1 :]]
                maximum.raise_since(since, amount)
            assert maximum.value == max(plain)

    def test_forgets_a_maximum_after_two_generations_unless_its_request_is_still_in_flight(self):
        gone, still = RisingMaximum(), RisingMaximum()
        gone.add(1, 5.0)
        still.add(1, 5.0)
        for _ in range(2):
            gone.age(None)
            still.age(1)
        assert gone.value == 0.0
        assert still.value == 5.0


def room(_):
    return True


def test_undelivered_counts_the_prompt_and_the_predicted_output_of_all_that_a_tenant_has_in_flight():
    scheduler = VTC(VTCSettings(prediction=PredictionSettings(prior_tokens=50)))
    for name in ("r1", "r2"):
        scheduler.enqueue(make_request(name, prompt=10, max_tokens=100), 0.0)
    drain(scheduler)
    assert scheduler.bound(0.0).undelivered == 2 * (10 + 2 * 50)


def test_prediction_far_above_max_tokens_is_clipped():
    scheduler = VTC(VTCSettings(prediction=PredictionSettings(prior_tokens=100_000)))
    scheduler.enqueue(make_request("r", prompt=10, max_tokens=20), 0.0)
    drain(scheduler)
    assert scheduler.bound(0.0).undelivered == 10 + 2 * 20


def test_output_beyond_its_prediction_raises_what_was_undelivered_when_it_was_dispatched():
    scheduler = VTC(VTCSettings(prediction=PredictionSettings(prior_tokens=5)))
    scheduler.enqueue(make_request("r", prompt=10, max_tokens=100), 0.0)
    (request,) = drain(scheduler)
    scheduler.progress(request, 10, 40, 1.0)
    assert scheduler.bound(1.0).undelivered == 10 + 2 * 40


def test_difference_over_an_interval_can_reach_the_whole_bound_and_twice_the_undelivered():
    # Everything is prompt, each request costs 100 and U = 100. First f waits for what it was charged while g is served
    # at once, then the reverse: f gets 400 while g gets nothing, twice U/w_f + U/w_g.
    scheduler = VTC(VTCSettings(cost=LinearCost(input=1, output=0), prediction=NO_PREDICTION))
    for number, tenant in enumerate("fgggfffgfg"):
        scheduler.enqueue(make_request(f"{tenant}{number}", tenant, prompt=100, max_tokens=1), 0.0)
    received = {"f": 0, "g": 0}

    def go(expected: str):
        request = scheduler.next(0.0, room)
        assert request.tenant == expected
        return request

    def deliver(request):
        received[request.tenant] += 100
        scheduler.progress(request, 100, 0, 0.0)
        scheduler.settle(request, Usage(100, 0), Outcome.FINISHED, 0.0)

    scheduler.tick(0.0)
    late = go("f")
    deliver(go("g"))
    deliver(go("g"))
    scheduler.tick(2.0)
    before = dict(received)
    deliver(late)
    deliver(go("f"))
    go("g")
    deliver(go("f"))
    deliver(go("f"))
    assert {"f", "g"} <= set(scheduler.choice)
    assert (received["f"] - before["f"], received["g"] - before["g"]) == (400, 0)
    scheduler.tick(4.0)
    bound = scheduler.bound(4.0)
    assert (bound.undelivered, bound.gap, bound.limit, bound.met) == (100, 400, 400, True)


def test_a_scheduler_that_is_not_fair_breaks_the_bound_visibly():
    class Unfair(VTC):
        def _key(self, name):
            return FCFS._key(self, name)

    clients = [Client("light", 12), Client("aggressor", 60, prompt=90, output=50)]
    unfair = World(Unfair(), clients, slots=8)
    unfair.run(120)
    assert not unfair.scheduler.bound(unfair.now).met
    fair = World(VTC(), clients, slots=8)
    fair.run(120)
    bound = fair.scheduler.bound(fair.now)
    assert bound.met
    assert 0 < bound.gap <= bound.limit < unfair.scheduler.bound(unfair.now).gap


def test_the_gap_between_unequal_weights_is_seen():
    """The heavy tenant's margin is the smaller one, so it can be first at both ends of the comparison."""
    scheduler = VTC(tenants={"light": TenantSettings(weight=1), "heavy": TenantSettings(weight=10)})
    world = World(scheduler, [Client("light", 20), Client("heavy", 20)], slots=4)
    world.run(60)
    assert scheduler.bound(world.now).gap > 0


def test_weights_enter_the_bound_of_the_closest_pair():
    world = World(
        VTC(tenants={"small": TenantSettings(weight=1), "large": TenantSettings(weight=4)}),
        [Client("small", 20), Client("large", 20)],
        slots=4,
    )
    world.run(60)
    bound = world.scheduler.bound(world.now)
    reach = world.scheduler.watch.reach
    assert bound.met
    assert bound.limit <= reach / 1 + reach / 4 + max(world.scheduler.watch._lag)


def test_refund_that_lets_a_newcomer_join_lower_widens_the_bound_by_as_much():
    scheduler = VTC(VTCSettings(prediction=PredictionSettings(prior_tokens=100)))
    for name in ("r1", "r2", "r3"):
        scheduler.enqueue(make_request(name, "k", prompt=10, max_tokens=100), 0.0)
    first = scheduler.next(0.0, room)
    scheduler.next(0.0, room)  # now k's counter is 420, seen as 210 at this dispatch
    scheduler.settle(first, Usage(10, 0), Outcome.FINISHED, 0.0)  # a refund of 200: it falls to 220
    assert max(scheduler.watch._lag) == 0
    second = next(f.request for f in scheduler.books.flights.values())
    scheduler.settle(second, Usage(0, 0), Outcome.FAILED, 0.0)  # falls to 10
    scheduler.enqueue(make_request("n", "newcomer"), 0.0)
    assert max(scheduler.watch._lag) == pytest.approx(200)


def test_landmarks_thin_out_with_age_and_stay_few():
    ticks = range(1, 2_000)
    kept = [tick for tick in ticks if 2_000 - tick <= _worth(tick)]
    assert len(kept) <= 12
    assert max(2_000 - tick for tick in kept) >= MAX_AGE / 2


def test_watch_forgets_tenants_and_old_gaps_after_two_generations():
    world = World(
        VTC(), [Client("a", 4, active=lambda now: now < 30), Client("b", 4, active=lambda now: now < 30)], 4
    )
    world.run(40)
    assert world.scheduler.bound(world.now).undelivered > 0
    for tick in range(3 * GENERATION):
        world.scheduler.tick(world.now + tick)
    assert world.scheduler.bound(world.now).undelivered == 0
    assert not world.scheduler.watch._seats


def test_an_empty_watch_publishes_a_bound_of_nothing():
    bound = BoundWatch().bound()
    assert (bound.undelivered, bound.limit, bound.gap, bound.met) == (0, 0, 0, True)


def test_change_of_weight_with_requests_in_flight_widens_the_bound():
    scheduler = VTC(tenants={"blue": TenantSettings(weight=1)})
    for name in ("r1", "r2"):
        scheduler.enqueue(make_request(name, prompt=10, max_tokens=45), 0.0)
    scheduler.next(0.0, room)
    scheduler.reconfigure(VTCSettings(), {"blue": TenantSettings(weight=10)}, 0.0)
    scheduler.next(0.0, room)
    assert max(scheduler.watch._lag) == 2 * 100


def test_with_very_many_backlogged_tenants_the_landmarks_are_compared_in_turn(monkeypatch):
    monkeypatch.setattr("equipoise_scheduling.bound.SEATS_A_LOOK", 2)

    class Unfair(VTC):
        def _key(self, name):
            return FCFS._key(self, name)

    world = World(Unfair(), [Client("light", 12), Client("aggressor", 60)], slots=8)
    world.run(60)
    assert not world.scheduler.bound(world.now).met


def test_request_that_stays_in_flight_over_generations_keeps_counting():
    scheduler = VTC(VTCSettings(prediction=PredictionSettings(prior_tokens=5)))
    scheduler.enqueue(make_request("r", prompt=10, max_tokens=1000), 0.0)
    (request,) = drain(scheduler)
    for tick in range(3 * GENERATION):
        scheduler.tick(float(tick))
    scheduler.progress(request, 10, 400, 3.0 * GENERATION)
    assert scheduler.bound(3.0 * GENERATION).undelivered == 10 + 2 * 400
