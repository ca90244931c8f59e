"""A request's life in the queue: order, waiting limits, leaving, an engine that is busy, gone, or comes back."""

import asyncio

import pytest

from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.facts import EndpointKind, Rejection
from equipoise_sidecar.ticket import Phase, Ticket

BLUE, RED = "team/blue", "team/red"
EXACT = Usage(prompt=100, generated=50)

pytestmark = pytest.mark.looptime


def account(line, tenant=BLUE):
    return line.dispatcher.accounting[tenant]


def counter(line, tenant):
    shares = line.dispatcher.scheduler.shares(asyncio.get_running_loop().time())
    return next(share.counter for share in shares if share.tenant == tenant)


def assert_nothing_left(line):
    dispatcher = line.dispatcher
    assert list(dispatcher.tickets()) == []
    assert (dispatcher.scheduler.queued, dispatcher.scheduler.in_flight) == (0, 0)
    assert (dispatcher.admission.held_bytes, dispatcher.admission.reading) == (0, 0)
    assert dispatcher.capacity.gate.sequences == 0
    for _tenant, each in dispatcher.accounting.items():  # noqa: PERF102 - no dict
        assert (each.queued, each.running) == (0, 0)


async def test_a_request_goes_at_once_when_the_engine_has_room(line):
    ticket = line.send()
    assert await ticket.dispatched() is None
    assert ticket.queued_seconds == 0
    ticket.finish(Outcome.FINISHED, EXACT)
    assert_nothing_left(line)
    assert account(line).outcomes == {Outcome.FINISHED: 1}


async def test_the_next_request_goes_in_the_call_that_ends_the_one_before(line):
    first, second = line.send(), line.send()
    assert second.phase is Phase.QUEUED
    first.finish(Outcome.FINISHED, EXACT)
    assert second.phase is Phase.IN_FLIGHT
    assert await second.dispatched() is None
    second.finish(Outcome.FINISHED, EXACT)
    assert_nothing_left(line)


async def test_a_newcomer_passes_the_queue_of_an_aggressor(line):
    flood = [line.send(RED) for _ in range(10)]
    newcomer = line.send(BLUE)
    flood[0].finish(Outcome.FINISHED, EXACT)
    flood[1].finish(Outcome.FINISHED, EXACT)
    assert newcomer.phase is Phase.IN_FLIGHT
    assert [t.phase for t in flood[2:]] == [Phase.QUEUED] * 8


async def test_a_client_that_leaves_the_queue_is_removed_at_once(line):
    running, waiting, next_one = line.send(), line.send(), line.send()
    waiting.finish(Outcome.CANCELLED)
    assert line.dispatcher.scheduler.queued == 1
    assert account(line).queued == 1
    running.finish(Outcome.FINISHED, EXACT)
    assert next_one.phase is Phase.IN_FLIGHT
    next_one.finish(Outcome.FINISHED, EXACT)
    assert_nothing_left(line)
    assert account(line).outcomes == {Outcome.CANCELLED: 1, Outcome.FINISHED: 2}


async def wait_for_turn(ticket):
    try:
        await ticket.dispatched()
    finally:
        ticket.finish(Outcome.CANCELLED)


async def test_a_client_that_leaves_while_it_awaits_its_turn_frees_everything(line):
    running, waiting = line.send(), line.send()
    task = asyncio.create_task(wait_for_turn(waiting))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    running.finish(Outcome.FINISHED, EXACT)
    assert_nothing_left(line)


async def test_a_client_that_leaves_in_the_instant_of_its_dispatch_leaves_no_ghost_in_the_engine(line):
    running, waiting = line.send(), line.send()
    task = asyncio.create_task(wait_for_turn(waiting))
    await asyncio.sleep(0)
    running.finish(Outcome.FINISHED, EXACT)
    assert waiting.phase is Phase.IN_FLIGHT
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_nothing_left(line)


async def test_the_first_outcome_stands(line):
    ticket = line.send()
    ticket.finish(Outcome.FINISHED, EXACT)
    ticket.finish(Outcome.CANCELLED)
    ticket.first_token()
    ticket.progress(100, 60, exact=True)
    ticket.busy()
    assert ticket.outcome is Outcome.FINISHED
    assert account(line).outcomes == {Outcome.FINISHED: 1}
    assert_nothing_left(line)


async def test_who_waits_to_the_limit_gets_503_and_a_retry_after(line):
    line.configure(queue={"maxWaitSeconds": 30})
    line.send(RED)
    waiting = line.send(BLUE)
    began = asyncio.get_running_loop().time()
    rejection = await waiting.dispatched()
    assert asyncio.get_running_loop().time() - began == pytest.approx(30, abs=0.01)
    assert isinstance(rejection, Rejection)
    assert (rejection.status, rejection.reason) == (503, "wait-limit")
    assert 1 <= rejection.retry_after_seconds <= 120
    assert waiting.outcome is Outcome.EXPIRED
    waiting.finish(Outcome.CANCELLED)
    assert account(line).outcomes == {Outcome.EXPIRED: 1}
    assert account(line).rejected == {"wait-limit": 1}


async def test_a_shorter_waiting_limit_holds_for_those_who_wait_already(line):
    line.send(RED)
    waiting = line.send(BLUE)
    line.configure(queue={"maxWaitSeconds": 5})
    began = asyncio.get_running_loop().time()
    rejection = await waiting.dispatched()
    assert rejection.reason == "wait-limit"
    assert asyncio.get_running_loop().time() - began == pytest.approx(5, abs=0.01)


class TestBusyEngine:
    async def test_a_refused_request_stands_where_it_stood_and_is_tried_after_100_ms(self, line):
        running = line.send(BLUE)
        first, second = line.send(RED), line.send(RED)
        before = counter(line, RED)
        running.finish(Outcome.FINISHED, EXACT)
        assert counter(line, RED) > before
        first.busy()
        assert [first.phase, second.phase] == [Phase.QUEUED, Phase.QUEUED]
        assert counter(line, RED) == before
        assert account(line, RED).queued == 2
        began = asyncio.get_running_loop().time()
        assert await first.dispatched() is None
        assert asyncio.get_running_loop().time() - began == pytest.approx(0.1, abs=0.01)
        assert second.phase is Phase.QUEUED

    async def test_nothing_goes_while_the_engine_is_busy(self, line):
        line.configure(capacity={"maxInFlight": 4})
        line.send(RED).busy()
        late = line.send(BLUE)
        line.dispatcher.tick()
        assert late.phase is Phase.QUEUED
        await asyncio.sleep(0.11)
        assert late.phase is Phase.IN_FLIGHT

    async def test_the_next_end_of_ours_is_reason_to_try_again_at_once(self, line):
        line.configure(capacity={"maxInFlight": 2})
        first, second = line.send(RED), line.send(RED)
        second.busy()
        assert second.phase is Phase.QUEUED
        first.finish(Outcome.FINISHED, EXACT)
        assert second.phase is Phase.IN_FLIGHT

    async def test_the_measured_window_shrinks(self, line):
        line.configure(capacity={})
        before = line.dispatcher.capacity.max_in_flight
        line.send().busy()
        assert line.dispatcher.capacity.max_in_flight == int(before * 0.9)

    async def test_an_engine_that_is_busy_for_ever_costs_a_few_tries_a_second_and_ends_in_503(self, line):
        line.configure(queue={"maxWaitSeconds": 5})
        ticket, tries = line.send(), 0
        while (verdict := await ticket.dispatched()) is None:
            tries += 1
            ticket.busy()
        assert verdict.reason == "wait-limit"
        assert 40 <= tries <= 51
        assert_nothing_left(line)


class TestEngineGone:
    async def test_all_dispatch_holds_until_the_engine_answers_again(self, line):
        line.configure(capacity={"maxInFlight": 4})
        lost = line.send(RED)
        lost.unreachable()
        later = line.send(BLUE)
        await asyncio.sleep(1)
        assert [lost.phase, later.phase] == [Phase.QUEUED, Phase.QUEUED]
        assert line.dispatcher.availability.lost.is_set()
        line.dispatcher.engine_answers(reachable=True)
        assert [lost.phase, later.phase] == [Phase.IN_FLIGHT, Phase.IN_FLIGHT]

    async def test_who_waits_for_an_engine_that_never_comes_fails_at_the_waiting_limit(self, line):
        line.configure(queue={"maxWaitSeconds": 10})
        line.dispatcher.engine_answers(reachable=False)
        ticket = line.send()
        began = asyncio.get_running_loop().time()
        rejection = await ticket.dispatched()
        assert asyncio.get_running_loop().time() - began == pytest.approx(10, abs=0.01)
        assert (rejection.status, rejection.reason) == (503, "engine-unreachable")
        assert ticket.outcome is Outcome.FAILED
        assert_nothing_left(line)

    async def test_the_waiting_limit_counts_from_the_arrival_whatever_came_between(self, line):
        line.configure(queue={"maxWaitSeconds": 10})
        ticket = line.send()
        await asyncio.sleep(7)
        ticket.unreachable()
        began = asyncio.get_running_loop().time()
        assert isinstance(await ticket.dispatched(), Rejection)
        assert asyncio.get_running_loop().time() - began == pytest.approx(3, abs=0.01)

    async def test_passing_through_does_not_wait_for_it(self, line):
        line.configure(mode="PassThrough")
        ticket = line.send()
        ticket.unreachable()
        rejection = await ticket.dispatched()
        assert (rejection.status, rejection.reason) == (503, "engine-unreachable")
        assert_nothing_left(line)


class TestCharging:
    async def test_exact_usage_is_what_the_tenant_pays(self, line):
        ticket = line.send()
        ticket.progress(90, 10, exact=True)
        ticket.finish(Outcome.FINISHED, Usage(prompt=90, generated=20))
        share = line.dispatcher.scheduler.shares(0)[0]
        assert (share.window.prompt, share.window.generated) == (90, 20)
        assert share.window.cost == 90 + 2 * 20

    async def test_a_cancelled_stream_pays_for_its_prompt_and_what_was_seen(self, line):
        ticket = line.send()
        ticket.first_token()
        ticket.progress(None, 30, exact=False)
        ticket.finish(Outcome.CANCELLED)
        share = line.dispatcher.scheduler.shares(0)[0]
        assert share.window.cost == 100 + 2 * 30

    async def test_requests_that_generate_nothing_teach_no_output_lengths(self, line):
        for _ in range(20):
            line.send(kind=EndpointKind.POOLING).finish(Outcome.FINISHED, Usage(prompt=100, generated=0))
            line.send().finish(Outcome.FINISHED, Usage(prompt=0, generated=0))
        line.send(max_tokens=1000)
        assert line.send(max_tokens=1000).request.predicted_tokens == 256

    async def test_an_engine_that_dies_before_the_first_token_costs_nothing(self, line):
        line.send().finish(Outcome.FAILED)
        assert line.dispatcher.scheduler.shares(0)[0].window.cost == 0

    async def test_an_answer_that_does_not_stream_is_charged_by_the_clock(self, line):
        pace_of(line, tokens_per_second=10)
        ticket = line.send(stream=False)
        await asyncio.sleep(3)
        line.dispatcher.tick()
        assert ticket.generated == pytest.approx(30, abs=1)
        share = line.dispatcher.scheduler.shares(asyncio.get_running_loop().time())[0]
        assert share.window.cost == pytest.approx(100 + 2 * 30, abs=2)

    async def test_the_clock_stops_at_what_the_request_may_generate(self, line):
        pace_of(line, tokens_per_second=10)
        ticket = line.send(stream=False, max_tokens=50, sequences=2)
        await asyncio.sleep(60)
        line.dispatcher.tick()
        assert ticket.generated == 100

    async def test_cancelling_late_without_streaming_is_not_free(self, line):
        pace_of(line, tokens_per_second=10)
        ticket = line.send(stream=False)
        await asyncio.sleep(4.75)
        ticket.finish(Outcome.CANCELLED)
        share = line.dispatcher.scheduler.shares(asyncio.get_running_loop().time())[0]
        assert share.window.cost == pytest.approx(100 + 2 * 47, abs=2)

    async def test_a_stream_that_shows_its_progress_is_not_charged_by_the_clock(self, line):
        pace_of(line, tokens_per_second=10)
        ticket = line.send(stream=True)
        ticket.progress(100, 1, exact=True)
        await asyncio.sleep(3)
        line.dispatcher.tick()
        assert ticket.generated == 1


def pace_of(line, tokens_per_second):
    """Set the measured pace by a request that ended."""
    pace, now = line.dispatcher.pace, asyncio.get_running_loop().time()
    pace.started(1, now)
    pace.ended(1, now, seconds=1, generated=tokens_per_second)


class TestConfigurationUnderLoad:
    async def test_a_new_tenant_and_weight_take_effect_with_requests_queued(self, line, tenant):
        running = line.send(RED)
        queued = [line.send(RED), line.send(BLUE), line.send(BLUE)]
        line.configure(tenants=[tenant(BLUE, weight=5), tenant(RED), tenant("team/green")])
        green = line.send("team/green")
        everyone = [running, *queued, green]
        for _ in everyone:
            next(t for t in everyone if t.phase is Phase.IN_FLIGHT).finish(Outcome.FINISHED, EXACT)
        assert {t.outcome for t in everyone} == {Outcome.FINISHED}
        assert_nothing_left(line)

    async def test_a_tenant_that_is_gone_keeps_its_place_in_the_queue(self, line, tenant):
        running, waiting = line.send(RED), line.send(BLUE)
        line.configure(tenants=[tenant(RED)])
        running.finish(Outcome.FINISHED, EXACT)
        assert waiting.phase is Phase.IN_FLIGHT
        waiting.finish(Outcome.FINISHED, EXACT)
        assert_nothing_left(line)

    async def test_the_algorithm_changes_with_requests_queued_and_in_flight(self, line):
        running = line.send(RED)
        queued = [line.send(RED), line.send(BLUE)]
        for algorithm in ("FCFS", "RoundRobin", "VTC"):
            line.configure(algorithm={"type": algorithm})
            assert line.dispatcher.scheduler.algorithm == algorithm
            assert line.dispatcher.scheduler.queued == 2
        running.finish(Outcome.FINISHED, EXACT)
        for _ in queued:
            next(t for t in queued if t.phase is Phase.IN_FLIGHT).finish(Outcome.FINISHED, EXACT)
        assert_nothing_left(line)

    async def test_passing_through_lets_everybody_go_and_enforcing_again_counts_them(self, line):
        tickets = [line.send() for _ in range(5)]
        line.configure(mode="PassThrough")
        assert {t.phase for t in tickets} == {Phase.IN_FLIGHT}
        tickets.append(line.send())
        line.configure()
        waiting = line.send()
        assert waiting.phase is Phase.QUEUED
        for ticket in tickets:
            ticket.finish(Outcome.FINISHED, EXACT)
        assert waiting.phase is Phase.IN_FLIGHT
        waiting.finish(Outcome.FINISHED, EXACT)
        assert_nothing_left(line)

    async def test_a_configuration_that_the_scheduler_refuses_changes_nothing(self, line, policy):
        from dataclasses import replace

        from equipoise_sidecar.policy import ConfigError

        before = line.dispatcher.policy
        broken = replace(policy(), settings=None)
        with pytest.raises(ConfigError):
            line.dispatcher.apply(broken)
        assert line.dispatcher.policy is before
        assert isinstance(line.try_to_send(), Ticket)


class TestLimits:
    async def test_a_tenant_at_its_own_limit_is_passed_over(self, line, tenant):
        line.configure(
            capacity={"maxInFlight": 4}, tenants=[tenant(BLUE), tenant(RED, limits={"maxInFlight": 1})]
        )
        red, held, blue = line.send(RED), line.send(RED), line.send(BLUE)
        assert [red.phase, held.phase, blue.phase] == [Phase.IN_FLIGHT, Phase.QUEUED, Phase.IN_FLIGHT]

    async def test_a_full_queue_refuses_before_the_body_is_read(self, line):
        line.configure(queue={"maxRequests": 2})
        line.send()
        line.send()
        line.send()
        rejection = line.refused()
        assert (rejection.status, rejection.reason) == (429, "queue-full")
        assert 1 <= rejection.retry_after_seconds <= 120

    async def test_bodies_being_read_count_against_the_queue(self, line):
        line.configure(queue={"maxRequests": 2})
        line.send()
        readers = [line.dispatcher.reserve(BLUE, 10) for _ in range(2)]
        assert line.refused().reason == "queue-full"
        readers[0].release()
        readers[0].release()
        assert isinstance(line.try_to_send(), Ticket)

    async def test_a_tenants_own_queue_limit_leaves_others_alone(self, line, tenant):
        line.configure(tenants=[tenant(BLUE), tenant(RED, limits={"maxQueued": 1})])
        line.send(RED)
        line.send(RED)
        assert line.refused(RED).reason == "tenant-queue-full"
        line.send(BLUE)

    async def test_the_queues_bytes_are_bounded_and_freed(self, line):
        line.configure(queue={"maxBytes": 1_048_576})
        line.send(body_bytes=1)
        waiting = line.send(body_bytes=1_000_000)
        rejection = line.refused(body_bytes=100_000)
        assert (rejection.status, rejection.reason) == (429, "queue-bytes-full")
        waiting.finish(Outcome.CANCELLED)
        line.send(body_bytes=100_000)

    async def test_a_body_without_length_grows_until_the_bytes_are_used_up(self, line):
        line.configure(queue={"maxBytes": 1_048_576})
        line.send()
        line.send(body_bytes=1_000_000)
        reservation = line.dispatcher.reserve(RED, None)
        assert reservation.grow(40_000) is None
        assert reservation.grow(400_000).reason == "queue-bytes-full"
        reservation.release()
        assert line.dispatcher.admission.held_bytes == 1_000_000

    async def test_too_large_a_body_gets_413(self, line):
        line.configure(queue={"maxBodyBytes": 2048})
        rejection = line.refused(body_bytes=2049)
        assert (rejection.status, rejection.reason, rejection.should_retry) == (413, "body-too-large", False)

    async def test_requests_per_minute_are_a_hard_quota(self, line, tenant):
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

    async def test_more_tokens_than_a_request_may_have_gets_400(self, line, tenant):
        line.configure(tenants=[tenant(BLUE, limits={"maxTokensPerRequest": 149})])
        rejection = line.refused()
        assert (rejection.status, rejection.reason) == (400, "request-too-large")
        line.send(max_tokens=49)

    async def test_passing_through_limits_nothing(self, line, tenant):
        line.configure(
            mode="PassThrough",
            queue={"maxRequests": 1, "maxBodyBytes": 1024},
            tenants=[
                tenant(BLUE, limits={"requestsPerMinute": 1, "maxInFlight": 1, "maxTokensPerRequest": 1})
            ],
        )
        tickets = [line.send(body_bytes=10_000) for _ in range(5)]
        assert {t.phase for t in tickets} == {Phase.IN_FLIGHT}


class TestLifeOfTheProcess:
    async def test_without_configuration_nothing_is_served(self):
        from equipoise_sidecar.dispatcher import Dispatcher

        rejection = Dispatcher().identify([], None)
        assert (rejection.status, rejection.reason) == (503, "not-configured")

    async def test_a_drain_refuses_new_work_and_finishes_the_old(self, line):
        running, waiting = line.send(), line.send()
        line.dispatcher.drain()
        rejection = line.refused()
        assert (rejection.status, rejection.reason) == (503, "draining")
        drained = asyncio.create_task(line.dispatcher.drained())
        await asyncio.sleep(1)
        running.finish(Outcome.FINISHED, EXACT)
        await asyncio.sleep(1)
        assert not drained.done()
        waiting.finish(Outcome.FINISHED, EXACT)
        await asyncio.wait_for(drained, 1)

    async def test_a_drain_waits_for_bodies_that_are_being_read(self, line, facts):
        reservation = line.dispatcher.reserve(BLUE, 10)
        line.dispatcher.drain()
        drained = asyncio.create_task(line.dispatcher.drained())
        await asyncio.sleep(1)
        assert not drained.done()
        ticket = line.dispatcher.submit(BLUE, facts(), reservation)
        await asyncio.sleep(1)
        assert not drained.done()
        ticket.finish(Outcome.FINISHED, EXACT)
        await asyncio.wait_for(drained, 1)

    async def test_a_restart_forgets_no_debt(self, line):
        from equipoise_sidecar.dispatcher import Dispatcher

        for _ in range(10):
            line.send(RED).finish(Outcome.FINISHED, EXACT)
        state = line.dispatcher.snapshot()
        dispatcher = Dispatcher(clock=asyncio.get_running_loop().time)
        dispatcher.restore(state)
        assert dispatcher.snapshot() == state
        again = type(line)(dispatcher)
        again.configure()
        dispatcher.engine_answers(reachable=True)
        assert dispatcher.snapshot() == state
        red = again.send(RED)
        assert red.priority == 10 * (100 + 2 * 50)

    async def test_damaged_counters_are_left_behind(self, line):
        from equipoise_sidecar.dispatcher import Dispatcher

        dispatcher = Dispatcher(clock=asyncio.get_running_loop().time)
        dispatcher.restore({"scheduler": {"version": 99, "algorithm": "VTC"}, "sizing": {"images": 3}})
        again = type(line)(dispatcher)
        again.configure()
        again.send()
