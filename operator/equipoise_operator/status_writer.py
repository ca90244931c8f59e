"""Writes statuses within one budget for all: condition changes first, then what was written longest ago.

What is offered and equals what is there is not written. A patch names the object's uid, so that it cannot reach a successor
of the same name, and replaces the whole status.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

import structlog

from equipoise_api import names
from equipoise_api.conditions import Condition, transition
from equipoise_api.policy import FairnessPolicyStatus
from equipoise_api.tenant import TenantStatus
from equipoise_operator.budget import Budget
from equipoise_operator.events import Events, Subject, news
from equipoise_operator.kube import JSON_PATCH, ApiError, Kube, path
from equipoise_operator.leader import NotLeadingError

RATE, BURST = 10.0, 10.0
"""Writes a second over all objects, and after quiet at once."""
PLURAL = {"Tenant": names.TENANTS, "FairnessPolicy": names.FAIRNESS_POLICIES}
RETRY_SECONDS = 2.0
LONGEST_RETRY = 600.0

S = TypeVar("S", TenantStatus, FairnessPolicyStatus)
Status = TenantStatus | FairnessPolicyStatus

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """What this process wrote last, until the watch shows it."""

    uid: str
    version: int
    status: Status


@dataclass(frozen=True, slots=True)
class HeldBack:
    """What the API server refuses: it is the object's own fault, so that others need not wait for it."""

    refusals: int
    until: float


@dataclass(frozen=True, slots=True)
class Offer(Generic[S]):
    """A status that differs from what is there."""

    subject: Subject
    status: S
    old: list[Condition]
    flips: bool


class StatusWriter:
    """Takes offers and writes the most urgent one at a time."""

    def __init__(
        self,
        kube: Kube,
        events: Events,
        *,
        require: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._events = events
        self._require = require
        self._clock = clock
        self._budget = Budget(RATE, BURST, clock)
        self._pending: dict[Subject, Offer[TenantStatus] | Offer[FairnessPolicyStatus]] = {}
        self._order: list[tuple[bool, float, int, Subject]] = []
        """Heap of what waits: flips first, then by the last write, then by arrival."""
        self._arrivals = count()
        self._written: dict[Subject, Written] = {}
        self._written_at: dict[Subject, float] = {}
        self._held_back: dict[Subject, HeldBack] = {}
        self._wake = asyncio.Event()
        self.on_write: Callable[[str, int], None] | None = None
        """Told of every write: kind, and the API server's status."""

    @property
    def pending(self) -> int:
        """Statuses that wait for the budget."""
        return len(self._pending)

    def offer(self, subject: Subject, version: int, present: S, status: S) -> None:
        """Have `status` written if it differs from `present`, the object's own as of a resource version."""
        written = self._written.get(subject)
        if written is not None and version >= written.version:
            del self._written[subject]
        elif written is not None and isinstance(written.status, type(present)):
            present = written.status
        status = status.model_copy(update={"conditions": transition(present.conditions, status.conditions)})
        if isinstance(status, TenantStatus) and isinstance(present, TenantStatus):
            status = status.model_copy(update={"policies": _kept_times(present, status)})
        held_back = self._held_back.get(subject)
        if status == present or (held_back is not None and self._clock() < held_back.until):
            self._pending.pop(subject, None)
            return
        flips = _statuses(present.conditions) != _statuses(status.conditions)
        waiting = self._pending.get(subject)
        self._pending[subject] = Offer(subject, status, present.conditions, flips)
        if waiting is None or (flips and not waiting.flips):
            self._queue(subject, flips=flips)
        self._wake.set()

    def forget(self, subject: Subject) -> None:
        """Drop what is kept of an object that is gone."""
        self._pending.pop(subject, None)
        self._written.pop(subject, None)
        self._written_at.pop(subject, None)
        self._held_back.pop(subject, None)

    def _queue(self, subject: Subject, *, flips: bool) -> None:
        last = self._written_at.get(subject, float("-inf"))
        heapq.heappush(self._order, (not flips, last, next(self._arrivals), subject))

    async def run(self) -> None:
        """Write for ever."""
        while True:
            self._wake.clear()
            if not self._pending:
                await self._wake.wait()
            await self._budget.wait()
            offer = self._most_urgent()
            if offer is None:
                continue
            try:
                self._require()
                await self._write(offer)
            except NotLeadingError:
                await asyncio.sleep(RETRY_SECONDS)

    def _most_urgent(self) -> Offer[TenantStatus] | Offer[FairnessPolicyStatus] | None:
        while self._order:
            *_, subject = heapq.heappop(self._order)
            # What is not pending became void, or went at a place further ahead.
            if subject in self._pending:
                return self._pending.pop(subject)
        return None

    async def _write(self, offer: Offer[TenantStatus] | Offer[FairnessPolicyStatus]) -> None:
        subject = offer.subject
        body = [
            {"op": "test", "path": "/metadata/uid", "value": subject.uid},
            {"op": "add", "path": "/status", "value": offer.status.document()},
        ]
        plural = PLURAL[subject.kind]
        where = path(names.API_VERSION, plural, subject.key[0], subject.key[1], "status")
        status = 200
        try:
            answer = await self._kube.patch(where, body, JSON_PATCH)
        except ApiError as error:
            status = error.status
            log.warning("status-not-written", object="/".join(subject.key), error=str(error))
            if status in (0, 401, 429) or status >= 500:
                if subject not in self._pending:
                    self._pending[subject] = offer
                    self._queue(subject, flips=offer.flips)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                # 422 is another uid, so a successor, or a status that the CRD does not take; 403 a Role that is missing.
                self._hold_back(subject)
        else:
            self._held_back.pop(subject, None)
            version = int(answer["metadata"]["resourceVersion"])
            self._written[subject] = Written(subject.uid, version, offer.status)
            for condition in news(offer.old, offer.status.conditions):
                self._events.tell(subject, condition)
        self._written_at[subject] = self._clock()
        if self.on_write is not None:
            self.on_write(subject.kind, status)

    def _hold_back(self, subject: Subject) -> None:
        """Take no offer of this object for a while, longer after each refusal. What is offered then is written."""
        before = self._held_back.get(subject)
        refusals = before.refusals if before is not None else 0
        pause = min(LONGEST_RETRY, RETRY_SECONDS * 2 ** min(refusals, 9))
        self._held_back[subject] = HeldBack(refusals + 1, self._clock() + pause)


def _statuses(conditions: list[Condition]) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in conditions}


def _kept_times(present: TenantStatus, status: TenantStatus) -> list[object]:
    before = {(entry.namespace, entry.name): entry.conditions for entry in present.policies}
    return [
        entry.model_copy(
            update={"conditions": transition(before.get((entry.namespace, entry.name), []), entry.conditions)}
        )
        for entry in status.policies
    ]
