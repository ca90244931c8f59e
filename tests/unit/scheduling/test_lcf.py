"""LCF: VTC's counters without the lift."""

from scheduling_harness import drain, finish, make_request

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.schedulers.lcf import LCF


def serve(scheduler, tenant, count, *, now, generated=50):
    requests = [make_request(f"{tenant}-{now}-{at}", tenant, arrival=now) for at in range(count)]
    for request in requests:
        scheduler.enqueue(request, now)
    finish(scheduler, drain(scheduler, now), generated, now)


def test_newcomer_is_served_alone_until_it_has_had_as_much_as_everybody_else():
    scheduler = LCF()
    serve(scheduler, "old", 10, now=0.0)
    for at in range(8):
        scheduler.enqueue(make_request(f"new-{at}", "new", arrival=1.0), 1.0)
        scheduler.enqueue(make_request(f"old-{at}", "old", arrival=0.5), 1.0)
    order = []
    while (request := scheduler.next(1.0, lambda _: True)) is not None:
        order.append(request.tenant)
        finish(scheduler, [request], 50, 1.0)
    assert order == ["new"] * 8 + ["old"] * 8


def test_no_bound_is_published_however_long_it_runs():
    scheduler = LCF()
    serve(scheduler, "a", 3, now=0.0)
    scheduler.tick(5.0)
    assert scheduler.bound(5.0) is None


def test_forgotten_stranger_comes_back_with_the_counter_it_had():
    scheduler = LCF(tenants={"known": TenantSettings()})
    serve(scheduler, "stranger", 1, now=0.0)
    serve(scheduler, "known", 1, now=500.0)
    scheduler.tick(500.0)
    assert set(scheduler.books.tenants) == {"known"}
    scheduler.enqueue(make_request("back", "stranger", arrival=501.0), 501.0)
    counters = {row.tenant: row.counter for row in scheduler.shares(501.0)}
    assert counters["stranger"] == 10 + 2 * 50
