"""Measures of a replay by hand."""

import math

import pytest

from equipoise_demo.outcome import Outcome, measure


def outcome(tenant, arrival, first, tokens, *, every=1.0, prompt=10, error=None):
    """A request that gets one token each `every` seconds from `first` on."""
    times = [] if first is None else [(first + n * every, 1) for n in range(tokens)]
    end = times[-1][0] if times else None
    return Outcome(tenant, arrival, prompt, tokens, first_token=first, end=end, tokens=times, error=error)


def test_service_counts_while_the_trace_lasts_and_demand_from_arrival():
    result = measure("FCFS", [outcome("a", 0.0, 2.0, 200)], 100.0, 3.0)
    (row,) = result.tenants
    assert row.demand == (10 + 2 * 200) / 100
    assert row.entitled == 3.0
    assert row.service == (10 + 2 * 98) / 100  # tokens at 2, 3, ..., 99 s
    assert result.tokens_per_second == (10 + 98) / 100
    assert (row.ttft.p50, result.ttft.p99) == (2.0, 2.0)


def test_equal_service_has_no_difference_and_a_starved_tenant_all_of_it():
    equal = [outcome(tenant, 0.0, 1.0, 119) for tenant in "ab"]
    assert measure("VTC", equal, 120.0, 2.0).difference.max == pytest.approx(0.0, abs=1e-9)
    starved = [outcome("a", 0.0, 1.0, 119), outcome("b", 0.0, None, 119)]
    result = measure("FCFS", starved, 120.0, 2.0)
    assert result.difference.max > 0
    assert result.jain == pytest.approx(0.5, abs=0.01)


def test_jains_index_is_of_service_over_entitlement():
    """The light tenant gets all it asks for, the heavy ones all of what is left: each has all of its own."""
    fair = [*(outcome(tenant, 0.0, 0.0, 100, prompt=10) for tenant in "ab"), outcome("c", 0.0, 0.0, 10)]
    result = measure("VTC", fair, 100.0, 4.5)
    assert {row.tenant: row.entitled for row in result.tenants} == {"a": 2.1, "b": 2.1, "c": 0.3}
    assert result.jain == pytest.approx(1.0, abs=1e-3)
    starved = [fair[0], fair[1], outcome("c", 0.0, 99.0, 10)]
    assert measure("FCFS", starved, 100.0, 4.5).jain == pytest.approx(2.4**2 / (3 * 2.16))


def test_who_asks_for_no_more_than_an_equal_share_is_within_it():
    """b asks for 0.5 of a capacity of 2 and is entitled to all of it; a and c share the rest."""
    requests = [outcome("a", 0.0, 9.0, 95), outcome("b", 0.0, 1.0, 20), outcome("c", 0.0, 8.0, 95)]
    result = measure("VTC", requests, 100.0, 2.0)
    assert {row.tenant: row.entitled for row in result.tenants} == {"a": 0.75, "b": 0.5, "c": 0.75}
    assert result.ttft.p50 == 8.0


def test_failures_are_counted_and_have_no_latency():
    result = measure("FCFS", [outcome("a", 0.0, None, 5, error="cut"), outcome("a", 1.0, 2.0, 5)], 60.0, 1.0)
    assert (result.finished, result.failed, result.tenants[0].failed) == (1, 1, 1)
    assert result.tenants[0].ttft.p99 == 1.0


def test_the_waits_of_interactive_requests_are_told_apart():
    requests = [outcome("a", 0.0, 9.0, 95), outcome("a", 0.0, 1.0, 20)]
    requests[1].interactive = True
    result = measure("VTC", requests, 100.0, 2.0)
    assert result.ttft_interactive.p99 == 1.0
    assert result.ttft.p99 == pytest.approx(9.0, abs=0.1)


def test_nothing_at_all_makes_no_report_of_numbers():
    assert math.isnan(measure("FCFS", [outcome("a", 0.0, None, 1, error="x")], 60.0, 1.0).ttft.p50)
