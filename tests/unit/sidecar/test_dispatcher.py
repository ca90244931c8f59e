"""A request's life in the queue: order, waiting limits, leaving, an engine that is busy, gone, or comes back."""

import asyncio

import pytest

from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.facts import Rejection
from equipoise_sidecar.ticket import Phase

BLUE, RED = "team/blue", "team/red"
EXACT = Usage(prompt=100, generated=50)

pytestmark = pytest.mark.looptime


async def test_a_request_goes_at_once_when_the_engine_has_room(line):
    ticket = line.send()
    assert await ticket.dispatched() is None
    assert ticket.queued_seconds == 0
    ticket.finish(Outcome.FINISHED, EXACT)
    line.assert_nothing_left()
    assert line.account().outcomes == {Outcome.FINISHED: 1}


async def test_the_next_request_goes_in_the_call_that_ends_the_one_before(line):
    first, second = line.send(), line.send()
    assert second.phase is Phase.QUEUED
    first.finish(Outcome.FINISHED, EXACT)
    assert second.phase is Phase.IN_FLIGHT
    assert await second.dispatched() is None
    second.finish(Outcome.FINISHED, EXACT)
    line.assert_nothing_left()


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
    assert line.account().queued == 1
    running.finish(Outcome.FINISHED, EXACT)
    assert next_one.phase is Phase.IN_FLIGHT
    next_one.finish(Outcome.FINISHED, EXACT)
    line.assert_nothing_left()
    assert line.account().outcomes == {Outcome.CANCELLED: 1, Outcome.FINISHED: 2}


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
    line.assert_nothing_left()


async def test_a_client_that_leaves_in_the_instant_of_its_dispatch_leaves_no_ghost_in_the_engine(line):
    running, waiting = line.send(), line.send()
    task = asyncio.create_task(wait_for_turn(waiting))
    await asyncio.sleep(0)
    running.finish(Outcome.FINISHED, EXACT)
    assert waiting.phase is Phase.IN_FLIGHT
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    line.assert_nothing_left()


async def test_the_first_outcome_stands(line):
    ticket = line.send()
    ticket.finish(Outcome.FINISHED, EXACT)
    ticket.finish(Outcome.CANCELLED)
    ticket.first_token()
    ticket.progress(100, 60, exact=True)
    ticket.busy()
    assert ticket.outcome is Outcome.FINISHED
    assert line.account().outcomes == {Outcome.FINISHED: 1}
    line.assert_nothing_left()


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
    assert line.account().outcomes == {Outcome.EXPIRED: 1}
    assert line.account().rejected == {"wait-limit": 1}


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
        before = line.counter(RED)
        running.finish(Outcome.FINISHED, EXACT)
        assert line.counter(RED) > before
        first.busy()
        assert [first.phase, second.phase] == [Phase.QUEUED, Phase.QUEUED]
        assert line.counter(RED) == before
        assert line.account(RED).queued == 2
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
        before = line.dispatcher.engine.capacity.max_in_flight
        line.send().busy()
        assert line.dispatcher.engine.capacity.max_in_flight == int(before * 0.9)

    async def test_an_engine_that_is_busy_for_ever_costs_a_few_tries_a_second_and_ends_in_503(self, line):
        line.configure(queue={"maxWaitSeconds": 5})
        ticket, tries = line.send(), 0
        while (verdict := await ticket.dispatched()) is None:
            tries += 1
            ticket.busy()
        assert verdict.reason == "wait-limit"
        assert 40 <= tries <= 51
        line.assert_nothing_left()


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
        line.assert_nothing_left()

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
        line.assert_nothing_left()
