"""Kubernetes Events on what a user should see: a condition that flipped, told once, where `kubectl describe` shows it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import structlog

from equipoise_api import names
from equipoise_api.conditions import Condition
from equipoise_operator.budget import Budget
from equipoise_operator.kube import ApiError, Json, Kube, path
from equipoise_operator.objects import Key

RATE, BURST = 5.0, 50.0
LONGEST_QUEUE = 500
"""Events that wait; more are dropped and counted: conditions say the same."""
COMPONENT = "equipoise-operator"
TOLD = frozenset({"IdentityResolved", "SLOMet", "Accepted", "Programmed", "FairnessBoundMet"})
QUIET_REASONS = frozenset({"Pending", "NoRequests", "NoBound", "NoSidecars"})
"""What is no news: something is under way, or there is nothing yet."""

Kind = Literal["Tenant", "FairnessPolicy"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that an event is about."""

    kind: Kind
    key: Key
    uid: str


def news(old: list[Condition], new: list[Condition]) -> list[Condition]:
    """Return the conditions that a user should hear of: those that flipped, or are False for another reason."""
    before = {condition.type: condition for condition in old}
    told: list[Condition] = []
    for condition in new:
        former = before.get(condition.type)
        if condition.type not in TOLD or condition.reason in QUIET_REASONS or condition.status == "Unknown":
            continue
        if condition.status == "True":
            if former is not None and former.status == "False":
                told.append(condition)
        elif former is None or (former.status, former.reason) != (condition.status, condition.reason):
            told.append(condition)
    return told


class Events:
    """Posts them in the background, within a budget."""

    def __init__(
        self, kube: Kube, *, instance: str, leads: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        self._kube = kube
        self._instance = instance
        self._leads = leads
        self._budget = Budget(RATE, BURST, clock)
        self._queue: asyncio.Queue[tuple[Subject, Condition]] = asyncio.Queue(LONGEST_QUEUE)
        self.on_drop: Callable[[], None] | None = None

    def tell(self, subject: Subject, condition: Condition) -> None:
        """Queue one event; drop it if too many wait."""
        try:
            self._queue.put_nowait((subject, condition))
        except asyncio.QueueFull:
            if self.on_drop is not None:
                self.on_drop()

    async def run(self) -> None:
        """Post for ever."""
        while True:
            subject, condition = await self._queue.get()
            await self._budget.wait()
            if not self._leads():
                continue
            try:
                await self._kube.create(path("v1", "events", subject.key[0]), self._body(subject, condition))
            except ApiError as error:
                log.warning("event-not-posted", object="/".join(subject.key), error=str(error))

    def _body(self, subject: Subject, condition: Condition) -> Json:
        namespace, name = subject.key
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{name[:240]}.{secrets.token_hex(6)}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": subject.kind,
                "namespace": namespace,
                "name": name,
                "uid": subject.uid,
            },
            "type": "Normal" if condition.status == "True" else "Warning",
            "reason": condition.reason,
            "message": f"{condition.type}={condition.status}. {condition.message}"[:1024],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": COMPONENT, "host": self._instance},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance,
        }
