"""A snapshot that another version, a broken disk or anybody wrote: read, or refused whole; never half, never a time bomb."""

import copy
import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_scheduling.features import Features
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.prompt_estimate import PromptEstimator
from equipoise_scheduling.registry import SCHEDULERS, create
from equipoise_scheduling.request import Outcome, Request, Usage

POISON = [None, -1, 10**400, 1e308, -5.5, float("nan"), float("inf"), "x", True, [], [[]], {}, {"a": None}]
KINDS = ["Mixture", "MovingAverage", "None"]


def make(algorithm, kind):
    prediction = PredictionSettings(kind=kind)
    return create(algorithm, SCHEDULERS[algorithm].settings_type(prediction=prediction), {})


def use(scheduler, count=8):
    """Serve some requests of two tenants, leave a few queued and in flight, look at everything."""
    now = 0.0
    for at in range(count):
        request = Request(
            id=str(at),
            tenant="ab"[at % 2],
            arrival=now,
            prompt_tokens=50,
            max_tokens=64,
            user=f"user-{at % 3}",
            application=f"application-{at % 2}",
            interaction=f"run-{at % 4}",
            call_index=1 + at // 4,
            ttft_budget=1.0,
            e2e_budget=5.0,
            features=Features(endpoint="/v1/completions", messages=1),
        )
        assert scheduler.enqueue(request, now) is None
    for at in range(count - 3):
        request = scheduler.next(now, lambda _: True)
        scheduler.progress(request, 50, 5, now + 0.1)
        if at < count - 5:
            scheduler.settle(request, Usage(50, 20), Outcome.FINISHED, now + 0.5)
        now += 0.5
        scheduler.tick(now)
    scheduler.shares(now)
    scheduler.bound(now)
    scheduler.tick(now + 200)
    return json.loads(json.dumps(scheduler.snapshot(), allow_nan=False))


@cache
def snapshot(algorithm, kind):
    return use(make(algorithm, kind))


def spoilt(draw, data):
    """Put something else at one place of a copy of `data`, or leave it out."""
    data = copy.deepcopy(data)
    at = data
    while True:
        places = list(at) if isinstance(at, dict) else list(range(len(at)))
        place = draw(st.sampled_from(places))
        if not (isinstance(at[place], dict | list) and at[place]) or draw(st.integers(0, 3)) == 0:
            break
        at = at[place]
    if draw(st.integers(0, 5)) == 0:
        del at[place]
    else:
        at[place] = draw(st.sampled_from(POISON))
    return data


def check(algorithm, kind, data):
    scheduler = make(algorithm, kind)
    fresh = json.dumps(scheduler.snapshot())
    try:
        scheduler.restore(data)
    except ValueError:
        assert json.dumps(scheduler.snapshot()) == fresh, "half of it stayed"
    use(scheduler)


@settings(deadline=None)
@given(data=st.data(), algorithm=st.sampled_from(sorted(SCHEDULERS)), kind=st.sampled_from(KINDS))
def test_a_spoilt_snapshot_is_refused_whole_or_does_no_harm(data, algorithm, kind):
    check(algorithm, kind, spoilt(data.draw, snapshot(algorithm, kind)))


@pytest.mark.parametrize(
    ("algorithm", "part", "name", "value"),
    [
        ("RoundRobin", "state", "served", [None, 0]),
        ("DRR", "state", "active", [[]]),
        ("VTC", "state", "last_left", []),
        ("VTC", "state", "counters", {"a": 10**400}),
        ("LCF", "predictor", "mean", {"a": float("nan")}),
        ("ExFairS", "state", "elapsed", 10**400),
        ("Equipoise", "state", "typical", 1e308),
        ("Equipoise", "predictor", "tenants", [["a", -1, [], []]]),
        ("Equinox", "state", "counters", {"a": [10**400, 0]}),
        ("VTC", "history", "a", float("inf")),
    ],
)
def test_a_figure_that_cannot_be_is_refused(algorithm, part, name, value):
    data = copy.deepcopy(
        snapshot(algorithm, "Mixture" if part == "predictor" and name != "mean" else "MovingAverage")
    )
    data[part][name] = value
    kind = data["prediction"]
    with pytest.raises(ValueError, match="snapshot"):
        make(algorithm, kind).restore(data)
    check(algorithm, kind, data)


@pytest.mark.parametrize("before", sorted(SCHEDULERS))
@pytest.mark.parametrize("after", sorted(SCHEDULERS))
def test_a_snapshot_is_read_by_every_algorithm_with_fields_that_none_knows(before, after):
    data = copy.deepcopy(snapshot(before, "MovingAverage"))
    data["from the future"] = data["state"]["from the future"] = {"a": [1]}
    scheduler = make(after, "Mixture")
    scheduler.restore(data)
    use(scheduler)


def test_a_snapshot_of_another_version_is_refused():
    for version in (0, 2, "1", None):
        with pytest.raises(ValueError, match="version"):
            make("VTC", "None").restore(snapshot("VTC", "None") | {"version": version})


@settings(deadline=None)
@given(data=st.data())
def test_spoilt_prompt_estimates_are_refused_or_do_no_harm(data):
    estimator = PromptEstimator()
    for at in range(20):
        estimator.learn(("m", "a", "app"), 100 + 10 * at, 0, 40 + 3 * at)
    spoiled = spoilt(data.draw, json.loads(json.dumps(estimator.snapshot())))
    again = PromptEstimator()
    try:
        again.restore(spoiled)
    except ValueError:
        assert again.snapshot()["lines"] == []
    for at in range(20):
        assert again.estimate("m", "a", "app", 100).tokens >= 0
        again.learn(("m", "a", "app"), 100 + 10 * at, 0, 40 + 3 * at)
    json.dumps(again.snapshot(), allow_nan=False)
