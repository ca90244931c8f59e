"""From changes to work: what an event makes dirty, and what is done about it.

Two kinds of work, each with one worker a key: a policy is compiled and its configuration given to the fleet; a namespace's
pods are given to its policies. Both start from the whole store, never from the event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from time import perf_counter

import structlog

from equipoise_api.policy import FairnessPolicy
from equipoise_api.tenant import Tenant
from equipoise_operator import hmac_keys
from equipoise_operator.compile import Compiled, Sources, admits, compile_policy
from equipoise_operator.fleet import Fleet
from equipoise_operator.kube import ApiError, Kube
from equipoise_operator.leader import LeadershipLostError, NotLeadingError
from equipoise_operator.objects import Key, Pod, Secret, Stored
from equipoise_operator.placement import Placement, place
from equipoise_operator.store import Change, Store
from equipoise_operator.worker import Workers

EXPECTED = (ApiError, NotLeadingError, LeadershipLostError)

log = structlog.get_logger(__name__)


class Controller:
    """One install's policies, on every replica; works only after `start`, on the leader."""

    def __init__(
        self,
        *,
        kube: Kube,
        store: Store,
        fleet: Fleet,
        install: str,
        class_name: str,
        require: Callable[[], None],
    ) -> None:
        self._kube = kube
        self._store = store
        self._fleet = fleet
        self._install, self._class_name = install, class_name
        self._require = require
        self.policies: Workers[Key] = Workers("compile", self._compile, expected=EXPECTED)
        self.namespaces: Workers[str] = Workers("place", self._place, expected=EXPECTED)
        self.placements: dict[str, Placement] = {}
        self._uids: dict[Key, str] = {}
        self.problems: dict[Key, str] = {}
        """Why a policy's newest version could not be compiled."""
        self.on_compiled: Callable[[Key, Compiled, float], None] | None = None
        """Told of every compile and its seconds."""
        self.on_forgotten: Callable[[Key], None] | None = None
        """Told of every policy that is gone or not ours any more."""
        self.on_placed: Callable[[], None] | None = None

    # What makes what dirty

    def tenant_changed(self, change: Change[Tenant]) -> None:
        """Mark the policies that admit the tenant's namespace."""
        for key, policy in self.ours():
            if admits(policy, change.key[0]):
                self.policies.mark(key)

    def policy_changed(self, change: Change[FairnessPolicy]) -> None:
        """Mark the policy, and its namespace: pods may be another's."""
        if any(self._serves(stored) for stored in (change.before, change.after)):
            self.policies.mark(change.key)
            self.namespaces.mark(change.key[0])

    def pod_changed(self, change: Change[Pod]) -> None:
        """Mark the namespace of a pod with a sidecar."""
        if any(
            stored and stored.object and stored.object.has_sidecar for stored in (change.before, change.after)
        ):
            self.namespaces.mark(change.key[0])

    def secret_changed(self, change: Change[Secret]) -> None:
        """Mark the policies that may read Secrets of that namespace."""
        self.secret_key_changed(change.key)

    def secret_key_changed(self, secret: Key) -> None:
        """Mark as for a Secret's change."""
        for key, policy in self.ours():
            if admits(policy, secret[0]):
                self.policies.mark(key)

    # Work

    def start(self) -> None:
        """Begin, with everything dirty."""
        for key, _ in self.ours():
            self.policies.mark(key)
            self.namespaces.mark(key[0])
        for key, stored in self._store.pods.items():
            if stored.object is not None and stored.object.has_sidecar:
                self.namespaces.mark(key[0])
        self.policies.start()
        self.namespaces.start()

    def stop(self) -> None:
        """Stop all work."""
        self.policies.stop()
        self.namespaces.stop()

    def mark_all(self) -> None:
        """Have every policy compiled: HMAC keys grow old without any event."""
        for key, _ in self.ours():
            self.policies.mark(key)

    def ours(self) -> list[tuple[Key, FairnessPolicy]]:
        """Return the policies that this install serves."""
        return [
            (key, stored.object)
            for key, stored in self._store.policies.items()
            if stored.object is not None and self._serves(stored)
        ]

    def unreadable(self) -> list[tuple[Key, FairnessPolicy]]:
        """Return the outlines of this install's policies of which no version could ever be read."""
        return [
            (key, stored.outline)
            for key, stored in self._store.policies.items()
            if stored.object is None
            and stored.outline is not None
            and stored.outline.spec.class_name == self._class_name
        ]

    def served_namespaces(self) -> frozenset[str]:
        """Return the namespaces with policies or sidecars of this install."""
        with_policies = {key[0] for key, _ in self.ours()}
        with_pods = {pod.namespace for pod in self._store.pods.parsed() if self._is_ours(pod)}
        return frozenset(with_policies | with_pods)

    async def _compile(self, key: Key) -> None:
        stored = self._store.policies.get(key)
        policy = stored.object if stored is not None and self._serves(stored) else None
        former = self._uids.get(key)
        if former is not None and (policy is None or policy.metadata.uid != former):
            self._fleet.forget(former)
            del self._uids[key]
        if policy is None:
            self.problems.pop(key, None)
            if self.on_forgotten is not None:
                self.on_forgotten(key)
            self.policies.retire(key)
            return
        self._require()
        try:
            keys = await hmac_keys.ensure(self._kube, self._store, policy, datetime.now(UTC))
        except ApiError as error:
            if error.status:
                self.problems[key] = str(error)
            raise
        self.problems.pop(key, None)
        namespace = policy.metadata.namespace if policy.spec.tenants.from_ == "Same" else None
        sources = Sources(
            policy=policy,
            tenants=self._store.tenants.parsed(namespace),
            secrets={(s.namespace, s.name): s for s in self._store.secrets.parsed(namespace)},
            unlabelled=frozenset(self._store.unlabelled),
            hmac_keys=keys,
        )
        started = perf_counter()
        compiled = await asyncio.to_thread(compile_policy, sources)
        self._uids[key] = policy.metadata.uid
        self._fleet.configure(policy.metadata.uid, compiled)
        seconds = perf_counter() - started
        log.info(
            "compiled",
            policy="/".join(key),
            revision=compiled.revision[:12],
            tenants=len(compiled.tenants),
            seconds=round(seconds, 4),
        )
        if self.on_compiled is not None:
            self.on_compiled(key, compiled, seconds)

    async def _place(self, namespace: str) -> None:
        policies = [policy for key, policy in self.ours() if key[0] == namespace]
        pods = [pod for pod in self._store.pods.parsed(namespace) if self._is_ours(pod)]
        placement = place(policies, pods)
        governed = dict(placement.governed)
        if any(key[0] == namespace for key, _ in self.unreadable()):
            # Whom a policy that cannot be read selects is unknown, so its pods keep what they have.
            governed = {uid: policy for uid, policy in governed.items() if policy is not None}
        self._fleet.assign(namespace, pods, governed)
        if policies or pods:
            self.placements[namespace] = placement
        else:
            self.placements.pop(namespace, None)
            self.namespaces.retire(namespace)
        if self.on_placed is not None:
            self.on_placed()

    def _serves(self, stored: Stored[FairnessPolicy] | None) -> bool:
        return (
            stored is not None
            and stored.object is not None
            and stored.object.spec.class_name == self._class_name
        )

    def _is_ours(self, pod: Pod) -> bool:
        return pod.has_sidecar and pod.install in (None, self._install)
