"""What holds of the mixture whatever is asked of it: limits, determinism, exact restoring, bounded memory."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_scheduling.features import MAX_ASKED, Cue, Features, cues_in
from equipoise_scheduling.mixture import MAX_OWN, MAX_SHARED, Mixture
from equipoise_scheduling.request import Outcome, Request, Usage

features = st.none() | st.builds(
    Features,
    endpoint=st.sampled_from(["", "/v1/completions", "/v1/chat/completions"]),
    limit_given=st.booleans(),
    messages=st.integers(0, 500),
    last_characters=st.integers(0, 10**7),
    stops=st.integers(0, 4),
    temperature=st.none() | st.floats(0, 2),
    tools=st.integers(0, 50),
    structured=st.booleans(),
    cues=st.integers(0, (1 << len(Cue)) - 1),
    asked_tokens=st.integers(0, MAX_ASKED),
)
requests = st.builds(
    Request,
    id=st.just("r"),
    tenant=st.sampled_from(["a", "b", "c"]),
    arrival=st.just(0.0),
    prompt_tokens=st.integers(0, 200_000),
    max_tokens=st.integers(1, 200_000),
    sequences=st.integers(1, 8),
    prompts=st.integers(1, 8),
    application=st.sampled_from(["", "x", "y"]),
    interaction=st.sampled_from(["", "i"]),
    call_index=st.integers(1, 50),
    features=features,
)
lessons = st.lists(st.tuples(requests, st.integers(0, 1_600_000)), max_size=60)


def teach(predictor, lesson):
    request, generated = lesson
    predictor.learn(request, Usage(request.prompt_tokens, generated), Outcome.FINISHED)


@settings(max_examples=60, deadline=None)
@given(lessons, requests)
def test_prediction_lies_between_one_token_and_the_limit(learnt, asked):
    predictor = Mixture()
    for lesson in learnt:
        assert 1 <= predictor.predict(lesson[0]) <= lesson[0].max_tokens
        teach(predictor, lesson)
    assert 1 <= predictor.predict(asked) <= asked.max_tokens


@settings(max_examples=60, deadline=None)
@given(lessons, lessons)
def test_same_lessons_give_the_same_predictions_across_a_snapshot_too(before, after):
    first, second, third = Mixture(), Mixture(), Mixture()
    for lesson in before:
        teach(first, lesson)
        teach(second, lesson)
    third.restore(json.loads(json.dumps(first.snapshot())))
    for lesson in after:
        assert first.predict(lesson[0]) == second.predict(lesson[0]) == third.predict(lesson[0])
        for predictor in (first, second, third):
            teach(predictor, lesson)
    assert first.snapshot() == second.snapshot() == third.snapshot()


@settings(max_examples=30, deadline=None)
@given(lessons)
def test_memory_is_bounded_and_its_count_is_right_after_a_restore(learnt):
    predictor = Mixture()
    for lesson in learnt:
        teach(predictor, lesson)
    data = predictor.snapshot()
    assert len(data["shared"]) <= MAX_SHARED
    assert all(len(rows) <= MAX_OWN for _, _, _, rows in data["tenants"])
    for tenant in ("a", "b", "c"):
        predictor.forget(tenant)
    assert predictor.snapshot()["tenants"] == []
    assert predictor._own == 0


@given(st.text(max_size=2_000))
def test_any_text_has_cues_within_their_range(text):
    cues, asked = cues_in(text)
    assert 0 <= cues < 1 << len(Cue)
    assert 0 <= asked <= MAX_ASKED
