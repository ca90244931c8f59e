"""Shares row by row: the same as at once, with or without those that have nothing."""

import pytest
from scheduling_harness import drain, finish, make_request

from equipoise_scheduling.registry import SCHEDULERS


@pytest.fixture(params=sorted(SCHEDULERS))
def scheduler(request):
    it = SCHEDULERS[request.param]()
    for number, tenant in enumerate(("served", "flying", "waiting")):
        for place in range(2):
            it.enqueue(make_request(f"{tenant}{place}", tenant, prompt=10 * (number + 1)), 0.0)
    flying = drain(it)
    finish(it, [request for request in flying if request.tenant == "served"], 5)
    it.enqueue(make_request("late", "waiting"), 0.0)
    it.books.open("idle")
    return it


def test_the_active_have_the_same_rows_and_the_idle_none(scheduler):
    rows = scheduler.shares(1.0)
    assert [row.tenant for row in rows] == ["flying", "idle", "served", "waiting"]
    assert list(scheduler.iter_shares(1.0)) == rows
    assert list(scheduler.iter_shares(1.0, idle=False)) == [row for row in rows if row.tenant != "idle"]


def test_who_was_served_long_ago_is_idle(scheduler):
    names = {row.tenant for row in scheduler.iter_shares(1000.0, idle=False)}
    assert names == {"flying", "waiting"}
    assert scheduler.books.served()["served"] > 0


def test_events_between_two_rows_are_allowed(scheduler):
    rows = scheduler.iter_shares(1.0)
    first = next(rows)
    scheduler.enqueue(make_request("new", "aaa"), 1.0)
    finish(scheduler, [flight.request for flight in list(scheduler.books.flights.values())], 5, 1.0)
    rest = list(rows)
    assert [first.tenant, *(row.tenant for row in rest)] == ["flying", "idle", "served", "waiting"]
    assert sum(row.entitled for row in (first, *rest)) == pytest.approx(1.0)
