"""Once a second: from the fleet's state to the statuses that are due.

A policy's status is made every time. A tenant's is made when something of its own changed, while it has anything to do, and
once in a while for the rest: making 10,000 of them every second would take a core. What takes long is done in a thread (what
goes over all tenants of a policy) or a few at a time (the tenants), so that it holds up neither the Lease nor any push.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from equipoise_api.names import DEFAULT_TENANT, tenant_id
from equipoise_api.policy import FairnessPolicy, FairnessPolicyStatus
from equipoise_operator import shares
from equipoise_operator.compile import Compiled, admits
from equipoise_operator.controller import Controller
from equipoise_operator.events import Kind, Subject
from equipoise_operator.fleet import Fleet, Member
from equipoise_operator.objects import Key
from equipoise_operator.policy_status import policy_status
from equipoise_operator.status_writer import StatusWriter
from equipoise_operator.store import Store
from equipoise_operator.tenant_status import tenant_status
from equipoise_operator.views import Admission, PolicyView, SidecarView

PERIOD_SECONDS = 1.0
FRESH_SECONDS = 10.0
"""Age at which a sidecar's last state stops to count."""
LEARNING_SECONDS = 10.0
"""How long a policy's status waits for what this leader has yet to learn: it would say that nothing is known any more."""
SWEEP = 200
"""Tenants looked at in each period though nothing of theirs is known to have changed."""
MOST = 1000
"""Tenants looked at in each period at all."""
AT_A_TIME = 25
"""Tenants between two looks at what else there is to do: some 3 ms."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a view says of all its tenants at once."""

    rows: shares.Rows
    status: FairnessPolicyStatus
    active: frozenset[Key]
    """Tenants with a row."""
    lacking: frozenset[Key]
    """Tenants whose configuration differs from what some sidecar serves by."""

    @classmethod
    def of(cls, view: PolicyView, now: str) -> Figures:
        """Make them. Pure. O(n log n) in the rows of all sidecars."""
        rows = view.rows()
        active = frozenset(_key(name) for name in rows if name != DEFAULT_TENANT)
        return cls(rows, policy_status(view, now), active, _lacking(view))


class Reporter:
    """Makes statuses and offers them to the writer."""

    def __init__(
        self,
        *,
        store: Store,
        controller: Controller,
        fleet: Fleet,
        writer: StatusWriter,
        clock: Callable[[], float],
        exporters_problem: Callable[[], str] = lambda: "",
    ) -> None:
        self._store = store
        self._controller = controller
        self._fleet = fleet
        self._writer = writer
        self._clock = clock
        self._exporters_problem = exporters_problem
        self._due: dict[Key, None] = {}
        self._active: frozenset[Key] = frozenset()
        self._compiled: dict[Key, Compiled] = {}
        self._sweep: list[Key] = []
        self._learning_since: dict[Key, float] = {}
        self.on_failure: Callable[[], None] | None = None

    def mark(self, tenant: Key) -> None:
        """Have a tenant's status made."""
        self._due[tenant] = None

    def compiled(self, policy: Key, compiled: Compiled) -> None:
        """Have the statuses made of the tenants whose part of the configuration differs."""
        former = self._compiled.get(policy)
        self._compiled[policy] = compiled
        for name in _differing(former, compiled):
            self.mark(_key(name))

    def gone(self, kind: Kind, key: Key, uid: str) -> None:
        """Forget an object that is gone."""
        self._writer.forget(Subject(kind, key, uid))

    def forgotten(self, policy: Key) -> None:
        """Have the statuses made of the tenants of a policy that is gone."""
        self._learning_since.pop(policy, None)
        former = self._compiled.pop(policy, None)
        for name in former.tenants if former else ():
            self.mark(_key(name))

    async def run(self) -> None:
        """Report for ever. A fault of ours here is logged and counted, and holds up no push: that is another's work."""
        while True:
            try:
                await self.report()
            except Exception:
                log.exception("not-reported")
                if self.on_failure is not None:
                    self.on_failure()
            await asyncio.sleep(PERIOD_SECONDS)

    async def report(self) -> None:
        """Make and offer what is due."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        views = {key: self._view(key, policy) for key, policy in self._controller.ours()}
        learning = [key for key, view in views.items() if self._learns(key, view)]
        figures = await asyncio.to_thread(
            lambda: {key: Figures.of(view, now) for key, view in views.items()},
        )
        for key, policy in self._controller.ours():
            # In the meantime one may have come, or taken the place of another.
            if key not in views or policy.metadata.uid != views[key].policy.metadata.uid or key in learning:
                continue
            stored = self._store.policies.get(key)
            assert stored is not None
            subject = Subject("FairnessPolicy", key, stored.uid)
            self._writer.offer(subject, stored.version, policy.status, figures[key].status)
        self._report_unreadable_policies(now)
        active = frozenset().union(*(each.active for each in figures.values()))
        due = (active | self._active).union(*(each.lacking for each in figures.values()))
        self._due.update(dict.fromkeys(due))
        self._active = active
        for number, key in enumerate(self._take()):
            if number % AT_A_TIME == 0:
                await asyncio.sleep(0)
            if any(admits(views[policy].policy, key[0]) for policy in learning):
                self.mark(key)
            else:
                self._report_tenant(key, views, figures, now)

    def _learns(self, key: Key, view: PolicyView) -> bool:
        """Say whether this leader has yet to compile the policy, to place its pods, or to hear of one of its sidecars."""
        known = (
            (view.compiled is not None or bool(view.problem))
            and key[0] in self._controller.placements
            and all(sidecar.held is not None or sidecar.reason for sidecar in view.sidecars)
        )
        if known:
            self._learning_since.pop(key, None)
            return False
        since = self._learning_since.setdefault(key, self._clock())
        return self._clock() - since < LEARNING_SECONDS

    def _report_tenant(
        self,
        key: Key,
        views: dict[Key, PolicyView],
        figures: dict[Key, Figures],
        now: str,
    ) -> None:
        stored = self._store.tenants.get(key)
        if stored is None or stored.object is None:
            return
        tenant = stored.object
        name = tenant_id(*key)
        admissions = [
            Admission(view, figures[policy].rows.get(name) or shares.Row())
            for policy, view in views.items()
            if admits(view.policy, key[0])
        ]
        status = tenant_status(tenant, admissions, stored.error, now)
        self._writer.offer(Subject("Tenant", key, stored.uid), stored.version, tenant.status, status)

    def _report_unreadable_policies(self, now: str) -> None:
        """Tell of policies of which no version could ever be read."""
        for key, policy in self._controller.unreadable():
            stored = self._store.policies.get(key)
            assert stored is not None
            status = policy_status(PolicyView(policy=policy, compiled=None, error=stored.error), now)
            self._writer.offer(
                Subject("FairnessPolicy", key, stored.uid), stored.version, policy.status, status
            )

    def _view(self, key: Key, policy: FairnessPolicy) -> PolicyView:
        uid = policy.metadata.uid
        stored = self._store.policies.get(key)
        placement = self._controller.placements.get(key[0])
        return PolicyView(
            policy=policy,
            compiled=self._fleet.config(uid),
            sidecars=[self._sidecar(member) for member in self._fleet.members(uid)],
            conflict=placement.conflicts.get(uid) if placement else None,
            error=stored.error if stored else "",
            problem=self._controller.problems.get(key, ""),
            exporters_problem=self._exporters_problem(),
        )

    def _sidecar(self, member: Member) -> SidecarView:
        fresh = self._clock() - member.state_at <= FRESH_SECONDS
        return SidecarView(
            pod=member.pod.name,
            state=member.state if fresh else None,
            held=member.held,
            acknowledged=member.acknowledged,
            reason=member.error.reason if member.error else "",
            message=str(member.error) if member.error else "",
            exporter=self._fleet.exporter_of(member),
        )

    def _take(self) -> list[Key]:
        if not self._sweep:
            self._sweep = [key for key, _ in self._store.tenants.items()]
        for _ in range(min(SWEEP, len(self._sweep))):
            self.mark(self._sweep.pop())
        taken = list(self._due)[:MOST]
        for key in taken:
            del self._due[key]
        return taken


def _lacking(view: PolicyView) -> frozenset[Key]:
    present = view.compiled
    if present is None:
        return frozenset()
    # Many sidecars lack the same.
    taken = {
        sidecar.acknowledged.revision if sidecar.acknowledged is not None else "": sidecar.acknowledged
        for sidecar in view.sidecars
        if sidecar.held not in (None, "", present.revision)
    }
    names = set().union(*(_differing(former, present) for former in taken.values()))
    return frozenset(map(_key, names))


def _differing(former: Compiled | None, present: Compiled) -> set[str]:
    if former is None:
        return set(present.tenants)
    names = {name for name, config in present.tenants.items() if former.tenants.get(name) != config}
    names |= former.tenants.keys() - present.tenants.keys()
    for before, after in (
        (former.identity_findings, present.identity_findings),
        (former.notes, present.notes),
        (former.made_from, present.made_from),
    ):
        names |= {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    return names


def _key(name: str) -> Key:
    namespace, _, rest = name.partition("/")
    return namespace, rest
