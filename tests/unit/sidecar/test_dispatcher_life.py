"""What changes under a dispatcher with requests in it: its configuration, a drain, a restart."""

import asyncio

import pytest

from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.ticket import Phase, Ticket

BLUE, RED = "team/blue", "team/red"
EXACT = Usage(prompt=100, generated=50)

pytestmark = pytest.mark.looptime


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
        line.assert_nothing_left()

    async def test_a_tenant_that_is_gone_keeps_its_place_in_the_queue(self, line, tenant):
        running, waiting = line.send(RED), line.send(BLUE)
        line.configure(tenants=[tenant(RED)])
        running.finish(Outcome.FINISHED, EXACT)
        assert waiting.phase is Phase.IN_FLIGHT
        waiting.finish(Outcome.FINISHED, EXACT)
        line.assert_nothing_left()

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
        line.assert_nothing_left()

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
        line.assert_nothing_left()

    async def test_a_configuration_that_the_scheduler_refuses_changes_nothing(self, line, policy):
        from dataclasses import replace

        from equipoise_sidecar.policy import ConfigError

        before = line.dispatcher.policy
        broken = replace(policy(), settings=None)
        with pytest.raises(ConfigError):
            line.dispatcher.apply(broken)
        assert line.dispatcher.policy is before
        assert isinstance(line.try_to_send(), Ticket)


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
