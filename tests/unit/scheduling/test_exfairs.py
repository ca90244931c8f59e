"""ExFairS: rounds, SAFI, lent priority, and the list that it acts on."""

import json

import pytest
from scheduling_harness import drain, finish, make_request

from equipoise_api.policy import Algorithm, Cost, ExFairSParameters, Prediction, Queue
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.history import carry_over
from equipoise_scheduling.registry import scheduler_settings
from equipoise_scheduling.request import Outcome
from equipoise_scheduling.schedulers.exfairs import ExFairS, ExFairSSettings, Experience
from equipoise_scheduling.schedulers.fcfs import FCFS


def exfairs(**settings):
    return ExFairS(ExFairSSettings(**settings))


def with_priorities(scheduler, **priorities):
    for name, priority in priorities.items():
        scheduler._experiences[name] = Experience(priority)
    return scheduler


def fill(scheduler, pattern, now=0.0, **fields):
    requests = [
        make_request(f"{tenant}{at}-{now:g}", tenant, arrival=now, **fields)
        for at, tenant in enumerate(pattern)
    ]
    for request in requests:
        assert scheduler.enqueue(request, now) is None
    return requests


def serve(scheduler, tenant, *, kept=0, missed=0, now=0.0, generated=10):
    requests = fill(scheduler, [tenant] * (kept + missed), now, e2e_budget=20.0)
    drain(scheduler, now)
    finish(scheduler, requests[:kept], generated, now + 10)
    finish(scheduler, requests[kept:], generated, now + 25)


def tenants_of(requests):
    return "".join(request.tenant for request in requests)


# -- rounds


def test_safi_weighs_missed_slos_and_the_share_of_service():
    scheduler = exfairs()
    serve(scheduler, "a", kept=1, missed=3, generated=45)  # 4 * (10 + 2 * 45) = 400
    serve(scheduler, "b", kept=2, generated=20)  # 2 * (10 + 2 * 20) = 100
    assert scheduler.safi() == {
        "a": pytest.approx(0.7 * 0.75 + 0.3 * 0.8),
        "b": pytest.approx(0.7 * 0 + 0.3 * 0.2),
    }


def test_happiest_and_saddest_exchange_ten_times_their_gap_and_so_on_inwards():
    scheduler = exfairs()
    scheduler._experiences = {name: Experience() for name in "abcde"}
    scheduler._exchange({"a": 0.9, "b": 0.0, "c": 0.32, "d": 0.6, "e": 0.5})
    assert {name: scheduler.priority_of(name) for name in "abcde"} == {
        "a": -5,
        "b": 5,  # int(10 * min(0.9, 0.5))
        "c": 2,
        "d": -2,  # int(10 * 0.28)
        "e": 0,
    }


def test_exchange_stops_at_the_first_pair_within_a_tenth():
    scheduler = exfairs()
    scheduler._experiences = {name: Experience() for name in "abcd"}
    scheduler._exchange({"a": 0.0, "b": 0.15, "c": 0.25, "d": 0.3})
    assert [scheduler.priority_of(name) for name in "abcd"] == [3, 0, 0, -3]


def test_priorities_stop_at_their_limit_and_always_sum_to_nothing():
    scheduler = exfairs(priority_limit=7)
    scheduler._experiences = {name: Experience() for name in "abc"}
    for safi in [{"a": 0.0, "b": 0.9}, {"a": 0.0, "b": 0.9}, {"c": 0.0, "b": 0.9}, {"c": 0.0, "a": 0.9}]:
        scheduler._exchange(safi)
        assert sum(scheduler.priority_of(name) for name in "abc") == 0
        assert all(abs(scheduler.priority_of(name)) <= 7 for name in "abc")
    assert [scheduler.priority_of(name) for name in "abc"] == [2, -7, 5]


def test_round_ends_after_its_length_and_counts_anew():
    scheduler = exfairs()
    scheduler.tick(0.0)
    serve(scheduler, "a", missed=1)
    serve(scheduler, "b", kept=1)
    scheduler.tick(99.9)
    assert (scheduler.priority_of("a"), scheduler.priority_of("b")) == (0, 0)
    scheduler.tick(100.0)
    assert (scheduler.priority_of("a"), scheduler.priority_of("b")) == (-5, 5)
    assert scheduler.safi() == {}
    scheduler.tick(350.0)
    assert (scheduler.priority_of("a"), scheduler.priority_of("b")) == (-5, 5)


def test_tenant_that_waits_beyond_its_slo_suffers_before_anything_of_it_has_ended():
    scheduler = exfairs()
    scheduler.tick(0.0)
    serve(scheduler, "b", kept=4)
    (waiting,) = fill(scheduler, "a", e2e_budget=20.0)
    scheduler.tick(100.0)
    assert scheduler.priority_of("a") < 0
    drain(scheduler, 101.0)
    finish(scheduler, [waiting], 5, 102.0)
    assert scheduler._experiences["a"].judged == 0, "judged in the round before"


def test_tenants_without_slo_never_miss_and_idle_ones_exchange_nothing():
    scheduler = exfairs()
    scheduler.tick(0.0)
    serve(scheduler, "idle", kept=1)
    scheduler.tick(100.0)
    requests = fill(scheduler, "aabb", now=101.0)
    drain(scheduler, 101.0)
    finish(scheduler, requests, 10, 180.0)
    assert scheduler.safi() == {"a": pytest.approx(0.15), "b": pytest.approx(0.15)}
    scheduler.tick(200.0)
    assert [scheduler.priority_of(name) for name in ("a", "b", "idle")] == [0, 0, 0]


# -- the list


def test_best_priority_passes_all_worse_ones_and_none_of_its_equals():
    scheduler = with_priorities(exfairs(), a=5, b=-5)
    fill(scheduler, "aaabb")
    assert tenants_of(drain(scheduler)) == "bbaaa"


def test_middling_priority_moves_by_its_rank():
    scheduler = with_priorities(exfairs(), best=-5, middle=0, worst=5)
    fill(scheduler, ["worst"] * 5 + ["middle"])
    # over = 5, rho = 0 of the two distinct: passes 5
    assert drain(scheduler, most=1)[0].tenant == "middle"
    scheduler = with_priorities(exfairs(), best=-5, middle=0, low=4, worst=5)
    fill(scheduler, ["worst"] * 3, now=0.0)
    fill(scheduler, ["best"], now=1.0)
    for tenant in ("worst", "worst", "low"):
        fill(scheduler, [tenant], now=2.0 + len(scheduler.books.waiting))
    # low: over = 5, rank 1 of best, low, worst: rho = 1/2, so 2 * int(2.5) = 4 of the 5
    order = [request.tenant for request in drain(scheduler)]
    assert order == ["best", "worst", "low", "worst", "worst", "worst", "worst"]


def test_request_that_was_overtaken_often_enough_is_passed_no_more():
    scheduler = with_priorities(exfairs(overtakes=3), a=5, b=-5)
    fill(scheduler, "abbbbb")
    assert tenants_of(drain(scheduler)) == "bbbabb"


def test_tenants_own_requests_keep_their_order_although_its_priority_rose():
    scheduler = with_priorities(exfairs(), a=5, b=-5)
    first = fill(scheduler, "aa")
    scheduler._experiences["a"].priority = -20
    second = fill(scheduler, "aa", now=1.0)
    assert drain(scheduler) == first + second


def test_held_tenants_are_passed_over_and_keep_their_place():
    scheduler = with_priorities(exfairs(), a=-5, b=5)
    scheduler.reconfigure(ExFairSSettings(), {"a": TenantSettings(max_in_flight=1)}, 0.0)
    requests = fill(scheduler, "aabb")
    assert tenants_of(drain(scheduler)) == "abb"
    finish(scheduler, [requests[0]], 1)
    assert drain(scheduler) == [requests[1]]


def test_request_put_back_stands_before_those_it_stood_before_and_behind_the_others():
    scheduler = with_priorities(exfairs(), a=5, b=-5)
    a1, a2, a3 = fill(scheduler, "aaa")
    back = [scheduler.next(0.0, lambda _: True) for _ in range(2)]
    (b,) = fill(scheduler, "b", now=1.0)
    for request in back:
        scheduler.requeue(request, 1.0)
    assert scheduler._list.order() == [request.id for request in (a1, a2, b, a3)]


def test_change_from_fcfs_keeps_the_queue_in_order_and_puts_flights_back_in_front():
    old = FCFS()
    requests = fill(old, "abab")
    flying = drain(old, most=2)
    scheduler = carry_over(old, exfairs(), 0.0)
    assert scheduler._list.order() == [request.id for request in requests[2:]]
    for request in reversed(flying):
        scheduler.requeue(request, 0.0)
    assert drain(scheduler) == requests


# -- restart, reconfiguration, the policy


def test_snapshot_keeps_priorities_counts_and_how_far_the_round_had_come():
    scheduler = with_priorities(exfairs(), a=-3, b=3)
    scheduler.tick(1000.0)
    serve(scheduler, "a", kept=1, missed=1, now=1010.0)
    serve(scheduler, "b", kept=1, now=1010.0)
    safi = scheduler.safi()
    scheduler.tick(1060.0)
    data = json.loads(json.dumps(scheduler.snapshot()))
    restored = exfairs()
    restored.restore(data)
    assert restored.safi() == pytest.approx(safi)
    restored.tick(5.0)
    restored.tick(44.0)
    assert restored.priority_of("a") == -3
    restored.tick(45.0)
    assert (restored.priority_of("a"), restored.priority_of("b")) == (-3 - 4, 3 + 4)


@pytest.mark.parametrize(
    "state",
    [
        {"elapsed": "long", "tenants": {}},
        {"elapsed": 1.0, "tenants": []},
        {"elapsed": 1.0, "tenants": {"a": {"priority": 1}}},
        {"elapsed": 1.0, "tenants": {"a": 5}},
    ],
)
def test_state_that_makes_no_sense_is_refused_by_name(state):
    scheduler = exfairs()
    with pytest.raises(ValueError, match=r"snapshot: state\.(elapsed|tenants)"):
        scheduler.restore({**scheduler.snapshot(), "state": state})


def test_lower_limit_cuts_priorities_that_exceed_it():
    scheduler = with_priorities(exfairs(), a=-40, b=40)
    scheduler.reconfigure(ExFairSSettings(priority_limit=10), {}, 0.0)
    assert (scheduler.priority_of("a"), scheduler.priority_of("b")) == (-10, 10)


def test_forgotten_stranger_keeps_what_it_lent_or_borrowed():
    scheduler = with_priorities(exfairs(), lender=4, borrower=-4, even=0)
    for name in ("lender", "borrower", "even"):
        serve(scheduler, name, kept=1)
    for now in (200.0, 301.0):
        scheduler.tick(now)
    assert scheduler.books.tenants == {}
    assert scheduler._experiences == {"lender": Experience(4), "borrower": Experience(-4)}


def test_cancelled_early_says_nothing_of_the_slo_and_leaves_nothing_behind():
    scheduler = exfairs()
    first, second = fill(scheduler, "aa", e2e_budget=20.0)
    scheduler.cancel(first, 1.0)
    scheduler.cancel(second, 30.0, Outcome.EXPIRED)
    assert (scheduler._experiences["a"].judged, scheduler._experiences["a"].missed) == (1, 1)
    assert len(scheduler._list) == 0
    assert scheduler._places == {}


def test_parameters_come_from_the_policy():
    parameters = ExFairSParameters(round_seconds=30, violation_percent=50, overtakes=9, priority_limit=12)
    settings = scheduler_settings(
        Algorithm(type="ExFairS", ex_fair_s=parameters), Cost(), Prediction(), Queue()
    )
    assert (settings.round_seconds, settings.violation_share) == (30.0, 0.5)
    assert (settings.overtakes, settings.priority_limit) == (9, 12)


@pytest.mark.parametrize(
    ("field", "value"),
    [("round_seconds", 0.0), ("violation_share", 1.5), ("overtakes", 0), ("priority_limit", 1001)],
)
def test_wrong_parameters_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        ExFairSSettings(**{field: value})
