"""Owns the queue: who a request belongs to, whether it may wait, when it goes to the engine, how it ends.

The one writer of scheduler, accounts and engine view; everything runs on the event loop's thread and nothing here awaits. A
request is dispatched in the very call that makes it possible: an arrival, an end, a new configuration, a tick. Two things
hold all dispatch back: an engine that has not answered yet or cannot be reached, until it answers, and one that said it
was busy, until one of our requests ends or 100 ms have passed.

Passing through is the same machinery with FCFS, no limits and a gate that is always open.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import structlog

from equipoise_api.names import DEFAULT_TENANT
from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.registry import create, reconfigured
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_scheduling.shadow import Shadow
from equipoise_scheduling.shadows import Shadows
from equipoise_sidecar.accounting import Accounting, slo_kept
from equipoise_sidecar.admission import (
    DRAINING,
    NOT_CONFIGURED,
    UNAUTHENTICATED,
    Admission,
    Reservation,
    from_refusal,
    too_many_tokens,
)
from equipoise_sidecar.availability import Availability
from equipoise_sidecar.dcgm import Reading
from equipoise_sidecar.engine.signals import EngineSignals
from equipoise_sidecar.engine_view import EngineView
from equipoise_sidecar.facts import EngineProfile, Facts, Rejection
from equipoise_sidecar.history import History, Snapshot
from equipoise_sidecar.interactions import Interactions
from equipoise_sidecar.policy import NOBODY, UNCONFIGURED, ConfigError, Policy
from equipoise_sidecar.promises import agreed
from equipoise_sidecar.ticket import Phase, Ticket

SCHEDULER_TICK_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Dispatcher:
    """The queue before one engine."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.policy: Policy = UNCONFIGURED
        self.scheduler: TenantScheduler = create(
            UNCONFIGURED.scheduler, UNCONFIGURED.settings, UNCONFIGURED.tenant_settings
        )
        self.engine = EngineView()
        self.admission = Admission()
        self.admission.ended = self._look_idle
        self.accounting = Accounting()
        self.shadows = Shadows(on_off=_log_shadow)
        self.draining = False
        self.availability = Availability(again=self._try_again)
        self.next_up: Request | None = None
        """Whom the scheduler chose last and the gate did not let go."""
        self._tickets: dict[str, Ticket] = {}
        self._names = itertools.count()
        self._idle = asyncio.Event()
        self._history = History(self.engine.sizing, self.engine.gpu)
        self._interactions = Interactions()
        self._scheduler_ticked = -1.0

    # -- a request's way in

    def identify(self, headers: Sequence[tuple[bytes, bytes]], peer: str | None) -> str | Rejection:
        """Return the tenant that the headers prove, the default one, or 401. Names are lower-case, as ASGI has them."""
        policy = self.policy
        if not policy.configured:
            return self.refuse(DEFAULT_TENANT, NOT_CONFIGURED)
        tenant = policy.identity.tenant_of(headers, peer)
        if tenant is not None:
            return tenant
        if policy.enforce and policy.config.default_tenant.mode == "Reject":
            return self.refuse(DEFAULT_TENANT, UNAUTHENTICATED)
        return DEFAULT_TENANT

    def reserve(
        self, tenant: str, content_length: int | None, *, waits: bool = True
    ) -> Reservation | Rejection:
        """Take room for a body before it is read; without Content-Length it grows as the body comes.

        `waits`: its request will queue. One that is passed on at once needs room for its bytes alone.
        """
        if self.draining:
            return self.refuse(tenant, DRAINING)
        size, now, queued = content_length or 0, self.clock(), self.scheduler.queued
        if waits:
            account = self.accounting.get(tenant)
            own = account.queued if account is not None else 0
            rejection = self.admission.refusal(
                tenant, self.policy, size=size, queued=queued, tenant_queued=own, now=now
            )
        else:
            rejection = self.admission.body_refusal(tenant, size, self.policy, queued, now)
        if rejection is not None:
            return self.refuse(tenant, rejection)
        return self.admission.reserve(tenant, size, self._refuse_bytes)

    def submit(self, tenant: str, facts: Facts, reservation: Reservation) -> Ticket | Rejection:
        """Queue a request whose body is read. From here it ends in exactly one outcome."""
        now = self.clock()
        policy = self.policy
        slo = agreed(policy.tenants.get(tenant, NOBODY).promise(facts.application), facts)
        call = self._interactions.call(tenant, facts)
        name = str(next(self._names))
        request, prefix = self.engine.size(tenant, facts, name=name, slo=slo, call=call, now=now)
        rejection = too_many_tokens(request, policy) or self.admission.minute_refusal(tenant, policy, now)
        if rejection is None:
            refusal = self.engine.capacity.refuse(request) or self.scheduler.enqueue(request, now)
            rejection = from_refusal(refusal) if refusal is not None else None
        if rejection is not None:
            reservation.release()
            return self.refuse(tenant, rejection)
        self._interactions.accepted(tenant, facts, request.call_index)
        ticket = Ticket(self, facts, request, reservation.held_bytes, slo)
        ticket.prefix = prefix
        self._tickets[request.id] = ticket
        reservation.take()
        self.admission.accepted(tenant, policy, now)
        self.accounting[tenant].queued += 1
        self.shadows.arrived(request, self.scheduler, now)
        self._pump(now)
        if ticket.phase is Phase.QUEUED:
            self._arm_expiry(ticket, now)
        return ticket

    def refuse(self, tenant: str, rejection: Rejection) -> Rejection:
        """Count a rejection (the request's way has some of its own) and return it."""
        self.accounting[tenant].refused(rejection.reason, self.clock())
        return rejection

    def _refuse_bytes(self, tenant: str, more: int) -> Rejection | None:
        return self.admission.bytes_refusal(tenant, more, self.policy, self.scheduler.queued, self.clock())

    # -- dispatch

    def _pump(self, now: float) -> None:
        """Dispatch whatever may go. Costs O(log n) a dispatch and one look at the gate."""
        availability = self.availability
        if availability.pause is not None or (self.policy.enforce and not availability.reachable):
            return
        scheduler, engine = self.scheduler, self.engine
        started: list[Request] = []
        tried: list[Request] = []

        def fits(candidate: Request) -> bool:
            tried.append(candidate)
            candidate.cached_tokens = engine.cached(self._tickets[candidate.id])
            return engine.capacity.fits(candidate, now)

        while (request := scheduler.next(now, fits)) is not None:
            self._dispatch(self._tickets[request.id], now)
            scheduler.look_again(request.tenant, self._cached)
            started.append(request)
            tried.clear()
        self.next_up = tried[0] if tried else None
        self._collect_refused(now)
        if self.policy.enforce:
            self.shadows.decided(started, scheduler, now)

    def _cached(self, request: Request) -> int:
        return self.engine.cached(self._tickets[request.id])

    def _dispatch(self, ticket: Ticket, now: float) -> None:
        request = ticket.request
        ticket.phase = Phase.IN_FLIGHT
        ticket.dispatched_at = now
        ticket.disarm()
        self.engine.start(ticket, now)
        self.admission.let_go(request.tenant, ticket.held_bytes)
        self.admission.left_queue(request.tenant, now)
        account = self.accounting[request.tenant]
        account.queued -= 1
        account.running += 1
        ticket.decide(None)

    def returned(self, ticket: Ticket, *, reachable: bool) -> None:
        """Put a dispatched request back where it stood in the queue: no lift, its charge undone."""
        if ticket.phase is not Phase.IN_FLIGHT:
            return
        now = self.clock()
        if not reachable:
            self.engine_answers(reachable=False)
            self.availability.lost.set()
            if not self.policy.enforce:
                verdict = self.admission.unreachable(self.scheduler.queued, now)
                self._end(ticket, Outcome.FAILED, Usage(0, 0), now, verdict)
                return
        self.engine.undo(ticket, now)
        self.scheduler.requeue(ticket.request, now)
        self.shadows.returned(ticket.request, self.scheduler, now)
        ticket.phase = Phase.QUEUED
        ticket.forget()
        self.admission.hold(ticket.tenant, ticket.held_bytes)
        account = self.accounting[ticket.tenant]
        account.running -= 1
        account.queued += 1
        self._arm_expiry(ticket, now)
        if reachable:
            self.engine.capacity.busy(now)
            self.availability.refused()

    def _try_again(self) -> None:
        self._pump(self.clock())

    def engine_answers(self, *, reachable: bool) -> None:
        """Note whether anybody is at the engine's address."""
        self.availability.answers(reachable=reachable)
        if reachable:
            self._pump(self.clock())

    # -- delivery

    def began(self, ticket: Ticket) -> None:
        """Note the first token."""
        if ticket.phase is not Phase.IN_FLIGHT:
            return
        now = ticket.first_token_at = self.clock()
        account = self.accounting[ticket.tenant]
        account.waited(ticket.queued_seconds, now)
        if ticket.facts.stream:
            account.began(now - ticket.request.arrival, now)
        if not self.policy.enforce:
            # nobody queues here: a request waits inside the engine, until its first token as far as can be seen
            self.shadows.decided([ticket.request], self.scheduler, now)

    def advanced(self, ticket: Ticket) -> None:
        """Charge what was delivered."""
        if ticket.phase is Phase.IN_FLIGHT:
            self._deliver(ticket, self.clock())

    def _deliver(self, ticket: Ticket, now: float) -> None:
        self.scheduler.progress(ticket.request, ticket.prompt, ticket.generated, now)
        self.engine.progress(ticket)

    # -- the end

    def ended(self, ticket: Ticket, outcome: Outcome, usage: Usage | None) -> None:
        """End a request on behalf of whoever serves it."""
        now = self.clock()
        self._end(ticket, outcome, usage, now)
        self._pump(now)

    def _end(
        self,
        ticket: Ticket,
        outcome: Outcome,
        usage: Usage | None,
        now: float,
        verdict: Rejection | None = None,
    ) -> None:
        """Finalise: the one place where a ticket ends. Everything it held is free afterwards."""
        request, account = ticket.request, self.accounting[ticket.tenant]
        if ticket.phase is Phase.QUEUED:
            ticket.disarm()
            if request.outcome is None:
                self.scheduler.cancel(request, now, outcome)
            self.shadows.ended(request, None, outcome, self.scheduler, now)
            self.admission.let_go(ticket.tenant, ticket.held_bytes)
            account.queued -= 1
            if outcome in {Outcome.EXPIRED, Outcome.FAILED}:
                account.waited(now - request.arrival, now)
        else:
            self._settle(ticket, outcome, usage, now)
        ticket.phase = Phase.ENDED
        ticket.outcome = outcome
        del self._tickets[request.id]
        self.scheduler.look_again(request.tenant, self._cached)
        account.outcomes[outcome] = account.outcomes.get(outcome, 0) + 1
        if ticket.slo is not None and (kept := slo_kept(ticket.slo, ticket, outcome, now)) is not None:
            account.judged(kept, now)
        if verdict is not None:
            account.refused(verdict.reason, now)
            ticket.decide(verdict)
        self._look_idle()

    def _settle(self, ticket: Ticket, outcome: Outcome, usage: Usage | None, now: float) -> None:
        """Take in what a request in flight used. `usage`: where the engine has said it."""
        request, account = ticket.request, self.accounting[ticket.tenant]
        used = self.engine.end(ticket, outcome, usage, now)
        account.running -= 1
        self.scheduler.settle(request, used, outcome, now)
        self.shadows.ended(request, used, outcome, self.scheduler, now)
        if ticket.first_token_at is None:
            account.waited(ticket.queued_seconds, now)
        self.availability.resume()

    def _expire(self, ticket: Ticket) -> None:
        now = self.clock()
        ticket.expiry = None
        if self.availability.reachable:
            verdict = self.admission.waited_too_long(self.policy, self.scheduler.queued, now)
            self._end(ticket, Outcome.EXPIRED, None, now, verdict)
        else:
            verdict = self.admission.unreachable(self.scheduler.queued, now)
            self._end(ticket, Outcome.FAILED, None, now, verdict)
        self._pump(now)

    def _collect_refused(self, now: float) -> None:
        for request, refusal in self.scheduler.refused():
            ticket = self._tickets[request.id]
            self._interactions.throttled(request.tenant, ticket.facts)
            self._end(ticket, Outcome.REFUSED, None, now, from_refusal(refusal))

    def _arm_expiry(self, ticket: Ticket, now: float) -> None:
        left = ticket.request.arrival + self.policy.config.queue.max_wait_seconds - now
        ticket.arm(max(0.0, left), self._expire)

    # -- time, configuration, the process's life

    def tick(self) -> None:
        """Let time pass, a few times a second: what does not stream advances by the clock. O(in flight)."""
        now = self.clock()
        for ticket in self._tickets.values():
            if ticket.phase is Phase.IN_FLIGHT and not ticket.shows:
                self.engine.advance(ticket, now)
                self._deliver(ticket, now)
        if now - self._scheduler_ticked >= SCHEDULER_TICK_SECONDS:
            self._scheduler_ticked = now
            self.scheduler.tick(now)
            self.shadows.tick(self.scheduler, now)
            self.engine.capacity.tick(now)
            self.accounting.keep_only(self.policy.tenant_settings.keys(), now)
        if self._tickets:
            self._pump(now)

    def apply(self, policy: Policy) -> None:
        """Put a configuration into force; whatever is queued or in flight goes on. ConfigError: nothing changed."""
        now = self.clock()
        try:
            self.scheduler = reconfigured(
                self.scheduler, policy.scheduler, policy.settings, policy.tenant_settings, now
            )
        except (ValueError, TypeError) as error:
            raise ConfigError("config", str(error)) from error
        waits = self.policy.config.queue.max_wait_seconds
        self.policy = policy
        self._configure_engine()
        self.engine.gpu.configure(policy.config.gpu, now)
        self._history.adopt(self.scheduler)
        self.shadows.configure(policy.shadow, policy.shadow_tenants, self.scheduler, now)
        self.admission.keep_only(policy.tenant_settings.keys())
        if waits != policy.config.queue.max_wait_seconds:
            for ticket in self._tickets.values():
                if ticket.phase is Phase.QUEUED:
                    self._arm_expiry(ticket, now)
        self._pump(now)

    def observe(self, signals: EngineSignals | None) -> None:
        """Take in the engine's metrics; None where they are stale."""
        now = self.clock()
        self.engine.observe(signals, queued=self.scheduler.queued, now=now)
        self.scheduler.set_pool(self.engine.capacity.kv_tokens)
        self._pump(now)

    def observe_gpu(self, reading: Reading) -> None:
        """Take in what DCGM says of the pod's GPUs. O(active tenants)."""
        now = self.clock()
        served, busy = self.scheduler.books.served(), self.scheduler.in_flight > 0
        self.engine.gpu.observe(reading, served, busy=busy, now=now)

    def connected(self, profile: EngineProfile) -> None:
        """Take in what a probe learnt of the engine."""
        self.engine.profile = profile
        self._configure_engine()

    def _configure_engine(self) -> None:
        self.engine.configure(self.policy)
        self.scheduler.set_pool(self.engine.capacity.kv_tokens)

    def snapshot(self) -> Snapshot:
        """Return what a restart must not forget, as plain data."""
        return self._history.snapshot(self.scheduler)

    def restore(self, state: Snapshot) -> None:
        """Take over a former process's snapshot, before the first request."""
        self._history.restore(state, self.clock())
        if self.policy.configured:
            self._history.adopt(self.scheduler)

    def drain(self) -> None:
        """Refuse new work; what is queued or in flight goes on."""
        self.draining = True

    def turn_away(self) -> None:
        """End what is queued still: its turn will not come here any more."""
        now = self.clock()
        for ticket in list(self._tickets.values()):
            if ticket.phase is Phase.QUEUED:
                self._end(ticket, Outcome.REFUSED, None, now, DRAINING)

    async def drained(self) -> None:
        """Wait until nothing is being read, queued or in flight."""
        while self._tickets or self.admission.reading:
            self._idle.clear()
            await self._idle.wait()

    def _look_idle(self) -> None:
        if not self._tickets and not self.admission.reading:
            self._idle.set()

    def tickets(self) -> Iterator[Ticket]:
        """Iterate over living tickets in the order of arrival."""
        yield from self._tickets.values()


def _log_shadow(shadow: Shadow) -> None:
    log.error("shadow switched off", algorithm=shadow.algorithm, reason=shadow.off)
