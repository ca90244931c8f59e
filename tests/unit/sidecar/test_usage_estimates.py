"""Where the engine says nothing of an answer's length the clock does, and what the engine then says takes it back."""

import asyncio

import pytest

from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.ticket import Phase

pytestmark = pytest.mark.looptime
PACE = 10
"""Tokens a second."""


def now():
    return asyncio.get_running_loop().time()


@pytest.fixture
async def paced(line):
    """A line whose pace was measured by a request that ended."""
    line.dispatcher.engine.pace.started(1, now())
    line.dispatcher.engine.pace.ended(1, now(), seconds=1, generated=PACE)
    return line


def paid(line):
    total = line.dispatcher.scheduler.shares(now())[0].total
    return (total.prompt, total.generated)


@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_engine_refuses_costs_nothing_however_long_it_took(paced, stream):
    ticket = paced.send(stream=stream)
    await asyncio.sleep(3)
    paced.dispatcher.tick()
    ticket.finish(Outcome.FINISHED, Usage(prompt=0, generated=0))
    assert paid(paced) == (0, 0)
    assert paced.dispatcher.scheduler.shares(now())[0].counter == 0


async def test_a_refusal_says_nothing_of_the_pace(paced):
    ticket = paced.send()
    await asyncio.sleep(5)
    ticket.finish(Outcome.FINISHED, Usage(prompt=0, generated=0))
    assert paced.dispatcher.engine.pace.tokens_per_second(now()) == PACE


async def test_what_the_clock_said_of_a_try_that_failed_is_forgotten(paced):
    ticket = paced.send(stream=False)
    await asyncio.sleep(3)
    paced.dispatcher.tick()
    assert ticket.generated == 3 * PACE
    ticket.unreachable()
    paced.dispatcher.engine_answers(reachable=True)
    assert ticket.phase is Phase.IN_FLIGHT
    paced.dispatcher.tick()
    ticket.finish(Outcome.CANCELLED)
    assert paid(paced) == (100, 0)


async def test_a_client_that_takes_nothing_of_its_stream_pays_by_the_clock_when_it_leaves(paced):
    ticket = paced.send()
    ticket.first_token()
    ticket.progress(100, 5, exact=True)
    ticket.stalled = True
    await asyncio.sleep(2)
    paced.dispatcher.tick()
    assert ticket.generated == 2 * PACE
    await asyncio.sleep(1)
    ticket.finish(Outcome.CANCELLED)
    assert paid(paced) == (100, 3 * PACE)


async def test_a_client_that_takes_a_token_a_second_pays_by_the_clock_too(paced):
    ticket = paced.send()
    ticket.first_token()
    for second in range(4):
        ticket.stalled = False
        ticket.progress(100, second + 1, exact=True)
        ticket.stalled = True
        await asyncio.sleep(1)
        paced.dispatcher.tick()
    ticket.stalled = False
    ticket.finish(Outcome.CANCELLED)
    assert paid(paced) == (100, 4 * PACE)


async def test_a_stalled_stream_that_goes_on_is_charged_what_it_then_shows(paced):
    ticket = paced.send()
    ticket.progress(100, 5, exact=True)
    ticket.stalled = True
    await asyncio.sleep(3)
    paced.dispatcher.tick()
    ticket.stalled = False
    ticket.progress(100, 6, exact=True)
    assert ticket.generated == 6
    ticket.finish(Outcome.FINISHED, Usage(prompt=100, generated=6))
    assert paid(paced) == (100, 6)
