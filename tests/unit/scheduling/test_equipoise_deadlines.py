"""Equipoise's deadlines: where they come from, what happens to those missed, and what an interaction that has begun gains."""

import pytest
from equipoise_scene import NO_PREDICTION, PROMPTS, deliver, equipoise, send, served
from scheduling_harness import drain

from equipoise_scheduling.history import carry_over
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.schedulers.equipoise import EquipoiseSettings
from equipoise_scheduling.schedulers.fcfs import FCFS


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
