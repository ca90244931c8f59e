"""Other schedulers beside the enforced one: the same arrivals, the same room, decisions only.

What a shadow is asked is: had you been given, at the moments at which requests really started, the room that they took,
whom would you have started? So

- it sees every request that the enforced scheduler accepted, as a copy of its own, with the enforced one's prediction;
- each real start gives it *room* of that request's size (prompt and expected output, tokens). It starts its own choice
  while that fits the room, so at any time it has started as much work as really was, less what the next one lacks;
- once nobody waits in reality everything waiting in it starts: where there is no contention order means nothing;
- what a request used, and how far it is, is what it really was, from the moment at which both have started it.

So the waits compare two orders over one engine's real capacity. Not modelled: that another order makes batches, prefix hits
or preemptions of its own; another gate; clients that would have behaved otherwise; requests that the enforced scheduler
refused. A request that a shadow starts early stays in flight in it until it really ends, which only schedulers and tenants
with a limit of requests in flight notice.

With the enforced scheduler's own algorithm it makes the same decisions: the property test holds it to that. A shadow that
raises is switched off with the reason and touches nobody else. Cost an event and shadow: that of its scheduler, O(log n);
deliveries are taken over in bulk, O(in flight) every `SYNC_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields

from typing_extensions import override

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.books import Flight
from equipoise_scheduling.contract import SchedulerSettings, TenantSettings
from equipoise_scheduling.cost import Cost
from equipoise_scheduling.prediction import NoPrediction
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_scheduling.shadow_report import Comparison, ServiceByTenant, ShadowReport

MOST_WAITING = 100_000
"""Requests waiting in a shadow at which it is switched off."""
_FIELDS = tuple(field.name for field in fields(Request))


class Seen:
    """A request as it really is."""

    __slots__ = ("cost", "end", "index", "real", "size", "started")

    def __init__(self, real: Request, index: int, cost: Cost) -> None:
        output = real.max_output if real.predicted_tokens is None else real.predicted_output
        self.real = real
        self.index = index
        self.size = max(1, real.prompt_tokens + output)
        self.cost = cost(real.prompt_tokens, real.cached_tokens, output)
        """What it is expected to cost, and what it did cost once that is known."""
        self.started: float | None = None
        self.end: tuple[Usage, Outcome] | None = None


class Mirror:
    """The same request in one shadow."""

    __slots__ = ("copy", "counted", "seen", "started")

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.copy = _copied(seen.real)
        self.started: float | None = None
        self.counted = 0.0


def _copied(real: Request) -> Request:
    """Return the request as it arrived: nothing of what the enforced scheduler wrote into it."""
    copy = object.__new__(Request)
    for name in _FIELDS:
        setattr(copy, name, getattr(real, name))
    copy.number, copy.priority = -1, 0
    copy.deadline = copy.predicted_tokens = copy.dispatched = copy.outcome = None
    return copy


class _Overheard(NoPrediction):
    """Repeats what the enforced scheduler's predictor said last."""

    def __init__(self, mirrors: Mapping[str, Mirror], arriving: Mapping[str, Request]) -> None:
        self._mirrors = mirrors
        self._arriving = arriving

    @override
    def predict(self, request: Request) -> int | None:
        mirror = self._mirrors.get(request.id)
        real = self._arriving.get(request.id) if mirror is None else mirror.seen.real
        return None if real is None else real.predicted_tokens


class Shadow:
    """One scheduler that decides nothing."""

    def __init__(self, scheduler: TenantScheduler, since: int) -> None:
        """Run `scheduler`, which is new, beside the enforced one, from the request with index `since` on."""
        self.scheduler = scheduler
        self.since = since
        self.off: str | None = None
        """Why it no longer runs."""
        self.comparison = Comparison()
        self.service = ServiceByTenant()
        self._mirrors: dict[str, Mirror] = {}
        self._arriving: dict[str, Request] = {}
        self._room = 0.0
        self._predictor = _Overheard(self._mirrors, self._arriving)
        scheduler.books.predictor = self._predictor

    @property
    def algorithm(self) -> str:
        """Its scheduler's."""
        return self.scheduler.algorithm

    def arrived(self, seen: Seen, now: float) -> None:
        """Take in a request that the enforced scheduler accepted."""
        if self.scheduler.queued >= MOST_WAITING:
            raise RuntimeError(f"{MOST_WAITING} requests wait in it")
        mirror, name = Mirror(seen), seen.real.id
        self._arriving[name] = seen.real
        refusal = self.scheduler.enqueue(mirror.copy, now)
        del self._arriving[name]
        if refusal is not None:
            self.comparison.refused(now)
            return
        self._mirrors[name] = mirror
        self.service.waits(seen.real.tenant, seen.cost)

    def decide(self, now: float, *, idle: bool) -> None:
        """Start whoever fits the room; everybody if nobody waits in reality."""
        self._predictor.learned += 1
        sizes = self._mirrors
        while (
            copy := self.scheduler.next(now, lambda c: idle or sizes[c.id].seen.size <= self._room)
        ) is not None:
            self._start(self._mirrors[copy.id], now)
        self._collect(now)
        if idle:
            self._room = 0.0

    def _start(self, mirror: Mirror, now: float) -> None:
        seen = mirror.seen
        tenant = seen.real.tenant
        mirror.started = now
        mirror.counted = seen.cost
        self._room -= seen.size
        self.service.waits(tenant, -seen.cost)
        self.service.served(tenant, seen.cost, now)
        if seen.started is not None:
            self._compare(mirror, now)
        if seen.end is not None:
            self._settle(mirror, *seen.end, now)

    def _compare(self, mirror: Mirror, now: float) -> None:
        seen = mirror.seen
        assert seen.started is not None
        assert mirror.started is not None
        arrival = seen.real.arrival
        self.comparison.waited(seen.real.tenant, seen.started - arrival, mirror.started - arrival, now)

    def really_started(self, seen: Seen, now: float) -> None:
        """Take in that a request really started: its room is there to be given."""
        if seen.index >= self.since:
            self._room += seen.size
        mirror = self._mirrors.get(seen.real.id)
        if mirror is not None and mirror.started is not None:
            self._compare(mirror, now)

    def returned(self, seen: Seen, now: float) -> None:
        """Take in that the engine would not have a request: it waits again."""
        if seen.index < self.since:
            return
        self._room -= seen.size
        mirror = self._mirrors.get(seen.real.id)
        if mirror is not None and mirror.started is not None:
            self.scheduler.requeue(mirror.copy, now)
            mirror.started = None
            self._room += seen.size
            self.service.waits(seen.real.tenant, seen.cost)
            self.service.served(seen.real.tenant, -seen.cost, now)

    def ended(self, seen: Seen, now: float) -> None:
        """Take in that a request ended."""
        mirror = self._mirrors.get(seen.real.id)
        if mirror is None or seen.end is None:
            return
        if mirror.started is not None:
            self._settle(mirror, *seen.end, now)
        elif seen.started is None:
            self.scheduler.cancel(mirror.copy, now, seen.end[1])
            self.service.waits(seen.real.tenant, -seen.cost)
            del self._mirrors[seen.real.id]

    def _settle(self, mirror: Mirror, usage: Usage, outcome: Outcome, now: float) -> None:
        self.scheduler.settle(mirror.copy, usage, outcome, now)
        real = mirror.seen.real
        self.service.served(real.tenant, mirror.seen.cost - mirror.counted, now)
        del self._mirrors[real.id]

    def delivered(self, flights: Mapping[str, Flight], now: float) -> None:
        """Take over how far the requests are that both have in flight. O(in flight)."""
        for name, flight in flights.items():
            mirror = self._mirrors.get(name)
            if mirror is not None and mirror.started is not None and (flight.generated or flight.prefilled):
                self.scheduler.progress(mirror.copy, flight.prefilled, flight.generated, now)

    def recosted(self, seen: Seen, change: float) -> None:
        """Correct what a request that still waits here is known to cost."""
        mirror = self._mirrors.get(seen.real.id)
        if mirror is not None and mirror.started is None:
            self.service.waits(seen.real.tenant, change)

    def tick(self, now: float) -> None:
        """Let time pass."""
        self.scheduler.tick(now)
        self._collect(now)
        self.service.forget_idle(now)

    def _collect(self, now: float) -> None:
        for copy, _refusal in self.scheduler.refused():
            mirror = self._mirrors.pop(copy.id)
            self.service.waits(copy.tenant, -mirror.seen.cost)
            self.comparison.refused(now)

    def reconfigure(
        self, settings: SchedulerSettings, tenants: Mapping[str, TenantSettings], now: float
    ) -> None:
        """Take a new configuration of the same algorithm."""
        self.scheduler.reconfigure(settings, tenants, now)
        self.scheduler.books.predictor = self._predictor

    def report(self, enforced: float | None, weight: Callable[[str], float], now: float) -> ShadowReport:
        """Say what it would have changed, `enforced` being Jain's index in reality. O(n log n) in the active tenants."""
        return self.comparison.report(
            algorithm=self.algorithm,
            off=self.off,
            waiting=0 if self.off else self.scheduler.queued,
            jain=None if self.off else self.service.jain(weight, now),
            jain_enforced=enforced,
            now=now,
        )
