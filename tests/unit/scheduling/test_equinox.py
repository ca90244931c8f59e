"""Equinox: what its two counters count, when, and what its bound says."""

import pytest
from scheduling_harness import Client, World, drain, make_request

from equipoise_api.policy import Algorithm, EquinoxParameters
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.history import carry_over
from equipoise_scheduling.holistic import UNIT, WHOLE
from equipoise_scheduling.mapper import Load
from equipoise_scheduling.prediction import PredictionSettings, Predictor
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.schedulers.equinox import TYPICAL_COST, TYPICAL_SECONDS, Equinox, EquinoxSettings
from equipoise_scheduling.schedulers.fcfs import FCFS
from equipoise_scheduling.schedulers.vtc import VTC

NO_PREDICTION = PredictionSettings(kind="None")
PLAIN = {"alpha": 1.0, "delay_discount": 0.0, "u0": TYPICAL_COST, "prediction": NO_PREDICTION}
"""UFC alone, undiscounted and unscaled: HF is in + 4 out."""


def equinox(tenants=None, **settings):
    return Equinox(EquinoxSettings(**settings), tenants or {})


def send(scheduler, name, tenant="a", *, now=0.0, prompt=10, max_tokens=1000, **fields):
    request = make_request(name, tenant, arrival=now, prompt=prompt, max_tokens=max_tokens, **fields)
    assert scheduler.enqueue(request, now) is None
    return request


def dispatch(scheduler, now=0.0):
    return scheduler.next(now, lambda _: True)


def end(scheduler, request, generated, now, *, outcome=Outcome.FINISHED, exact=True, utilisation=None):
    usage = Usage(request.prompt_tokens, generated, exact=exact, gpu_utilisation=utilisation)
    scheduler.settle(request, usage, outcome, now)


def hf(scheduler, tenant="a"):
    return scheduler._counter(tenant)


def test_one_typical_request_that_does_not_wait_adds_one_to_each_counter():
    scheduler = equinox(prediction=PredictionSettings(prior_tokens=256))
    send(scheduler, "r", prompt=512)
    dispatch(scheduler)
    assert scheduler.counters("a") == pytest.approx((1, 1), rel=1e-6)
    assert hf(scheduler) == pytest.approx(TYPICAL_COST, rel=1e-6)


def test_user_counter_is_weighted_tokens_over_delay_and_weight():
    scheduler = equinox({"a": TenantSettings(weight=2)}, alpha=1.0, prediction=NO_PREDICTION, u0=1.0)
    request = send(scheduler, "r", prompt=100)
    dispatch(scheduler, 4.0)
    end(scheduler, request, 50, 10.0)
    assert scheduler.counters("a")[0] == pytest.approx((100 + 4 * 50) / (1 + 0.1 * 10) / 2)
    assert hf(scheduler) == pytest.approx(TYPICAL_COST * 75)


def test_resource_counter_is_tokens_times_measured_utilisation():
    scheduler = equinox(alpha=0.0, prediction=NO_PREDICTION, r0=1.0)
    request = send(scheduler, "r", prompt=100)
    dispatch(scheduler)
    end(scheduler, request, 50, 10.0, utilisation=0.4)
    assert scheduler.counters("a")[1] == pytest.approx(150 * 0.4)


def test_without_telemetry_throughput_alone_counts():
    scheduler = equinox(alpha=0.0, prediction=NO_PREDICTION, r0=1.0)
    request = send(scheduler, "r", prompt=100)
    dispatch(scheduler)
    end(scheduler, request, 50, 10.0)
    assert scheduler.counters("a")[1] == pytest.approx(150)


def test_request_too_short_for_telemetry_is_settled_at_the_utilisation_expected():
    scheduler = equinox(alpha=0.0, prediction=NO_PREDICTION, r0=1.0)
    for at in range(20):
        request = send(scheduler, f"r{at}", "b")
        dispatch(scheduler)
        end(scheduler, request, 50, 10.0, utilisation=0.5)
    request = send(scheduler, "short", prompt=100)
    dispatch(scheduler)
    before = scheduler.counters("a")[1]
    expected = scheduler.mapper.predict(100, 0, Load()).utilisation
    assert expected == pytest.approx(0.5, abs=0.01)
    scheduler.progress(request, 100, 60, 10.0)
    end(scheduler, request, 60, 10.0)
    assert scheduler.counters("a")[1] - before == pytest.approx(60 * expected, rel=0.01)


def test_split_work_costs_no_less_resource_than_whole_work():
    whole, split = (equinox(alpha=0.0, prediction=NO_PREDICTION) for _ in range(2))
    for scheduler, parts in ((whole, 1), (split, 4)):
        for at in range(parts):
            request = send(scheduler, f"r{at}", prompt=400 // parts)
            dispatch(scheduler)
            end(scheduler, request, 200 // parts, 8.0 / parts)
    assert hf(split) == pytest.approx(hf(whole), rel=1e-6)


def test_late_service_counts_less_so_the_badly_served_stays_ahead():
    scheduler = equinox(prediction=NO_PREDICTION)
    prompt, late, _, behind = (send(scheduler, f"r{at}", "pl"[at % 2]) for at in range(4))
    assert [dispatch(scheduler), dispatch(scheduler)] == [prompt, late]
    end(scheduler, prompt, 100, 2.0)
    end(scheduler, late, 100, 60.0)
    assert hf(scheduler, "l") < hf(scheduler, "p")
    assert dispatch(scheduler, 61.0) is behind


def test_wait_counts_from_when_a_request_becomes_its_tenants_head():
    behind, alone = (equinox(alpha=1.0, prediction=NO_PREDICTION) for _ in range(2))
    first = send(behind, "first")
    second = send(behind, "second")
    assert dispatch(behind, 50.0) is first
    mark = behind.counters("a")[0]
    assert dispatch(behind, 53.0) is second
    charged = behind.counters("a")[0] - mark
    other = send(alone, "other", now=50.0)
    alone.mapper.restore(behind.mapper.snapshot())
    send(alone, "busy", "b", now=50.0, prompt=1000)
    assert dispatch(alone, 53.0) is other
    end(behind, second, 30, 60.0)
    end(alone, other, 30, 60.0)
    assert charged > 0
    assert behind.counters("a")[0] - mark == pytest.approx(alone.counters("a")[0])


def test_cancelled_head_hands_on_no_wait():
    scheduler = equinox(alpha=1.0, prediction=NO_PREDICTION, u0=1.0)
    head, second = send(scheduler, "head"), send(scheduler, "second")
    scheduler.cancel(head, 90.0)
    assert dispatch(scheduler, 91.0) is second
    end(scheduler, second, 0, 91.0)
    assert scheduler.counters("a")[0] == pytest.approx(10 / (1 + 0.1 * 1))


def test_request_put_back_keeps_its_wait_and_costs_nothing():
    scheduler = equinox()
    request = send(scheduler, "r")
    before = scheduler.snapshot()
    dispatch(scheduler, 20.0)
    scheduler.requeue(request, 20.0)
    assert scheduler.snapshot() == before
    dispatch(scheduler, 30.0)
    end(scheduler, request, 10, 30.0)
    other = equinox()
    mine = send(other, "r")
    dispatch(other, 30.0)
    end(other, mine, 10, 30.0)
    assert hf(scheduler) == hf(other)


def test_output_beyond_its_prediction_is_charged_as_it_comes():
    scheduler = equinox(**{**PLAIN, "prediction": PredictionSettings(prior_tokens=20)})
    request = send(scheduler, "r")
    dispatch(scheduler)
    assert hf(scheduler) == pytest.approx(10 + 4 * 20)
    scheduler.progress(request, 10, 20, 1.0)
    assert hf(scheduler) == pytest.approx(10 + 4 * 20)
    scheduler.progress(request, 10, 35, 2.0)
    assert hf(scheduler) == pytest.approx(10 + 4 * 35)
    end(scheduler, request, 35, 3.0)
    assert hf(scheduler) == pytest.approx(10 + 4 * 35)


def test_what_was_predicted_and_not_used_is_given_back():
    scheduler = equinox(**{**PLAIN, "prediction": PredictionSettings(prior_tokens=500)})
    request = send(scheduler, "r")
    dispatch(scheduler)
    end(scheduler, request, 7, 3.0, outcome=Outcome.CANCELLED, exact=False)
    assert hf(scheduler) == pytest.approx(10 + 4 * 7)


def test_leaving_late_is_not_free_service():
    scheduler = equinox(**PLAIN)
    request = send(scheduler, "r")
    dispatch(scheduler)
    scheduler.progress(request, 10, 95, 1.0)
    scheduler.settle(request, Usage(0, 0, exact=False), Outcome.CANCELLED, 1.0)
    assert hf(scheduler) == pytest.approx(10 + 4 * 95)


def test_whole_holistic_fairness_is_lifted_and_both_parts_by_the_shortfall():
    scheduler = equinox(prediction=NO_PREDICTION)
    for at in range(3):
        request = send(scheduler, f"r{at}")
        dispatch(scheduler)
        end(scheduler, request, 200, 5.0 * (at + 1), utilisation=0.5)
    send(scheduler, "more", now=20.0)
    parts = scheduler.counters("a")
    send(scheduler, "newcomer", "b", now=20.0)
    assert hf(scheduler, "b") == pytest.approx(hf(scheduler, "a"))
    assert parts[0] != pytest.approx(parts[1])
    raised = scheduler.counters("b")
    assert raised[0] == pytest.approx(raised[1])
    assert raised[0] == pytest.approx(hf(scheduler, "a") / TYPICAL_COST)


def test_newcomer_is_not_served_alone_until_it_has_caught_up():
    scheduler = equinox()
    clients = [Client("old", 8), Client("new", 8, active=lambda now: now >= 60)]
    world = World(scheduler, clients, slots=4)
    world.run(60)
    world.run(20)
    got = {name: series.received(60, 80) for name, series in world.series.items()}
    assert got["old"] == pytest.approx(got["new"], rel=0.1)


def test_tenant_that_idles_banks_nothing_from_refunds_that_come_late():
    scheduler = equinox(**{**PLAIN, "prediction": PredictionSettings(prior_tokens=500)})
    early = send(scheduler, "early", "idle")
    dispatch(scheduler)
    busy = send(scheduler, "busy", "busy")
    dispatch(scheduler)
    scheduler.progress(busy, 10, 900, 1.0)
    send(scheduler, "busy-2", "busy", now=1.0)
    send(scheduler, "back", "idle", now=1.0)
    level = hf(scheduler, "idle")
    end(scheduler, early, 1, 2.0)
    assert hf(scheduler, "idle") == level


def test_equal_tenants_are_felt_and_spent_equally():
    scheduler = equinox()
    clients = [Client("short", 8, prompt=16, output=32), Client("long", 8, prompt=64, output=128)]
    world = World(scheduler, clients, slots=6)
    world.run(300)
    counters = [hf(scheduler, name) for name in ("short", "long")]
    assert max(counters) - min(counters) <= scheduler.bound(world.now).limit
    assert counters[0] == pytest.approx(counters[1], rel=0.1)


def test_weight_counts_twice_as_much():
    scheduler = equinox({"heavy": TenantSettings(weight=2)}, delay_discount=0.0)
    clients = [Client("heavy", 8, weight=2.0), Client("light", 8)]
    world = World(scheduler, clients, slots=4)
    world.run(200)
    got = {name: series.received(50, 200) for name, series in world.series.items()}
    assert got["heavy"] / got["light"] == pytest.approx(2, rel=0.1)


def test_mapper_learns_from_what_finished_and_from_nothing_else():
    scheduler = equinox()
    for name, outcome, exact in [
        ("fine", Outcome.FINISHED, True),
        ("left", Outcome.CANCELLED, True),
        ("guessed", Outcome.FINISHED, False),
    ]:
        request = send(scheduler, name)
        dispatch(scheduler)
        end(scheduler, request, 10, 1.0, outcome=outcome, exact=exact)
    assert scheduler.mapper.snapshot()["samples"] == 1


def test_load_is_what_is_in_flight_and_nothing_is_left_of_it():
    scheduler = equinox()
    loads = []
    predict = scheduler.mapper.predict
    scheduler.mapper.predict = lambda prompt, output, load: (
        loads.append(load) or predict(prompt, output, load)
    )
    first = send(scheduler, "first", prompt=100, sequences=2)
    second = send(scheduler, "second", "b", prompt=50)
    dispatch(scheduler)
    scheduler.progress(first, 100, 6, 1.0)
    dispatch(scheduler, 1.0)
    assert loads[0] == Load()
    assert loads[-1] == Load(2, 0, 106)
    third = send(scheduler, "third", "c")
    dispatch(scheduler, 1.0)
    assert loads[-1] == Load(3, 50, 106)
    end(scheduler, first, 6, 2.0)
    end(scheduler, second, 1, 2.0)
    scheduler.requeue(third, 2.0)
    dispatch(scheduler, 2.0)
    assert loads[-1] == Load()


def test_counters_survive_a_restart_with_what_the_mapper_learnt():
    old = equinox()
    for at in range(5):
        request = send(old, f"r{at}", "ab"[at % 2], prompt=100 * (at + 1))
        dispatch(old)
        end(old, request, 40, 10.0)
    new = equinox()
    new.restore(old.snapshot())
    assert [new.counters(name) for name in "ab"] == [old.counters(name) for name in "ab"]
    assert new.mapper.snapshot() == old.mapper.snapshot()
    assert new.snapshot() == old.snapshot()


@pytest.mark.parametrize(
    ("part", "value", "complaint"),
    [
        ("counters", {"a": 3}, "state.counters must map tenants to three integers"),
        ("counters", {"a": [1, 2, 0.5]}, "state.counters must map tenants to three integers"),
        ("last_left", "z", "state.last_left must be one of"),
        ("mapper", None, "mapper.samples must be a count"),
    ],
)
def test_state_that_makes_no_sense_is_refused_by_name(part, value, complaint):
    scheduler = equinox()
    data = scheduler.snapshot()
    with pytest.raises(ValueError, match=complaint):
        scheduler.restore({**data, "state": {**data["state"], part: value}})


def test_service_elsewhere_counts_as_typical_requests():
    scheduler = equinox({"a": TenantSettings(weight=2)})
    scheduler.add_service("a", 2 * TYPICAL_COST, 0.0)
    assert hf(scheduler) == pytest.approx(TYPICAL_COST)
    assert scheduler.counters("a") == pytest.approx((1, 1))
    with pytest.raises(ValueError, match="must not be negative"):
        scheduler.add_service("a", -1, 0.0)


def test_change_from_vtc_keeps_who_is_owed():
    old = VTC()
    requests = [send(old, tenant, tenant) for tenant in ("rich", "poor")]
    drain(old)
    for request, generated in zip(requests, (400, 50), strict=True):
        end(old, request, generated, 5.0)
    new = carry_over(old, equinox(), 5.0)
    assert [hf(new, name) for name in ("rich", "poor")] == pytest.approx([810, 110])
    assert new.history(5.0) == pytest.approx({"rich": 810, "poor": 110})


def test_bound_holds_for_what_another_order_dispatched():
    old = FCFS()
    flying = [send(old, f"r{at}", "red") for at in range(4)]
    assert [dispatch(old) for _ in flying] == flying
    send(old, "r4", "red")
    send(old, "b0", "blue")
    new = carry_over(old, equinox(), 1.0)
    new.tick(1.0)
    bound = new.bound(1.0)
    assert bound.gap == pytest.approx(hf(new, "red") - hf(new, "blue"))
    assert bound.gap > 0
    assert bound.met


def test_corrections_stay_within_the_published_bound():
    class Wrong(Predictor):
        """A third of what comes, and three times what comes, in turn."""

        def predict(self, request):
            return 10 if int(request.id[1:]) % 2 else 96

        def learn(self, request, usage, outcome):
            self.learned += 1

        def forget(self, tenant):
            """Know nothing."""

        def snapshot(self):
            return {}

        def restore(self, data):
            """Know nothing."""

    scheduler = Equinox(predictor=Wrong())
    clients = [Client("a", 6, max_tokens=100), Client("b", 6, prompt=200, output=8, max_tokens=100)]
    world = World(scheduler, clients, slots=5)
    world.run(120)
    bound = scheduler.bound(world.now)
    assert bound.met
    assert 0 < bound.gap <= bound.limit
    assert bound.limit < 10 * TYPICAL_COST


def test_bound_is_broken_by_a_scheduler_that_favours_somebody():
    class Favouring(Equinox):
        def _key(self, name):
            return (name != "friend", *super()._key(name))

    world = World(Favouring(), [Client("friend", 8), Client("foe", 8)], slots=4)
    world.run(120)
    bound = world.scheduler.bound(world.now)
    assert not bound.met
    assert bound.gap > bound.limit


def test_policy_parameters_become_settings():
    algorithm = Algorithm(
        type="Equinox", equinox=EquinoxParameters(user_percent=60, delay_discount_milli_per_second=250)
    )
    settings = EquinoxSettings.of(algorithm, max_queued=7)
    assert (settings.alpha, settings.delay_discount, settings.max_queued) == (0.6, 0.25, 7)
    assert settings.share == 600
    assert EquinoxSettings.of(Algorithm(type="Equinox")) == EquinoxSettings()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"alpha": 1.1}, r"alpha=1.1 must lie within \[0, 1\]"),
        ({"delay_discount": -1}, "delay_discount=-1 must be"),
        ({"delay_discount": float("inf")}, "delay_discount=inf must be"),
        ({"u0": 0}, "u0=0 must be a positive number"),
        ({"r0": -5}, "r0=-5 must be a positive number"),
    ],
)
def test_settings_out_of_range_name_the_field(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        EquinoxSettings(**settings)


def test_a_typical_request_takes_seconds_and_units_fit_together():
    assert 1 < TYPICAL_SECONDS < 30
    assert UNIT % WHOLE == 0


@pytest.mark.parametrize("utilisation", [-0.1, 1.5, float("nan")])
def test_utilisation_that_cannot_be_is_refused_before_it_is_charged(utilisation):
    with pytest.raises(ValueError, match=r"gpu_utilisation=.* must lie within \[0, 1\]"):
        Usage(1, 1, gpu_utilisation=utilisation)
