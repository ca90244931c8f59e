"""Parsing, digests, conditions and latency histograms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise_api.conditions import Condition, transition
from equipoise_api.latency import GROWTH, LatencyHistogram, bucket, merged, middle
from equipoise_api.policy import LabelSelector
from equipoise_api.sidecar_config import SidecarConfig, TenantConfig
from equipoise_api.tenant import TenantSpec


def test_unknown_fields_are_dropped_so_that_versions_understand_each_other():
    assert TenantSpec.model_validate({"weight": 2, "fromTheFuture": 1}).weight == 2


def test_the_strict_reading_names_unknown_fields():
    with pytest.raises(ValueError, match=r"unknown fields: limits.maxQueud"):
        TenantSpec.strictly({"limits": {"maxQueud": 3}})


def test_equal_configurations_have_equal_revisions():
    tenants = [TenantConfig(id="a/b", weight=2)]
    first = SidecarConfig(mode="Enforce", tenants=tenants)
    again = SidecarConfig.model_validate_json(first.model_dump_json(by_alias=True))
    assert first.revision == again.revision
    assert SidecarConfig(mode="Enforce").revision != first.revision


def condition(status, at, reason="Because"):
    return Condition(type="Ready", status=status, last_transition_time=at, reason=reason)


def test_last_transition_time_moves_on_a_flip_only():
    old = [condition("True", "2026-01-01T00:00:00Z")]
    same = transition(old, [condition("True", "2026-01-02T00:00:00Z", "Other")])
    flipped = transition(old, [condition("False", "2026-01-02T00:00:00Z")])
    assert same[0].last_transition_time == "2026-01-01T00:00:00Z"
    assert same[0].reason == "Other"
    assert flipped[0].last_transition_time == "2026-01-02T00:00:00Z"


@given(st.floats(min_value=1.001e-4, max_value=1e5))
def test_a_duration_reads_back_within_a_bucket(seconds):
    assert middle(bucket(seconds)) == pytest.approx(seconds, rel=GROWTH - 1)


@given(
    st.lists(st.floats(min_value=1e-3, max_value=1e4), min_size=1, max_size=60),
    st.floats(min_value=0, max_value=1),
)
def test_a_quantile_of_merged_halves_is_that_of_the_whole(seconds, q):
    def histogram(values):
        counts = {}
        for value in values:
            counts[bucket(value)] = counts.get(bucket(value), 0) + 1
        return LatencyHistogram(counts=counts)

    half = len(seconds) // 2
    whole = histogram(seconds)
    assert merged([histogram(seconds[:half]), histogram(seconds[half:])]) == whole
    exact = sorted(seconds)[max(1, math.ceil(q * len(seconds))) - 1]
    assert whole.quantile(q) == pytest.approx(exact, rel=GROWTH - 1)


def test_no_observation_has_no_quantile():
    assert LatencyHistogram().quantile(0.5) is None


@pytest.mark.parametrize(
    ("operator", "values", "want"),
    [
        ("In", ["x"], True),
        ("In", ["y"], False),
        ("NotIn", ["x"], False),
        ("NotIn", ["y"], True),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ],
)
def test_label_terms(operator, values, want):
    selector = LabelSelector.model_validate(
        {"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}
    )
    assert selector.matches({"a": "x"}) is want
