"""What the engine says of itself: metrics once a second, and a probe on connecting and after its restart.

It corrects what the dispatcher counts by itself and never stops dispatch, unless nobody is at the engine's address.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.engine.errors import EngineError, EngineUnreachableError
from equipoise_sidecar.engine.pool import EnginePool
from equipoise_sidecar.engine.probe import probe
from equipoise_sidecar.engine.signals import EngineSignals, scrape

SCRAPE_SECONDS = 1.0
SCRAPE_TIMEOUT_SECONDS = 4.0
SILENT_SECONDS = 10.0
"""An engine that takes connections and says nothing for so long is not ready; requests still go to it."""
KNOCK_SECONDS = 0.25
"""Between tries while nobody is at the engine's address."""
STALE_SECONDS = 3 * SCRAPE_SECONDS
FIRST_PROBE_SECONDS = 5.0
"""How long the first requests wait for the probe: without it a stream's last chunk lacks the engine's fingerprint."""
PROBE_AGAIN_SECONDS = 10.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Heard:
    """The newest metrics, and when they came."""

    signals: EngineSignals
    at: float


class Feedback:
    """Watches one engine."""

    def __init__(self, dispatcher: Dispatcher, pool: EnginePool) -> None:
        self._dispatcher = dispatcher
        self._pool = pool
        self.heard: Heard | None = None
        self.preemptions = 0
        """Seen since the sidecar started, over restarts of the engine."""
        self._probe: asyncio.Task[None] | None = None
        self._probed_at: float | None = None
        self._probed_with: str | None = None
        self._silent_since: float | None = None
        self._complaint = ""

    def age(self, now: float) -> float | None:
        """Return the age of the newest metrics in seconds; None before the first."""
        return None if self.heard is None else now - self.heard.at

    def is_silent(self, now: float) -> bool:
        """Whether the engine takes connections and has long answered nothing."""
        return self._silent_since is not None and now - self._silent_since > SILENT_SECONDS

    def is_stale(self, now: float) -> bool:
        """Whether the metrics are too old to correct anything."""
        age = self.age(now)
        return age is None or age > STALE_SECONDS

    async def run(self) -> None:
        """Watch until cancelled."""
        lost = self._dispatcher.availability.lost
        try:
            while True:
                await self.look()
                pause = SCRAPE_SECONDS if self._dispatcher.availability.reachable else KNOCK_SECONDS
                if self._dispatcher.availability.reachable:
                    try:
                        async with asyncio.timeout(pause):
                            await lost.wait()
                    except TimeoutError:
                        pass
                else:
                    await asyncio.sleep(pause)
                lost.clear()
        finally:
            if self._probe is not None:
                self._probe.cancel()

    async def look(self) -> None:
        """Scrape once and act on it."""
        dispatcher = self._dispatcher
        began = dispatcher.clock()
        try:
            async with asyncio.timeout(SCRAPE_TIMEOUT_SECONDS):
                signals = await scrape(self._pool)
        except TimeoutError:
            self._complain(f"no answer within {SCRAPE_TIMEOUT_SECONDS:.0f} s")
            self._silent_since = self._silent_since or began
            if self.is_stale(dispatcher.clock()):
                dispatcher.observe(None)
            return
        except EngineUnreachableError as error:
            self._complain(str(error))
            self._probed_at = self._silent_since = None
            dispatcher.engine_answers(reachable=False)
            return
        except EngineError as error:
            self._complain(str(error))
            self._silent_since = None
            if self.is_stale(dispatcher.clock()):
                dispatcher.observe(None)
            await self._connect(restarted=False)
            return
        self._complaint = ""
        self._silent_since = None
        restarted = self.heard is not None and signals.restarted_since(self.heard.signals)
        self._count_preemptions(signals)
        self.heard = Heard(signals, dispatcher.clock())
        dispatcher.observe(signals)
        await self._connect(restarted=restarted)

    async def _connect(self, *, restarted: bool) -> None:
        """Probe an engine that is new, and let requests go to it."""
        dispatcher = self._dispatcher
        running = self._probe is not None and not self._probe.done()
        unknown = not dispatcher.engine.profile.models
        key = dispatcher.policy.engine_api_key
        due = self._probed_at is None or dispatcher.clock() - self._probed_at > PROBE_AGAIN_SECONDS
        again = unknown and (due or key != self._probed_with)
        if not running and (restarted or self._probed_at is None or again):
            self._probed_at, self._probed_with = dispatcher.clock(), key
            self._probe = asyncio.create_task(self._ask())
        if self._probe is not None and not dispatcher.availability.reachable:
            await asyncio.wait({self._probe}, timeout=FIRST_PROBE_SECONDS)
        dispatcher.engine_answers(reachable=True)

    async def _ask(self) -> None:
        try:
            profile = await probe(self._pool, api_key=self._dispatcher.policy.engine_api_key)
        except EngineError as error:
            log.warning("probe failed", error=str(error))
            return
        log.info(
            "engine probed",
            models=profile.models,
            max_model_len=profile.max_model_len,
            reports_cached_tokens=profile.reports_cached_tokens,
        )
        self._dispatcher.connected(profile)

    def _count_preemptions(self, signals: EngineSignals) -> None:
        before = self.heard.signals.preemptions if self.heard is not None else None
        if signals.preemptions is not None and before is not None:
            self.preemptions += max(0, signals.preemptions - before)

    def _complain(self, error: str) -> None:
        if error != self._complaint:
            log.warning("no metrics from the engine", error=error)
        self._complaint = error
