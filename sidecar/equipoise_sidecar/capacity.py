"""What the engine can take: the gate by our own counts, the window that finds its slots, and what the metrics correct."""

from __future__ import annotations

from dataclasses import replace

from equipoise_api.policy import Capacity as CapacityPolicy
from equipoise_scheduling.gate import Gate
from equipoise_scheduling.registry import gate_settings
from equipoise_scheduling.request import Refusal, Request
from equipoise_scheduling.window import InFlightWindow, Observation
from equipoise_sidecar.engine.signals import EngineSignals

_BLOCK_TOKENS = 16
"""Of a KV block where the engine does not say: vLLM's default."""


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

    def busy(self, now: float) -> None:
        """Note that the engine answered 503."""
        self.window.busy(now)
        self._resize()

    def observe(self, signals: EngineSignals | None, *, queued: int, tokens: int, now: float) -> None:
        """Take in fresh metrics; None where they are stale, then our own counts decide alone.

        `tokens`: delivered since the start, prompts included.
        """
        if signals is not None:
            self._signals = signals
            self._count_preemptions(signals.preemptions, now)
            self._resize()
        pool = self.kv_tokens
        usage = signals.kv_usage if signals is not None else None
        self.gate.observe(None if usage is None or pool is None else round(usage * pool))
        waiting = signals.waiting if signals is not None else None
        self.window.observe(
            now, Observation(in_flight=self.gate.sequences, queued=queued, waiting=waiting, tokens=tokens)
        )
        self._resize()

    def _count_preemptions(self, preemptions: int | None, now: float) -> None:
        before, self._preemptions = self._preemptions, preemptions
        if preemptions is not None and before is not None and preemptions > before:
            self.gate.preempted(now)
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
