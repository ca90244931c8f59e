"""GPU time and energy: whatever happens, what tenants, nobody and the waiting have is what was spent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise_sidecar.gpu_ledger import GpuLedger, Spent

TENANTS = ["a", "b", "c"]
amounts = st.floats(0, 1e6, allow_nan=False)
steps = st.lists(
    st.tuples(
        amounts,
        amounts,
        st.dictionaries(st.sampled_from(TENANTS), st.floats(-100, 1e9, allow_nan=False), max_size=3),
        st.booleans(),
        st.floats(0.1, 100),
    ),
    max_size=30,
)


@given(steps)
def test_nothing_is_lost_and_nothing_made_up(story):
    ledger, now, service = GpuLedger(), 0.0, {}
    spent_seconds = spent_joules = 0.0
    for seconds, joules, more, busy, pause in story:
        now += pause
        # Corrections downwards and tenants that are forgotten are part of it.
        service = {
            tenant: max(0.0, service.get(tenant, 0.0) + change) for tenant, change in more.items()
        } or service
        ledger.share_out(Spent(seconds, joules), service, busy=busy, now=now)
        spent_seconds += seconds
        spent_joules += joules
        totals = dict(ledger.totals())
        parts = [*totals.values(), ledger.nobody, ledger.waiting]
        assert sum(part.seconds for part in parts) == pytest.approx(spent_seconds, rel=1e-9, abs=1e-6)
        assert sum(part.joules for part in parts) == pytest.approx(spent_joules, rel=1e-9, abs=1e-6)
        assert ledger.total.seconds == pytest.approx(spent_seconds)
        assert all(part.seconds >= 0 and part.joules >= 0 for part in parts)
        assert all(
            ledger.window(tenant, now).seconds <= total.seconds * (1 + 1e-9)
            for tenant, total in totals.items()
        )


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=3), st.floats(1, 1e3))
def test_parts_are_as_the_service(service, seconds):
    ledger = GpuLedger()
    names = TENANTS[: len(service)]
    ledger.share_out(Spent(), dict.fromkeys(names, 0.0), busy=True, now=0)
    ledger.share_out(Spent(seconds, 0), dict(zip(names, service, strict=True)), busy=True, now=1)
    for name, amount in zip(names, service, strict=True):
        assert ledger.of(name).seconds == pytest.approx(seconds * amount / sum(service))
