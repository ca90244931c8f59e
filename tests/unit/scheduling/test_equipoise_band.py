"""Equipoise's band: who may be ahead of whom, by how much, for whom it is kept, and what it adds to the bound."""

import pytest
from equipoise_scene import NO_PREDICTION, PROMPTS, deliver, equipoise, send, served
from scheduling_harness import drain, finish

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.cost import LinearCost
from equipoise_scheduling.counters import SCALE
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.schedulers.equipoise import Equipoise, EquipoiseSettings


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
