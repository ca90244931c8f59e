"""One accepted request: from the queue into the engine to its one outcome.

A ticket is made by `Dispatcher.submit` and held by the coroutine that serves the request:

    verdict = await ticket.dispatched()     a Rejection ends it; None: send it to the engine
    ticket.busy() / ticket.unreachable()    the engine would not take it: back in the queue, await dispatched() again
    ticket.first_token(), ticket.progress() while the answer comes
    ticket.finish(outcome, usage)           in a `finally`: the first outcome stands, later calls do nothing

All methods run on the event loop's thread. What they change besides the ticket is the dispatcher's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from equipoise_api.tenant import SloTarget
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_sidecar.facts import Facts, Rejection

if TYPE_CHECKING:
    from equipoise_sidecar.gpu import Mark
    from equipoise_sidecar.prefix_cache import Prefix


class Phase(StrEnum):
    """Where a ticket is."""

    QUEUED = "queued"
    IN_FLIGHT = "in-flight"
    ENDED = "ended"


class Owner(Protocol):
    """What a ticket asks of its dispatcher."""

    def returned(self, ticket: Ticket, *, reachable: bool) -> None:
        """Put a dispatched request back where it stood in the queue."""

    def began(self, ticket: Ticket) -> None:
        """Note the first token."""

    def advanced(self, ticket: Ticket) -> None:
        """Note delivery so far."""

    def ended(self, ticket: Ticket, outcome: Outcome, usage: Usage | None) -> None:
        """Finalise: the one place."""


class Ticket:
    """One accepted request."""

    __slots__ = (
        "_owner",
        "_verdict",
        "_waiter",
        "dispatched_at",
        "exact",
        "expiry",
        "facts",
        "first_token_at",
        "generated",
        "gpu_mark",
        "held_bytes",
        "outcome",
        "phase",
        "prefix",
        "prompt",
        "request",
        "slo",
        "stalled",
        "streams",
    )

    def __init__(
        self, owner: Owner, facts: Facts, request: Request, held_bytes: int, slo: SloTarget | None = None
    ) -> None:
        self._owner = owner
        self._verdict: Rejection | None = None
        self._waiter: asyncio.Future[Rejection | None] | None = None
        self.facts = facts
        self.request = request
        self.held_bytes = held_bytes
        self.slo = slo
        """What was agreed for it."""
        self.phase = Phase.QUEUED
        self.outcome: Outcome | None = None
        self.dispatched_at: float | None = None
        self.first_token_at: float | None = None
        self.gpu_mark: Mark | None = None
        """Made at the last dispatch: to know how busy the GPU was meanwhile."""
        self.prefix: Prefix | None = None
        """What its prompt begins with, where the engine caches such."""
        self.prompt = 0
        """Prompt tokens delivered, as far as is known or estimated."""
        self.generated = 0
        """Output tokens delivered, over all sequences."""
        self.exact = False
        """Whether these come from the engine's own usage."""
        self.streams = facts.stream
        """Whether the answer comes piece by piece."""
        self.stalled = False
        """Whether the client has yet to take what it was sent last: nothing more is read from the engine meanwhile."""
        self.expiry: asyncio.TimerHandle | None = None
        """Set while it is queued: when it has waited long enough."""

    @property
    def tenant(self) -> str:
        """Identifier of the tenant that pays."""
        return self.request.tenant

    @property
    def shows(self) -> bool:
        """Whether progress shows while the answer comes; where it does not, the clock stands in."""
        return self.streams and not self.stalled

    @property
    def priority(self) -> int:
        """For X-Vllm-Priority: smaller goes first."""
        return self.request.priority

    @property
    def queued_seconds(self) -> float:
        """Seconds from arrival to the last dispatch; 0 before."""
        return 0.0 if self.dispatched_at is None else self.dispatched_at - self.request.arrival

    async def dispatched(self) -> Rejection | None:
        """Wait for this request's turn. None: send it; a Rejection: answer with that, the ticket has ended.

        When the caller is cancelled it calls `finish(CANCELLED)`, whether or not its turn came meanwhile.
        """
        if self.phase is not Phase.QUEUED:
            return self._verdict
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def decide(self, verdict: Rejection | None) -> None:
        """Wake the waiting coroutine. For the dispatcher, which has changed the phase before."""
        self._verdict = verdict
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(verdict)

    def arm(self, seconds: float, expire: Callable[[Ticket], None]) -> None:
        """Have `expire` called after so many seconds, in place of an earlier appointment."""
        self.disarm()
        self.expiry = asyncio.get_running_loop().call_later(seconds, expire, self)

    def disarm(self) -> None:
        """Call that off."""
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None

    def busy(self) -> None:
        """Take back a request that the engine refused with 503 before the first byte of an answer."""
        self._owner.returned(self, reachable=True)

    def unreachable(self) -> None:
        """Take back a request for which no connection to the engine could be made."""
        self._owner.returned(self, reachable=False)

    def first_token(self) -> None:
        """Note that the first token (or the whole answer) came. Later calls do nothing."""
        if self.first_token_at is None:
            self._owner.began(self)

    def progress(self, prompt: int | None, generated: int, *, exact: bool) -> None:
        """Note delivery so far, cumulative over all sequences; `prompt` None where the answer does not say.

        `exact`: from the engine's own usage. Cheap: called for each chunk.
        """
        self.streams = True
        if prompt is not None:
            self.prompt = prompt
        self.generated = generated if exact else max(self.generated, generated)
        self.exact = exact
        self._owner.advanced(self)

    def advance(self, now: float, tokens_per_second: float) -> None:
        """Take for delivered what sequences make at this pace since a stream's first token, else since the dispatch.

        Never fewer than before, nor more than allowed.
        """
        since = (self.first_token_at if self.streams else None) or self.dispatched_at
        if since is None or not self.facts.kind.generates:
            return
        made = int((now - since) * tokens_per_second) * self.request.sequences
        self.generated = max(self.generated, min(made, self.request.max_output))
        if self.generated:
            self.prompt = self.prompt or self.request.prompt_tokens

    def usage(self, outcome: Outcome, *, reports_cached: bool) -> Usage:
        """Give what was seen or estimated of an answer that broke off, or never said in all what it used.

        A client that leaves keeps its prompt charged, for the engine has computed it; a failure before the first token
        delivered nothing. Cached tokens have a price of their own only where the engine reports them.
        """
        prompt = self.prompt
        if outcome is not Outcome.FAILED:
            prompt = prompt or self.request.prompt_tokens
        cached = min(self.request.cached_tokens, prompt) if reports_cached else 0
        return Usage(prompt, self.generated, cached, exact=self.exact and outcome is Outcome.FINISHED)

    def forget(self) -> None:
        """Begin anew: the engine did not take it, whatever the clock said."""
        self.prompt = self.generated = 0
        self.dispatched_at = None

    def finish(self, outcome: Outcome, usage: Usage | None = None) -> None:
        """End it. Without usage what was seen or estimated stays charged. The first outcome stands."""
        if self.phase is not Phase.ENDED:
            self._owner.ended(self, outcome, usage)
