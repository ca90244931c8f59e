"""The mixture of prediction experts: what it learns, remembers, forgets and says of itself."""

import json
import random
import struct

import pytest
from scheduling_harness import make_request

from equipoise_scheduling.experts import SEEN, Experts, Terciles
from equipoise_scheduling.features import Features, cues_in
from equipoise_scheduling.mixture import MAX_APPLICATIONS, MAX_OWN, MAX_ROWS, Mixture, features_of
from equipoise_scheduling.prediction import MovingAverage, NoPrediction, PredictionSettings
from equipoise_scheduling.prediction_error import ErrorTracker, PredictionError
from equipoise_scheduling.predictors import predictor_for
from equipoise_scheduling.request import Outcome, Usage

BRIEF, LONG = "Summarise this briefly", "Write a long story"


def asking(text, tenant="blue", *, name="r", prompt=100, max_tokens=4096, **fields):
    cues, asked = cues_in(text)
    seen = Features(endpoint="/v1/chat/completions", messages=1, cues=cues, asked_tokens=asked)
    return make_request(name, tenant, prompt=prompt, max_tokens=max_tokens, features=seen, **fields)


def teach(predictor, request, output):
    predictor.learn(request, Usage(request.prompt_tokens, output), Outcome.FINISHED)


def text_load(count, seed=1):
    """Requests whose text says, with noise, how long the answer is: the same tenants send both kinds."""
    rng = random.Random(seed)
    for _ in range(count):
        text, mean = rng.choice([(BRIEF, 40), (LONG, 900)])
        yield asking(text, rng.choice("abc")), max(1, round(mean * rng.lognormvariate(0, 0.4)))


def test_knows_nothing_but_the_prior_at_first():
    predictor = predictor_for(PredictionSettings(kind="Mixture", prior_tokens=300))
    assert predictor.predict(asking(LONG)) == 300
    assert predictor.predict(make_request("r", max_tokens=9)) == 9
    assert predictor.learned == 0


def test_tells_long_answers_from_short_ones_of_the_same_tenant():
    predictor = Mixture()
    for request, output in text_load(300):
        teach(predictor, request, output)
    assert 25 < predictor.predict(asking(BRIEF, "a")) < 100
    assert 600 < predictor.predict(asking(LONG, "a")) < 1400
    assert 600 < predictor.predict(asking(LONG, "never seen")) < 1400


def test_says_that_it_is_nearer_than_the_moving_average_where_texts_tell():
    predictor = Mixture()
    for request, output in text_load(1000):
        teach(predictor, request, output)
    errors = predictor.errors()
    assert set(errors) == {"mixture", "single_expert", "moving_average"}
    assert errors["mixture"].mean_absolute < errors["moving_average"].mean_absolute / 2
    assert abs(errors["mixture"].bias) < 50
    assert {error.requests for error in errors.values()} == {1000}


def test_is_no_worse_than_the_moving_average_where_nothing_tells():
    predictor, rng = Mixture(error_window=10**6), random.Random(3)
    means = {"a": 50, "b": 300, "c": 700}
    for _ in range(1500):
        tenant = rng.choice("abc")
        request = make_request("r", tenant, prompt=rng.randint(1, 2000), max_tokens=4096)
        teach(predictor, request, max(1, round(means[tenant] * rng.lognormvariate(0, 0.6))))
    errors = predictor.errors()
    assert errors["mixture"].mean_absolute <= errors["moving_average"].mean_absolute


def test_follows_a_tenant_whose_answers_change():
    predictor = Mixture()
    for output in (50, 800):
        for _ in range(300):
            teach(predictor, make_request("r", max_tokens=4096), output)
        assert predictor.predict(make_request("r", max_tokens=4096)) == pytest.approx(output, rel=0.15)


def test_tells_a_tenants_applications_apart():
    predictor = Mixture()
    for _ in range(200):
        teach(predictor, make_request("r", application="chat"), 80)
        teach(predictor, make_request("r", application="writer", max_tokens=4096), 900)
    chat = predictor.predict(make_request("r", application="chat", max_tokens=4096))
    writer = predictor.predict(make_request("r", application="writer", max_tokens=4096))
    assert (chat, writer) == (pytest.approx(80, rel=0.3), pytest.approx(900, rel=0.3))


def test_one_outlier_does_not_undo_what_was_learnt():
    predictor = Mixture()
    for _ in range(200):
        teach(predictor, make_request("r", max_tokens=100_000), 60)
    teach(predictor, make_request("r", max_tokens=100_000), 60_000)
    assert predictor.predict(make_request("r", max_tokens=100_000)) < 120


@pytest.mark.parametrize(
    ("outcome", "exact"), [(Outcome.CANCELLED, True), (Outcome.FAILED, True), (Outcome.FINISHED, False)]
)
def test_learns_nothing_from_what_was_cut_short_or_only_estimated(outcome, exact):
    predictor = Mixture()
    before = predictor.snapshot()
    predictor.learn(asking(LONG), Usage(10, 900, exact=exact), outcome)
    assert predictor.snapshot() == before
    assert predictor.learned == 0
    assert predictor.errors()["mixture"].requests == 0


def test_prediction_is_of_one_sequence():
    predictor = Mixture()
    request = make_request("r", sequences=4, max_tokens=4096)
    for _ in range(200):
        teach(predictor, request, 4 * 100)
    assert predictor.predict(request) == pytest.approx(100, rel=0.1)


def test_restored_mixture_goes_on_exactly_as_the_one_it_was_taken_from():
    first, second = Mixture(), Mixture()
    load = list(text_load(400))
    for request, output in load[:200]:
        teach(first, request, output)
    second.restore(json.loads(json.dumps(first.snapshot(), sort_keys=True)))
    for request, output in load[200:]:
        assert first.predict(request) == second.predict(request)
        teach(first, request, output)
        teach(second, request, output)
    assert first.snapshot() == second.snapshot()


def test_snapshot_does_not_change_afterwards():
    predictor = Mixture()
    teach(predictor, asking(BRIEF, application="x"), 30)
    taken = predictor.snapshot()
    kept = json.dumps(taken)
    teach(predictor, asking(BRIEF, application="x"), 90)
    assert json.dumps(taken) == kept


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("outputs", ["many"]),
        ("outputs", [float("nan")]),
        ("shared", [["any", "00" * 63]]),
        ("shared", [["any", "no numbers"]]),
        ("shared", [["any", struct.pack("<8d", *[float("inf")] * 8).hex()]]),
        ("shared", 3),
        ("tenants", [["a", 1.0, []]]),
        ("tenants", [["a", None, [], []]]),
        ("mean", {"a": "many"}),
    ],
)
def test_snapshot_that_cannot_be_read_changes_nothing(part, value):
    predictor = Mixture()
    teach(predictor, asking(BRIEF), 30)
    before = predictor.snapshot()
    with pytest.raises(ValueError, match="predictor"):
        predictor.restore({**before, part: value})
    assert predictor.snapshot() == before


def test_takes_over_what_a_moving_average_learnt_and_the_reverse():
    average = MovingAverage(100)
    teach(average, make_request("r"), 50)
    mixture = Mixture(100)
    mixture.restore(average.snapshot())
    assert mixture.snapshot()["mean"] == average.snapshot()["mean"]
    again = MovingAverage(100)
    again.restore(mixture.snapshot())
    assert again.predict(make_request("r")) == average.predict(make_request("r"))


def test_forgets_a_tenant_wholly():
    predictor = Mixture()
    teach(predictor, asking(BRIEF, "a"), 30)
    shared = predictor.snapshot()["shared"]
    teach(predictor, asking(BRIEF, "b", application="x"), 30)
    predictor.forget("b")
    predictor.forget("stranger")
    data = predictor.snapshot()
    assert [row[0] for row in data["tenants"]] == ["a"]
    assert set(data["mean"]) == {"a"}
    assert len(data["shared"]) >= len(shared)


def test_memory_is_bounded_whatever_a_tenant_invents():
    predictor = Mixture()
    for at in range(3 * MAX_OWN):
        request = make_request(
            "r", application=f"app-{at}", prompt=at * 37, call_index=at + 1, interaction="i"
        )
        teach(predictor, request, 10)
    ((_, _, applications, rows),) = predictor.snapshot()["tenants"]
    assert len(rows) == MAX_OWN
    assert len(applications) == MAX_APPLICATIONS
    assert applications[-1][0] == f"app-{3 * MAX_OWN - 1}"


def test_memory_is_bounded_however_many_tenants_come_and_the_present_one_stays():
    predictor = Mixture()
    for at in range(MAX_ROWS):
        teach(predictor, make_request("r", "regular"), 20)
        teach(predictor, make_request("r", f"t{at}"), 20)
    data = predictor.snapshot()
    names = [row[0] for row in data["tenants"]]
    assert sum(len(row[3]) for row in data["tenants"]) <= MAX_ROWS
    assert set(data["mean"]) == set(names)
    assert "regular" in names
    assert "t0" not in names


def test_output_limit_speaks_only_when_the_client_set_it():
    unset = make_request("r", max_tokens=77, features=Features())
    given = make_request("r", max_tokens=77, features=Features(limit_given=True))
    assert "limit:12" in features_of(given)
    assert "limit" in features_of(unset)
    assert not any(name.startswith("limit") for name in features_of(make_request("r", max_tokens=77)))


def test_classes_are_terciles_of_the_last_outputs():
    terciles = Terciles(prior=100)
    assert [terciles.classify(size) for size in (50, 100, 126)] == [0, 1, 2]
    for output in [5] * SEEN + list(range(1, SEEN + 1)):
        terciles.add(output)
    assert len(terciles.snapshot()) == SEEN
    counts = [0, 0, 0]
    for output in range(1, SEEN + 1):
        counts[terciles.classify(output)] += 1
    assert max(counts) - min(counts) <= 2


def test_router_learns_classes_and_experts_only_from_their_own():
    experts = Experts(100)
    row = [0.0] * 8
    for output in [10, 100, 1000] * 500:
        experts.learn([row], output)
    belief = experts.believe([row])
    assert sum(belief.router) == pytest.approx(1)
    assert belief.router == pytest.approx((1 / 3,) * 3, abs=0.1)
    assert belief.experts == pytest.approx((10, 100, 1000), rel=0.1)
    assert belief.mixture == pytest.approx(370, rel=0.1)
    assert belief.single == pytest.approx(370, rel=0.4)


def test_error_is_the_mean_at_first_and_then_fades():
    tracker = ErrorTracker(window=4)
    assert tracker.error() == PredictionError(0, 0.0, 0.0)
    for predicted, generated in ((10, 20), (40, 20)):
        tracker.add(predicted, generated)
    assert tracker.error() == PredictionError(2, 15.0, 5.0)
    for _ in range(60):
        tracker.add(7, 4)
    assert tracker.error().mean_absolute == pytest.approx(3)
    assert tracker.error().requests == 62


def test_moving_average_says_how_far_it_is_off_and_no_prediction_says_nothing():
    average = MovingAverage(100)
    teach(average, make_request("r", max_tokens=30), 20)
    assert average.errors() == {"moving_average": PredictionError(1, 10.0, 10.0)}
    assert NoPrediction().errors() == {}


def test_many_new_features_at_once_do_not_overshoot():
    experts = Experts(100)
    rows = [[0.0] * 8 for _ in range(40)]
    for _ in range(3):
        experts.learn(rows, 400.0)
        belief = experts.believe(rows)
        assert 100 < belief.single < 2 * 400
        assert 100 < belief.mixture < 2 * 400


def test_of_too_many_features_the_one_unused_for_longest_is_forgotten(monkeypatch):
    monkeypatch.setattr("equipoise_scheduling.mixture.MAX_SHARED", 7)
    predictor = Mixture()

    def learn(messages):
        request = make_request(f"m{messages}", features=Features(endpoint="/e", messages=messages))
        predictor.learn(request, Usage(10, 20), Outcome.FINISHED)

    for messages in (1, 2):  # all other rows are of both
        learn(messages)
    seen = {name for name, _ in predictor.snapshot()["shared"] if name.startswith("messages:")}
    assert seen == {"messages:2"}
    assert "any" in {name for name, _ in predictor.snapshot()["shared"]}
