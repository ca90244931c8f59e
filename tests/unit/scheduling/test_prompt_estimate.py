"""Prompt estimates: what they say of nothing, what they learn, and of whom."""

import json
import random

import pytest

from equipoise_scheduling.prompt_estimate import ENOUGH, LINES, PromptEstimator

KEY = ("llama", "blue", "chat")


def learned(ratio=0.25, *, key=KEY, count=100, noise=0.0, estimator=None):
    estimator, rng = estimator or PromptEstimator(), random.Random(1)
    for _ in range(count):
        text = rng.randint(200, 4000)
        estimator.learn(key, text, 0, round(text * ratio * rng.uniform(1 - noise, 1 + noise)))
    return estimator


def test_prior_is_a_token_in_three_bytes_and_half_as_many_again_for_the_gate():
    estimate = PromptEstimator().estimate(*KEY, text_bytes=300)
    assert (estimate.tokens, estimate.upper) == (100, 150)


def test_token_ids_are_counted():
    estimate = PromptEstimator().estimate(*KEY, text_bytes=0, counted=77)
    assert (estimate.tokens, estimate.upper) == (77, 77)
    mixed = learned().estimate(*KEY, text_bytes=400, counted=50)
    assert mixed.tokens == pytest.approx(150, abs=1)


def test_ratio_is_learnt_and_the_upper_quantile_covers_the_noise():
    estimator, rng = learned(noise=0.3), random.Random(2)
    assert estimator.estimate(*KEY, text_bytes=4000).tokens == pytest.approx(1000, rel=0.05)
    covered = 0
    for _ in range(1000):
        text = rng.randint(200, 4000)
        covered += text * 0.25 * rng.uniform(0.7, 1.3) <= estimator.estimate(*KEY, text_bytes=text).upper
    assert 880 <= covered <= 1000


def test_exact_ratio_needs_no_margin():
    estimate = learned().estimate(*KEY, text_bytes=4000)
    assert estimate.upper <= 1.02 * estimate.tokens


def test_a_templates_tokens_are_told_from_the_texts_and_need_no_margin():
    """Short chats among long ones, each with 20 tokens of template: one ratio for both would be off many times."""
    estimator, rng = PromptEstimator(), random.Random(3)
    for _ in range(200):
        text = rng.choice((4, 8, 40, 400, 3000))
        estimator.learn(KEY, text, 0, 20 + round(text * 0.25))
    for text in (4, 100, 3000):
        estimate = estimator.estimate(*KEY, text_bytes=text)
        assert estimate.tokens == pytest.approx(20 + text * 0.25, abs=2)
        assert estimate.upper <= 1.15 * (20 + text * 0.25)


def test_an_overhead_is_never_more_than_the_shortest_prompt():
    """Long texts of few tokens beside short ones of many: no line, and short prompts must not be called long."""
    estimator, rng = PromptEstimator(), random.Random(4)
    for _ in range(200):
        text = rng.randint(10, 4000)
        estimator.learn(KEY, text, 0, rng.randint(8, 60) if text < 1000 else 500)
    assert estimator._lines.get(("blue", "chat", "llama")).overhead <= 60
    assert estimator.estimate(*KEY, text_bytes=10).tokens <= 60


def test_new_tenant_of_a_known_model_starts_from_the_model():
    estimator = learned(ratio=0.5)
    assert estimator.estimate("llama", "red", "", text_bytes=1000).tokens == pytest.approx(500, rel=0.02)
    assert estimator.estimate("qwen", "red", "", text_bytes=1000).tokens == 333


def test_tenants_own_text_counts_once_there_is_enough_of_it():
    estimator = learned(ratio=0.25, count=200)
    other = ("llama", "red", "")
    for count in range(ENOUGH):
        assert estimator.estimate(*other, text_bytes=1000).tokens < 500, count
        estimator.learn(other, 1000, 0, 600)
    assert estimator.estimate(*other, text_bytes=1000).tokens == 600


def test_change_of_text_is_followed():
    estimator = learned(ratio=0.25, count=200)
    learned(ratio=0.6, count=200, estimator=estimator)
    assert estimator.estimate(*KEY, text_bytes=1000).tokens == pytest.approx(600, rel=0.05)


def test_what_has_no_text_or_makes_no_sense_teaches_nothing():
    estimator = PromptEstimator()
    estimator.learn(KEY, 0, 10, 10)
    estimator.learn(KEY, 100, 50, 40)
    assert len(estimator._lines) == 0


def test_no_more_lines_are_remembered_than_there_is_room_for_and_the_models_are_among_them():
    estimator = PromptEstimator()
    for at in range(LINES + 500):
        estimator.learn(("llama", f"t{at}", ""), 100, 0, 30)
    assert len(estimator._lines) == LINES
    for _ in range(ENOUGH):
        estimator.learn(("llama", "t0", ""), 100, 0, 30)
    assert estimator.estimate("llama", "nobody", "", text_bytes=100).tokens == 30


def test_snapshot_survives_json():
    estimator = learned(noise=0.2)
    fresh = PromptEstimator()
    fresh.restore(json.loads(json.dumps(estimator.snapshot())))
    assert fresh.estimate(*KEY, text_bytes=1234) == estimator.estimate(*KEY, text_bytes=1234)
    assert fresh.snapshot() == estimator.snapshot()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"version": 1, "lines": []},
        {"version": 2},
        {"version": 2, "lines": [[1]]},
        {"version": 2, "lines": [["llama"]]},
        {"version": 2, "lines": 3},
    ],
)
def test_snapshot_that_cannot_be_read_is_refused(data):
    with pytest.raises(ValueError, match="snapshot of prompt estimates"):
        PromptEstimator().restore(data)
