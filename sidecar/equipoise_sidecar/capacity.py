"""What the engine can take: the gate by our own counts, the window that finds its slots, and what the metrics correct."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from equipoise_api.policy import Capacity as CapacityPolicy
from equipoise_scheduling.gate import Gate
from equipoise_scheduling.registry import gate_settings
from equipoise_scheduling.request import Refusal, Request
from equipoise_scheduling.window import InFlightWindow, Observation
from equipoise_sidecar.engine.signals import EngineSignals

_BLOCK_TOKENS = 16
"""Of a KV block where the engine does not say: vLLM's default."""
_FRESH_SECONDS = 0.25
"""How long a request may wait in the engine for no other reason than that a step is under way: two steps, or this long
while nobody knows how long a step takes."""
_FRESH_STEPS = 2


class Capacity:
    """Gate and window of one engine. `fits` is linear in the requests in flight, the rest O(1)."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.window = InFlightWindow()
        self.enforced = False
        """False: everything fits."""
        self._policy = CapacityPolicy()
        self._signals: EngineSignals | None = None
        self._preemptions: int | None = None
        self._pool: tuple[int | None, int] = (None, _BLOCK_TOKENS)
        self._started: deque[tuple[float, int]] = deque()
        """When how many sequences went to the engine, since the last scrape."""
        self._resize()

    def configure(self, policy: CapacityPolicy, *, enforced: bool, context_tokens: int | None) -> None:
        """Take a policy and what is known of the model; what is in flight stays counted."""
        self._policy = policy
        self.enforced = enforced
        self.gate.reconfigure(replace(gate_settings(policy), context_tokens=context_tokens))
        self._resize()

    @property
    def max_in_flight(self) -> int:
        """Sequences that may be in flight: the policy's number or the measured one."""
        return self._policy.max_in_flight or self.window.size

    @property
    def kv_tokens(self) -> int | None:
        """Size of the KV cache: the policy's word, else the engine's."""
        return self._policy.kv_tokens or (self._signals.kv_tokens if self._signals is not None else None)

    def refuse(self, request: Request) -> Refusal | None:
        """Refuse what can never run."""
        return self.gate.refuse(request) if self.enforced else None

    def fits(self, request: Request, now: float) -> bool:
        """Say whether `request` may go to the engine."""
        return not self.enforced or self.gate.fits(request, now)

    def saturation(self) -> float:
        """Use of the gate's room, 0 to 1."""
        return self.gate.saturation() if self.enforced else 0.0

    @property
    def bounded(self) -> bool:
        """Whether a fairness bound can hold: outputs to come are limited. Trivially so while nothing is enforced."""
        return not self.enforced or self.gate.settings.bounded

    def start(self, request: Request, now: float) -> None:
        """Count a request that goes to the engine."""
        self.gate.start(request)
        self._started.append((now, request.sequences))

    def busy(self, now: float) -> None:
        """Note that the engine answered 503."""
        self.window.busy(now)
        self._resize()

    def observe(self, signals: EngineSignals | None, *, queued: int, now: float) -> None:
        """Take in fresh metrics; None where they are stale, then our own counts decide alone."""
        if signals is not None:
            self._signals = signals
            self._resize()
            self._count_preemptions(signals.preemptions, now)
        pool = self.kv_tokens
        usage = signals.kv_usage if signals is not None else None
        self.gate.observe(None if usage is None or pool is None else round(usage * pool))
        waiting = signals.waiting if signals is not None else None
        self.window.observe(
            now,
            Observation(
                in_flight=self.gate.sequences,
                queued=queued,
                running=signals.running if signals is not None else None,
                waiting=None if waiting is None else max(0, waiting - self._fresh(now)),
                generated=self.gate.batching.generated,
                widest=self.gate.widest,
            ),
        )
        self._resize()

    def _fresh(self, now: float) -> int:
        """Return the sequences that the engine can hardly have looked at yet."""
        step = self.gate.step_seconds
        since = now - (_FRESH_SECONDS if step is None else _FRESH_STEPS * step)
        fresh = sum(sequences for at, sequences in self._started if at >= since)
        self._started.clear()
        return fresh

    def _count_preemptions(self, preemptions: int | None, now: float) -> None:
        before, self._preemptions = self._preemptions, preemptions
        if preemptions is None or before is None or preemptions <= before:
            return
        self.gate.preempted(now, preemptions - before)
        if self.kv_tokens is None:
            # with a pool of known size that is the gate's to plan
            self.window.preempted(now)

    def tick(self, now: float) -> None:
        """Let time pass."""
        self.gate.tick(now)

    def _resize(self) -> None:
        self.gate.max_in_flight = self.max_in_flight
        pool = self.kv_tokens
        block = self._signals.block_tokens if self._signals is not None else None
        measure = (pool, block or _BLOCK_TOKENS)
        if measure != self._pool:
            self._pool = measure
            self.gate.set_pool(*measure)
