"""What a shadow reports: who would have gone earlier or later, how service would have been shared, who turned away."""

from dataclasses import fields

import pytest
from shadow_rig import Rig, settings

from equipoise_api.latency import LatencyHistogram
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome, Reason, Refusal
from equipoise_scheduling.schedulers.rpm import RPM
from equipoise_scheduling.shadow_report import Comparison


def flood(rig, *, red=6):
    """Red queues a flood behind one running request; blue's comes last."""
    rig.send("red")
    for _ in range(red):
        rig.send("red")
    return rig.send("blue")


def work_off(rig, seconds=1.0):
    while rig.running:
        rig.tick(seconds)
        rig.finish(rig.running[0])


def test_a_fair_shadow_says_that_first_come_first_served_makes_the_newcomer_wait():
    rig = Rig("FCFS", "VTC")
    flood(rig)
    work_off(rig)
    report = rig.report("VTC")
    assert report.compared == 8
    # lifted to red's counter, blue goes after the older of the two heads: the other five of red's a turn later
    assert (report.earlier, report.later) == (1, 5)
    assert report.wait_change_seconds == pytest.approx(0)
    assert report.changed_total == 6
    (shadow,) = rig.shadows
    (_, red), (blue_before, blue_after) = (shadow.comparison.waits(rig.now)[name] for name in ("red", "blue"))
    assert (blue_before, blue_after) == (7.0, 2.0)
    assert red == pytest.approx((0 + 1 + 3 + 4 + 5 + 6 + 7) / 7)
    enforced, shadow = LatencyHistogram(counts=report.waits_enforced), LatencyHistogram(counts=report.waits)
    assert (enforced.total, shadow.total) == (8, 8)


def test_waits_are_compared_over_the_same_capacity():
    rig = Rig("FCFS", "VTC", "RoundRobin")
    flood(rig, red=20)
    work_off(rig)
    for algorithm in ("VTC", "RoundRobin"):
        assert rig.report(algorithm).wait_change_seconds == pytest.approx(0)
        assert rig.report(algorithm).waiting == 0


def test_short_requests_first_shortens_the_mean_and_says_so():
    rig = Rig("VTC", "FCFS")
    for _ in range(3):
        rig.send("red", prompt=1000)
    for _ in range(9):
        rig.send("blue", prompt=10)
    work_off(rig)
    assert rig.report("FCFS").wait_change_seconds > 0.5


def test_the_shadow_starts_a_large_request_only_when_room_for_it_was_given():
    rig = Rig("FCFS", "VTC")
    for _ in range(7):
        rig.send("red", prompt=10)
    rig.send("blue", prompt=85, max_tokens=20)
    (shadow,) = rig.shadows
    # each red start gives room for 30 tokens; after the first, blue's head of 105 is next and takes the fourth of them
    for waiting in (7, 6, 6, 6, 6, 5):
        assert shadow.scheduler.queued == waiting
        rig.finish(rig.running[0])


def test_jain_tells_the_unfair_order_from_the_fair_one_while_there_is_contention():
    rig = Rig("FCFS", "VTC")
    for _ in range(40):
        rig.send("red")
    for _ in range(40):
        rig.send("blue")
    for _ in range(20):
        rig.tick()
        rig.finish(rig.running[0])
    report = rig.report("VTC")
    assert report.jain_enforced == pytest.approx(0.5, abs=0.02)
    assert report.jain == pytest.approx(1.0, abs=0.02)


def test_what_a_shadow_turns_away_is_counted_and_its_room_goes_to_others():
    rig = Rig("FCFS")
    limited = RPM.settings_type(requests_per_minute=2)
    rig.shadows.configure({"RPM": limited}, {}, rig.scheduler, rig.now)
    flood(rig)
    assert rig.report("RPM").refused == 5
    work_off(rig)
    report = rig.report("RPM")
    assert (report.compared, report.refused_total) == (3, 5)
    assert report.earlier == 1
    assert report.off is None


def test_who_leaves_the_queue_leaves_the_shadows_too():
    rig = Rig("FCFS", "VTC")
    rig.send("red")
    waiting = rig.send("red")
    rig.leave(waiting)
    (shadow,) = rig.shadows
    assert shadow.scheduler.queued == 0
    assert waiting.outcome is Outcome.CANCELLED


def test_once_nobody_waits_nobody_waits_in_a_shadow():
    rig = Rig("FCFS", "VTC", slots=2)
    rig.send("red", prompt=1)
    rig.send("red", prompt=1)
    large = rig.send("blue", prompt=5000)
    (shadow,) = rig.shadows
    rig.finish(rig.running[0])
    assert large in rig.running
    assert shadow.scheduler.queued == 0


def test_an_error_in_a_shadow_ends_that_shadow_and_nothing_else(monkeypatch):
    rig = Rig("FCFS", "VTC", "RoundRobin")
    vtc = next(shadow for shadow in rig.shadows if shadow.algorithm == "VTC")

    def broken(*_):
        raise ZeroDivisionError("oh")

    rig.send("red")
    monkeypatch.setattr(vtc.scheduler, "enqueue", broken)
    blue = flood(rig)
    work_off(rig)
    assert blue.outcome is Outcome.FINISHED
    assert rig.shadows.failures == 1
    assert rig.report("VTC").off == "ZeroDivisionError: oh"
    assert rig.report("RoundRobin").off is None
    assert rig.report("RoundRobin").compared == 9


def test_a_shadow_that_begins_later_starts_from_the_service_history_and_with_what_comes():
    rig = Rig("VTC")
    for _ in range(3):
        rig.send("red")
    rig.finish(rig.running[0])
    rig.shadows.configure({"DRR": settings("DRR"), "LCF": settings("LCF")}, {}, rig.scheduler, rig.now)
    known = {share.tenant: share.counter for share in next(iter(rig.shadows)).scheduler.shares(rig.now)}
    assert "red" in known
    lcf = next(shadow for shadow in rig.shadows if shadow.algorithm == "LCF")
    assert lcf.scheduler.history(rig.now)["red"] > 0
    rig.send("blue")
    work_off(rig)
    assert rig.report("LCF").compared_total == 1


def test_a_shadow_goes_on_through_a_new_configuration_and_ends_with_it():
    rig = Rig("FCFS", "VTC")
    flood(rig)
    tenants = {"blue": TenantSettings(weight=3)}
    rig.shadows.configure({"VTC": settings("VTC")}, tenants, rig.scheduler, rig.now)
    (shadow,) = rig.shadows
    assert shadow.scheduler.queued == 7
    work_off(rig)
    assert rig.report("VTC").compared_total == 8
    rig.shadows.configure({}, tenants, rig.scheduler, rig.now)
    assert rig.shadows.reports(rig.now) == []
    assert not rig.shadows
    rig.send("blue")


def test_settings_that_cannot_be_change_nothing():
    rig = Rig("FCFS", "VTC")
    with pytest.raises(ValueError, match="FairestOfAll"):
        rig.shadows.configure({"FairestOfAll": settings("VTC")}, {}, rig.scheduler, rig.now)
    assert [shadow.algorithm for shadow in rig.shadows] == ["VTC"]


def test_the_report_covers_a_minute_and_the_totals_everything():
    comparison = Comparison()
    common = {"algorithm": "VTC", "off": None, "waiting": 0, "jain": None, "jain_enforced": None}
    for second in range(300):
        comparison.waited("blue", 1.0, 0.5, float(second))
        comparison.refused(float(second))
    report = comparison.report(**common, now=299.0)
    assert 55 <= report.compared <= 60
    assert report.wait_change_seconds == pytest.approx(-0.5)
    assert report.refused == report.compared == report.earlier
    assert (report.compared_total, report.changed_total, report.refused_total) == (300, 300, 300)
    assert comparison.waits(299.0) == {"blue": (1.0, 0.5)}
    assert comparison.waits(1000.0) == {}


@pytest.mark.parametrize("algorithm", sorted(SCHEDULERS))
def test_idle_tenants_are_forgotten(algorithm):
    rig = Rig("FCFS", algorithm)
    for at in range(50):
        rig.send(f"tenant-{at}")
        rig.finish(rig.running[0])
    rig.tick(300)
    rig.tick(300)
    (shadow,) = rig.shadows
    assert shadow.off is None
    for service in (shadow.service, rig.shadows.service):
        assert (service._served, service._waiting) == ({}, {})


def test_overload_throttling_in_a_shadow_counts_as_refusal(monkeypatch):
    rig = Rig("FCFS", "VTC")
    (shadow,) = rig.shadows
    rig.send("red")
    second = rig.send("red")
    copy = shadow._mirrors[second.id].copy
    shadow.scheduler.cancel(copy, rig.now, Outcome.REFUSED)
    monkeypatch.setattr(shadow.scheduler, "refused", lambda: [(copy, Refusal(Reason.OVERLOADED, "too much"))])
    rig.shadows.decided([], rig.scheduler, rig.now)
    monkeypatch.undo()
    assert rig.report("VTC").refused == 1
    work_off(rig)
    assert rig.report("VTC").off is None
    assert rig.report("VTC").compared_total == 1


def test_a_shadows_copy_has_what_the_request_came_with_and_nothing_of_the_enforced_scheduler():
    rig = Rig("Equipoise", "VTC")
    rig.send("red")
    real = rig.send("red", user="ann", interaction="i", call_index=2, ttft_budget=1.0)
    (shadow,) = rig.shadows
    copy = shadow._mirrors[real.id].copy
    decided = {"number", "deadline", "priority", "dispatched", "outcome", "predicted_tokens"}
    for field in fields(real):
        if field.name not in decided:
            assert getattr(copy, field.name) == getattr(real, field.name), field.name
    assert copy is not real
    assert real.deadline is not None
    assert copy.deadline is None


def test_shadow_knows_the_engines_pool_as_the_enforced_one_does():
    rig = Rig("FCFS", "DRR")
    rig.scheduler.set_pool(64_000)
    rig.tick()
    (shadow,) = rig.shadows
    assert shadow.scheduler.quantum == 64_000 / 20


def test_a_shadow_that_begins_anew_after_its_fault_is_not_held_up_by_what_it_missed(monkeypatch):
    rig = Rig("FCFS", "VTC")
    (shadow,) = rig.shadows
    rig.send("red")
    rig.send("red")
    monkeypatch.setattr(shadow.scheduler, "enqueue", lambda *_: 1 / 0)
    rig.send("red")
    assert not rig.shadows
    work_off(rig)
    rig.shadows.configure({"VTC": settings("VTC")}, {}, rig.scheduler, rig.now)
    flood(rig)
    work_off(rig)
    (shadow,) = rig.shadows
    assert (shadow.off, shadow.scheduler.queued) == (None, 0)
    assert rig.shadows._waiting == 0
    assert rig.report("VTC").compared_total == 8


def test_shadows_know_the_size_of_the_pool_whether_it_comes_before_or_after_them(monkeypatch):
    rig = Rig("FCFS", "DRR")
    known = []
    monkeypatch.setattr(SCHEDULERS["DRR"], "set_pool", lambda _, pool: known.append(pool))
    rig.scheduler.set_pool(10_000)
    rig.tick()
    assert known == [10_000]
    rig.shadows.configure({}, {}, rig.scheduler, rig.now)
    rig.shadows.configure({"DRR": settings("DRR")}, {}, rig.scheduler, rig.now)
    assert known == [10_000, 10_000]


def test_room_that_was_spent_on_somebody_who_left_holds_nobody_up_once_nobody_waits():
    rig = Rig("FCFS", "VTC")
    rig.send("red")
    for _ in range(3):
        rig.send("red")
    blue = rig.send("blue")
    (shadow,) = rig.shadows
    while shadow._mirrors[blue.id].started is None:
        rig.finish(rig.running[0])
    rig.leave(blue)  # the shadow gave it a place that a red one really had
    while rig.waiting:
        rig.finish(rig.running[0])
    assert shadow.scheduler.queued == 0


def test_room_that_nobody_wanted_is_not_saved_up():
    rig = Rig("FCFS")
    rig.shadows.configure({"RPM": RPM.settings_type(requests_per_minute=2)}, {}, rig.scheduler, rig.now)
    for _ in range(6):
        rig.send("red")  # four of these are nothing to the shadow: their room is left over
    work_off(rig)
    rig.tick(100)
    rig.send("red")
    rig.send("red")
    (shadow,) = rig.shadows
    assert shadow.scheduler.queued == rig.scheduler.queued == 1


def test_how_far_answers_are_reaches_a_shadow_that_charges_token_by_token():
    rig = Rig("VTC", "VTC", slots=2, charge_predicted=False)
    chatty, terse = rig.send("red", max_tokens=500), rig.send("blue", max_tokens=500)
    rig.send("red")
    rig.send("blue")
    rig.tick()
    rig.generate(chatty, 400)
    rig.generate(terse, 10)
    (shadow,) = rig.shadows
    rig.finish(terse, 10)
    counters = {share.tenant: share.counter for share in rig.scheduler.shares(rig.now)}
    assert {s.tenant: s.counter for s in shadow.scheduler.shares(rig.now)} == counters
    assert counters["red"] > 800
    assert rig.report("VTC").changed_total == 0


def test_a_shadow_goes_by_the_newest_prediction():
    rig = Rig("FCFS", "VTC", prediction=PredictionSettings(prior_tokens=20))
    rig.send("red", max_tokens=100)
    waiting = rig.send("red", max_tokens=100)
    (shadow,) = rig.shadows
    copy = shadow._mirrors[waiting.id].copy
    assert copy.predicted_tokens == 20
    rig.finish(rig.running[0], 5)
    assert copy.predicted_tokens == waiting.predicted_tokens == 17


@pytest.mark.parametrize("shadowed", ["VTC", "FCFS"])
def test_service_is_counted_as_it_turned_out(shadowed):
    rig = Rig("FCFS", shadowed, slots=2)
    for at in range(6):
        rig.send("red" if at % 3 else "blue", prompt=10 + at, max_tokens=100)
    while rig.running:
        rig.tick()
        rig.finish(rig.running[-1], 7)
    (shadow,) = rig.shadows
    real, here = (
        service.rows(rig.shadows.weight, rig.now) for service in (rig.shadows.service, shadow.service)
    )
    assert real == here
    assert {tenant: row[0] for tenant, row in real.items()} == {
        "blue": 10 + 13 + 2 * 2 * 7,
        "red": 11 + 12 + 14 + 15 + 4 * 2 * 7,
    }
    assert all(demand == pytest.approx(served) for served, demand, _ in here.values())
