"""Overload interaction throttling: who is refused, when, and who never is."""

import pytest
from scheduling_harness import drain, finish, make_request

from equipoise_api.policy import Algorithm, Cost, Overload, Prediction, Queue
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.interactions import Interactions
from equipoise_scheduling.overload import MOST_SENDERS, Arrivals, OverloadSettings
from equipoise_scheduling.registry import SCHEDULERS, create, reconfigured, scheduler_settings
from equipoise_scheduling.request import Outcome, Reason

EVERY = sorted(SCHEDULERS)


@pytest.fixture(params=EVERY)
def algorithm(request):
    return request.param


@pytest.fixture
def make(algorithm):
    def build(user=None, application=None):
        own = {"requests_per_minute": 1_000_000} if algorithm == "RPM" else {}
        overload = OverloadSettings(user_per_minute=user, application_per_minute=application)
        return create(algorithm, SCHEDULERS[algorithm].settings_type(overload=overload, **own), {})

    return build


def call(name, user="ann", *, interaction=None, index=1, now=0.0, **fields):
    return make_request(
        name,
        arrival=now,
        user=user,
        interaction=interaction if interaction is not None else name,
        call_index=index,
        **fields,
    )


def send(scheduler, *calls):
    for one in calls:
        assert scheduler.enqueue(one, one.arrival) is None
    return list(calls)


def full(_):
    return False


def busy(scheduler, now=0.0):
    """Put something in flight that is nobody's business."""
    (request,) = send(scheduler, call(f"busy-{now}", "bob", now=now))
    assert scheduler.next(now, lambda _: True) is request
    return request


def refuse_all(scheduler, now=0.0, passes=100):
    """Run passes in which nothing fits and return who was refused, one list a pass."""
    rounds = []
    for _ in range(passes):
        assert scheduler.next(now, full) is None
        rounds.append(scheduler.refused())
    return rounds


def test_start_above_the_users_limit_is_refused_when_it_does_not_fit(make):
    scheduler = make(user=2)
    busy(scheduler)
    calls = send(scheduler, *(call(str(at)) for at in range(3)))
    rounds = refuse_all(scheduler, 5.0, passes=4)
    assert [[request for request, _ in refused] for refused in rounds] == [
        [calls[0]],
        [calls[1]],
        [calls[2]],
        [],
    ]
    _, refusal = rounds[0][0]
    assert refusal.reason is Reason.OVERLOADED
    assert "user ann of tenant blue sent 2 requests or more within a minute" in refusal.message
    assert refusal.retry_after_seconds == 55.0
    assert calls[0].outcome is Outcome.REFUSED
    assert scheduler.books.outcomes[Outcome.REFUSED] == 3
    assert scheduler.queued == 0


def test_nobody_is_refused_who_fits(make):
    scheduler = make(user=1, application=1)
    busy(scheduler)
    calls = send(scheduler, *(call(str(at)) for at in range(5)))
    assert sorted(drain(scheduler), key=lambda r: r.number) == calls
    assert scheduler.refused() == []


def test_user_at_its_limit_is_not_above_it(make):
    scheduler = make(user=3)
    busy(scheduler)
    send(scheduler, *(call(str(at)) for at in range(3)))
    assert refuse_all(scheduler) == [[]] * 100
    send(scheduler, call("one more"))
    assert len([row for row in refuse_all(scheduler) if row]) == 4


def test_nothing_is_refused_while_nothing_is_in_flight(make):
    scheduler = make(user=1, application=1)
    calls = send(scheduler, *(call(str(at)) for at in range(3)))
    assert refuse_all(scheduler) == [[]] * 100
    assert sorted(drain(scheduler), key=lambda r: r.number) == calls


def test_calls_in_the_middle_are_never_throttled(make):
    scheduler = make(user=1, application=1)
    busy(scheduler)
    calls = send(scheduler, *(call(str(at), interaction="i", index=at) for at in range(2, 6)))
    assert refuse_all(scheduler) == [[]] * 100
    assert sorted(drain(scheduler), key=lambda r: r.number) == calls


def test_interaction_that_has_begun_is_safe_even_if_its_client_does_not_count_calls(make):
    scheduler = make(user=1)
    first = call("first", interaction="i")
    send(scheduler, first)
    assert drain(scheduler) == [first]
    again = [call(f"again-{at}", interaction="i", now=1.0) for at in range(3)]
    send(scheduler, *again)
    assert refuse_all(scheduler, 1.0) == [[]] * 100
    finish(scheduler, [first], 5, 2.0)
    drain(scheduler, 2.0)
    send(scheduler, call("late", interaction="i", now=3.0))
    assert refuse_all(scheduler, 3.0) == [[]] * 100


def test_all_calls_of_a_refused_interaction_go_with_it(make):
    scheduler = make(user=2)
    busy(scheduler)
    _, second, other = send(
        scheduler,
        call("1", interaction="i", index=1),
        call("2", interaction="i", index=2),
        call("x", "cid"),
    )
    send(scheduler, call("3", interaction="i", index=3))
    (refused, *_) = refuse_all(scheduler, 10.0)
    assert [request.id for request, _ in refused] == ["1", "2", "3"]
    assert second.outcome is Outcome.REFUSED
    assert other.outcome is None
    late = call("4", interaction="i", index=4, now=20.0)
    refusal = scheduler.enqueue(late, 20.0)
    assert refusal.reason is Reason.OVERLOADED
    assert refusal.message.startswith("call 1 of its interaction was refused: ")
    assert refusal.retry_after_seconds == refused[0][1].retry_after_seconds - 10
    assert late.outcome is None
    same_name = call("5", "cid", interaction="i", index=2, now=20.0)
    assert scheduler.enqueue(same_name, 20.0) is None, "another user's interaction of the same name"


def test_refused_interaction_may_start_again(make):
    scheduler = make(user=1)
    busy(scheduler)
    send(scheduler, call("1", interaction="i"), call("x", interaction="j"))
    assert [len(row) for row in refuse_all(scheduler, passes=2)] == [1, 1]
    later = 200.0
    send(scheduler, call("1 again", interaction="i", now=later))
    send(scheduler, call("2", interaction="i", index=2, now=later + 61))
    assert sorted(request.id for request in drain(scheduler, later + 61)) == ["1 again", "2"]


def test_window_ends_at_the_users_newest_arrival(make):
    scheduler = make(user=2)
    busy(scheduler)
    send(scheduler, call("a", now=0.0), call("b", now=30.0), call("c", now=60.0))
    assert refuse_all(scheduler, 60.0) == [[]] * 100, (
        "the first is a minute old: two in the window, one before"
    )
    send(scheduler, call("d", now=61.0))
    assert [len(row) for row in refuse_all(scheduler, 300.0, passes=5)] == [1, 1, 1, 1, 0]


def test_refused_arrivals_count(make):
    scheduler = make(user=2)
    scheduler.reconfigure(
        type(scheduler.books.settings)(
            max_queued=2, overload=OverloadSettings(user_per_minute=2), **_own(scheduler)
        ),
        {},
        0.0,
    )
    busy(scheduler)
    send(scheduler, call("a"), call("b"))
    assert scheduler.enqueue(call("c"), 0.0).reason is Reason.QUEUE_FULL
    assert [len(row) for row in refuse_all(scheduler, passes=2)] == [1, 1]


def _own(scheduler):
    return {"requests_per_minute": 1_000_000} if scheduler.algorithm == "RPM" else {}


def test_application_is_limited_over_all_its_users(make):
    scheduler = make(user=5, application=3)
    busy(scheduler)
    send(scheduler, *(call(str(at), f"user-{at}", application="chat") for at in range(4)))
    send(scheduler, call("other", "eve", application="search"))
    rounds = refuse_all(scheduler)
    refused = [request for row in rounds for request, _ in row]
    assert {request.application for request in refused} == {"chat"}
    assert "application chat of tenant blue sent 3 requests" in rounds[0][0][1].message


def test_equal_names_of_two_tenants_are_two_users_and_two_applications(make):
    scheduler = make(user=2, application=2)
    busy(scheduler)
    for at in range(2):
        for tenant in ("blue", "red"):
            send(
                scheduler,
                make_request(f"{tenant}-{at}", tenant, user="ann", application="chat"),
            )
    assert refuse_all(scheduler) == [[]] * 100


def test_clients_that_name_no_user_are_one_user_and_each_request_an_interaction(make):
    scheduler = make(user=2)
    busy(scheduler)
    requests = [make_request(str(at)) for at in range(3)]
    send(scheduler, *requests)
    assert [len(row) for row in refuse_all(scheduler, passes=4)] == [1, 1, 1, 0]
    assert all(request.outcome is Outcome.REFUSED for request in requests)


def test_limits_follow_a_reconfiguration_and_a_change_of_algorithm(make, algorithm):
    scheduler = make(user=1)
    busy(scheduler)
    send(scheduler, *(call(str(at)) for at in range(3)))
    (refused, *_) = refuse_all(scheduler, passes=1)
    assert len(refused) == 1
    kind = SCHEDULERS[algorithm].settings_type
    scheduler.reconfigure(kind(**_own(scheduler)), {}, 1.0)
    assert refuse_all(scheduler, 1.0) == [[]] * 100
    scheduler.reconfigure(kind(overload=OverloadSettings(user_per_minute=5), **_own(scheduler)), {}, 1.0)
    send(scheduler, *(call(f"more-{at}", now=1.0) for at in range(6)))
    strict = SCHEDULERS["VTC"].settings_type(overload=OverloadSettings(user_per_minute=5))
    successor = reconfigured(scheduler, "VTC", strict, {}, 1.0)
    assert [len(row) for row in refuse_all(successor, 1.0, passes=2)] == [1, 1]


def test_policy_and_tenants_fields_reach_the_scheduler():
    overload = Overload(user_requests_per_minute=50, application_requests_per_minute=2000)
    settings = scheduler_settings(Algorithm(type="FCFS"), Cost(), Prediction(), Queue(), overload)
    assert settings.overload == OverloadSettings(user_per_minute=50, application_per_minute=2000)
    assert scheduler_settings(Algorithm(), Cost(), Prediction(), Queue()).overload == OverloadSettings()


@pytest.mark.parametrize("field", ["user_per_minute", "application_per_minute"])
def test_limit_below_one_is_refused_by_name(field):
    with pytest.raises(ValueError, match=f"overload.{field}=0 must be at least 1"):
        OverloadSettings(**{field: 0})


def test_memory_of_arrivals_is_bounded_by_limit_and_by_age():
    arrivals = Arrivals(10)
    for at in range(1000):
        arrivals.add("t", "flood", at / 100)
    assert arrivals._count == 11
    for at in range(1000):
        arrivals.add("t", f"user-{at}", float(at))
    assert len(arrivals._senders) == 601
    assert arrivals._count == 601
    assert arrivals.retry_after("t", "flood", 1000.0) is None


def test_memory_of_invented_senders_is_bounded():
    arrivals = Arrivals(10)
    for at in range(MOST_SENDERS + 100):
        arrivals.add("t", f"user-{at}", at / 1000)
    assert len(arrivals._senders) == arrivals._count == MOST_SENDERS


def test_interactions_are_forgotten_when_over_or_old():
    interactions = Interactions()

    def run(name, index, now, count=None):
        one = call(f"{name}-{index}", interaction=name, index=index, call_count=count)
        one.number = round(now * 1000)
        interactions.joined(one)
        interactions.dispatched(one)
        interactions.ended(one, now)
        return one

    run("over", 1, 1.0, count=2)
    run("over", 2, 2.0, count=2)
    probe = run("open", 1, 3.0)
    assert list(interactions._past) == [("blue", "ann", "open")]
    run("late", 1, 700.0)
    assert not interactions.started(probe)
    waiting = call("w", interaction="w")
    waiting.number = 999
    interactions.joined(waiting)
    interactions.left(waiting)
    assert interactions._living == {}


def test_endless_interaction_loses_its_preference():
    interactions = Interactions()
    begun = []
    for at in range(1, 101):
        one = call(str(at), interaction="i", index=at)
        one.number = at
        begun.append(interactions.begun(one))
        interactions.joined(one)
        interactions.dispatched(one)
        interactions.ended(one, float(at))
    assert begun == [False] + [True] * 63 + [False] * 36


def test_held_tenant_throttles_nobody(make):
    scheduler = make(user=1)
    scheduler.reconfigure(scheduler.books.settings, {"blue": TenantSettings(max_in_flight=1)}, 0.0)
    busy(scheduler)
    send(scheduler, *(call(str(at)) for at in range(3)))
    assert refuse_all(scheduler) == [[]] * 100


def test_calls_counted_backwards_cost_a_dispatch_no_move_of_all_that_waits(algorithm, monkeypatch):
    scheduler = create(algorithm, SCHEDULERS[algorithm].settings_type(), {})
    moved = 0
    affected = Interactions.affected

    def count(self, request):
        nonlocal moved
        calls = affected(self, request)
        moved += len(calls)
        return calls

    monkeypatch.setattr(Interactions, "affected", count)
    for at in range(50):
        send(scheduler, call(str(at), interaction="run", index=1000 - at))
    assert len(drain(scheduler)) == 50
    assert moved == 0


def test_tenant_that_floods_the_memory_forgets_its_own_interactions_alone(monkeypatch):
    monkeypatch.setattr("equipoise_scheduling.interactions.MOST_REMEMBERED", 100)
    interactions = Interactions()

    def run(name, tenant, number):
        one = call(str(number), tenant=tenant, interaction=name)
        one.number = number
        interactions.joined(one)
        interactions.dispatched(one)
        interactions.ended(one, float(number) / 1000)
        return one

    mine = [run(f"run-{at}", "blue", at) for at in range(40)]
    for at in range(1000):
        last = run(f"flood-{at}", "red", 100 + at)
    assert all(interactions.started(one) for one in mine)
    assert interactions.started(last)
    assert len(interactions._past) == 100
