"""Equipoise: the band, deadlines, the overdue rule, skipping, interactions, and what it keeps of VTC."""

import json

import pytest
from scheduling_harness import drain, finish, make_request

from equipoise_api.policy import Algorithm
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.cost import LinearCost
from equipoise_scheduling.counters import SCALE
from equipoise_scheduling.history import carry_over
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.schedulers.equipoise import Equipoise, EquipoiseSettings
from equipoise_scheduling.schedulers.fcfs import FCFS
from equipoise_scheduling.schedulers.vtc import VTC

PROMPTS = LinearCost(input=1, output=0)
NO_PREDICTION = PredictionSettings(kind="None")


def equipoise(*, tenants=None, **settings):
    settings = {"band": 1000, "cost": PROMPTS, "prediction": NO_PREDICTION} | settings
    return Equipoise(EquipoiseSettings(**settings), tenants or {})


def send(scheduler, name, tenant, *, now=0.0, prompt=100, **fields):
    request = make_request(name, tenant, arrival=now, prompt=prompt, **fields)
    assert scheduler.enqueue(request, now) is None
    return request


def served(scheduler, now=0.0, most=10_000):
    return [request.id for request in drain(scheduler, now, most)]


def deliver(scheduler, request, now=0.0):
    scheduler.progress(request, request.prompt_tokens, 0, now)
    scheduler.settle(request, Usage(request.prompt_tokens, 0), Outcome.FINISHED, now)


class TestBand:
    def test_nearest_deadline_goes_first_whoever_sends_it(self):
        scheduler = equipoise()
        send(scheduler, "batch", "a", ttft_budget=60.0)
        send(scheduler, "chat", "b", ttft_budget=1.0)
        send(scheduler, "report", "c", e2e_budget=20.0)
        assert served(scheduler) == ["chat", "report", "batch"]

    def test_tenant_ahead_by_more_than_the_band_waits_however_urgent(self):
        scheduler = equipoise(band=250)
        for number in range(5):
            send(scheduler, f"urgent{number}", "a", ttft_budget=1.0)
        send(scheduler, "patient", "b", ttft_budget=60.0)
        # Counters 0, 100 and 200 are within 250 of b's 0; 300 is not.
        assert served(scheduler) == ["urgent0", "urgent1", "urgent2", "patient", "urgent3", "urgent4"]

    def test_without_a_band_the_least_counter_goes_first(self):
        scheduler = equipoise(band=0)
        for number in range(3):
            send(scheduler, f"urgent{number}", "a", ttft_budget=1.0)
        send(scheduler, "patient", "b", ttft_budget=60.0)
        assert served(scheduler) == ["urgent0", "patient", "urgent1", "urgent2"]

    def test_band_is_in_counter_units_so_weight_buys_service_not_urgency(self):
        scheduler = equipoise(band=250, tenants={"a": TenantSettings(weight=2)})
        for number in range(8):
            send(scheduler, f"u{number}", "a", ttft_budget=1.0)
        send(scheduler, "patient", "b", ttft_budget=60.0)
        assert served(scheduler).index("patient") == 6

    def test_equally_urgent_the_longest_cached_prefix_goes_first_then_the_least_counter(self):
        scheduler = equipoise()
        send(scheduler, "served", "a", ttft_budget=1.0)
        send(scheduler, "cold", "b", ttft_budget=1.1)
        send(scheduler, "warm", "c", ttft_budget=1.2, cached_tokens=50)
        scheduler.add_service("a", 50, 0.0)
        assert served(scheduler) == ["warm", "cold", "served"]

    def test_between_equally_urgent_heads_it_is_the_prefix_that_is_cached_by_then(self):
        scheduler = equipoise()
        for name, tenant in (("first", "a"), ("second", "a"), ("other", "b")):
            send(scheduler, name, tenant, ttft_budget=1.0)
        assert served(scheduler, most=1) == ["first"]
        scheduler.look_again("a", lambda _: 50)
        scheduler.look_again("nobody", lambda _: 50)
        assert served(scheduler) == ["second", "other"]

    def test_an_estimate_made_anew_at_a_shut_gate_moves_its_request(self):
        scheduler = equipoise()
        for name in ("cold", "warm", "hot"):
            send(scheduler, name, name, ttft_budget=1.0)

        def shut(request):
            request.cached_tokens = {"cold": 0, "warm": 30, "hot": 60}[request.id]
            return False

        assert scheduler.next(0.0, shut) is None
        assert served(scheduler) == ["hot", "warm", "cold"]

    def test_what_is_overdue_stays_so_whatever_is_cached(self):
        scheduler = equipoise(overdue_every=100)
        late = send(scheduler, "late", "a", ttft_budget=0.1)
        send(scheduler, "patient", "b", ttft_budget=600.0)
        scheduler.next(10.0, lambda _: False)
        assert scheduler._queue("a").late(late)
        scheduler.look_again("a", lambda _: 90)
        assert scheduler._queue("a").late(late)
        assert served(scheduler, 10.0) == ["patient", "late"]

    def test_default_band_follows_what_a_request_costs_and_what_is_in_flight(self):
        scheduler = equipoise(band=None)
        assert scheduler.band_units == 2 * 512 * SCALE
        for number in range(300):
            deliver(scheduler, send(scheduler, str(number), "a") and drain(scheduler)[0])
        assert scheduler.band_units == pytest.approx(2 * 100 * SCALE, rel=0.1)
        send(scheduler, "big", "a", prompt=50_000)
        drain(scheduler)
        assert scheduler.band_units == pytest.approx(2 * 100 * SCALE, rel=0.1)
        scheduler.tick(1.0)
        assert scheduler.band_units == 5_000 * SCALE

    def test_tenant_that_comes_back_is_lifted_to_the_virtual_time_which_refunds_do_not_lower(self):
        scheduler = equipoise(cost=LinearCost(), prediction=PredictionSettings(prior_tokens=100), band=10)
        for number in range(4):
            send(scheduler, f"a{number}", "a", prompt=10, max_tokens=500)
        first, second = drain(scheduler, most=2)
        level = scheduler._virtual_time
        assert level == 210 * SCALE
        finish(scheduler, [first, second], 1)
        send(scheduler, "b", "b")
        counters = {row.tenant: row.counter for row in scheduler.shares(0.0)}
        assert counters == {"a": 24, "b": 210}


class TestDeadlines:
    def test_are_the_slo_or_a_multiple_of_the_predicted_service_and_are_never_moved(self):
        scheduler = equipoise(stretch=4, prediction=PredictionSettings(prior_tokens=50))
        first = send(scheduler, "1", "a", now=2.0, ttft_budget=1.5, e2e_budget=9.0)
        whole = send(scheduler, "2", "a", now=2.0, e2e_budget=9.0)
        none = send(scheduler, "3", "a", now=2.0, prompt=1000, cached_tokens=500)
        given = send(scheduler, "4", "a", now=2.0, deadline=77.0)
        assert (first.deadline, whole.deadline, given.deadline) == (3.5, 11.0, 77.0)
        assert none.deadline == pytest.approx(2.0 + 4 * (500 * 0.0002 + 50 * 0.03))
        for request in drain(scheduler, 3.0):
            scheduler.requeue(request, 3.0)
        assert (first.deadline, whole.deadline, given.deadline) == (3.5, 11.0, 77.0)

    def test_order_a_tenants_own_requests_unless_fifo_is_asked_for(self):
        for ordering, want in (("Deadline", ["chat", "batch"]), ("FIFO", ["batch", "chat"])):
            scheduler = equipoise(ordering=ordering)
            send(scheduler, "batch", "a", ttft_budget=60.0)
            send(scheduler, "chat", "a", ttft_budget=1.0)
            assert served(scheduler) == want

    def test_change_of_ordering_reorders_what_waits(self):
        scheduler = equipoise(ordering="FIFO")
        send(scheduler, "batch", "a", ttft_budget=60.0)
        send(scheduler, "chat", "a", ttft_budget=1.0)
        scheduler.reconfigure(EquipoiseSettings(cost=PROMPTS, prediction=NO_PREDICTION), {}, 0.0)
        assert served(scheduler) == ["chat", "batch"]

    def test_are_given_to_what_another_algorithm_had_queued(self):
        old = FCFS()
        send(old, "batch", "a", ttft_budget=60.0)
        send(old, "chat", "a", ttft_budget=1.0)
        assert served(carry_over(old, equipoise(), 0.5), 0.5) == ["chat", "batch"]

    def test_stretched_ones_follow_the_pace_of_the_engine(self):
        scheduler = equipoise(prediction=PredictionSettings(prior_tokens=10))
        before = send(scheduler, "before", "a", prompt=0).deadline
        (request,) = drain(scheduler, most=1)
        scheduler.progress(request, 0, 1, 1.0)
        for second in range(2, 60):
            scheduler.progress(request, 0, 2 * second, float(second))
            scheduler.tick(float(second))
        after = send(scheduler, "after", "a", now=60.0, prompt=0).deadline - 60.0
        assert after == pytest.approx(before * 0.5 / 0.03, rel=0.1)


class TestMissedDeadlines:
    def test_yield_to_who_is_urgent_and_go_before_who_has_time(self):
        scheduler = equipoise()
        send(scheduler, "missed", "a", ttft_budget=1.0)
        send(scheduler, "has time", "b", now=5.0, ttft_budget=60.0)
        send(scheduler, "urgent", "c", now=5.0, ttft_budget=1.0)
        assert served(scheduler, 5.0) == ["urgent", "missed", "has time"]

    def test_are_those_that_could_not_be_kept_any_more_by_going_at_once(self):
        scheduler = equipoise()
        send(scheduler, "hopeless", "a", ttft_budget=1.0, prompt=1000)
        send(scheduler, "short", "b", ttft_budget=1.0, prompt=10)
        # 1,000 prompt tokens take 0.2 s, and 1 s is over in 0.15 s.
        assert served(scheduler, 0.85) == ["short", "hopeless"]

    def test_missed_twice_go_behind_all_others(self):
        scheduler = equipoise()
        send(scheduler, "overdue", "a", ttft_budget=1.0)
        send(scheduler, "overdue too", "b", ttft_budget=2.0)
        send(scheduler, "has time", "a", now=50.0, prompt=0, ttft_budget=60.0)
        assert served(scheduler, 50.0) == ["has time", "overdue", "overdue too"]

    def test_without_an_slo_keep_the_order_of_deadlines_and_yield_to_slos_that_can_be_kept(self):
        scheduler = equipoise(prediction=PredictionSettings(prior_tokens=10))
        for number in range(3):
            send(scheduler, f"old{number}", "a", now=float(number))
        send(scheduler, "fresh", "a", now=50.0)
        send(scheduler, "chat", "a", now=50.0, ttft_budget=60.0)
        assert served(scheduler, 50.0) == ["chat", "old0", "old1", "old2", "fresh"]

    def test_oldest_overdue_gets_every_fifth_dispatch(self):
        scheduler = equipoise(band=100_000)
        for number in range(3):
            send(scheduler, f"late{number}", "a", ttft_budget=1.0)
        for number in range(12):
            send(scheduler, f"{number}", "b", now=50.0, ttft_budget=10.0)
        assert served(scheduler, 50.0) == [
            *("0", "1", "2", "3", "late0", "4", "5", "6", "7", "late1", "8", "9", "10", "11", "late2")
        ]

    def test_turn_is_not_saved_up_while_nobody_is_overdue(self):
        scheduler = equipoise(band=100_000)
        for number in range(20):
            send(scheduler, f"x{number}", "b", ttft_budget=10.0)
        drain(scheduler, 0.0)
        send(scheduler, "late", "a", ttft_budget=1.0)
        for number in range(4):
            send(scheduler, f"{number}", "b", now=50.0, ttft_budget=10.0)
        assert served(scheduler, 50.0) == ["0", "1", "2", "3", "late"]

    def test_turn_that_was_undone_comes_again(self):
        scheduler = equipoise(band=100_000, overdue_every=3)
        send(scheduler, "late", "a", ttft_budget=1.0)
        for number in range(6):
            send(scheduler, f"{number}", "b", now=50.0, ttft_budget=10.0)
        assert served(scheduler, 50.0, most=2) == ["0", "1"]
        (late,) = drain(scheduler, 50.0, most=1)
        scheduler.requeue(late, 50.0)
        assert served(scheduler, 50.0) == ["late", "2", "3", "4", "5"]

    def test_nobody_waits_for_ever_behind_a_stream_that_is_always_in_time(self):
        scheduler = equipoise()
        send(scheduler, "old", "a", ttft_budget=1.0)
        for number in range(200):
            now = 2.0 + number
            send(scheduler, f"new{number}", "a", now=now, ttft_budget=2.0)
            if served(scheduler, now, most=1) == ["old"]:
                return
        raise AssertionError("passed over 200 times")


class TestSkipping:
    def fits_below(self, tokens):
        return lambda request: request.prompt_tokens < tokens

    def test_other_heads_in_the_band_go_where_the_chosen_one_does_not_fit(self):
        scheduler = equipoise()
        send(scheduler, "big", "a", prompt=900, ttft_budget=1.0)
        send(scheduler, "behind it", "a", prompt=10, ttft_budget=2.0)
        send(scheduler, "small", "b", prompt=10, ttft_budget=60.0)
        assert scheduler.next(0.0, self.fits_below(500)).id == "small"
        assert scheduler.next(0.0, self.fits_below(500)) is None

    def test_no_more_are_tried_than_skips_and_the_least_counter_is_among_them(self):
        for skips, want in ((0, "3"), (1, "3l"), (2, "32l"), (9, "3210l")):
            scheduler = equipoise(skips=skips)
            for place, tenant in enumerate("0123"):
                send(scheduler, tenant, tenant, ttft_budget=10.0 - place)
            send(scheduler, "l", "least", ttft_budget=60.0)
            for tenant in "0123":
                scheduler.add_service(tenant, 50, 0.0)
            asked = []
            assert scheduler.next(0.0, lambda request, asked=asked: asked.append(request.id)) is None
            assert "".join(asked) == want

    def test_big_head_is_passed_by_no_more_than_the_band(self):
        scheduler = equipoise(band=300)
        send(scheduler, "big", "a", prompt=900, ttft_budget=20.0)
        for number in range(20):
            send(scheduler, f"{number}", "b", ttft_budget=60.0)
        passed = 0
        while scheduler.next(0.0, self.fits_below(500)) is not None:
            passed += 1
        assert passed == 4
        assert served(scheduler, most=1) == ["big"]

    def test_without_a_band_nobody_is_skipped(self):
        scheduler = equipoise(band=0)
        send(scheduler, "big", "a", prompt=900)
        send(scheduler, "small", "b", prompt=10)
        assert scheduler.next(0.0, self.fits_below(500)) is None


class TestBandKeptForUrgentRequests:
    def ahead(self, budget=1.0):
        """Have `a` served 300 ahead of `b`, within a band of 1,000."""
        scheduler = equipoise()
        send(scheduler, "waits", "b", ttft_budget=1_000.0)
        send(scheduler, "first", "a", prompt=300, ttft_budget=budget)
        assert served(scheduler, most=1) == ["first"]
        return scheduler

    def test_patient_requests_leave_the_band_to_urgent_ones(self):
        scheduler = self.ahead()
        send(scheduler, "patient", "a", now=1.0, ttft_budget=60.0)
        assert served(scheduler, 1.0) == ["waits", "patient"]

    def test_urgent_ones_may_use_it_beside_patient_ones_of_their_own_tenant(self):
        scheduler = self.ahead()
        send(scheduler, "patient", "a", now=1.0, ttft_budget=60.0)
        send(scheduler, "urgent", "a", now=1.0, ttft_budget=10.0)
        assert served(scheduler, 1.0) == ["urgent", "waits", "patient"]

    def test_urgent_one_stops_at_the_band(self):
        scheduler = self.ahead()
        for number in range(20):
            send(scheduler, f"urgent{number}", "a", now=1.0, ttft_budget=10.0)
        assert served(scheduler, 1.0).index("waits") == 8

    def test_a_request_that_has_missed_its_deadline_presses_no_more(self):
        scheduler = self.ahead()
        send(scheduler, "missed", "a", now=1.0, ttft_budget=1.0)
        assert served(scheduler, 3.0) == ["waits", "missed"]

    def test_interaction_that_has_begun_presses_too(self):
        scheduler = self.ahead()
        begun = send(scheduler, "1", "a", now=1.0, interaction="i", ttft_budget=2.0)
        assert served(scheduler, 1.0, most=1) == ["1"]
        deliver(scheduler, begun, 1.0)
        send(scheduler, "2", "a", now=1.0, interaction="i", call_index=2, ttft_budget=60.0)
        assert served(scheduler, 1.0) == ["2", "waits"]

    def test_overdue_one_goes_in_its_tenants_turn_however_long_it_has_waited(self):
        scheduler = self.ahead()
        send(scheduler, "overdue", "a", now=1.0, ttft_budget=11.0)
        send(scheduler, "urgent", "c", now=300.0, prompt=0, ttft_budget=5.0)
        assert served(scheduler, 300.0) == ["urgent", "waits", "overdue"]

    def test_a_minute_after_the_last_urgent_one_everybody_may_use_it(self):
        for now, wanted in ((60.0, ["waits", "patient"]), (60.1, ["patient", "waits"])):
            scheduler = self.ahead()
            send(scheduler, "patient", "a", now=now, ttft_budget=60.0)
            assert served(scheduler, now) == wanted

    def test_without_urgent_requests_it_is_everybodys(self):
        scheduler = self.ahead(budget=10.1)
        send(scheduler, "patient", "a", now=1.0, ttft_budget=60.0)
        assert served(scheduler, 1.0) == ["patient", "waits"]


class TestInteractions:
    def call(self, scheduler, name, index, **fields):
        return send(scheduler, name, "a", interaction="i", call_index=index, **fields)

    def test_one_that_has_begun_goes_first_inside_the_band(self):
        scheduler = equipoise()
        first = self.call(scheduler, "1", 1, ttft_budget=60.0)
        assert drain(scheduler) == [first]
        deliver(scheduler, first)
        send(scheduler, "chat", "b", ttft_budget=1.0)
        self.call(scheduler, "2", 2, ttft_budget=60.0)
        assert served(scheduler) == ["2", "chat"]

    def test_one_whose_first_call_still_waits_has_not_begun(self):
        scheduler = equipoise()
        self.call(scheduler, "1", 1, ttft_budget=60.0)
        self.call(scheduler, "2", 2, ttft_budget=60.0)
        send(scheduler, "chat", "b", ttft_budget=1.0)
        # Its second call is urgent from the moment that its first one goes.
        send(scheduler, "other", "c", ttft_budget=61.0)
        assert served(scheduler) == ["chat", "1", "2", "other"]

    def test_claiming_a_later_call_gains_nothing(self):
        scheduler = equipoise()
        self.call(scheduler, "claimed", 7, ttft_budget=60.0)
        send(scheduler, "chat", "b", ttft_budget=1.0)
        assert served(scheduler) == ["chat", "claimed"]

    def test_is_never_late(self):
        scheduler = equipoise()
        (first,) = self.call(scheduler, "1", 1) and drain(scheduler)
        deliver(scheduler, first)
        self.call(scheduler, "2", 2, ttft_budget=1.0)
        send(scheduler, "chat", "b", now=4.5, ttft_budget=1.0)
        assert served(scheduler, 5.0) == ["2", "chat"]


class TestBound:
    def test_difference_over_an_interval_can_reach_twice_the_band_and_more(self):
        # Each request costs 100 and is served at once, so VTC's own bound is 400. First f is urgent and gets 1,100
        # ahead; then g is, and gets 1,100 ahead of f.
        scheduler = equipoise(band=1000)
        received = {"f": 0, "g": 0}
        number = 0

        def stream(tenant, budget, count):
            nonlocal number
            for _ in range(count):
                number += 1
                send(scheduler, f"{tenant}{number}", tenant, ttft_budget=budget)

        def serve(tenant):
            while (request := scheduler.next(0.0, lambda request: request.tenant == tenant)) is not None:
                received[tenant] += 100
                deliver(scheduler, request)

        stream("f", 20.0, 100)
        stream("g", 40.0, 100)
        scheduler.tick(0.0)
        serve("f")
        assert received == {"f": 1100, "g": 0}
        scheduler.tick(2.0)
        serve("g")
        assert received == {"f": 1100, "g": 2200}
        scheduler.tick(4.0)
        bound = scheduler.bound(4.0)
        assert (bound.gap, bound.limit, bound.met) == (2200, 400 + 2 * 1000, True)

    def test_flaw_that_leaves_the_band_breaks_it_visibly(self):
        class Boundless(Equipoise):
            def _candidates(self, now):
                candidates = super()._candidates(now)
                first = next(candidates, None)
                if first is not None and "f" in self.choice:
                    first = self.books.tenants["f"].queue.head()
                if first is not None:
                    yield first

        scheduler = Boundless(EquipoiseSettings(band=100, cost=PROMPTS, prediction=NO_PREDICTION))
        for number in range(60):
            send(scheduler, f"f{number}", "f")
            send(scheduler, f"g{number}", "g")
        for second in range(20):
            scheduler.tick(float(second))
            (request,) = drain(scheduler, float(second), most=1)
            assert request.tenant == "f"
            deliver(scheduler, request, float(second))
        assert not scheduler.bound(20.0).met


def test_reads_its_parameters_from_the_policy():
    algorithm = Algorithm.model_validate(
        {
            "type": "Equipoise",
            "equipoise": {
                "bandTokens": 7,
                "ordering": "FIFO",
                "stretch": 3,
                "overdueEvery": 9,
                "skips": 2,
            },
        }
    )
    settings = EquipoiseSettings.of(algorithm)
    assert (settings.band, settings.ordering, settings.stretch) == (7, "FIFO", 3)
    assert (settings.overdue_every, settings.skips) == (9, 2)
    default = EquipoiseSettings.of(Algorithm(type="Equipoise"))
    assert default == EquipoiseSettings()


@pytest.mark.parametrize(
    ("field", "value"), [("band", -1), ("stretch", -0.5), ("overdue_every", 1), ("skips", -1)]
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}={value} must be at least"):
        EquipoiseSettings(**{field: value})


def test_restart_keeps_virtual_time_pace_and_what_is_typical():
    first = equipoise(band=None)
    for number in range(50):
        deliver(first, send(first, str(number), "a", prompt=40) and drain(first)[0])
    second = equipoise(band=None)
    second.restore(json.loads(json.dumps(first.snapshot())))
    assert second.snapshot() == first.snapshot()
    assert second.band_units == first.band_units
    send(second, "new", "b")
    assert second.shares(0.0)[1].counter * SCALE >= first._virtual_time


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"virtual_time": -1}, "state.virtual_time must be a number not below 0"),
        ({"since_overdue": 1.5}, "state.since_overdue must be a number"),
        ({"typical": None}, "state.typical must be a number"),
        ({"pace": []}, "pace must be an object"),
        ({"pace": {"prompt_seconds": 1, "step_seconds": "x"}}, "pace.step_seconds must be a number"),
    ],
)
def test_state_of_a_snapshot_that_makes_no_sense_is_refused_by_name(change, complaint):
    data = equipoise().snapshot()
    with pytest.raises(ValueError, match=complaint):
        equipoise().restore({**data, "state": data["state"] | change})


def test_history_of_vtc_is_its_own():
    old = VTC()
    send(old, "1", "a")
    finish(old, drain(old), 5)
    new = carry_over(old, equipoise(), 1.0)
    assert {row.tenant: row.counter for row in new.shares(1.0)} == {"a": 110}


def test_one_endless_interaction_does_not_cost_each_dispatch_a_look_at_all_that_waits(monkeypatch):
    looks = 0
    watch = Equipoise._watch

    def count(self, request):
        nonlocal looks
        looks += 1
        watch(self, request)

    scheduler = equipoise()
    waiting = 600
    for number in range(waiting):
        send(scheduler, str(number), "a", interaction="endless", call_index=2)
    monkeypatch.setattr(Equipoise, "_watch", count)
    assert len(served(scheduler)) == waiting
    assert looks <= 66 * waiting
