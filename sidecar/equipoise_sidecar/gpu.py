"""What is known of the pod's GPUs: the newest reading and its age, utilisation over time, and whose the GPU time was.

It says and charges, and never holds a request back. A reading holds until the next one, or until it is stale. All methods
run on the event loop's thread; time is an argument.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

import structlog

from equipoise_api.gpu import Gpu, GpuState
from equipoise_sidecar.dcgm import DcgmError, Reading
from equipoise_sidecar.gpu_ledger import GpuLedger, Spent

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Mark:
    """A point in time, to measure the mean utilisation from."""

    area: float
    """Utilisation times seconds until then."""
    known: float
    """Seconds until then of which the utilisation was known."""


class GpuTelemetry:
    """One pod's GPUs."""

    def __init__(self) -> None:
        self.settings = Gpu()
        self.exporter: str | None = None
        """Where the operator said that the node's exporter is."""
        self.moved = asyncio.Event()
        """Set when there is another place to read, or another pace."""
        self.reading: Reading | None = None
        """The newest; old ones count no more, see `is_fresh`."""
        self.ledger = GpuLedger()
        self.failures = 0
        """Tries that gave nothing, since the start."""
        self.problem = ""
        self.message = ""
        self._changed_at = 0.0
        """When the newest reading's values were first read."""
        self._fresh_at: float | None = None
        """When values were last read that count as new."""
        self._since = 0.0
        """From when readings could be had."""
        self._shared_at: float | None = None
        self._area = self._known = 0.0
        self._until = float("-inf")

    # -- where, and how often

    @property
    def url(self) -> str | None:
        """Where to read; None: nowhere."""
        match self.settings.dcgm:
            case "Off":
                return None
            case "Endpoint":
                return self.settings.endpoint
            case "Auto" | "Exporter":
                return self.exporter

    def configure(self, settings: Gpu, now: float) -> None:
        """Take the policy's settings."""
        self._move(settings, self.exporter, now)

    def point(self, exporter: str | None, now: float) -> None:
        """Take where the node's exporter is, from the operator."""
        self._move(self.settings, exporter, now)

    def _move(self, settings: Gpu, exporter: str | None, now: float) -> None:
        if (settings, exporter) == (self.settings, self.exporter):
            return
        self._advance(now)
        former = self.url
        self.settings, self.exporter = settings, exporter
        self.moved.set()
        if self.url != former:
            log.info("gpu metrics", url=self.url)
            self.reading = self._fresh_at = self._shared_at = None
            self.problem = self.message = ""
            self._since = now

    # -- what is read

    def observe(self, reading: Reading, service: Mapping[str, float], *, busy: bool, now: float) -> None:
        """Take a reading. `service`: delivered to each tenant since the start; `busy`: requests are in flight."""
        self._advance(now)
        same = (
            self.reading is not None and replace(reading, sampled_at=self.reading.sampled_at) == self.reading
        )
        if not same or reading.repeats_by_chance:
            self._changed_at = self._fresh_at = now
        self.reading = reading
        self.problem = self.message = ""
        if not self.is_fresh(now):
            self.problem = "Frozen"
            self.message = f"the same values for {now - self._changed_at:.0f} s while the GPU was busy"
        spent = Spent()
        seconds = 0.0 if self._shared_at is None else now - self._shared_at
        if (
            self.is_fresh(now) and seconds <= self.settings.stale_seconds
        ):  # what a longer gap took is not known
            spent = Spent(reading.busy_devices * seconds, (reading.power_watts or 0.0) * seconds)
        self.ledger.share_out(spent, service, busy=busy, now=now)
        self._shared_at = now

    def failed(self, error: DcgmError, now: float) -> None:
        """Take that a try gave nothing."""
        self._advance(now)
        if error.problem != self.problem:
            log.warning("no gpu metrics", problem=error.problem, error=str(error), url=self.url)
        self.failures += 1
        self.problem, self.message = error.problem, str(error)

    # -- what is known

    def is_fresh(self, now: float) -> bool:
        """Whether the reading counts."""
        return self.reading is not None and self._fresh_at is not None and now <= self._ends(self._fresh_at)

    def is_stale(self, now: float) -> bool:
        """Whether there is something to read, and nothing fresh has come of it for too long."""
        if self.url is None or self.is_fresh(now):
            return False
        return now > self._ends(self._since if self._fresh_at is None else self._fresh_at)

    def mark(self, now: float) -> Mark:
        """Begin to measure the mean utilisation. O(1)."""
        self._advance(now)
        return Mark(self._area, self._known)

    def mean_since(self, mark: Mark, now: float) -> float | None:
        """Return the mean utilisation since a mark, 0 to 1; None where nothing is known of that time. O(1)."""
        self._advance(now)
        known = self._known - mark.known
        if known > 0:
            return min(1.0, max(0.0, (self._area - mark.area) / known))
        return self.reading.utilisation if self.reading is not None and self.is_fresh(now) else None

    def state(self, now: float) -> GpuState:
        """Return what the operator reads."""
        known = self.reading if self.is_fresh(now) else None
        return GpuState(
            exporter=self.exporter,
            stale=self.is_stale(now),
            problem=self.problem,
            message=self.message,
            age_seconds=now - self._changed_at if self.reading is not None else None,
            devices=known.devices if known is not None else 0,
            utilisation=known and known.utilisation,
            least_utilisation=known and known.least_utilisation,
            sm_active=known and known.sm_active,
            tensor_active=known and known.tensor_active,
            dram_active=known and known.dram_active,
            power_watts=known and known.power_watts,
            xid=known and known.xid,
            fields=list(known.fields) if known is not None else [],
        )

    def _ends(self, at: float) -> float:
        return at + self.settings.stale_seconds

    def _advance(self, now: float) -> None:
        """Let the present reading hold until now, or until it was stale."""
        if now <= self._until:
            return
        if self.reading is not None and self.reading.utilisation is not None and self._fresh_at is not None:
            held = min(now, self._ends(self._fresh_at)) - self._until
            if held > 0:
                self._area += self.reading.utilisation * held
                self._known += held
        self._until = now
