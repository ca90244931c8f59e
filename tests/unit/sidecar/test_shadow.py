"""Shadow schedulers beside a running sidecar: fed by the dispatcher, told in state, metrics and a table."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.debug import TABLES, table
from equipoise_sidecar.policy import ConfigError
from equipoise_sidecar.shadow_figures import shadow_metrics, shadow_state
from equipoise_sidecar.ticket import Phase

BLUE, RED = "team/blue", "team/red"
EXACT = Usage(prompt=100, generated=50)

pytestmark = pytest.mark.looptime


def now():
    return asyncio.get_running_loop().time()


def report(line, algorithm="VTC"):
    return next(r for r in line.dispatcher.shadows.reports(now()) if r.algorithm == algorithm)


async def work_off(line, tickets):
    while running := [ticket for ticket in tickets if ticket.phase is Phase.IN_FLIGHT]:
        await asyncio.sleep(1)
        line.dispatcher.tick()
        running[0].first_token()
        running[0].finish(Outcome.FINISHED, EXACT)


async def test_a_shadow_beside_an_enforced_scheduler_says_who_would_have_gone_earlier(line):
    line.configure(algorithm={"type": "FCFS"}, shadow=[{"type": "VTC"}])
    tickets = [line.send(RED) for _ in range(8)] + [line.send(BLUE) for _ in range(2)]
    await work_off(line, tickets)
    said = report(line)
    assert said.compared == 10
    assert (said.earlier, said.off) == (2, None)
    assert said.later > 0
    assert said.wait_change_seconds == pytest.approx(0, abs=0.01)


async def test_the_same_scheduler_in_shadow_would_have_changed_nothing(line):
    line.configure(algorithm={"type": "VTC"}, shadow=[{"type": "VTC"}])
    tickets = [line.send(tenant) for tenant in (RED, RED, RED, BLUE, RED, BLUE)]
    await work_off(line, tickets)
    assert (report(line).compared_total, report(line).changed_total) == (6, 0)


async def test_while_requests_pass_through_their_wait_is_the_engines(line):
    line.configure(mode="PassThrough", shadow=[{"type": "VTC"}])
    tickets = [line.send(RED) for _ in range(8)] + [line.send(BLUE) for _ in range(2)]
    assert {ticket.phase for ticket in tickets} == {Phase.IN_FLIGHT}
    await work_off(line, tickets)  # the engine answers one after the other, in the order of arrival
    said = report(line)
    assert (said.compared, said.earlier) == (10, 2)
    assert (
        said.waits_enforced == said.waits
    )  # one order is a permutation of the other: all requests are alike


async def test_what_a_shadow_foretells_comes_true_once_it_is_enforced(line):
    async def waits(**settings):
        line.configure(**settings)
        await work_off(line, [line.send(RED) for _ in range(8)] + [line.send(BLUE) for _ in range(2)])
        (shadow,) = line.dispatcher.shadows
        return shadow.comparison.waits(now())

    foretold = await waits(mode="PassThrough", shadow=[{"type": "RoundRobin"}])
    line.dispatcher = type(line.dispatcher)(clock=asyncio.get_running_loop().time)
    line.dispatcher.engine_answers(reachable=True)
    real = await waits(algorithm={"type": "RoundRobin"}, shadow=[{"type": "FCFS"}])
    for tenant in (BLUE, RED):
        # a wait inside the engine ends with the first token, here a second after the dispatch
        assert foretold[tenant][1] == pytest.approx(real[tenant][0] + 1)
        assert foretold[tenant][0] == pytest.approx(real[tenant][1] + 1)


async def test_leaving_expiring_and_an_engine_that_is_busy_reach_the_shadow(line):
    line.configure(algorithm={"type": "FCFS"}, shadow=[{"type": "RoundRobin"}], queue={"maxWaitSeconds": 30})
    running, leaving, expiring = line.send(RED), line.send(RED), line.send(BLUE)
    running.busy()
    assert running.phase is Phase.QUEUED
    leaving.finish(Outcome.CANCELLED)
    await asyncio.sleep(1)
    assert running.phase is Phase.IN_FLIGHT
    assert (await expiring.dispatched()).reason == "wait-limit"
    running.finish(Outcome.FINISHED, EXACT)
    (shadow,) = line.dispatcher.shadows
    assert shadow.off is None
    assert (shadow.scheduler.queued, shadow.scheduler.in_flight) == (0, 0)


async def test_passing_through_nobody_stays_in_a_shadow_after_all_have_left(line):
    line.configure(mode="PassThrough", shadow=[{"type": "VTC"}])
    tickets = [line.send(RED) for _ in range(4)] + [line.send(BLUE)]
    for ticket in tickets[:2]:
        ticket.first_token()
        ticket.finish(Outcome.FINISHED, EXACT)
    (shadow,) = line.dispatcher.shadows
    for ticket in tickets[2:]:
        ticket.finish(Outcome.CANCELLED)
    await asyncio.sleep(2)
    line.dispatcher.tick()
    assert (shadow.scheduler.queued, shadow.scheduler.in_flight, shadow._mirrors) == (0, 0, {})


async def test_a_shadow_that_fails_is_logged_reported_and_forgotten(line, monkeypatch):
    line.configure(algorithm={"type": "FCFS"}, shadow=[{"type": "VTC"}])
    (shadow,) = line.dispatcher.shadows

    def fail(*_):
        raise RuntimeError("oh")

    monkeypatch.setattr(shadow.scheduler, "next", fail)
    ticket = line.send(RED)
    assert ticket.phase is Phase.IN_FLIGHT
    assert shadow_state(report(line)).off == "RuntimeError: oh"
    ticket.finish(Outcome.FINISHED, EXACT)
    line.configure(algorithm={"type": "FCFS"}, shadow=[{"type": "VTC"}])
    assert report(line).off is None


async def test_what_a_shadow_says_is_in_metrics_and_in_a_table(line):
    line.configure(
        algorithm={"type": "FCFS"}, shadow=[{"type": "VTC"}, {"type": "RPM", "rpm": {"requestsPerMinute": 2}}]
    )
    tickets = [line.send(RED) for _ in range(6)] + [line.send(BLUE)]
    await work_off(line, tickets)

    class Shadows:
        def collect(self):
            return shadow_metrics(line.dispatcher.shadows, now())

    registry = CollectorRegistry()
    registry.register(Shadows())
    text = generate_latest(registry).decode()
    assert 'equipoise_shadow_compared_requests_total{algorithm="VTC"} 7.0' in text
    assert 'equipoise_shadow_rejections_total{algorithm="RPM"} 4.0' in text
    assert 'equipoise_shadow_running{algorithm="VTC"} 1.0' in text
    assert 'equipoise_shadow_wait_change_seconds{algorithm="VTC"}' in text
    printed = table(TABLES["shadows"](line.dispatcher, now()))
    rows = [[cell.strip() for cell in row.split(",")] for row in printed.splitlines()]
    assert rows[0][:4] == ["algorithm", "tenant", "wait_seconds", "wait_seconds_enforced"]
    assert [(row[0], row[1]) for row in rows[1:]] == [
        ("RPM", BLUE),
        ("RPM", RED),
        ("VTC", BLUE),
        ("VTC", RED),
    ]
    vtc = {row[1]: row for row in rows if row[0] == "VTC"}
    assert float(vtc[BLUE][2]) < float(vtc[BLUE][3])
    assert float(vtc[RED][2]) > float(vtc[RED][3])
    assert vtc[RED][4] == vtc[RED][5]
    change = float(vtc[BLUE][2]) - float(vtc[BLUE][3])
    assert f'equipoise_shadow_tenant_wait_change_seconds{{algorithm="VTC",tenant="{BLUE}"}} {change}' in text


async def test_limits_hold_in_the_shadow_of_a_policy_that_passes_requests_through(line, tenant):
    blue = tenant(BLUE, limits={"maxQueued": 2})
    line.configure(mode="PassThrough", shadow=[{"type": "FCFS"}], tenants=[blue])
    for _ in range(5):
        line.send(BLUE)
    assert report(line, "FCFS").refused == 3


def test_a_shadow_that_cannot_be_is_refused_by_field(policy, monkeypatch):
    known = {name: kind for name, kind in SCHEDULERS.items() if name != "RPM"}
    monkeypatch.setattr("equipoise_scheduling.registry.SCHEDULERS", known)
    with pytest.raises(ConfigError, match=r"shadow\.1: .*RPM"):
        policy(shadow=[{"type": "FCFS"}, {"type": "RPM"}])
