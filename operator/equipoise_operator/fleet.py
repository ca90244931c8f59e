"""Every sidecar there is: what it should hold, what it holds, how it is. One task for each pushes and reads, in turn.

Only the leader's fleet runs. A new leader pushes to every sidecar, even one that holds the right revision (then with an
empty patch): from then on the sidecar refuses its predecessor.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from equipoise_api.gpu import GpuExporter
from equipoise_api.sidecar_config import SCHEMA_VERSION
from equipoise_api.sidecar_state import SidecarState
from equipoise_operator.compile import Compiled, pass_through
from equipoise_operator.kube import ApiError
from equipoise_operator.leader import LeadershipLostError, NotLeadingError
from equipoise_operator.objects import Pod
from equipoise_operator.push import Pusher
from equipoise_operator.sidecar_client import RefusedError, SidecarClient, SidecarError

POLL_SECONDS = 1.0
REST = 3.0
"""A sidecar is left alone for so many times as long as it took to say how it is: with thousands of tenants that costs it much."""
LONGEST_POLL_SECONDS = 4.0
"""At most; with the time of the call less than what it said may be old."""
LONGEST_BACKOFF = 1.0
"""A sidecar that starts is found within this."""
REFUSED_SECONDS = 15.0
"""Until a configuration that a sidecar refused is pushed to it again. One that claims a newer one whatever our term has the
Lease written anew, and all others pushed to, each time."""
CONCURRENCY = 64
"""Calls at a time to sidecars that answer, and as many to those that did not: these wait for each other alone."""
UNREACHED = frozenset({"Unreachable", "WrongPeer", "NoCertificate"})
"""Reasons of errors before a sidecar has answered."""
REMEMBERED = 2
"""Former configurations of a policy that a patch may be based on."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A revision that a sidecar refused."""

    revision: str
    again_at: float
    error: RefusedError


@dataclass(slots=True, eq=False)
class Member:
    """One sidecar."""

    pod: Pod
    policy: str | None
    """uid of the policy that governs it."""
    state: SidecarState | None = None
    state_at: float = float("-inf")
    state_took: float = 0.0
    """Seconds of the call."""
    held: str | None = None
    """Revision that it is known to hold."""
    acknowledged: Compiled | None = None
    """The newest configuration that it took, as far as this leader knows it."""
    term: int = -1
    """Epoch of the newest push that it took."""
    error: SidecarError | None = None
    """Why the last call failed; None after one that did not."""
    refused: _Refusal | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)


def _silent(member: Member) -> bool:
    return member.error is not None and member.error.reason in UNREACHED


class Fleet:
    """The members, by pod uid."""

    def __init__(
        self,
        client: SidecarClient,
        pusher: Pusher,
        *,
        epoch: Callable[[], int],
        clock: Callable[[], float],
        exporter_on: Callable[[str], str | None] = lambda _node: None,
        seed: int | None = None,
    ) -> None:
        """`exporter_on` gives the URL of a node's dcgm-exporter."""
        self._client = client
        self._pusher = pusher
        self._epoch = epoch
        self._clock = clock
        self._exporter_on = exporter_on
        self._random = random.Random(seed)  # noqa: S311 - jitter
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._doubtful = asyncio.Semaphore(CONCURRENCY)
        self._members: dict[str, Member] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._configs: dict[str | None, Compiled] = {None: pass_through()}
        self._former: dict[str, Compiled] = {}

    def members(self, policy: str | None) -> list[Member]:
        """Return the members that a policy governs, or those that none does."""
        return [member for member in self._members.values() if member.policy == policy]

    def census(self) -> dict[str, int]:
        """Count the members by state, as in the metric `sidecars`."""
        wanted = {policy: config.revision for policy, config in self._configs.items()}
        members = self._members.values()
        return {
            "all": len(members),
            "synced": sum(1 for m in members if m.held is not None and m.held == wanted.get(m.policy)),
            "failing": sum(1 for m in members if m.error is not None),
            "outdated": sum(1 for m in members if m.state and m.state.schema_version != SCHEMA_VERSION),
        }

    def config(self, policy: str | None) -> Compiled | None:
        """Return what a policy's sidecars should hold; None before its first compile."""
        return self._configs.get(policy)

    def exporter_of(self, member: Member) -> str | None:
        """Return the URL of the dcgm-exporter on a member's node; None, too, for one that no policy governs."""
        return self._exporter_on(member.pod.node) if member.policy is not None else None

    def configure(self, policy: str, compiled: Compiled) -> None:
        """Set what a policy's sidecars should hold."""
        before = self._configs.get(policy)
        if before is not None and before.revision == compiled.revision:
            self._configs[policy] = compiled
            return
        if before is not None:
            self._former[before.revision] = before
            for revision in list(self._former)[: -REMEMBERED * len(self._configs)]:
                del self._former[revision]
        self._configs[policy] = compiled
        for member in self.members(policy):
            member.wake.set()

    def forget(self, policy: str) -> None:
        """Drop the configuration of a policy that is gone."""
        self._configs.pop(policy, None)

    def assign(self, namespace: str, pods: Iterable[Pod], governed: Mapping[str, str | None]) -> None:
        """Set which policy governs which sidecar of a namespace. Pods left out are gone or not ours."""
        present = {pod.uid: pod for pod in pods if pod.uid in governed and pod.reachable}
        for uid, member in list(self._members.items()):
            if member.pod.namespace == namespace and uid not in present:
                self._remove(uid)
        for uid, pod in present.items():
            self._put(pod, governed[uid])

    async def close(self) -> None:
        """Stop all tasks."""
        for uid in list(self._members):
            self._remove(uid)
        await self._client.close()

    def _put(self, pod: Pod, policy: str | None) -> None:
        member = self._members.get(pod.uid)
        if member is None:
            member = self._members[pod.uid] = Member(pod, policy)
            self._tasks[pod.uid] = asyncio.create_task(self._keep(member), name=f"sidecar {pod.name}")
            return
        if (member.pod.ip, member.pod.admin_port) != (pod.ip, pod.admin_port):
            member.held = None
        member.pod, member.policy = pod, policy
        member.wake.set()

    def _remove(self, uid: str) -> None:
        del self._members[uid]
        self._tasks.pop(uid).cancel()

    async def _keep(self, member: Member) -> None:
        failures = 0
        while True:
            member.wake.clear()
            delay = POLL_SECONDS
            try:
                async with self._doubtful if _silent(member) else self._slots:
                    await self._exchange(member)
            except SidecarError as error:
                if member.error is None or member.error.reason != error.reason:
                    log.warning("sidecar", pod=member.pod.name, reason=error.reason, error=str(error))
                member.error = error
                failures += 1
                delay = min(LONGEST_BACKOFF, 0.1 * 2 ** min(failures, 10)) * self._random.uniform(0.5, 1.0)
            except (NotLeadingError, LeadershipLostError, ApiError, ValueError) as error:
                # Leading is over or in doubt, which the Lease's keeper decides.
                log.warning("push-held-back", pod=member.pod.name, error=str(error))
            except Exception:
                # Nobody awaits this task: were it to end, nothing would configure the sidecar any more.
                log.exception("sidecar", pod=member.pod.name)
                member.error = SidecarError("Fault", "a fault of the operator's, which its log shows")
            else:
                member.error, failures = None, 0
                delay = min(LONGEST_POLL_SECONDS, max(POLL_SECONDS, REST * member.state_took))
            try:
                async with asyncio.timeout(delay):
                    await member.wake.wait()
            except TimeoutError:
                continue

    async def _exchange(self, member: Member) -> None:
        """Push if the sidecar is not known to hold what it should; then read how it is, and push if it is not so."""
        if member.held is None:
            await self._look(member)
        try:
            await self._push(member)
        except SidecarError:
            # How it is counts though it does not take what it should hold.
            with contextlib.suppress(SidecarError):
                await self._read(member)
            raise
        await self._read(member)
        await self._push(member)
        await self._point(member)
        want = self._configs.get(member.policy)
        if member.refused is not None and want is not None and member.refused.revision == want.revision:
            raise member.refused.error

    async def _look(self, member: Member) -> None:
        """Learn what a sidecar holds. One that does not say so plainly holds nothing that is known, and is pushed all."""
        try:
            await self._read(member)
        except SidecarError as error:
            if error.reason in UNREACHED:
                raise
            member.held = ""

    async def _read(self, member: Member) -> None:
        began = self._clock()
        state = await self._client.state(member.pod)
        before = member.state
        if before is not None and before.incarnation != state.incarnation:
            member.term = -1
        member.state, member.state_at = state, self._clock()
        member.state_took = member.state_at - began
        member.held = state.revision or ""
        if member.acknowledged is None or member.acknowledged.revision != member.held:
            known = self._known(member.policy, member.held)
            member.acknowledged = known or member.acknowledged

    async def _push(self, member: Member) -> None:
        want = self._configs.get(member.policy)
        if want is None:
            return
        if member.held == want.revision and member.term == self._epoch():
            return
        refused = member.refused
        if refused is not None and refused.revision == want.revision and self._clock() < refused.again_at:
            return
        try:
            result = await self._pusher.push(member.pod, want, self._known(member.policy, member.held or ""))
        except RefusedError as refusal:
            if refusal.status in (409, 413, 422):
                member.refused = _Refusal(want.revision, self._clock() + REFUSED_SECONDS, refusal)
            raise
        member.held, member.term = result.revision, result.epoch
        member.refused = None
        if result.revision == want.revision:
            member.acknowledged = want

    async def _point(self, member: Member) -> None:
        """Tell the sidecar where its node's exporter is, if it thinks otherwise."""
        gpu = member.state.gpu if member.state is not None else None
        want = self.exporter_of(member)
        if gpu is not None and gpu.exporter != want:
            await self._client.point(member.pod, GpuExporter(exporter=want))

    def _known(self, policy: str | None, revision: str) -> Compiled | None:
        present = self._configs.get(policy)
        if present is not None and present.revision == revision:
            return present
        return self._former.get(revision)
