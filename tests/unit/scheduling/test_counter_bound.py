"""The bound on the distance of two counters: what widens it, and that a breach is seen."""

from types import SimpleNamespace

from equipoise_scheduling.counter_bound import CounterWatch
from equipoise_scheduling.generations import GENERATION, KEPT


def flight(tenant):
    return SimpleNamespace(tenant=SimpleNamespace(name=tenant), instant=0)


def test_charge_and_every_correction_of_what_is_in_flight_widen_it():
    watch, mine = CounterWatch(), flight("f")
    watch.dispatched(mine, 10)
    watch.corrected(mine, 5)
    assert watch.limit == 15
    watch.corrected(mine, -3)
    watch.corrected(mine, -4)
    assert watch.limit == 15 + 7


def test_correction_counts_from_its_own_dispatch_on():
    watch, early, late = CounterWatch(), flight("f"), flight("f")
    watch.dispatched(early, 4)
    watch.dispatched(late, 10)
    watch.corrected(early, 3)
    assert watch.limit == 10 + 3
    watch.dispatched(flight("f"), 14)
    watch.corrected(early, 1)
    assert watch.limit == 14 + 1


def test_corrections_of_two_tenants_are_not_added_up():
    watch, f, g = CounterWatch(), flight("f"), flight("g")
    watch.dispatched(f, 10)
    watch.dispatched(g, 10)
    watch.corrected(f, -6)
    watch.corrected(g, -5)
    assert watch.limit == 10 + 6


def test_service_elsewhere_counts_since_the_last_dispatch_here_or_from_nothing():
    watch = CounterWatch()
    watch.added("f", 20)
    assert watch.limit == 20
    watch.dispatched(flight("g"), 15)
    watch.added("g", 20)
    assert watch.limit == 35


def test_distance_beyond_what_explains_it_is_a_breach():
    watch = CounterWatch()
    watch.dispatched(flight("f"), 10)
    watch.tick({"f": 10.0, "g": 0.0}, [])
    bound = watch.bound()
    assert (bound.gap, bound.limit, bound.met) == (10, 10, True)
    watch.tick({"f": 10.5, "g": 0.0}, [])
    assert not watch.bound().met


def test_breach_is_remembered_for_as_long_as_its_generation():
    watch = CounterWatch()
    watch.tick({"f": 10.0, "g": 0.0}, [])
    for _ in range((KEPT - 1) * GENERATION):
        watch.tick({}, [])
        assert not watch.bound().met
    for _ in range(GENERATION):
        watch.tick({}, [])
    assert watch.bound().met


def test_alone_nobody_is_apart_from_anybody():
    watch = CounterWatch()
    watch.tick({"f": 1e9}, [])
    assert watch.bound().met
    assert watch.bound().gap == 0
