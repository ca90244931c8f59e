"""The harness itself: its oracle is right, and it fails an unfair scheduler."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling_harness import Client, UniformScenario, oracle

from equipoise_scheduling.measures import max_min
from equipoise_scheduling.schedulers.fcfs import FCFS
from equipoise_scheduling.schedulers.vtc import VTC

LIGHT_AND_AGGRESSOR = [Client("light", streams=4), Client("aggressor", streams=36)]


def vtc(tenants):
    return VTC(tenants=tenants)


def fcfs(tenants):
    return FCFS(tenants=tenants)


@pytest.mark.parametrize(
    ("demands", "weights", "capacity", "want"),
    [
        ([5, 5], [1, 1], 6, [3, 3]),
        ([1, 9], [1, 1], 6, [1, 5]),
        ([9, 9], [1, 3], 8, [2, 6]),
        ([1, 9, 9], [1, 1, 2], 10, [1, 3, 6]),
        ([1, 2], [1, 1], 10, [1, 2]),
        ([0, 4], [1, 1], 3, [0, 3]),
    ],
)
def test_oracle_gives_the_max_min_shares(demands, weights, capacity, want):
    assert oracle(demands, weights, capacity) == pytest.approx(want)


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 20)), min_size=1, max_size=12),
    st.integers(0, 5000),
)
def test_oracle_and_the_product_share_alike(tenants, capacity):
    demands, weights = [d for d, _ in tenants], [w for _, w in tenants]
    shares = max_min(demands, weights, capacity)
    assert shares == pytest.approx(oracle(demands, weights, capacity), abs=1e-6)
    assert sum(shares) == pytest.approx(min(capacity, sum(demands)), abs=1e-6)


def test_fcfs_lets_the_aggressor_take_over_and_the_harness_says_so():
    scenario = UniformScenario(LIGHT_AND_AGGRESSOR, 8, 60, expected_fair=True, margin=0.05)
    with pytest.raises(AssertionError, match="off by"):
        scenario.run(fcfs)


def test_harness_also_fails_a_fair_scheduler_that_was_expected_to_be_unfair():
    scenario = UniformScenario(LIGHT_AND_AGGRESSOR, 8, 60, expected_fair=False, margin=0.05)
    with pytest.raises(AssertionError, match="off by"):
        scenario.run(vtc)


def test_vtc_shares_equally_where_fcfs_does_not():
    UniformScenario(LIGHT_AND_AGGRESSOR, 8, 60, expected_fair=True, margin=0.05).run(vtc)
    UniformScenario(LIGHT_AND_AGGRESSOR, 8, 60, expected_fair=False, margin=0.05).run(fcfs)
