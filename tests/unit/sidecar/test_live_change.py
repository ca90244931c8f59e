"""Another algorithm while requests wait and run, and after a restart: nobody is lost, and nobody's history is."""

import asyncio
import itertools

import pytest

from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.ticket import Phase

BLUE, RED = "team/blue", "team/red"
EXACT = Usage(prompt=100, generated=50)
PAIRS = list(itertools.permutations(sorted(SCHEDULERS), 2))
KEEPS_COUNTERS = {"VTC", "Equipoise", "LCF"}

pytestmark = pytest.mark.looptime


def now():
    return asyncio.get_running_loop().time()


def serve(line, tenant, count):
    """Have so many requests of a tenant served, one after the other."""
    for _ in range(count):
        ticket = line.send(tenant)
        assert ticket.phase is Phase.IN_FLIGHT
        ticket.progress(100, 50, exact=True)
        ticket.finish(Outcome.FINISHED, EXACT)


def service(scheduler):
    return {name: round(cost) for name, cost in scheduler.history(now()).items() if cost}


@pytest.mark.parametrize(("before", "after"), PAIRS)
async def test_what_waits_and_runs_goes_on_under_any_other_algorithm(line, before, after):
    line.configure(algorithm={"type": before}, capacity={"maxInFlight": 2})
    running = [line.send(RED), line.send(BLUE)]
    running[0].progress(100, 10, exact=True)
    waiting = [line.send(tenant) for tenant in (RED, RED, BLUE, RED, BLUE, BLUE)]
    leaving = waiting.pop(1)
    facts = {t.request.id: (t.request.number, t.request.arrival) for t in waiting}
    # a deadline is made by schedulers that have any, and never moved by the next one
    deadlines = {t.request.id: t.request.deadline for t in waiting if t.request.deadline is not None}

    line.configure(algorithm={"type": after}, capacity={"maxInFlight": 2})
    dispatcher = line.dispatcher
    assert dispatcher.scheduler.algorithm == after
    assert (dispatcher.scheduler.queued, dispatcher.scheduler.in_flight) == (6, 2)
    leaving.finish(Outcome.CANCELLED)
    assert {t.request.id: (t.request.number, t.request.arrival) for t in waiting} == facts
    for ticket in waiting:
        if ticket.request.id in deadlines:
            assert ticket.request.deadline == deadlines[ticket.request.id]
    newcomer = line.send(BLUE)
    assert newcomer.request.number > max(number for number, _ in facts.values())

    tickets = [*running, *waiting, newcomer]
    for _ in range(100):
        flying = [ticket for ticket in tickets if ticket.phase is Phase.IN_FLIGHT]
        if not flying:
            break
        await asyncio.sleep(1)
        dispatcher.tick()
        flying[0].progress(100, 50, exact=True)
        flying[0].finish(Outcome.FINISHED, EXACT)
    assert {ticket.outcome for ticket in tickets} == {Outcome.FINISHED}
    assert (dispatcher.scheduler.queued, dispatcher.scheduler.in_flight) == (0, 0)
    assert dispatcher.accounting[RED].outcomes[Outcome.FINISHED] == 3
    assert dispatcher.accounting[BLUE].outcomes == {Outcome.FINISHED: 5}
    totals = {share.tenant: share.total for share in dispatcher.scheduler.shares(now())}
    assert (totals[RED].prompt, totals[RED].generated) == (300, 150)


@pytest.mark.parametrize(("before", "after"), PAIRS)
async def test_service_history_goes_over_to_any_algorithm_that_keeps_one(line, before, after):
    line.configure(algorithm={"type": before})
    serve(line, RED, 10)
    serve(line, BLUE, 2)
    known = service(line.dispatcher.scheduler)
    line.configure(algorithm={"type": after})
    carried = service(line.dispatcher.scheduler)
    assert carried.keys() == known.keys() == {RED, BLUE}
    if after in KEEPS_COUNTERS:
        assert carried == known


@pytest.mark.parametrize("before", sorted(SCHEDULERS))
@pytest.mark.parametrize("after", ["VTC", "FCFS", "Equipoise"])
async def test_history_survives_a_restart_into_the_same_or_another_algorithm(line, before, after):
    line.configure(algorithm={"type": before})
    serve(line, RED, 10)
    serve(line, BLUE, 2)
    state = line.dispatcher.snapshot()
    again = type(line)(Dispatcher(clock=asyncio.get_running_loop().time))
    again.dispatcher.restore(state)
    again.configure(algorithm={"type": after})
    again.dispatcher.engine_answers(reachable=True)
    if before in KEEPS_COUNTERS and after in KEEPS_COUNTERS:
        assert service(again.dispatcher.scheduler) == service(line.dispatcher.scheduler)
    serve(again, RED, 1)
    serve(again, BLUE, 1)


async def test_who_had_more_before_the_change_waits_longer_after_it(line):
    line.configure(algorithm={"type": "FCFS"})
    serve(line, RED, 10)
    running, red, blue = line.send(RED), line.send(RED), line.send(BLUE)
    line.configure(algorithm={"type": "VTC"})
    running.finish(Outcome.FINISHED, EXACT)
    assert (blue.phase, red.phase) == (Phase.IN_FLIGHT, Phase.QUEUED)


@pytest.mark.parametrize(
    "sizing", [None, [], {"text": []}, {"images": {"m": float("nan")}}, {"text": {"version": 2}}]
)
async def test_a_spoilt_snapshot_never_keeps_the_sidecar_from_starting(line, sizing):
    line.configure(algorithm={"type": "RoundRobin"})
    serve(line, RED, 2)
    state = line.dispatcher.snapshot()
    state["scheduler"]["state"]["served"] = [None, None]
    again = type(line)(Dispatcher(clock=asyncio.get_running_loop().time))
    again.configure(algorithm={"type": "RoundRobin"})
    again.dispatcher.restore(state | {"sizing": sizing, "gpu_exporter": 5})
    again.dispatcher.engine_answers(reachable=True)
    serve(again, RED, 1)
    serve(again, BLUE, 1)
