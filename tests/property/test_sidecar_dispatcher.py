"""Whatever happens in whatever order: every request ends once, nothing is lost, nothing is held afterwards."""

import asyncio

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from equipoise_api.sidecar_config import SidecarConfig
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.facts import EndpointKind, Facts, Rejection
from equipoise_sidecar.policy import compile_policy
from equipoise_sidecar.ticket import Phase, Ticket

TENANTS = ["team/a", "team/b", "team/c"]
CONFIGURATIONS = [
    {"algorithm": {"type": "VTC"}, "capacity": {"maxInFlight": 2}},
    {"algorithm": {"type": "VTC"}, "capacity": {"kvTokens": 700, "gate": "Reserve"}},
    {"algorithm": {"type": "FCFS"}, "capacity": {"maxInFlight": 1}, "queue": {"maxRequests": 3}},
    {"algorithm": {"type": "RoundRobin"}, "capacity": {"maxInFlight": 3}, "queue": {"maxWaitSeconds": 2}},
    {"mode": "PassThrough"},
    {"mode": "PassThrough", "shadow": [{"type": "VTC"}, {"type": "ExFairS"}]},
    *(
        {
            "algorithm": {"type": name},
            "capacity": {"maxInFlight": 2},
            "overload": {"userRequestsPerMinute": 2, "applicationRequestsPerMinute": 4},
            "shadow": [{"type": other} for other in sorted(SCHEDULERS) if other != name][place % 3 :: 3][:3],
        }
        for place, name in enumerate(sorted(SCHEDULERS))
    ),
]
LIMITS = [{}, {"maxInFlight": 1}, {"maxQueued": 1}]


class TimedLoop(asyncio.SelectorEventLoop):
    """A loop whose clock the test moves; due timers run when it does."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0

    def time(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds
        self.run_until_complete(self._settle())

    @staticmethod
    async def _settle():
        for _ in range(3):
            await asyncio.sleep(0)


class Life(RuleBasedStateMachine):
    """A dispatcher that everything happens to."""

    def __init__(self):
        super().__init__()
        self.loop = TimedLoop()
        self.tickets: list[Ticket] = []
        self.reservations = []
        self.run(self._make)
        self.configure(CONFIGURATIONS[0], [{}, {}, {}], [1, 2, 3])
        self.engine_answers(reachable=True)

    def run(self, call, *arguments, **named):
        async def within():
            return call(*arguments, **named)

        return self.loop.run_until_complete(within())

    def _make(self):
        self.dispatcher = Dispatcher(clock=self.loop.time)

    def pick(self, phase, index):
        living = [ticket for ticket in self.tickets if ticket.phase is phase]
        return living[index % len(living)] if living else None

    @rule(
        settings=st.sampled_from(CONFIGURATIONS),
        limits=st.lists(st.sampled_from(LIMITS), min_size=3, max_size=3),
        weights=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    )
    def configure(self, settings, limits, weights):
        tenants = [
            {"id": name, "limits": limit, "weight": weight}
            for name, limit, weight in zip(TENANTS, limits, weights, strict=True)
        ]
        config = SidecarConfig.model_validate({"mode": "Enforce", "tenants": tenants, **settings})
        self.run(self.dispatcher.apply, compile_policy(config, config.revision))

    @rule(
        tenant=st.sampled_from([*TENANTS, "default"]),
        prompt=st.integers(1, 300),
        max_tokens=st.integers(1, 200) | st.none(),
        sequences=st.integers(1, 2),
        stream=st.booleans(),
        kind=st.sampled_from([EndpointKind.CHAT, EndpointKind.POOLING]),
        user=st.sampled_from(["", "ann", "bob"]),
        interaction=st.sampled_from(["", "run-1", "run-2"]),
    )
    def arrive(self, *, tenant, prompt, max_tokens, sequences, stream, kind, user, interaction):
        facts = Facts(
            path="/x",
            kind=kind,
            prompt_ids=prompt,
            max_tokens=max_tokens,
            sequences=sequences,
            stream=stream,
            body_bytes=prompt,
            user=user,
            application=user and "app",
            interaction=interaction,
        )
        reservation = self.run(self.dispatcher.reserve, tenant, prompt)
        if isinstance(reservation, Rejection):
            return
        ticket = self.run(self.dispatcher.submit, tenant, facts, reservation)
        self.run(reservation.release)
        if isinstance(ticket, Ticket):
            self.tickets.append(ticket)

    @rule(length=st.integers(0, 1000) | st.none())
    def begin_a_body(self, length):
        reservation = self.run(self.dispatcher.reserve, TENANTS[0], length)
        if not isinstance(reservation, Rejection):
            self.reservations.append(reservation)

    @precondition(lambda self: self.reservations)
    @rule(more=st.integers(0, 5000))
    def break_a_body_off(self, more):
        reservation = self.reservations.pop()
        self.run(reservation.grow, more)
        self.run(reservation.release)
        self.run(reservation.release)

    @rule(
        index=st.integers(0, 20),
        generated=st.integers(0, 200),
        prompt=st.integers(1, 300) | st.none(),
        exact=st.booleans(),
    )
    def deliver(self, index, generated, prompt, exact):
        if (ticket := self.pick(Phase.IN_FLIGHT, index)) is not None:
            self.run(ticket.first_token)
            self.run(ticket.progress, prompt, generated, exact=exact)

    @rule(
        index=st.integers(0, 20),
        outcome=st.sampled_from([Outcome.FINISHED, Outcome.CANCELLED, Outcome.FAILED]),
        known=st.booleans(),
    )
    def end(self, index, outcome, known):
        if (ticket := self.pick(Phase.IN_FLIGHT, index)) is not None:
            self.run(ticket.finish, outcome, Usage(50, 40) if known else None)
            assert ticket.outcome is outcome

    @rule(index=st.integers(0, 20))
    def leave_the_queue(self, index):
        if (ticket := self.pick(Phase.QUEUED, index)) is not None:
            self.run(ticket.finish, Outcome.CANCELLED)
            assert ticket.outcome is Outcome.CANCELLED

    @rule(index=st.integers(0, 20), outcome=st.sampled_from(Outcome))
    def end_again(self, index, outcome):
        if (ticket := self.pick(Phase.ENDED, index)) is not None:
            before = ticket.outcome
            self.run(ticket.finish, outcome, Usage(1, 1))
            self.run(ticket.busy)
            self.run(ticket.progress, 1, 1, exact=True)
            assert ticket.outcome is before

    @rule(index=st.integers(0, 20))
    def engine_is_busy(self, index):
        if (ticket := self.pick(Phase.IN_FLIGHT, index)) is not None and ticket.first_token_at is None:
            self.run(ticket.busy)

    @rule(index=st.integers(0, 20))
    def engine_is_gone(self, index):
        if (ticket := self.pick(Phase.IN_FLIGHT, index)) is not None and ticket.first_token_at is None:
            self.run(ticket.unreachable)

    @rule(reachable=st.booleans())
    def engine_answers(self, reachable):
        self.run(self.dispatcher.engine_answers, reachable=reachable)

    @rule(seconds=st.sampled_from([0.05, 0.3, 2.5, 400]))
    def time_passes(self, seconds):
        self.loop.advance(seconds)
        self.run(self.dispatcher.tick)

    @invariant()
    def everything_is_somewhere_once(self):
        dispatcher = self.dispatcher
        queued = [ticket for ticket in self.tickets if ticket.phase is Phase.QUEUED]
        in_flight = [ticket for ticket in self.tickets if ticket.phase is Phase.IN_FLIGHT]
        ended = [ticket for ticket in self.tickets if ticket.phase is Phase.ENDED]
        assert dispatcher.scheduler.queued == len(queued)
        assert dispatcher.scheduler.in_flight == len(in_flight)
        assert {id(t) for t in dispatcher.tickets()} == {id(t) for t in queued + in_flight}
        assert dispatcher.engine.capacity.gate.sequences == sum(t.request.sequences for t in in_flight)
        held = sum(t.held_bytes for t in queued) + sum(r.held_bytes for r in self.reservations)
        assert dispatcher.admission.held_bytes == held
        assert dispatcher.admission.reading == len(self.reservations)
        assert all(ticket.outcome is not None for ticket in ended)
        accounts = dict(dispatcher.accounting.items())
        assert sum(account.queued for account in accounts.values()) == len(queued)
        assert sum(account.running for account in accounts.values()) == len(in_flight)
        counted = sum(sum(account.outcomes.values()) for account in accounts.values())
        assert counted <= len(ended)
        assert all(ticket.expiry is not None for ticket in queued)
        assert all(ticket.expiry is None for ticket in in_flight + ended)

    @invariant()
    def nobody_waits_for_nothing(self):
        """Work conservation: with an engine there and nothing in flight, nobody is queued."""
        dispatcher = self.dispatcher
        if dispatcher.availability.reachable and dispatcher.availability.pause is None:
            assert dispatcher.scheduler.in_flight or not dispatcher.scheduler.queued

    @invariant()
    def no_change_of_algorithm_cries_wolf(self):
        dispatcher = self.dispatcher
        bound = dispatcher.scheduler.bound(dispatcher.clock())
        assert bound is None or bound.met, (dispatcher.scheduler.algorithm, bound)

    @invariant()
    def no_shadow_fails(self):
        assert [shadow.off for shadow in self.dispatcher.shadows if shadow.off is not None] == []

    def teardown(self):
        self.run(self.dispatcher.engine_answers, reachable=True)
        while living := [ticket for ticket in self.tickets if ticket.phase is not Phase.ENDED]:
            for ticket in living:
                self.run(ticket.finish, Outcome.CANCELLED)
        for reservation in self.reservations:
            self.run(reservation.release)
        dispatcher = self.dispatcher
        assert (dispatcher.scheduler.queued, dispatcher.scheduler.in_flight) == (0, 0)
        assert (dispatcher.admission.held_bytes, dispatcher.admission.reading) == (0, 0)
        assert dispatcher.engine.capacity.gate.sequences == 0
        assert dispatcher.engine.pace._in_flight == 0
        self.time_passes(2.5)
        for shadow in dispatcher.shadows:
            assert shadow.off is None
            assert (shadow.scheduler.queued, shadow.scheduler.in_flight, shadow._mirrors) == (0, 0, {})
        assert dispatcher.shadows._seen == {}
        self.loop.run_until_complete(asyncio.wait_for(dispatcher.drained(), 1))
        self.loop.close()


@pytest.mark.timeout(600)
def test_every_request_ends_once_and_leaves_nothing_behind():
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=60,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
