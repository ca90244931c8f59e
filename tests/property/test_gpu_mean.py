"""The mean utilisation over a request's life against a second-by-second account of which reading held when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise_api.gpu import Gpu
from equipoise_sidecar.dcgm import Reading
from equipoise_sidecar.gpu import GpuTelemetry

STALE = 7
events = st.lists(
    st.tuples(
        st.integers(1, 20),
        st.one_of(st.none(), st.floats(0, 1, allow_nan=False)),
    ),
    min_size=1,
    max_size=20,
)


def reading(utilisation, number):
    """A reading that differs from the one before."""
    return Reading(
        devices=1,
        utilisation=utilisation,
        least_utilisation=utilisation,
        busy_devices=utilisation,
        power_watts=1.0 + number,
    )


@given(events, st.integers(0, 100), st.integers(0, 100))
def test_each_second_counts_with_the_reading_that_held(story, first, length):
    """A story is pauses, each followed by a reading, or by a try that gave nothing."""
    gpu = GpuTelemetry()
    gpu.configure(Gpu(dcgm="Endpoint", endpoint="http://x/metrics", stale_seconds=STALE), 0)
    at, when = 0, {}
    for number, (pause, utilisation) in enumerate(story):
        at += pause
        if utilisation is not None:
            when[at] = reading(utilisation, number)
    last = first + length
    mark, held, since, known = None, None, None, []
    for second in range(last + 1):
        if second == first:
            mark = gpu.mark(second)
        if second in when:
            gpu.observe(when[second], {}, busy=True, now=second)
            held, since = when[second].utilisation, second
        if first <= second < last and held is not None and second < since + STALE:
            known.append(held)
    mean = gpu.mean_since(mark, last)
    if known:
        assert mean == pytest.approx(sum(known) / len(known), rel=1e-9, abs=1e-12)
    elif held is not None and last <= since + STALE:
        assert mean == held
    else:
        assert mean is None
