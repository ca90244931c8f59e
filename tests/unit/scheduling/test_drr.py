"""DRR: turns worth a quantum, debts paid first."""

import pytest
from scheduling_harness import drain, finish, make_request

from equipoise_api.policy import Algorithm, Cost, DrrParameters, Prediction, Queue
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.counters import SCALE
from equipoise_scheduling.registry import create, reconfigured, scheduler_settings
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.schedulers.drr import DRR, DRRSettings


def drr(quantum=100, **tenants):
    return DRR(DRRSettings(quantum=quantum), {name: TenantSettings(weight=w) for name, w in tenants.items()})


def fill(scheduler, pattern, prompt=60, now=0.0):
    requests = [
        make_request(f"{tenant}{at}-{now:g}", tenant, arrival=now, prompt=prompt)
        for at, tenant in enumerate(pattern)
    ]
    for request in requests:
        assert scheduler.enqueue(request, now) is None
    return requests


def deficit(scheduler, name):
    return scheduler._deficits[name] / SCALE


def test_tenant_is_served_while_its_deficit_is_above_zero_and_then_goes_to_the_tail():
    scheduler = drr()
    fill(scheduler, "aaaabbbb")
    # a: 100, 40, -20; b likewise; then each gets a quantum more: 80, 20, -40.
    assert [request.tenant for request in drain(scheduler)] == list("aabbaabb")
    assert (deficit(scheduler, "a"), deficit(scheduler, "b")) == (-40, -40)


def test_debt_is_paid_turn_by_turn_before_anything_is_admitted():
    scheduler = drr()
    flying = fill(scheduler, "a")
    drain(scheduler)
    scheduler.progress(flying[0], 60, 130, 1.0)
    assert deficit(scheduler, "a") == 100 - 60 - 260
    fill(scheduler, "a" + "b" * 6, now=1.0)
    order = [request.tenant for request in drain(scheduler, 1.0)]
    # a had its quantum of this turn and needs three more; meanwhile b is at 100, 40, -20; 80, 20, -40; 60, 0
    assert order == list("bbbbbab")


def test_misfit_keeps_the_turn_and_gives_no_second_quantum():
    scheduler = drr()
    first, *_ = fill(scheduler, "aab")
    assert scheduler.next(0.0, lambda _: True) is first
    assert scheduler.next(0.0, lambda _: False) is None
    assert deficit(scheduler, "a") == 40
    scheduler.progress(first, 60, 25, 1.0)
    assert deficit(scheduler, "a") == -10
    assert scheduler.next(1.0, lambda _: True).tenant == "b"


def test_misfit_asks_for_one_head_and_changes_nothing_the_second_time():
    scheduler = drr()
    fill(scheduler, "ab")
    asked = []
    for _ in range(3):
        assert scheduler.next(0.0, lambda request: asked.append(request.id)) is None
    assert asked == ["a0-0"] * 3
    assert deficit(scheduler, "a") == 100


def test_deficit_survives_an_idle_time_and_is_no_more_than_a_quantum():
    scheduler = drr()
    finish(scheduler, fill(scheduler, "a", prompt=10) and drain(scheduler), 0)
    assert deficit(scheduler, "a") == 90
    for at in range(1, 20):
        finish(scheduler, fill(scheduler, "b", prompt=10, now=float(at)) and drain(scheduler, float(at)), 0)
    assert deficit(scheduler, "a") == 90
    fill(scheduler, "aab", now=20.0)
    assert [request.tenant for request in drain(scheduler, 20.0)][:2] == ["b", "a"]


def test_weights_divide_the_charge():
    scheduler = drr(a=1, b=4)
    fill(scheduler, "a" * 3 + "b" * 12, prompt=100)
    order = [request.tenant for request in drain(scheduler)]
    assert order[:10] == list("abbbbabbbb")


def test_quantum_is_a_twentieth_of_the_pool_once_that_is_known():
    scheduler = DRR()
    assert scheduler.quantum == 500
    scheduler.set_pool(64_000)
    assert scheduler.quantum == 3200
    scheduler.reconfigure(DRRSettings(quantum=70), {}, 0.0)
    assert scheduler.quantum == 70


def test_change_of_algorithm_hands_the_pool_over():
    def settings(kind):
        return scheduler_settings(Algorithm(type=kind), Cost(), Prediction(), Queue())

    scheduler = create("VTC", settings("VTC"), {})
    scheduler.set_pool(20_000)
    assert reconfigured(scheduler, "DRR", settings("DRR"), {}, 0.0).quantum == 1000


def test_request_put_back_is_first_again_although_its_tenant_had_had_its_turn():
    scheduler = drr()
    fill(scheduler, "aabb", prompt=150)
    back = scheduler.next(0.0, lambda _: True)
    other = scheduler.next(0.0, lambda _: True)
    assert (back.tenant, other.tenant) == ("a", "b")
    scheduler.requeue(back, 0.0)
    assert deficit(scheduler, "a") == 100
    assert scheduler.next(0.0, lambda _: True) is back


def test_overestimated_prompt_is_given_back():
    scheduler = drr()
    (request,) = fill(scheduler, "a", prompt=500)
    drain(scheduler)
    assert deficit(scheduler, "a") == -400
    scheduler.settle(request, Usage(20, 3), Outcome.FINISHED, 1.0)
    assert deficit(scheduler, "a") == 100 - 20 - 6


def test_snapshot_takes_what_is_in_flight_as_delivered_and_no_more():
    scheduler = drr()
    (request,) = fill(scheduler, "a")
    drain(scheduler)
    assert scheduler.snapshot()["state"]["deficits"] == {"a": 100 * SCALE}
    scheduler.progress(request, 60, 5, 1.0)
    assert scheduler.snapshot()["state"]["deficits"] == {"a": 30 * SCALE}


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ({"deficits": {"a": 0.5}, "active": [], "turn": 0}, "state.deficits must map tenants to integers"),
        ({"deficits": {}, "active": ["a"], "turn": 0}, "state.active must be a list of names in"),
        ({"deficits": {}, "active": [], "turn": None}, "state.turn must be an integer"),
    ],
)
def test_state_that_makes_no_sense_is_refused_by_name(state, complaint):
    scheduler = drr()
    with pytest.raises(ValueError, match=complaint):
        scheduler.restore({**scheduler.snapshot(), "state": state})


def test_quantum_comes_from_the_policy_and_must_be_positive():
    settings = scheduler_settings(
        Algorithm(type="DRR", drr=DrrParameters(quantum_tokens=77)), Cost(), Prediction(), Queue()
    )
    assert settings.quantum == 77
    with pytest.raises(ValueError, match="quantum=0 must be at least 1"):
        DRRSettings(quantum=0)


def test_debt_of_an_idle_tenant_is_paid_by_the_turns_of_others_and_not_forgiven():
    scheduler = drr()
    flying = fill(scheduler, "a")
    drain(scheduler)
    scheduler.settle(flying[0], Usage(60, 130), Outcome.FINISHED, 1.0)
    assert deficit(scheduler, "a") == 100 - 60 - 260
    fill(scheduler, "b" * 4, now=1.0)
    drain(scheduler, 1.0)
    assert deficit(scheduler, "a") == -220 + 100
    fill(scheduler, "b" * 4, now=2.0)
    drain(scheduler, 2.0)
    assert deficit(scheduler, "a") == 80
