"""Who is turned away, or held: limits of tenants, of the queue, and of one request."""

import asyncio

import pytest

from equipoise_scheduling.request import Outcome
from equipoise_sidecar.admission import Reservation
from equipoise_sidecar.ticket import Phase, Ticket

BLUE, RED = "team/blue", "team/red"

pytestmark = pytest.mark.looptime


async def test_a_tenant_at_its_own_limit_is_passed_over(line, tenant):
    line.configure(
        capacity={"maxInFlight": 4}, tenants=[tenant(BLUE), tenant(RED, limits={"maxInFlight": 1})]
    )
    red, held, blue = line.send(RED), line.send(RED), line.send(BLUE)
    assert [red.phase, held.phase, blue.phase] == [Phase.IN_FLIGHT, Phase.QUEUED, Phase.IN_FLIGHT]


async def test_a_full_queue_refuses_before_the_body_is_read(line):
    line.configure(queue={"maxRequests": 2})
    line.send()
    line.send()
    line.send()
    rejection = line.refused()
    assert (rejection.status, rejection.reason) == (429, "queue-full")
    assert 1 <= rejection.retry_after_seconds <= 120


async def test_bodies_being_read_count_against_the_queue(line):
    line.configure(queue={"maxRequests": 2})
    line.send()
    readers = [line.dispatcher.reserve(BLUE, 10) for _ in range(2)]
    assert line.refused().reason == "queue-full"
    readers[0].release()
    readers[0].release()
    assert isinstance(line.try_to_send(), Ticket)


async def test_a_tenants_own_queue_limit_leaves_others_alone(line, tenant):
    line.configure(tenants=[tenant(BLUE), tenant(RED, limits={"maxQueued": 1})])
    line.send(RED)
    line.send(RED)
    assert line.refused(RED).reason == "tenant-queue-full"
    line.send(BLUE)


async def test_the_queues_bytes_are_bounded_and_freed(line):
    line.configure(queue={"maxBytes": 1_048_576})
    line.send(body_bytes=1)
    waiting = line.send(body_bytes=1_000_000)
    rejection = line.refused(body_bytes=100_000)
    assert (rejection.status, rejection.reason) == (429, "queue-bytes-full")
    waiting.finish(Outcome.CANCELLED)
    line.send(body_bytes=100_000)


async def test_a_body_without_length_grows_until_the_bytes_are_used_up(line):
    line.configure(queue={"maxBytes": 1_048_576})
    line.send()
    line.send(body_bytes=1_000_000)
    reservation = line.dispatcher.reserve(RED, None)
    assert reservation.grow(40_000) is None
    assert reservation.grow(400_000).reason == "queue-bytes-full"
    reservation.release()
    assert line.dispatcher.admission.held_bytes == 1_000_000


async def test_a_flood_of_one_tenants_leaves_room_for_the_others(line):
    line.configure(queue={"maxRequests": 100})
    flood = [line.try_to_send(RED) for _ in range(200)]
    waiting = [ticket for ticket in flood if isinstance(ticket, Ticket) and ticket.phase is Phase.QUEUED]
    assert len(waiting) == 90
    rejection = flood[-1]
    assert (rejection.status, rejection.reason) == (429, "queue-full")
    assert "what is left of the queue is for others" in rejection.message
    assert isinstance(line.try_to_send(BLUE), Ticket)


async def test_bodies_that_never_come_keep_nobody_out(line):
    line.configure(queue={"maxRequests": 100, "maxBytes": 100_000_000, "maxBodyBytes": 10_000_000})
    announced = [line.dispatcher.reserve(RED, 10_000_000) for _ in range(50)]
    held = [each for each in announced if isinstance(each, Reservation)]
    assert len(held) == 9
    assert announced[-1].reason == "queue-bytes-full"
    slow = [line.dispatcher.reserve(RED, 0) for _ in range(200)]
    assert slow[-1].reason == "queue-full"
    for _ in range(5):
        assert isinstance(line.try_to_send(BLUE, body_bytes=100_000), Ticket)
    for each in (*held, *slow):
        if isinstance(each, Reservation):
            each.release()
    assert isinstance(line.try_to_send(RED), Ticket)


async def test_a_short_queue_is_used_to_the_end(line):
    line.configure(queue={"maxRequests": 5})
    assert [isinstance(line.try_to_send(), Ticket) for _ in range(7)] == [True] * 6 + [False]


async def test_too_large_a_body_gets_413(line):
    line.configure(queue={"maxBodyBytes": 2048})
    rejection = line.refused(body_bytes=2049)
    assert (rejection.status, rejection.reason, rejection.should_retry) == (413, "body-too-large", False)


async def test_requests_per_minute_are_a_hard_quota(line, tenant):
    line.configure(
        capacity={"maxInFlight": 100},
        tenants=[tenant(BLUE, limits={"requestsPerMinute": 3}), tenant(RED)],
    )
    for _ in range(3):
        line.send()
    rejection = line.refused()
    assert (rejection.status, rejection.reason, rejection.should_retry) == (429, "rate-limited", False)
    line.send(RED)
    await asyncio.sleep(rejection.retry_after_seconds)
    line.send()


async def test_more_tokens_than_a_request_may_have_gets_400(line, tenant):
    line.configure(tenants=[tenant(BLUE, limits={"maxTokensPerRequest": 149})])
    rejection = line.refused()
    assert (rejection.status, rejection.reason) == (400, "request-too-large")
    line.send(max_tokens=49)


async def test_passing_through_limits_nothing(line, tenant):
    line.configure(
        mode="PassThrough",
        queue={"maxRequests": 1, "maxBodyBytes": 1024},
        tenants=[tenant(BLUE, limits={"requestsPerMinute": 1, "maxInFlight": 1, "maxTokensPerRequest": 1})],
    )
    tickets = [line.send(body_bytes=10_000) for _ in range(5)]
    assert {t.phase for t in tickets} == {Phase.IN_FLIGHT}
