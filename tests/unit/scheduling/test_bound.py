"""The bound: what is counted into it, that it is needed in full, and that a breach is seen."""

import pytest
from scheduling_harness import Client, World, drain, make_request

from equipoise_scheduling.bound import MAX_AGE, BoundWatch, _worth
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.cost import LinearCost
from equipoise_scheduling.generations import GENERATION, KEPT, RisingMaximum
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

    def test_forgets_a_maximum_with_its_generation_unless_its_request_is_still_in_flight(self):
        gone, still = RisingMaximum(), RisingMaximum()
        gone.add(1, 5.0)
        still.add(1, 5.0)
        for _ in range(KEPT):
            assert gone.value == 5.0
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
    assert bound.limit <= reach / 1 + reach / 4 + world.scheduler.watch.lag


def test_refund_that_lets_a_newcomer_join_lower_widens_the_bound_by_as_much():
    scheduler = VTC(VTCSettings(prediction=PredictionSettings(prior_tokens=100)))
    for name in ("r1", "r2", "r3"):
        scheduler.enqueue(make_request(name, "k", prompt=10, max_tokens=100), 0.0)
    first = scheduler.next(0.0, room)
    scheduler.next(0.0, room)  # now k's counter is 420, seen as 210 at this dispatch
    scheduler.settle(first, Usage(10, 0), Outcome.FINISHED, 0.0)  # a refund of 200: it falls to 220
    assert scheduler.watch.lag == 0
    second = next(f.request for f in scheduler.books.flights.values())
    scheduler.settle(second, Usage(0, 0), Outcome.FAILED, 0.0)  # falls to 10
    scheduler.enqueue(make_request("n", "newcomer"), 0.0)
    assert scheduler.watch.lag == pytest.approx(200)


def test_landmarks_thin_out_with_age_and_stay_few():
    ticks = range(1, 2_000)
    kept = [tick for tick in ticks if 2_000 - tick <= _worth(tick)]
    assert len(kept) <= 12
    assert max(2_000 - tick for tick in kept) >= MAX_AGE / 2


def test_watch_forgets_tenants_and_old_gaps_with_their_generations():
    world = World(
        VTC(), [Client("a", 4, active=lambda now: now < 30), Client("b", 4, active=lambda now: now < 30)], 4
    )
    world.run(40)
    assert world.scheduler.bound(world.now).undelivered > 0
    for tick in range(KEPT * GENERATION):
        world.scheduler.tick(world.now + tick)
    assert world.scheduler.bound(world.now).undelivered == 0
    assert not world.scheduler.watch._seats


def test_an_empty_watch_publishes_a_bound_of_nothing():
    bound = BoundWatch().bound()
    assert (bound.undelivered, bound.limit, bound.gap, bound.met) == (0, 0, 0, True)


class Prompts:
    """Everything is prompt, of which a token costs 1; requests are served at once."""

    def __init__(self, weights, scheduler=None):
        tenants = {name: TenantSettings(weight=weight) for name, weight in weights.items()}
        only_prompts = VTCSettings(cost=LinearCost(input=1, output=0), prediction=NO_PREDICTION)
        self.scheduler = scheduler or VTC(only_prompts, tenants)
        self.sent = 0

    def send(self, tenant, prompt, count=1):
        for _ in range(count):
            self.sent += 1
            request = make_request(f"{tenant}{self.sent}", tenant, prompt=prompt, max_tokens=1)
            assert self.scheduler.enqueue(request, 0.0) is None

    def go(self):
        return self.scheduler.next(0.0, room)

    def deliver(self, request):
        self.scheduler.settle(request, Usage(request.prompt_tokens, 0), Outcome.FINISHED, 0.0)

    def serve(self, count=1):
        tenants = []
        for _ in range(count):
            request = self.go()
            self.deliver(request)
            tenants.append(request.tenant)
        return tenants


def test_change_of_weight_widens_the_bound_to_that_of_the_lighter_one():
    world = Prompts({"f": 1, "g": 10})
    world.send("f", 100, 3)
    world.send("g", 10, 200)
    scheduler = world.scheduler
    scheduler.tick(0.0)
    late = world.go()
    assert late.tenant == "f"
    assert set(world.serve(100)) == {"g"}
    scheduler.tick(2.0)
    world.deliver(late)  # 100 over a weight of 1, in the same interval as what follows
    tenants = {"f": TenantSettings(weight=10), "g": TenantSettings(weight=10)}
    scheduler.reconfigure(scheduler.books.settings, tenants, 2.0)
    assert world.go().tenant == "f"
    scheduler.tick(4.0)
    bound = scheduler.bound(4.0)
    assert (bound.gap, bound.limit, bound.met) == (100, 200 / 1 + 200 / 10, True)


def test_weight_of_the_past_is_forgotten_with_its_generations():
    world = Prompts({"f": 1, "g": 10})
    scheduler = world.scheduler
    for now in range(KEPT * GENERATION + 1):
        if now == 2:
            tenants = {"f": TenantSettings(weight=10), "g": TenantSettings(weight=10)}
            scheduler.reconfigure(scheduler.books.settings, tenants, float(now))
        world.send("f", 100)
        world.send("g", 100)
        world.serve(2)
        scheduler.tick(float(now))
    assert {seat.lightest.value for seat in scheduler.watch._seats.values()} == {1 / 10}


def test_weight_of_a_request_that_stays_in_flight_is_not_forgotten():
    world = Prompts({"f": 1})
    scheduler = world.scheduler
    world.send("f", 100)
    world.go()
    scheduler.reconfigure(scheduler.books.settings, {"f": TenantSettings(weight=10)}, 0.0)
    world.send("f", 100)
    for now in range((KEPT + 1) * GENERATION):
        scheduler.tick(float(now))
    assert scheduler.watch._seats["f"].lightest.value == 1


def test_service_elsewhere_of_a_tenant_that_was_never_served_here_is_within_the_bound():
    world = Prompts({"f": 1, "g": 1})
    world.send("f", 100, 2)
    world.send("g", 100, 2)
    scheduler = world.scheduler
    scheduler.tick(0.0)
    scheduler.add_service("f", 700, 1.0)
    scheduler.add_service("f", 300, 1.0)
    scheduler.tick(2.0)
    bound = scheduler.bound(2.0)
    assert (bound.gap, bound.limit, bound.met) == (1000, 2000, True)


def test_large_request_long_ago_explains_why_its_light_tenant_still_waits():
    """Its weight is so small that its turn comes again only after its last dispatch is forgotten."""
    world = Prompts({"light": 1, "heavy": 100})
    scheduler = world.scheduler
    world.send("heavy", 100, 2)
    world.send("light", 3000)
    world.send("light", 1)
    assert world.serve(2) == ["heavy", "light"]
    for now in range(2 * KEPT * GENERATION):
        world.send("heavy", 100, 2)
        assert world.serve() == ["heavy"]
        scheduler.tick(float(now))
        bound = scheduler.bound(float(now))
        assert bound.met, f"after {now} s: {bound}"
    assert bound.gap > 2 * scheduler.watch.reach


def test_tenant_that_comes_back_far_ahead_waits_within_the_bound():
    """A former process served it; nobody remembers the dispatches."""
    world = Prompts({"ahead": 1, "behind": 1})
    scheduler = world.scheduler
    former = Prompts({})
    former.send("ahead", 5000)
    former.serve()
    scheduler.restore(former.scheduler.snapshot())
    scheduler._last_left = None
    for now in range(KEPT * GENERATION + 200):
        world.send("behind", 1, 2)
        if now == KEPT * GENERATION:
            world.send("ahead", 1)
        assert world.serve() == ["behind"]
        scheduler.tick(float(now))
        assert scheduler.bound(float(now)).met
    assert scheduler.watch.lag == 5000 - KEPT * GENERATION


def test_without_anything_extraordinary_there_is_no_lag():
    clients = [Client("light", 12), Client("aggressor", 60, prompt=90, output=50)]
    world = World(VTC(VTCSettings(prediction=NO_PREDICTION)), clients, slots=8)
    world.run(120)
    assert world.scheduler.watch.lag == 0


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


def test_output_beyond_its_prediction_and_what_is_taken_back_widen_the_bound():
    scheduler = VTC(VTCSettings(prediction=PredictionSettings(prior_tokens=5)))
    scheduler.enqueue(make_request("r", prompt=10, max_tokens=100), 0.0)
    (request,) = drain(scheduler)
    assert scheduler.watch.reach == (10 + 2 * 5) + (10 + 2 * 5)
    scheduler.progress(request, 10, 50, 1.0)  # by the clock
    assert scheduler.watch.reach == (10 + 2 * 50) + (10 + 2 * 5)
    scheduler.settle(request, Usage(10, 20), Outcome.FINISHED, 2.0)
    assert scheduler.watch.reach == (10 + 2 * 50) + (10 + 2 * 5 + 2 * 30)


def test_dispatches_that_are_undone_do_not_add_up():
    world = Prompts({"f": 1})
    world.send("f", 100)
    for _ in range(5):
        world.scheduler.requeue(world.go(), 0.0)
    assert world.scheduler.watch.reach == 100 + 100


def test_who_was_away_between_two_looks_is_not_compared_over_them():
    world = Prompts({"f": 1, "g": 1})
    world.send("g", 100, 20)
    world.send("f", 100)
    (waiting,) = (r for r in world.scheduler.books.waiting.values() if r.tenant == "f")
    world.scheduler.tick(0.0)
    world.scheduler.cancel(waiting, 0.0)
    world.serve(10)
    world.send("f", 100, 5)
    world.scheduler.tick(2.0)
    assert world.scheduler.bound(2.0).gap == 0
    world.serve()
    world.scheduler.tick(4.0)
    assert world.scheduler.bound(4.0).gap == 100


def test_the_lead_of_a_light_tenant_over_a_heavy_one_is_seen():
    """The heavy one's margin is so small that it is first at both ends of the comparison."""
    world = Prompts({"light": 1, "heavy": 100})
    world.send("light", 50, 2)
    world.send("heavy", 100, 2)
    world.scheduler.tick(0.0)
    assert world.serve() == ["light"]
    world.scheduler.tick(2.0)
    assert world.scheduler.bound(2.0).gap == 50
