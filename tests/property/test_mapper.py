"""The mapper's predictions are positive and finite, whatever engine it was taught by."""

from math import isfinite

from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise_scheduling.mapper import Load, MetricMapper

tokens = st.integers(0, 2_000_000)
loads = st.builds(Load, st.integers(0, 4_096), tokens, st.integers(0, 100_000_000))
samples = st.lists(
    st.tuples(tokens, tokens, loads, st.floats(0, 1e6), st.none() | st.floats(0, 1)), max_size=80
)


@settings(max_examples=150, deadline=None)
@given(samples, st.lists(st.tuples(tokens, tokens, loads), min_size=1, max_size=10))
def test_predictions_are_positive_and_finite(learnt, asked):
    mapper = MetricMapper()
    for prompt, output, load, latency, utilisation in learnt:
        mapper.learn(prompt, output, load, latency=latency, utilisation=utilisation)
    for prompt, output, load in asked:
        metrics = mapper.predict(prompt, output, load)
        assert isfinite(metrics.latency)
        assert metrics.latency > 0
        assert isfinite(metrics.tokens_per_second)
        assert metrics.tokens_per_second >= 0
        assert 0 <= metrics.utilisation <= 1
    other = MetricMapper()
    other.restore(mapper.snapshot())
    assert [other.predict(*each) for each in asked] == [mapper.predict(*each) for each in asked]
