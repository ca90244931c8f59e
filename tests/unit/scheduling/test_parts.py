"""The small parts: queue, choice, counters, windows, cost, prediction, request."""

import random

import pytest
from scheduling_harness import make_request

from equipoise_scheduling.choice import LeastKey
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.cost import LinearCost
from equipoise_scheduling.counters import SCALE, Account, Charge, units
from equipoise_scheduling.prediction import MovingAverage, NoPrediction, PredictionSettings
from equipoise_scheduling.predictors import predictor_for
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.service_window import ServiceWindow
from equipoise_scheduling.tenant_queue import FifoQueue


def numbered(*numbers):
    requests = []
    for number in numbers:
        request = make_request(f"r{number}")
        request.number = number
        requests.append(request)
    return requests


# -- queue


def test_queue_is_in_order_of_arrival_number_whatever_the_order_of_pushes():
    queue = FifoQueue()
    for request in numbered(3, 1, 2):
        queue.push(request, 10.0)
    taken = []
    while len(queue):
        taken.append(queue.head().number)
        queue.remove(queue.head())
    assert taken == [1, 2, 3]
    assert queue.expected_cost == 0
    with pytest.raises(IndexError):
        queue.head()


def test_queue_loses_requests_anywhere_and_does_not_hoard_them():
    queue, requests = FifoQueue(), numbered(*range(1000))
    for request in requests:
        queue.push(request, 1.0)
    for request in requests[1:990]:
        queue.remove(request)
    assert queue.head() is requests[0]
    assert queue.expected_cost == len(queue) == 11
    assert len(queue._heap) <= 2 * len(queue) + 17
    queue.remove(requests[0])
    assert queue.head() is requests[990]
    with pytest.raises(KeyError):
        queue.remove(requests[0])


def test_queue_has_one_entry_of_a_request_that_comes_and_goes():
    queue, requests = FifoQueue(), numbered(*range(100))
    for request in requests:
        queue.push(request, 1.0)
    for _ in range(50):
        for request in requests[1:]:
            queue.remove(request)
            queue.push(request, 1.0)
    assert len(queue._heap) == 100
    assert [taken(queue) for _ in range(100)] == requests


def taken(queue):
    head = queue.head()
    queue.remove(head)
    return head


# -- choice


def test_least_key_agrees_with_sorting_while_keys_rise_and_fall():
    rng = random.Random(3)
    keys = {f"t{at}": (0, at) for at in range(40)}
    choice = LeastKey(keys.__getitem__)
    members = set()
    for _ in range(5_000):
        name = rng.choice(list(keys))
        what = rng.random()
        if what < 0.3:
            choice.add(name)
            members.add(name)
        elif what < 0.4:
            choice.discard(name)
            members.discard(name)
        elif what < 0.8:
            keys[name] = (keys[name][0] + rng.randrange(9), keys[name][1])
        else:
            keys[name] = (keys[name][0] - rng.randrange(9), keys[name][1])
            if name in members:
                choice.add(name)
        assert choice.least() == min(members, key=keys.__getitem__, default=None)
        assert len(choice) == len(members)
        assert len(choice._heap) <= 2 * len(keys) + 65


def test_least_key_holds_no_more_than_it_must():
    value = 0
    choice = LeastKey(lambda _: (value,))
    for value in range(0, -10_000, -1):  # noqa: B007 - the key reads it
        choice.add("a")
    assert choice.least() == "a"
    assert len(choice._heap) < 100


# -- counters


def test_settling_to_zero_is_exact_for_any_weight():
    rng = random.Random(5)
    account = Account()
    account.add(units(12345.678, 3))
    before, charges = account.value, []
    for _ in range(200):
        charge = Charge()
        account.settle(charge, units(rng.random() * 999, 0.7))
        account.settle(charge, units(rng.random() * 999, 0.7))
        charges.append(charge)
    rng.shuffle(charges)
    for charge in charges:
        account.settle(charge, 0)
    assert account.value == before


def test_counter_never_falls_below_its_floor_and_lift_sets_it():
    account, early, late = Account(), Charge(), Charge()
    account.settle(early, 100)
    account.lift(60)
    account.settle(late, 30)
    assert (account.value, account.floor) == (130, 90)
    assert account.settle(early, 0)
    assert account.value == 90
    assert account.settle(late, 10)
    assert (account.value, account.floor) == (70, 70)


def test_charge_made_after_a_lift_is_given_back_in_full_even_of_an_older_request():
    account, charge = Account(), Charge()
    account.settle(charge, 100)
    account.lift(500)
    account.settle(charge, 150)
    assert account.value == 550
    account.settle(charge, 120)
    assert account.value == 520
    account.settle(charge, 0)
    assert account.value == 500


def test_what_was_given_back_of_a_charge_from_before_a_lift_is_not_given_back_again():
    account, charge = Account(), Charge()
    account.settle(charge, 100)
    account.lift(40)
    for _ in range(2):  # a corrected estimate, and the end
        account.settle(charge, 70)
        assert account.value == 70


def test_units_are_fine_enough_for_large_weights():
    assert units(1, 10_000) / SCALE == pytest.approx(1 / 10_000, rel=0.01)


# -- service window


def test_window_forgets_and_total_does_not():
    window = ServiceWindow(60.0)
    window.deliver(0.0, 10, 4, 0, 10.0)
    window.deliver(30.0, 0, 0, 5, 10.0)
    window.dispatch(30.0)
    assert window.window(59.0) == window.total
    at_80 = window.window(80.0)
    assert (at_80.prompt, at_80.cached, at_80.generated, at_80.cost) == (0, 0, 5, 10.0)
    assert window.dispatches(80.0) == 1
    assert window.window(200.0).cost == 0
    assert window.span(200.0) == 0
    assert window.total.cost == 20


def test_window_memory_is_bounded_and_rounding_does_not_outlive_it():
    window = ServiceWindow(60.0)
    for at in range(10_000):
        window.deliver(at * 0.1, 0, 0, 1, 0.1)
    assert len(window._buckets) <= 14
    assert window.window(1000.0).cost == pytest.approx(60, rel=0.1)
    assert window.window(5000.0).cost == 0.0


# -- cost, prediction, request


def test_linear_cost_prices_cached_tokens_apart():
    assert LinearCost()(100, 40, 10) == 120
    assert LinearCost(cached=0.1)(100, 40, 10) == pytest.approx(84)
    assert LinearCost(input=2, output=3)(100, 40, 10) == 230


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"input": -1}, "cost.input=-1"),
        ({"output": float("nan")}, "cost.output=nan"),
        ({"cached": float("inf")}, "cost.cached=inf"),
        ({"input": 0, "output": 0}, "nothing would cost anything"),
    ],
)
def test_cost_that_makes_no_sense_is_refused_by_name(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        LinearCost(**fields)


def test_moving_average_follows_each_tenant_from_the_prior():
    predictor = MovingAverage(prior=100)
    request = make_request("r", "a", max_tokens=1000)
    predictor.learn(request, Usage(1, 200), Outcome.FINISHED)
    assert predictor.predict(request) == (4 * 100 + 200) // 5
    assert predictor.predict(make_request("s", "b", max_tokens=1000)) == 100
    assert predictor.predict(make_request("s", "b", max_tokens=7)) == 7
    assert predictor.learned == 1
    predictor.forget("a")
    assert predictor.predict(request) == 100


@pytest.mark.parametrize(
    ("usage", "outcome"),
    [
        (Usage(1, 1, exact=False), Outcome.FINISHED),
        (Usage(1, 1), Outcome.CANCELLED),
        (Usage(1, 1), Outcome.FAILED),
    ],
)
def test_cut_short_or_estimated_requests_teach_nothing(usage, outcome):
    predictor = MovingAverage(prior=100)
    predictor.learn(make_request("r", "a"), usage, outcome)
    assert predictor.learned == 0


def test_predictors_by_name():
    assert isinstance(predictor_for(PredictionSettings(kind="None")), NoPrediction)
    assert predictor_for(PredictionSettings(prior_tokens=7)).predict(make_request("r")) == 7
    with pytest.raises(ValueError, match="prior_tokens=0"):
        PredictionSettings(prior_tokens=0)


@pytest.mark.parametrize("fields", [{"prompt": -1}, {"max_tokens": -1}, {"sequences": 0}, {"prompts": 0}])
def test_impossible_requests_are_refused_by_field(fields):
    with pytest.raises(ValueError, match=r"request r: \w+=-?\d must be at least"):
        make_request("r", **fields)


def test_request_rounds_its_estimates_to_what_can_be():
    request = make_request("r", prompt=10, prompt_upper=3, cached_tokens=99, prompts=4, sequences=2)
    assert (request.prompt_upper, request.cached_tokens, request.sequences) == (10, 10, 4)
    assert (request.max_output, request.predicted_output) == (400, 0)


@pytest.mark.parametrize("fields", [(-1, 0, 0), (0, -1, 0), (5, 0, 6), (5, 0, -1)])
def test_impossible_usage_is_refused(fields):
    with pytest.raises(ValueError, match="counts must not be negative"):
        Usage(*fields)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"weight": 0}, "weight=0 must be a positive number"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"max_in_flight": 0}, "max_in_flight=0 must be at least 1"),
        ({"max_queued": -3}, "max_queued=-3 must be at least 1"),
    ],
)
def test_impossible_tenant_settings_are_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        TenantSettings(**fields)
