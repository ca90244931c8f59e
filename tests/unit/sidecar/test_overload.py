"""Overload throttling at the sidecar: the answer that a refused client gets, and its next try."""

import asyncio

import pytest

from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.facts import Rejection
from equipoise_sidecar.interactions import MOST_REMEMBERED, Interactions
from equipoise_sidecar.ticket import Phase

BLUE = "team/blue"
EXACT = Usage(prompt=100, generated=50)

pytestmark = pytest.mark.looptime


async def test_start_above_the_limit_gets_429_with_reason_and_retry_after(line):
    line.configure(overload={"userRequestsPerMinute": 2})
    running = line.send(user="bob")
    waiting = [line.send(user="ann") for _ in range(2)]
    await asyncio.sleep(10)
    third = line.send(user="ann")
    refused = [ticket for ticket in (*waiting, third) if ticket.outcome is Outcome.REFUSED]
    assert refused == waiting[:1], "the oldest, and one a decision"
    verdict = await waiting[0].dispatched()
    assert isinstance(verdict, Rejection)
    assert (verdict.status, verdict.reason, verdict.retry_after_seconds) == (429, "overloaded", 50.0)
    running.finish(Outcome.FINISHED, EXACT)
    assert waiting[1].phase is Phase.IN_FLIGHT, "what fits is served, whoever sent it"
    assert third.outcome is Outcome.REFUSED


async def test_refused_run_whose_calls_are_counted_here_may_try_again(line):
    line.configure(overload={"userRequestsPerMinute": 1})
    line.send(user="bob")
    first = line.send(user="ann", interaction="run")
    line.send(user="ann", interaction="other")
    assert first.outcome is Outcome.REFUSED
    await asyncio.sleep(61)
    again = line.send(user="ann", interaction="run")
    assert again.request.call_index == 1
    assert again.phase is Phase.QUEUED


async def test_later_call_of_a_refused_run_is_refused_on_arrival(line):
    line.configure(overload={"userRequestsPerMinute": 1})
    line.send(user="bob")
    line.send(user="ann", interaction="run", call_index=1)
    line.send(user="ann", interaction="other")
    rejection = line.refused(user="ann", interaction="run", call_index=2)
    assert rejection.reason == "overloaded"
    assert rejection.message.startswith("call 1 of its interaction was refused")


async def test_passing_through_throttles_nobody(line):
    line.configure(mode="PassThrough", overload={"userRequestsPerMinute": 1})
    assert {line.send(user="ann").phase for _ in range(5)} == {Phase.IN_FLIGHT}


async def test_flood_of_another_tenants_interactions_does_not_restart_the_count_of_mine(facts):
    interactions = Interactions()
    mine = facts(user="ann", interaction="run")
    interactions.accepted(BLUE, mine, 3)
    for at in range(MOST_REMEMBERED + 10):
        interactions.accepted("team/red", facts(interaction=str(at)), 1)
    assert interactions.call(BLUE, mine) == 4
    assert len(interactions._calls) == MOST_REMEMBERED
