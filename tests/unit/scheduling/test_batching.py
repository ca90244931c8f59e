"""Adaptive batching: the model of a step beside a model of vLLM, and the two limits."""

from statistics import mean

import pytest
from engine_world import EngineWorld
from scheduling_harness import make_request
from window_world import profile

from equipoise_scheduling.batching import LEAST_OBSERVATIONS, BatchingLimits, StepTimeModel
from equipoise_scheduling.gate import Gate, GateSettings
from equipoise_simulator.engine_model import EngineModel


def gate(**limits):
    return Gate(GateSettings(headroom_percent=0.0, batching=BatchingLimits(**limits)))


def world(made, slots=256, **load):
    return EngineWorld(EngineModel(profile(slots)), made, **load)


def observe(model, *, a0=0.02, a1=0.0, a2=0.001, prefill=0, sequences=10, context=1000, noise=1.0, steps=40):
    seconds = (a0 * steps + a1 * prefill + a2 * sequences * steps) * noise
    model.observe(
        seconds, steps=steps, prefill_tokens=prefill, tokens=sequences * steps, context_tokens=context
    )


def test_the_step_is_learnt_from_what_streams():
    played = world(gate(), slots=48).run(120)
    model, true = played.gate.batching.model, played.engine.profile
    for prefill, sequences, context in ((0, 48, 16_000), (200, 48, 16_000), (0, 30, 9000)):
        predicted = model.step_seconds(prefill_tokens=prefill, sequences=sequences, context_tokens=context)
        assert predicted == pytest.approx(true.step_seconds(prefill, sequences, context), rel=0.12)
    assert model.prefill_seconds(1000) == pytest.approx(true.a1 * 1000, rel=0.25)


def test_the_gates_own_prediction_is_the_mean_step_with_its_prefill():
    played = world(gate(), slots=48).run(60)
    recent = [seconds for begins, seconds, _, _ in played.steps if begins > played.now - 20]
    assert played.gate.step_seconds == pytest.approx(mean(recent), rel=0.15)


@pytest.mark.parametrize("target", [0.06, 0.08, 0.12])
def test_the_batch_grows_until_the_step_reaches_the_target_and_no_further(target):
    played = world(gate(inter_token_seconds=target)).run(150)
    played.gaps.clear()
    played.run(60)
    assert 0.85 * target <= mean(played.gaps) <= 1.05 * target


def test_without_a_target_or_before_anything_is_known_nothing_is_held_back():
    assert world(gate(), slots=64).run(5).gate.sequences == 64
    made = gate(inter_token_seconds=0.001)
    made.start(make_request("a", prompt=10, max_tokens=10))
    assert made.fits(make_request("b", prompt=10, max_tokens=10), 0.0)


def test_an_unreachable_target_leaves_one_request_at_a_time():
    played = world(gate(inter_token_seconds=0.001)).run(60)
    before = played.made
    played.run(10)
    assert played.gate.sequences == 1
    assert played.made > before


def test_a_batch_that_suddenly_costs_more_shrinks():
    played = world(gate(inter_token_seconds=0.08)).run(100)
    before = played.gate.sequences
    slow = played.engine.profile
    played.engine.profile = profile(256, a0=slow.a0 * 1.5, a2=slow.a2 * 2, a3=slow.a3 * 2)
    played.run(200)
    played.gaps.clear()
    played.run(60)
    assert played.gate.sequences < before
    assert mean(played.gaps) <= 0.088


def test_prompts_not_yet_prefilled_are_held_within_the_limit():
    made = gate(prefill_tokens=1000)
    first, second = make_request("a", prompt=700, max_tokens=10), make_request("b", prompt=301, max_tokens=10)
    made.start(first)
    assert not made.fits(second, 0.0)
    assert made.fits(make_request("c", prompt=300, max_tokens=10), 0.0)
    made.progress(first, 700, 1)
    assert made.batching.prefill_held == 0
    assert made.fits(second, 0.0)


def test_a_prompt_larger_than_the_limit_goes_when_no_other_is_prefilled():
    made = gate(prefill_tokens=1000)
    huge, decoding = (
        make_request("h", prompt=5000, max_tokens=10),
        make_request("d", prompt=50, max_tokens=10),
    )
    made.start(decoding)
    assert not made.fits(huge, 0.0)
    made.progress(decoding, 50, 1)
    assert made.fits(huge, 0.0)
    made.start(huge)
    assert not made.fits(make_request("e", prompt=1, max_tokens=1), 0.0)
    made.finish(huge)
    assert made.batching.prefill_held == 0


def test_cached_prompt_tokens_are_not_prefilled():
    made = gate(prefill_tokens=1000)
    made.start(make_request("a", prompt=900, cached_tokens=800, max_tokens=10))
    assert made.batching.prefill_held == 100


def test_stall_free_dispatch_shortens_the_longest_gaps():
    def worst(limit):
        played = world(gate(prefill_tokens=limit), slots=64, prompts=(100, 400)).run(60)
        return sorted(played.gaps)[int(0.99 * len(played.gaps))]

    assert worst(512) < 0.9 * worst(None)


def test_what_the_clock_estimates_says_nothing_of_the_engines_pace():
    made = gate()
    request = make_request("a", prompt=10, max_tokens=10_000)
    made.start(request)
    for second in range(20):
        made.progress(request, 10, 1 + second * 50, estimated=True)
        made.tick(float(second))
    assert made.batching.model.observations == 0
    for second in range(20, 40):
        made.progress(request, 10, 1 + second * 50)
        made.tick(float(second))
    assert made.batching.model.observations > 10
    assert made.step_seconds == pytest.approx(1 / 50, rel=0.05)


def test_an_interval_without_anybody_who_decoded_through_it_teaches_nothing():
    made = gate()
    for second in range(30):
        request = make_request(f"r{second}", prompt=10, max_tokens=100)
        made.start(request)
        made.progress(request, 10, 20)
        made.finish(request)
        made.tick(float(second))
    assert made.batching.model.observations == 0
    assert made.batching.generated == 600


def test_one_wild_interval_moves_the_model_little():
    steady, disturbed = StepTimeModel(), StepTimeModel()
    for at in range(60):
        for model in (steady, disturbed):
            observe(model, sequences=5 + at % 20)
    observe(disturbed, sequences=10, noise=30.0)
    observe(steady, sequences=10)
    want, got = (
        m.step_seconds(prefill_tokens=0, sequences=10, context_tokens=1000) for m in (steady, disturbed)
    )
    assert got == pytest.approx(want, rel=0.1)


def test_an_engine_that_becomes_twice_as_slow_is_known_within_ten_intervals():
    model = StepTimeModel()
    for at in range(200):
        observe(model, sequences=5 + at % 20, noise=1 + 0.02 * (at % 3 - 1))
    for at in range(10):
        observe(model, sequences=5 + at % 20, noise=2 + 0.04 * (at % 3 - 1))
    assert model.step_seconds(prefill_tokens=0, sequences=15, context_tokens=1000) == pytest.approx(
        0.07, rel=0.1
    )


def test_nothing_is_predicted_before_it_was_seen():
    model = StepTimeModel()
    for _ in range(LEAST_OBSERVATIONS):
        assert model.step_seconds(prefill_tokens=0, sequences=1, context_tokens=1) is None
        observe(model)
    assert model.step_seconds(prefill_tokens=0, sequences=10, context_tokens=1000) == pytest.approx(
        0.03, rel=0.2
    )
    assert model.prefill_seconds(100) is None
    with pytest.raises(ValueError, match="steps=0"):
        model.observe(1.0, steps=0, prefill_tokens=0, tokens=0, context_tokens=0)


@pytest.mark.parametrize("limits", [{"inter_token_seconds": 0.0}, {"prefill_tokens": -1}])
def test_limits_out_of_range_are_refused_by_name(limits):
    with pytest.raises(ValueError, match=f"{next(iter(limits))}=.* must be above 0"):
        BatchingLimits(**limits)
