"""RPM: so many accepted requests in any minute, then arrival order."""

import pytest
from scheduling_harness import drain, make_request

from equipoise_api.policy import Algorithm, Cost, Prediction, Queue, RpmParameters
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.registry import scheduler_settings
from equipoise_scheduling.request import Reason
from equipoise_scheduling.schedulers.rpm import RPM, RPMSettings


def send(scheduler, now, tenant="a"):
    return scheduler.enqueue(make_request(f"{tenant}-{now}", tenant, arrival=now), now)


def test_request_beyond_the_limit_is_refused_until_the_oldest_is_a_minute_old():
    scheduler = RPM(RPMSettings(requests_per_minute=2))
    assert send(scheduler, 0.0) is None
    assert send(scheduler, 20.0) is None
    refusal = send(scheduler, 30.0)
    assert refusal.reason is Reason.RATE_LIMITED
    assert refusal.retry_after_seconds == 30.0
    assert "tenant a has sent 2 requests in a minute, its limit" in refusal.message
    assert send(scheduler, 59.9) is not None
    assert send(scheduler, 60.0) is None
    assert send(scheduler, 60.1).retry_after_seconds == pytest.approx(19.9)


def test_refused_requests_do_not_count():
    scheduler = RPM(RPMSettings(requests_per_minute=1))
    assert send(scheduler, 0.0) is None
    assert all(send(scheduler, float(at)) is not None for at in range(1, 60))
    assert send(scheduler, 60.0) is None


def test_request_refused_for_a_full_queue_does_not_count():
    scheduler = RPM(RPMSettings(requests_per_minute=2, max_queued=1))
    assert send(scheduler, 0.0) is None
    assert send(scheduler, 1.0).reason is Reason.QUEUE_FULL
    drain(scheduler, 1.0)
    assert send(scheduler, 2.0) is None


def test_each_tenant_has_a_limit_of_its_own_and_the_rest_go_in_arrival_order():
    scheduler = RPM(RPMSettings(requests_per_minute=2))
    for at, tenant in enumerate("aabab"):
        send(scheduler, float(at), tenant)
    assert [request.id for request in drain(scheduler)] == ["a-0.0", "a-1.0", "b-2.0", "b-4.0"]


def test_new_limit_acts_at_once_and_keeps_what_was_accepted():
    scheduler = RPM(RPMSettings(requests_per_minute=5))
    for at in range(5):
        send(scheduler, float(at))
    scheduler.reconfigure(RPMSettings(requests_per_minute=2), {}, 5.0)
    assert send(scheduler, 5.0).retry_after_seconds == pytest.approx(3 + 60 - 5)
    scheduler.reconfigure(RPMSettings(requests_per_minute=6), {}, 5.0)
    assert send(scheduler, 6.0) is None


def test_stranger_cannot_get_a_fresh_limit_by_being_forgotten():
    scheduler = RPM(RPMSettings(requests_per_minute=1), {"known": TenantSettings()})
    send(scheduler, 0.0)
    scheduler.cancel(next(iter(scheduler.books.waiting.values())), 1.0)
    scheduler.tick(30.0)
    assert send(scheduler, 31.0).reason is Reason.RATE_LIMITED
    scheduler.tick(61.0)
    assert "a" not in scheduler.books.tenants
    assert scheduler._accepted == {}


def test_limit_comes_from_the_policy():
    common = (Cost(), Prediction(), Queue())
    settings = scheduler_settings(Algorithm(type="RPM", rpm=RpmParameters(requests_per_minute=7)), *common)
    assert (settings.requests_per_minute, settings.max_queued) == (7, 10_000)
    assert scheduler_settings(Algorithm(type="RPM"), *common).requests_per_minute == 60


def test_limit_below_one_is_refused_by_name():
    with pytest.raises(ValueError, match="requests_per_minute=0 must be at least 1"):
        RPMSettings(requests_per_minute=0)
