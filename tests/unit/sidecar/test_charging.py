"""What a tenant pays for a request: by the engine's count, by what was seen, or by the clock."""

import asyncio

import pytest

from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.facts import EndpointKind

pytestmark = pytest.mark.looptime


def pace_of(line, tokens_per_second):
    """Set the measured pace by a request that ended."""
    pace, now = line.dispatcher.engine.pace, asyncio.get_running_loop().time()
    pace.started(1, now)
    pace.ended(1, now, seconds=1, generated=tokens_per_second)


async def test_exact_usage_is_what_the_tenant_pays(line):
    ticket = line.send()
    ticket.progress(90, 10, exact=True)
    ticket.finish(Outcome.FINISHED, Usage(prompt=90, generated=20))
    share = line.dispatcher.scheduler.shares(0)[0]
    assert (share.window.prompt, share.window.generated) == (90, 20)
    assert share.window.cost == 90 + 2 * 20


async def test_a_cancelled_stream_pays_for_its_prompt_and_what_was_seen(line):
    ticket = line.send()
    ticket.first_token()
    ticket.progress(None, 30, exact=False)
    ticket.finish(Outcome.CANCELLED)
    share = line.dispatcher.scheduler.shares(0)[0]
    assert share.window.cost == 100 + 2 * 30


async def test_requests_that_generate_nothing_teach_no_output_lengths(line):
    for _ in range(20):
        line.send(kind=EndpointKind.POOLING).finish(Outcome.FINISHED, Usage(prompt=100, generated=0))
        line.send().finish(Outcome.FINISHED, Usage(prompt=0, generated=0))
    line.send(max_tokens=1000)
    assert line.send(max_tokens=1000).request.predicted_tokens == 256


async def test_an_engine_that_dies_before_the_first_token_costs_nothing(line):
    line.send().finish(Outcome.FAILED)
    assert line.dispatcher.scheduler.shares(0)[0].window.cost == 0


async def test_an_answer_that_does_not_stream_is_charged_by_the_clock(line):
    pace_of(line, tokens_per_second=10)
    ticket = line.send(stream=False)
    await asyncio.sleep(3)
    line.dispatcher.tick()
    assert ticket.generated == pytest.approx(30, abs=1)
    share = line.dispatcher.scheduler.shares(asyncio.get_running_loop().time())[0]
    assert share.window.cost == pytest.approx(100 + 2 * 30, abs=2)


async def test_the_clock_stops_at_what_the_request_may_generate(line):
    pace_of(line, tokens_per_second=10)
    ticket = line.send(stream=False, max_tokens=50, sequences=2)
    await asyncio.sleep(60)
    line.dispatcher.tick()
    assert ticket.generated == 100


async def test_cancelling_late_without_streaming_is_not_free(line):
    pace_of(line, tokens_per_second=10)
    ticket = line.send(stream=False)
    await asyncio.sleep(4.75)
    ticket.finish(Outcome.CANCELLED)
    share = line.dispatcher.scheduler.shares(asyncio.get_running_loop().time())[0]
    assert share.window.cost == pytest.approx(100 + 2 * 47, abs=2)


async def test_a_stream_that_shows_its_progress_is_not_charged_by_the_clock(line):
    pace_of(line, tokens_per_second=10)
    ticket = line.send(stream=True)
    ticket.progress(100, 1, exact=True)
    await asyncio.sleep(3)
    line.dispatcher.tick()
    assert ticket.generated == 1
