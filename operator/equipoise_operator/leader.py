"""One operator leads: a Lease, renewed in time, or the process ends.

A candidate takes a Lease that nobody holds, that was released, or that it has watched for its whole duration without a
renewal. Each acquisition raises leaseTransitions: the epoch of every push, by which sidecars refuse a deposed leader. A
leader renews every `retry` seconds with a deadline for each call, and holds itself for leading only until `renew` seconds
after the *start* of the last renewal that succeeded. That instant is compared with a clock that runs while the process is
stopped, so a leader that wakes after SIGSTOP knows before it does anything that its time is over. Successors wait
`duration` seconds; what a leader has begun must end within the difference.

Where somebody deletes the Lease its holder takes it again, and candidates that ever saw it wait as if it were held. One that
starts in that moment does not know better: for a renewal's time there may be two, of which sidecars refuse the lower epoch.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from equipoise_operator.kube import ApiError, Json, Kube, path

LEASES = "coordination.k8s.io/v1"
HIGHEST_EPOCH = 2**30
"""Sidecars that claim a higher one are broken or lie: leaseTransitions has 32 bits."""

log = structlog.get_logger(__name__)


class LeadershipLostError(Exception):
    """The Lease is not ours any more, or could not be renewed in time. The process must end."""


class NotLeadingError(Exception):
    """Something was to be written or pushed by one that does not lead."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `duration` > `renew` > `retry`."""

    duration: float = 10.0
    renew: float = 6.0
    retry: float = 2.0
    poll: float = 0.5
    """Between a candidate's looks at the Lease: how long a released one lies idle."""

    @property
    def grace(self) -> float:
        """How long something that a leader began may go on."""
        return self.duration - self.renew


@dataclass(frozen=True, slots=True)
class _Record:
    """What a candidate saw last. A Lease that vanishes is not released: who held it may lead on for a while."""

    present: bool = False
    holder: str = ""
    epoch: int = 0
    renewed: str = ""
    duration: float = 0.0


def boot_clock() -> float:
    """Seconds on a clock that goes on while the process is stopped and while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Leader:
    """One candidate and its Lease. `campaign`, then `keep` until it raises, then `release`."""

    def __init__(
        self,
        kube: Kube,
        *,
        namespace: str,
        name: str,
        candidate: str,
        timing: Timing | None = None,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._kube = kube
        self._namespace, self._name = namespace, name
        self._candidate = candidate
        self.identity = f"{candidate}_{secrets.token_hex(4)}"
        """The Lease's holder: the candidate and this process."""
        self.timing = timing or Timing()
        self._clock = clock
        self._valid_until = float("-inf")
        self._lease: Json = {}
        self._seen = _Record()
        self._seen_at = clock()
        self._writing = asyncio.Lock()
        self.epoch = 0
        """leaseTransitions of our term."""
        self.on_recovered: Callable[[], None] | None = None
        """Called when the API server answers again after it did not."""

    def leads(self) -> bool:
        """Say whether this process may write and push at this instant."""
        return self._clock() < self._valid_until

    def require(self) -> None:
        """Raise NotLeadingError unless this process leads."""
        if not self.leads():
            raise NotLeadingError(f"{self.identity} does not lead")

    async def campaign(self) -> None:
        """Return when this process leads."""
        failing = False
        while True:
            try:
                acquired = await self._try_acquire()
            except ApiError as error:
                if not failing:
                    log.warning("lease-unavailable", error=str(error))
                failing = True
            else:
                if failing and self.on_recovered is not None:
                    self.on_recovered()
                failing = False
                if acquired:
                    log.info("leading", identity=self.identity, epoch=self.epoch)
                    return
            await asyncio.sleep(self.timing.poll)

    async def keep(self) -> None:
        """Renew for ever. LeadershipLostError when it cannot be done in time or somebody else holds the Lease."""
        failing = False
        while True:
            await asyncio.sleep(self.timing.poll if failing else self.timing.retry)
            if not self.leads():
                raise LeadershipLostError(f"the Lease was not renewed in {self.timing.renew:g} s")
            try:
                await self._update(self.epoch)
            except ApiError as error:
                log.warning("lease-not-renewed", error=str(error))
                failing = True
                continue
            if failing and self.on_recovered is not None:
                self.on_recovered()
            failing = False

    async def raise_above(self, epoch: int) -> None:
        """Begin a new term above `epoch`, which a sidecar has seen: the Lease was deleted and counts anew.

        NotLeadingError if we do not lead, ValueError for an epoch that no Lease can have counted to.
        """
        if epoch >= HIGHEST_EPOCH:
            raise ValueError(f"epoch {epoch} is higher than any Lease counts")
        self.require()
        if epoch < self.epoch:
            return
        log.warning("epoch-raised", ours=self.epoch, seen=epoch)
        await self._update(epoch + 1)

    async def release(self) -> None:
        """Give the Lease up if it is ours, so that a successor need not wait."""
        if not self.leads():
            return
        self._valid_until = float("-inf")
        spec = self._lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        async with self._writing:
            try:
                await self._kube.replace(self._path, self._lease | {"spec": spec}, deadline=self.timing.retry)
            except ApiError as error:
                log.warning("lease-not-released", error=str(error))

    @property
    def _path(self) -> str:
        return path(LEASES, "leases", self._namespace, self._name)

    async def _try_acquire(self) -> bool:
        lease: Json | None = None
        try:
            lease = await self._kube.get(self._path, deadline=self.timing.retry)
            self._observe(_record(lease.get("spec", {}), self.timing))
        except ApiError as error:
            if error.status != 404:
                raise
            self._observe(replace(self._seen, present=False))
        seen = self._seen
        # The same pod's name: a container restarts only after its former process has ended.
        ours = seen.holder.rpartition("_")[0] == self._candidate
        held, duration = bool(seen.holder), seen.duration
        if lease is None and seen.epoch:
            # Released when we saw it last, and maybe taken by another before it was deleted.
            held, duration = True, self.timing.duration
        if held and not ours and self._clock() - self._seen_at <= duration:
            return False
        if lease is None:
            return await self._create(seen.epoch + 1)
        self._lease = lease
        try:
            await self._write(seen.epoch + 1, self._clock(), acquired=_now())
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    def _observe(self, seen: _Record) -> None:
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()

    async def _create(self, epoch: int) -> bool:
        started = self._clock()
        now = _now()
        body: Json = {
            "apiVersion": LEASES,
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec(epoch, acquired=now, renewed=now),
        }
        collection = path(LEASES, "leases", self._namespace)
        try:
            lease = await self._kube.create(collection, body, deadline=self.timing.retry)
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        self._won(lease, epoch, started)
        return True

    async def _update(self, epoch: int) -> None:
        """Renew. A conflict need not be a loss: somebody may have put a label on the Lease."""
        async with self._writing:
            started = self._clock()
            try:
                await self._write(epoch, started, acquired=self._lease["spec"]["acquireTime"])
            except ApiError as error:
                if error.status not in (404, 409):
                    raise
                await self._reclaim(epoch, started)

    async def _reclaim(self, epoch: int, started: float) -> None:
        """Go on after a conflict if the Lease is still ours, or take it again if somebody deleted it."""
        try:
            lease = await self._kube.get(self._path, deadline=self.timing.retry)
        except ApiError as error:
            if error.status != 404:
                raise
            if await self._create(epoch + 1):
                return
            lease = await self._kube.get(self._path, deadline=self.timing.retry)
        holder = lease.get("spec", {}).get("holderIdentity")
        if holder != self.identity:
            self._valid_until = float("-inf")
            raise LeadershipLostError(f"the Lease is held by {holder or 'nobody'}")
        self._lease = lease
        await self._write(epoch, started, acquired=lease["spec"]["acquireTime"])

    async def _write(self, epoch: int, started: float, *, acquired: str) -> None:
        spec = self._spec(epoch, acquired=acquired, renewed=_now())
        lease = await self._kube.replace(self._path, self._lease | {"spec": spec}, deadline=self.timing.retry)
        self._won(lease, epoch, started)

    def _won(self, lease: Json, epoch: int, started: float) -> None:
        self._lease = lease
        self.epoch = epoch
        self._valid_until = started + self.timing.renew

    def _spec(self, epoch: int, *, acquired: str, renewed: str) -> Json:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": round(self.timing.duration),
            "leaseTransitions": epoch,
            "acquireTime": acquired,
            "renewTime": renewed,
        }


def _record(spec: Json, timing: Timing) -> _Record:
    return _Record(
        present=True,
        holder=spec.get("holderIdentity") or "",
        epoch=int(spec.get("leaseTransitions") or 0),
        renewed=spec.get("renewTime") or "",
        duration=float(spec.get("leaseDurationSeconds") or timing.duration),
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
