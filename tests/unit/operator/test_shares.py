"""Figures added up over sidecars, and rounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise_api.latency import bucket
from equipoise_operator import shares


def tenant(name, service=0.0, demand=None, **more):
    return {"id": name, "service": service, "demand": service if demand is None else demand, **more}


def histogram(*seconds):
    counts = {}
    for each in seconds:
        counts[bucket(each)] = counts.get(bucket(each), 0) + 1
    return {"counts": counts}


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (0, 0),
        (0.4, 0),
        (7, 7),
        (99, 99),
        (100, 100),
        (104, 100),
        (105.1, 110),
        (1234, 1200),
        (98_765, 99_000),
        (999_999, 1_000_000),
    ],
)
def test_two_digits_are_kept(value, want):
    assert shares.rounded(value) == want


@given(st.floats(0, 1e12))
def test_rounding_is_at_most_five_percent_off_and_rounding_again_changes_nothing(value):
    once = shares.rounded(value)
    assert abs(once - value) <= max(0.5, 0.05 * value)
    assert shares.rounded(once) == once


def test_service_is_added_up_over_sidecars_and_shared_by_weight(make):
    states = [
        make.state(tenants=[tenant("a", 300, 1000), tenant("b", 100, 1000)]),
        make.state(tenants=[tenant("a", 300, 1000), tenant("b", 100, 1000)]),
    ]
    rows = shares.Rows(states, {"a": 1, "b": 1}.get)
    assert rows["a"].share.actual_percent == 75
    assert rows["a"].share.entitled_percent == 50
    assert rows["b"].share.actual_percent == 25
    assert rows["b"].share.demand_percent == 250


def test_weights_decide_what_the_contending_are_entitled_to(make):
    rows = shares.Rows(
        [make.state(tenants=[tenant("a", 50, 999), tenant("b", 50, 999)])], {"a": 1, "b": 3}.get
    )
    assert (rows["a"].share.entitled_percent, rows["b"].share.entitled_percent) == (25, 75)


def test_who_asks_for_little_leaves_the_rest_to_the_others(make):
    rows = shares.Rows([make.state(tenants=[tenant("a", 10, 10), tenant("b", 90, 500)])], {}.get)
    assert (rows["a"].share.entitled_percent, rows["b"].share.entitled_percent) == (10, 90)


def test_nothing_delivered_means_no_shares(make):
    rows = shares.Rows([make.state(tenants=[tenant("a", 0, 50, queued=3)])], {}.get)
    assert rows["a"].share.actual_percent is None
    assert rows["a"].usage.queued == 3


def test_tokens_are_given_a_minute_whatever_the_window(make):
    states = [
        make.state(
            windowSeconds=30, tenants=[tenant("a", promptTokens=50, generatedTokens=10, cachedTokens=5)]
        ),
        make.state(windowSeconds=60, tenants=[tenant("a", promptTokens=100, generatedTokens=20)]),
    ]
    usage = shares.Rows(states, {}.get)["a"].usage
    assert (usage.prompt_tokens_per_minute, usage.generated_tokens_per_minute) == (200, 40)
    assert (usage.tokens_per_minute, usage.cached_tokens_per_minute) == (240, 10)


def test_refusals_are_added_up_by_reason_and_the_most_frequent_kept(make):
    many = {f"r{n:02}": n for n in range(1, 21)}
    usage = shares.Rows([make.state(tenants=[tenant("a", rejected=many)])] * 2, {}.get)["a"].usage
    assert len(usage.rejected) == 16
    assert [(each.reason, each.per_minute) for each in usage.rejected][-1] == ("r20", 40)
    assert "r01" not in {each.reason for each in usage.rejected}


def test_latencies_are_merged_before_the_quantile_is_taken(make):
    states = [
        make.state(tenants=[tenant("a", ttft=histogram(*[0.1] * 98))]),
        make.state(tenants=[tenant("a", ttft=histogram(2.0, 2.0), sloKept=9, sloTotal=10)]),
    ]
    latency = shares.Rows(states, {}.get)["a"].latency
    assert latency.ttft_p50_milliseconds == pytest.approx(100, rel=0.06)
    assert latency.ttft_p99_milliseconds == pytest.approx(2000, rel=0.06)
    assert latency.wait_p99_milliseconds is None
    assert latency.slo_attainment_percent == 90


def test_jain_counts_the_contending_alone(make):
    states = [
        make.state(
            tenants=[tenant("a", 100, 500), tenant("b", 100, 500), tenant("idle", 1, 1), tenant("c", 9, 9)]
        )
    ]
    assert shares.fairness(states, {"a": 1, "b": 1}.get).jain_permille == 1000
    assert shares.fairness(states, {"a": 1, "b": 4}.get).jain_permille == 735
    assert shares.fairness([make.state(tenants=[tenant("idle", 1, 1)])], {}.get).jain_permille is None


def test_gap_and_bound_are_those_of_the_sidecar_closest_to_its_bound(make):
    states = [
        make.state(fairness={"bounded": True, "bound": 1000.0, "largestGap": 500.0}),
        make.state(fairness={"bounded": True, "bound": 100.0, "largestGap": 90.0}),
        make.state(),
    ]
    fairness = shares.fairness(states, {}.get)
    assert (fairness.largest_gap, fairness.bound) == (90, 100)


def test_load_is_summed_and_saturation_averaged(make):
    states = [
        make.state(load={"queued": 3, "running": 8, "saturation": 1.0}, engine={"kvUsage": 0.5}),
        make.state(load={"queued": 4, "running": 2, "saturation": 0.2}),
    ]
    load = shares.load(states)
    assert (load.queued, load.running, load.saturation_percent, load.kv_percent) == (7, 10, 60, 50)
    assert shares.load([]).saturation_percent is None


percents = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=8)


@given(percents)
def test_shares_of_everybody_add_up(make, services):
    tenants = [tenant(f"t{i}", service, service + more) for i, (service, more) in enumerate(services)]
    rows = shares.Rows([make.state(tenants=tenants)], {}.get)
    actual = [row.share.actual_percent for row in rows.values()]
    if actual[0] is not None:
        assert abs(sum(actual) - 100) <= len(actual) / 2
        assert abs(sum(row.share.entitled_percent for row in rows.values()) - 100) <= len(actual) / 2


def shadowed(**figures):
    return {
        "algorithm": "VTC",
        "compared": 10,
        "wait": histogram(1.0),
        "waitEnforced": histogram(4.0),
        **figures,
    }


def test_what_a_shadow_would_have_changed_is_added_up_over_sidecars(make):
    states = [
        make.state(
            shadow=[
                shadowed(earlier=8, later=2, refused=3, waitChangeSeconds=-1.0, jain=0.9, jainEnforced=0.5)
            ]
        ),
        make.state(shadow=[shadowed(compared=30, later=30, waitChangeSeconds=1.0, jain=0.5)]),
        make.state(),
    ]
    (status,) = shares.shadow(states)
    assert (status.type, status.decisions, status.refused) == ("VTC", 40, 3)
    assert (status.earlier_percent, status.later_percent) == (20, 80)
    assert status.wait_change_milliseconds == 500
    assert status.wait_p90_milliseconds == pytest.approx(1000, rel=0.06)
    assert status.enforced_wait_p90_milliseconds == pytest.approx(4000, rel=0.06)
    assert (status.jain_permille, status.enforced_jain_permille) == (600, 500)
    assert status.reason is None


def test_a_shorter_wait_is_a_change_below_zero_and_nothing_compared_says_nothing(make):
    (status,) = shares.shadow([make.state(shadow=[shadowed(waitChangeSeconds=-2.0)])])
    assert status.wait_change_milliseconds == -2000
    (status,) = shares.shadow([make.state(shadow=[{"algorithm": "VTC"}])])
    assert (status.decisions, status.earlier_percent, status.wait_change_milliseconds) == (0, None, None)


def test_a_shadow_that_was_switched_off_anywhere_says_why(make):
    states = [
        make.state(shadow=[shadowed()]),
        make.state(shadow=[shadowed(off="RuntimeError: oh" + "!" * 500)]),
    ]
    (status,) = shares.shadow(states)
    assert status.reason.startswith("RuntimeError: oh")
    assert len(status.reason) == 256


def test_algorithms_that_only_a_newer_sidecar_knows_are_left_out(make):
    assert shares.shadow([make.state(shadow=[shadowed(algorithm="FairestOfAll")])]) == []
