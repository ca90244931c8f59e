"""The end of a drain's time: what is queued still is turned away, with a reason, counted once."""

import asyncio

import pytest

from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.facts import Rejection
from equipoise_sidecar.ticket import Phase

BLUE, RED = "team/blue", "team/red"

pytestmark = pytest.mark.looptime


async def test_what_is_queued_is_told_to_go_elsewhere_and_what_is_in_flight_goes_on(line):
    running, *waiting = (line.send(tenant) for tenant in (RED, RED, BLUE))
    turns = [asyncio.create_task(ticket.dispatched()) for ticket in waiting]
    line.dispatcher.drain()
    line.dispatcher.turn_away()
    for turn in turns:
        verdict = await turn
        assert isinstance(verdict, Rejection)
        assert (verdict.status, verdict.reason, verdict.should_retry) == (503, "draining", True)
    for ticket in waiting:
        ticket.finish(Outcome.FAILED)  # as whoever serves it does in the end
        assert ticket.outcome is Outcome.REFUSED
    blue, red = (line.dispatcher.accounting[tenant] for tenant in (BLUE, RED))
    assert (blue.outcomes, blue.rejected) == ({Outcome.REFUSED: 1}, {"draining": 1})
    assert running.phase is Phase.IN_FLIGHT
    running.finish(Outcome.FINISHED, Usage(prompt=100, generated=50))
    assert red.outcomes == {Outcome.REFUSED: 1, Outcome.FINISHED: 1}
    await asyncio.wait_for(line.dispatcher.drained(), 1)
    assert (line.dispatcher.scheduler.queued, line.dispatcher.admission.held_bytes) == (0, 0)


async def test_nothing_waits_to_expire_after_that(line):
    line.send(RED)
    ticket = line.send(BLUE)
    line.dispatcher.turn_away()
    await asyncio.sleep(10_000)
    assert ticket.outcome is Outcome.REFUSED
    assert line.dispatcher.accounting[BLUE].outcomes == {Outcome.REFUSED: 1}
