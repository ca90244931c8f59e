"""The measures, against values worked out by hand."""

import math

import pytest

from equipoise_scheduling.measures import (
    ServiceSeries,
    SpreadSeries,
    accumulated_difference,
    attainment,
    isolation,
    jain,
    jain_of_entitlement,
    jain_over_time,
    quantile,
    service_difference,
    summary,
)


def series(deliveries=(), demands=()):
    made = ServiceSeries()
    for time, cost in deliveries:
        made.deliver(time, cost)
    for time, cost in demands:
        made.demand(time, cost)
    return made


@pytest.mark.parametrize(
    ("values", "want"),
    [([1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([1, 2], 0.9), ([], 1.0), ([0, 0], 1.0), ([3e9, 3e9], 1.0)],
)
def test_jain(values, want):
    assert jain(values) == pytest.approx(want)


@pytest.mark.parametrize(("q", "want"), [(0.0, 1), (0.5, 2.5), (1.0, 4), (0.9, 3.7), (1 / 3, 2)])
def test_quantile_interpolates(q, want):
    assert quantile([4, 1, 3, 2], q) == pytest.approx(want)


def test_summary_of_nothing_is_not_a_number():
    assert all(math.isnan(v) for v in (summary([]).mean, summary([]).p99, quantile([], 0.5)))
    assert summary([2.0, 4.0]).mean == 3.0


def test_service_is_counted_within_the_interval_closed_at_its_start():
    made = series([(1.0, 10), (2.0, 20), (2.0, 5), (3.0, 40)], [(1.5, 100)])
    assert made.received(1.0, 3.0) == 35
    assert made.received(2.0, 3.1) == 65
    assert made.received(5.0, 9.0) == made.received(3.0, 1.0) == 0
    assert made.demanded(1.0, 2.0) == 100
    assert (made.total(0.5), made.total(2.0), made.total(9.0)) == (0, 35, 75)


def test_service_that_runs_back_in_time_is_refused():
    with pytest.raises(ValueError, match="give events in order"):
        series([(2.0, 1), (1.0, 1)])


def test_service_difference_counts_only_what_a_tenant_still_wanted():
    tenants = {
        "served": series([(30.0, 600)], [(1.0, 600)]),
        "starved": series([(30.0, 120)], [(1.0, 900)]),
        "content": series([(30.0, 60)], [(1.0, 60)]),
    }
    # At 30 s: rates 10, 2, 1; the starved one lacks min(10 - 2, 15 - 2) = 8, the content one nothing.
    difference = service_difference(tenants, [30.0])
    assert (difference.max, difference.mean, difference.variance) == pytest.approx((8, 8, 0))
    difference = service_difference(tenants, [30.0, 200.0])
    assert (difference.max, difference.mean, difference.variance) == pytest.approx((8, 4, 16))


def test_jain_over_time_counts_who_waited_all_the_time():
    tenants = {
        "served": series([(30.0, 300)], [(-5.0, 900)]),
        "starved": series([(30.0, 100)], [(-5.0, 900)]),
        "content": series([(30.0, 60)], [(-5.0, 60)]),
        "late": series([(30.0, 1)], [(31.0, 900)]),
    }
    assert jain_over_time(tenants, [30.0]) == [pytest.approx(400**2 / (2 * (300**2 + 100**2)))]
    assert jain_over_time({"alone": tenants["starved"]}, [30.0]) == [None]


def test_jain_of_entitlement_is_one_where_everybody_got_their_share():
    fair = {
        "greedy": series([(30.0, 400)], [(1.0, 9000)]),
        "greedy too": series([(30.0, 400)], [(-90.0, 9000)]),
        "modest": series([(30.0, 50)], [(1.0, 50)]),
    }
    assert jain_of_entitlement(fair, [30.0], {}) == [pytest.approx(1.0)]
    unfair = {
        **fair,
        "greedy": series([(30.0, 600)], [(1.0, 9000)]),
        "greedy too": series([(30.0, 200)], [(1.0, 9000)]),
    }
    got = [600 / 400, 200 / 400, 1]
    assert jain_of_entitlement(unfair, [30.0], {}) == [
        pytest.approx(sum(got) ** 2 / (3 * sum(x * x for x in got)))
    ]
    assert jain_of_entitlement(fair, [500.0], {}) == [None]


def test_jain_of_entitlement_minds_weights():
    # Series hold service over weight: 300 of weight 3 and 100 of weight 1 are both 100.
    tenants = {name: series([(30.0, 100)], [(1.0, 9000)]) for name in ("heavy", "light")}
    assert jain_of_entitlement(tenants, [30.0], {"heavy": 3.0}) == [pytest.approx(1.0)]
    tenants["light"] = series([(30.0, 300)], [(1.0, 9000)])
    assert jain_of_entitlement(tenants, [30.0], {"heavy": 3.0})[0] < 0.9


def test_accumulated_difference_is_the_largest_over_the_ticks():
    tenants = {"a": series([(1.0, 10), (5.0, 90)]), "b": series([(2.0, 60), (6.0, 40)])}
    assert accumulated_difference(tenants, [1.5, 2.5, 5.5]) == 50
    assert accumulated_difference({}, [1.0]) == 0


def test_spread_series_gives_each_interval_its_part():
    made = SpreadSeries()
    made.deliver(10.0, 20.0, 100)
    made.deliver(5.0, 15.0, 50)
    made.deliver(30.0, 30.0, 7)
    assert made.received(0.0, 10.0) == pytest.approx(25)
    assert made.received(10.0, 15.0) == pytest.approx(50 + 25)
    assert made.received(15.0, 100.0) == pytest.approx(50 + 7)
    assert made.total(1.0) == 0
    made.deliver(0.0, 10.0, 40)
    made.demand(3.0, 9)
    made.demand(1.0, 2)
    assert made.total(10.0) == pytest.approx(65)
    assert made.demanded(0.0, 2.0) == 2
    assert made.demanded(0.0, 4.0) == 11


def test_both_kinds_of_series_can_be_compared():
    a, b = SpreadSeries(), SpreadSeries()
    a.deliver(0.0, 60.0, 600)
    a.demand(0.0, 600)
    b.demand(0.0, 600)
    assert service_difference({"a": a, "b": b}, [30.0]).max == pytest.approx(10)


def test_ratios():
    assert attainment(3, 4) == 0.75
    assert attainment(0, 0) is None
    assert isolation(2.0, 1.0) == 2.0
    assert isolation(2.0, 0.0) == math.inf
