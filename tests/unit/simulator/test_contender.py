"""Contenders by name: what a name means, and what is said of one that means nothing."""

import pytest

from equipoise_scheduling.prediction import MovingAverage, NoPrediction
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_simulator.contender import Contender
from equipoise_simulator.oracle import Constant, Noisy, Oracle
from equipoise_simulator.workload import Call, Workload

LOAD = Workload(
    name="test",
    calls=tuple(
        Call(id=str(n), tenant=f"t{n % 3}", arrival=n, prompt_tokens=10, output_tokens=100 + n)
        for n in range(50)
    ),
    seconds=50,
    weights={"t1": 2.5},
)


def scheduler(name, seed=0):
    return Contender.parse(name).scheduler(LOAD, seed)


@pytest.mark.parametrize("algorithm", sorted(SCHEDULERS))
def test_every_registered_scheduler_has_its_name_in_any_case(algorithm):
    assert scheduler(algorithm.upper()).algorithm == algorithm
    assert scheduler(algorithm.lower()).algorithm == algorithm


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("VTC:none", NoPrediction),
        ("vtc:Average", MovingAverage),
        ("VTC:oracle", Oracle),
        ("VTC:noisy", Noisy),
        ("VTC:100", Constant),
    ],
)
def test_the_predictor_stands_after_a_colon(name, kind):
    assert type(scheduler(name).books.predictor) is kind


def test_an_oracle_knows_and_a_noisy_one_is_off_by_at_most_half():
    lengths = {str(n): 1000 for n in range(500)}
    requests = [call_request(name) for name in lengths]
    assert {Oracle(lengths).predict(request) for request in requests} == {1000}
    guesses = [Noisy(lengths, seed=3).predict(request) for request in requests]
    assert 500 <= min(guesses) < 550
    assert 1450 < max(guesses) <= 1500
    assert abs(sum(guesses) / 500 - 1000) < 50
    assert guesses == [Noisy(lengths, seed=3).predict(request) for request in requests]


def call_request(name, max_tokens=2000):
    from equipoise_scheduling.request import Request

    return Request(id=name, tenant="t", arrival=0, prompt_tokens=1, max_tokens=max_tokens)


def test_predictions_stay_within_the_clients_limit():
    assert Oracle({"a": 500}).predict(call_request("a", 100)) == 100
    assert Constant(500).predict(call_request("a", 100)) == 100


def test_parameters_are_the_policys_fields_or_a_part_of_their_name():
    assert Contender.parse("RPM:limit=5").algorithm.rpm.requests_per_minute == 5
    assert Contender.parse("rpm:requestsPerMinute=6").algorithm.rpm.requests_per_minute == 6
    assert Contender.parse("DRR:quantum=700").algorithm.drr.quantum_tokens == 700
    assert Contender.parse("VTC:charge=OnDelivery").algorithm.vtc.charge == "OnDelivery"
    ours = Contender.parse("Equipoise:oracle:band=2000:stretch=7")
    assert (ours.algorithm.equipoise.band_tokens, ours.algorithm.equipoise.stretch) == (2000, 7)
    assert ours.foresight == "oracle"
    assert ours.label == "Equipoise:oracle:band=2000:stretch=7"
    assert Contender.parse("ExFairS:round_seconds=50").algorithm.ex_fair_s.round_seconds == 50


def test_overload_limits_go_with_any_type():
    contender = Contender.parse("FCFS:userLimit=50:applicationLimit=2000")
    assert contender.overload.user_requests_per_minute == 50
    assert contender.overload.application_requests_per_minute == 2000
    settings = contender.scheduler(LOAD, 0).books.settings
    assert (settings.overload.user_per_minute, settings.overload.application_per_minute) == (50, 2000)


def test_weights_come_from_the_workload():
    tenants = {share.tenant: share.weight for share in started(scheduler("VTC")).shares(0)}
    assert tenants == {"t0": 1.0, "t1": 2.5}


def started(made):
    for name in ("t0", "t1"):
        request = call_request(name)
        request.tenant = name
        made.enqueue(request, 0.0)
    return made


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("SJF", "scheduler 'SJF' is unknown: use one of FCFS, "),
        (
            "VTC:clairvoyant",
            "'clairvoyant' is neither a predictor .none, average, mixture, oracle, noisy, a number",
        ),
        ("VTC:band=3", "'band' is none of VTC's parameters: charge"),
        ("FCFS:limit=3", "FCFS has no parameters"),
        ("RPM:limit=0", "requestsPerMinute='0'"),
        ("RPM:limit=many", "requestsPerMinute='many'"),
        ("VTC:userLimit=0", "userRequestsPerMinute='0'"),
        ("Equipoise:s=1", "'s' is none of Equipoise's parameters"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_what_there_is(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        Contender.parse(name)
