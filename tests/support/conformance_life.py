"""Conformance: one request's way, from its arrival to its end, and what is counted on it."""

import pytest
from conformance import case, fill, settle_turns
from scheduling_harness import Client, World, drain, finish, make_request

from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.request import Outcome, Reason, Usage


@case()
def serves_each_accepted_request_once_and_a_tenants_in_order(subject):
    scheduler = subject.make()
    requests = fill(scheduler, "aabacbbca")
    order = drain(scheduler)
    assert sorted(order, key=lambda r: r.number) == requests
    for tenant in "abc":
        numbers = [request.number for request in order if request.tenant == tenant]
        assert numbers == sorted(numbers)
    assert scheduler.queued == 0
    assert scheduler.in_flight == len(requests)


@case()
def empty_queue_gives_nobody(subject):
    assert subject.make().next(0.0, lambda _: True) is None


@case()
def pass_ends_at_a_head_that_does_not_fit_and_nothing_is_charged(subject):
    scheduler = subject.make()
    fill(scheduler, "ab", prompt=50)
    fill(scheduler, "ab", now=1.0, prompt=1)
    settle_turns(scheduler, 1.0)
    before = scheduler.snapshot()
    asked = []

    def fits(request):
        asked.append(request)
        return request.prompt_tokens < 10

    assert scheduler.next(1.0, fits) is None
    # One that may skip asks for other tenants' heads, never for what is queued behind a head.
    assert {request.prompt_tokens for request in asked} == {50}
    assert len(asked) == 1 or subject.traits.skips
    assert scheduler.snapshot() == before
    assert scheduler.queued == 4


@case()
def never_idles_while_something_is_queued_and_fits(subject):
    scheduler = subject.make()
    clients = [Client("a", 3), Client("b", 9, prompt=100), Client("c", 1, output=5)]
    world = World(scheduler, clients, slots=6)
    for _ in range(400):
        world.run(0.05)
        world._dispatch()
        assert scheduler.queued == 0 or len(world.running) == world.slots


@case()
def same_events_give_the_same_order(subject):
    def run():
        clients = [Client("a", 3, prompt=50), Client("b", 5), Client("c", 2, output=90, cancel_at=0.5)]
        world = World(subject.make(), clients, slots=4)
        world.run(60)
        return [request.id for request in world.order]

    first = run()
    assert len(first) > 50
    assert first == run()


@case()
def nobody_starves_beside_an_aggressor(subject):
    clients = [Client("light", 2), Client("aggressor", 40, prompt=200, output=60)]
    world = World(subject.make(), clients, slots=4)
    world.run(120)
    waits = [request.dispatched - request.arrival for request in world.order if request.tenant == "light"]
    waiting = [world.now - r.arrival for r in world.scheduler.books.waiting.values() if r.tenant == "light"]
    one_round = (60 + 1) * 0.05 * 42 / 4
    assert len(waits) > 1
    assert max(waits + waiting) <= 2 * one_round


@case()
def cancelled_while_queued_is_never_served_and_costs_nothing(subject):
    scheduler = subject.make()
    requests = fill(scheduler, "aba")
    before = scheduler.snapshot()
    scheduler.cancel(requests[0], 1.0)
    scheduler.cancel(requests[1], 1.0, Outcome.EXPIRED)
    assert drain(scheduler) == [requests[2]]
    finish(scheduler, [requests[2]], 0)
    assert [request.outcome for request in requests] == [Outcome.CANCELLED, Outcome.EXPIRED, Outcome.FINISHED]
    assert scheduler.books.outcomes == {Outcome.CANCELLED: 1, Outcome.EXPIRED: 1, Outcome.FINISHED: 1}
    assert set(before["state"]) == set(scheduler.snapshot()["state"])


@case()
def request_cannot_end_twice_or_out_of_its_state(subject):
    scheduler = subject.make()
    (request,) = fill(scheduler, "a")
    with pytest.raises(ValueError, match="was not dispatched"):
        scheduler.settle(request, Usage(1, 1), Outcome.FINISHED, 0.0)
    with pytest.raises(ValueError, match="queued or in flight already"):
        scheduler.enqueue(request, 0.0)
    drain(scheduler)
    with pytest.raises(ValueError, match="in flight: settle it"):
        scheduler.cancel(request, 0.0)
    scheduler.settle(request, Usage(1, 1), Outcome.FAILED, 0.0)
    for again in (
        lambda: scheduler.settle(request, Usage(1, 1), Outcome.FINISHED, 0.0),
        lambda: scheduler.progress(request, 1, 1, 0.0),
        lambda: scheduler.requeue(request, 0.0),
        lambda: scheduler.enqueue(request, 0.0),
    ):
        with pytest.raises(ValueError, match="has ended as failed"):
            again()
    with pytest.raises(ValueError, match="is not queued"):
        scheduler.cancel(request, 0.0)


@case()
def busy_engine_puts_a_request_back_as_if_it_had_never_left(subject):
    scheduler = subject.make()
    fill(scheduler, "abab")
    first = scheduler.next(0.0, lambda _: True)
    finish(scheduler, [first], 7)
    settle_turns(scheduler, 1.0)
    before = scheduler.snapshot()
    expected = scheduler.next(1.0, lambda _: True)
    scheduler.requeue(expected, 1.0)
    assert scheduler.snapshot() == before
    assert expected.dispatched is None
    assert expected.outcome is None
    assert scheduler.next(2.0, lambda _: True) is expected


@case()
def request_put_back_is_served_before_its_tenants_younger_ones(subject):
    scheduler = subject.make()
    requests = fill(scheduler, "aaa")
    first, second = scheduler.next(0.0, lambda _: True), scheduler.next(0.0, lambda _: True)
    scheduler.requeue(second, 0.0)
    scheduler.requeue(first, 0.0)
    assert drain(scheduler) == requests


@case()
def tenant_at_its_own_limit_is_passed_over_until_one_ends(subject):
    scheduler = subject.make(tenants={"a": TenantSettings(max_in_flight=2)})
    requests = fill(scheduler, "aaaab")
    order = drain(scheduler)
    assert [r.tenant for r in order].count("a") == 2
    assert requests[4] in order
    row = next(share for share in scheduler.shares(0.0) if share.tenant == "a")
    assert (row.held, row.queued, row.in_flight) == (True, 2, 2)
    finish(scheduler, [requests[0]], 1)
    assert drain(scheduler) == [requests[2]]


@case()
def full_queue_refuses_with_reason_and_measured_retry_after(subject):
    scheduler = subject.make(max_queued=2)
    fill(scheduler, "ab")
    refusal = scheduler.enqueue(make_request("late", "b"), 0.0)
    assert (refusal.reason, refusal.retry_after_seconds) == (Reason.QUEUE_FULL, None)
    assert scheduler.queued == 2
    finish(scheduler, drain(scheduler), 1, now=4.0)
    fill(scheduler, "ab", now=4.0)
    refusal = scheduler.enqueue(make_request("late", "b", arrival=4.0), 4.0)
    assert 1 <= refusal.retry_after_seconds <= 120


@case()
def full_tenant_queue_refuses_that_tenant_alone(subject):
    scheduler = subject.make(tenants={"a": TenantSettings(max_queued=1)})
    fill(scheduler, "ab")
    refusal = scheduler.enqueue(make_request("late", "a"), 0.0)
    assert refusal.reason is Reason.TENANT_QUEUE_FULL
    assert "tenant a has 1 requests queued" in refusal.message
    assert scheduler.enqueue(make_request("fine", "b"), 0.0) is None


@case()
def refused_request_may_be_sent_again(subject):
    scheduler = subject.make(max_queued=1)
    (first,) = fill(scheduler, "a")
    late = make_request("late", "b")
    assert scheduler.enqueue(late, 0.0) is not None
    drain(scheduler)
    assert scheduler.enqueue(late, 1.0) is None
    assert late.number == first.number + 1
