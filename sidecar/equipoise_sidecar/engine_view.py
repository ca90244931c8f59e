"""What is known of the engine: the room in it, its pace, its prefix cache, its GPUs, and what prompts take there.

A request is in this picture from its dispatch to its end, and teaches something on the way. Nothing is decided here: whose
turn it is, and who pays, are the dispatcher's and the scheduler's.
"""

from __future__ import annotations

from dataclasses import replace

from equipoise_api.tenant import SloTarget
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_sidecar.capacity import Capacity
from equipoise_sidecar.engine.signals import EngineSignals
from equipoise_sidecar.facts import EngineProfile, Facts
from equipoise_sidecar.gpu import GpuTelemetry
from equipoise_sidecar.pace import Pace
from equipoise_sidecar.policy import Policy
from equipoise_sidecar.prefix_cache import Prefix, PrefixCache
from equipoise_sidecar.sizing import Sizing
from equipoise_sidecar.ticket import Ticket


class EngineView:
    """One engine, seen from outside. `start` and one of `undo` and `end` come in turns for each ticket."""

    def __init__(self) -> None:
        self.profile = EngineProfile()
        self.capacity = Capacity()
        self.pace = Pace()
        self.prefixes = PrefixCache()
        self.gpu = GpuTelemetry()
        self.sizing = Sizing()

    # -- what it says of itself

    def configure(self, policy: Policy) -> None:
        """Take a policy's word on what it can take."""
        self.capacity.configure(
            policy.config.capacity, enforced=policy.enforce, context_tokens=self.profile.max_model_len
        )

    def observe(self, signals: EngineSignals | None, *, queued: int, now: float) -> None:
        """Take in its metrics; None where they are stale. `queued`: requests that wait for it here."""
        self.capacity.observe(signals, queued=queued, now=now)
        if signals is not None:
            self.prefixes.observe(signals, self.profile, self.capacity.kv_tokens)
        self.pace.read_counter(signals.generated_tokens if signals is not None else None, now)

    # -- a request on its way through

    def size(
        self, tenant: str, facts: Facts, *, name: str, slo: SloTarget | None, call: int, now: float
    ) -> tuple[Request, Prefix | None]:
        """Build the request that the scheduler sees, with what it is expected to take. `call`: its place in its interaction."""
        request = self.sizing.request(
            tenant, facts, name=name, slo=slo, profile=self.profile, call=call, now=now
        )
        prefix = self.prefixes.read(tenant, facts)
        request.cached_tokens = self.prefixes.estimate(prefix, request.prompt_tokens)
        return request, prefix

    def cached(self, ticket: Ticket) -> int:
        """Estimate anew what its cache will serve of a queued request."""
        return self.prefixes.estimate(ticket.prefix, ticket.request.prompt_tokens)

    def start(self, ticket: Ticket, now: float) -> None:
        """Count a request that goes to it."""
        ticket.gpu_mark = self.gpu.mark(now)
        self.capacity.start(ticket.request, now)
        self.prefixes.dispatched(ticket.prefix, ticket.request)
        if ticket.facts.kind.generates:
            self.pace.started(ticket.request.sequences, now)

    def progress(self, ticket: Ticket) -> None:
        """Count what was delivered of an answer. Called for each chunk."""
        self.capacity.gate.progress(
            ticket.request, ticket.prompt, ticket.generated, estimated=not ticket.shows
        )

    def advance(self, ticket: Ticket, now: float) -> None:
        """Estimate the progress of an answer that does not show it: age times the measured pace, capped."""
        pace = self.pace.tokens_per_second(now)
        if pace is not None:
            ticket.advance(now, pace)

    def undo(self, ticket: Ticket, now: float) -> None:
        """Take out a request that it would not have."""
        self._land(ticket, now, None)
        self.prefixes.undone(ticket.prefix)

    def end(self, ticket: Ticket, outcome: Outcome, reported: Usage | None, now: float) -> Usage:
        """Take out a request that ended, learn from it, and return what it used. `reported`: where the engine has said it."""
        usage = reported
        if usage is None:
            if not ticket.shows and outcome is not Outcome.FAILED:
                self.advance(ticket, now)
            usage = ticket.usage(outcome, reports_cached=bool(self.profile.reports_cached_tokens))
        if self.gpu.reading is not None and ticket.gpu_mark is not None:
            usage = replace(usage, gpu_utilisation=self.gpu.mean_since(ticket.gpu_mark, now))
        ticket.prompt, ticket.generated = usage.prompt, usage.generated
        self.progress(ticket)
        whole = usage.teaches and outcome is Outcome.FINISHED
        self._land(ticket, now, usage.generated if whole else None)
        self._learn(ticket, usage, said=reported is not None and usage.exact)
        return usage

    def _learn(self, ticket: Ticket, usage: Usage, *, said: bool) -> None:
        request, prefix = ticket.request, ticket.prefix
        known = usage.exact and bool(usage.prompt)
        if ticket.first_token_at is not None or known:
            self.prefixes.ended(prefix, request, usage)
            if said:
                self.prefixes.reported(prefix, request, usage, ticket.facts.kind, self.profile)
        else:
            self.prefixes.undone(prefix)
        if known:
            self.sizing.learn(request.tenant, ticket.facts, usage.prompt)

    def _land(self, ticket: Ticket, now: float, generated: int | None) -> None:
        self.capacity.gate.finish(ticket.request)
        if ticket.facts.kind.generates:
            age = now - (ticket.dispatched_at if ticket.dispatched_at is not None else now)
            self.pace.ended(ticket.request.sequences, now, seconds=age, generated=generated)
