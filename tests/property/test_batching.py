"""Whatever comes: the gate never blocks an empty engine, is monotone, keeps its sums, and predictions stay finite."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling_harness import make_request

from equipoise_scheduling.batching import BatchingLimits, StepTimeModel
from equipoise_scheduling.gate import Gate, GateSettings

kinds = st.sampled_from(["peak", "prompt", "reserve"])
limits = st.builds(
    BatchingLimits,
    inter_token_seconds=st.none() | st.floats(0.001, 1.0),
    prefill_tokens=st.none() | st.integers(1, 500),
)
gates = st.builds(GateSettings, kind=kinds, headroom_percent=st.just(0.0), batching=limits)
shapes = st.tuples(st.integers(1, 300), st.integers(1, 200), st.integers(1, 3))
intervals = st.tuples(
    st.floats(0.01, 10), st.floats(1, 1000), st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 10**8)
)


def make(name, shape):
    prompt, output, sequences = shape
    return make_request(
        name, prompt=prompt, max_tokens=2 * output, predicted_tokens=output, sequences=sequences
    )


def taught(gate, observations):
    for seconds, steps, prefill, tokens, context in observations:
        gate.batching.model.observe(
            seconds, steps=steps, prefill_tokens=prefill, tokens=tokens, context_tokens=context
        )


@settings(max_examples=200, deadline=None)
@given(
    gates,
    st.lists(intervals, max_size=12),
    st.lists(shapes, min_size=1, max_size=12),
    shapes,
    st.data(),
)
def test_an_empty_engine_takes_anything_and_fewer_or_smaller_requests_always_fit_where_more_did(
    chosen, observations, flying, shape, data
):
    gate = Gate(chosen)
    gate.set_pool(data.draw(st.integers(200, 4000)), 4)
    taught(gate, observations)
    candidate = make("candidate", shape)
    assert gate.fits(candidate, 0.0)
    sent = [make(f"r{at}", each) for at, each in enumerate(flying)]
    for request in sent:
        gate.start(request)
        generated = data.draw(st.integers(0, request.max_output))
        gate.progress(request, request.prompt_tokens, generated)
    fitted = gate.fits(candidate, 0.0)
    if fitted:
        prompt, output, sequences = shape
        assert gate.fits(make("smaller", (max(1, prompt - 5), output, sequences)), 0.0)
    for request in sent:
        gate.finish(request)
        fits = gate.fits(candidate, 0.0)
        assert fits or not fitted
        fitted = fits
    assert fitted
    assert (gate.used, gate.outstanding, gate.reserved, gate.sequences, gate.peak) == (0, 0, 0, 0, 0)
    assert gate.batching.prefill_held == 0


@settings(max_examples=150, deadline=None)
@given(
    kinds, st.lists(st.tuples(st.sampled_from(["start", "progress", "finish", "pool"]), shapes), max_size=40)
)
def test_sums_are_those_of_the_requests_in_flight(kind, events):
    gate, living = Gate(GateSettings(kind=kind)), {}
    gate.set_pool(5000, 16)
    for at, (what, (x, y, n)) in enumerate(events):
        if what == "start":
            living[f"r{at}"] = request = make(f"r{at}", (x, y, n))
            gate.start(request)
        elif what == "pool":
            gate.set_pool(1000 + x, 1 + y % 32)
        elif living:
            name = list(living)[x % len(living)]
            if what == "finish":
                gate.finish(living.pop(name))
            else:
                gate.progress(living[name], x, min(y, living[name].max_output))
    held = list(gate._held.values())
    assert gate.used == sum(each.kv for each in held)
    assert gate.outstanding == sum(each.remaining * each.sequences for each in held)
    assert gate.reserved == sum(each.reserved for each in held)
    assert gate.batching.prefill_held == sum(each.prefill for each in held)
    assert gate.used <= gate.peak + 16 * gate.sequences
    assert 0 <= gate.saturation() <= 1


@settings(max_examples=200, deadline=None)
@given(st.lists(intervals, min_size=1, max_size=60), st.tuples(*[st.floats(0, 10**5)] * 3), st.integers(0, 2))
def test_predictions_are_finite_never_negative_and_rise_with_each_argument(observations, point, axis):
    model = StepTimeModel()
    for seconds, steps, prefill, tokens, context in observations:
        model.observe(seconds, steps=steps, prefill_tokens=prefill, tokens=tokens, context_tokens=context)

    def predict(prefill, sequences, context):
        return model.step_seconds(prefill_tokens=prefill, sequences=sequences, context_tokens=context)

    here = predict(*point)
    there = predict(*(value + (1 if place == axis else 0) for place, value in enumerate(point)))
    if len(observations) < 5:
        assert here is there is None
    else:
        assert math.isfinite(here)
        assert 0 <= here <= there
    cost = model.prefill_seconds(100)
    assert cost is None or (math.isfinite(cost) and cost > 0)
