"""What a run needs of an engine model and of a gate, and the gate that is none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

from typing_extensions import override

from equipoise_scheduling.gate import Gate, GateSettings

if TYPE_CHECKING:
    from equipoise_api.policy import Capacity
    from equipoise_scheduling.request import Refusal, Request
    from equipoise_simulator.profiles import Profile
    from equipoise_simulator.sequence import Sequence, Step

GateName = Literal["reserve", "prompt", "peak", "open"]
"""`open`: no gate, the engine alone decides."""


class OpenGate(Gate):
    """Lets everything pass, as the sidecar does when it only passes through."""

    @override
    def refuse(self, request: Request) -> Refusal | None:
        return None

    @override
    def fits(self, request: Request, now: float) -> bool:
        return True


class Engine(Protocol):
    """What a run needs of an engine model."""

    preemptions: int
    recomputed_tokens: int

    def generated(self, sequence: Sequence) -> int:
        """Tokens generated so far."""

    def decoded(self) -> list[tuple[Sequence, int]]:
        """Sequences that decode, with the tokens generated so far."""

    def add(self, sequence: Sequence) -> bool:
        """Take a sequence."""

    def abort(self, sequence: Sequence) -> None:
        """Remove a sequence."""

    def begin(self, now: float, *, until: float | None = None) -> Step | None:
        """Start steps."""

    def finish(self) -> Step:
        """End them."""


class Admission(Protocol):
    """What a run needs of a gate."""

    @property
    def percent(self) -> float:
        """L."""

    def refuse(self, request: Request) -> Refusal | None:
        """Refuse what can never fit."""

    def fits(self, request: Request, now: float) -> bool:
        """Say whether a request may join."""

    def start(self, request: Request) -> None:
        """Count a dispatch."""

    def progress(self, request: Request, prompt: int, generated: int) -> None:
        """Count delivery."""

    def finish(self, request: Request) -> None:
        """Count an end."""

    def preempted(self, now: float, count: int = 1) -> None:
        """Plan with less."""

    def tick(self, now: float) -> None:
        """Let time pass."""


def gate_of(name: GateName, settings: GateSettings, profile: Profile, sizes: Capacity) -> Gate:
    """Make the sidecar's gate for an engine; what a policy says of its sizes comes first."""
    gate = (OpenGate if name == "open" else Gate)(replace(settings, context_tokens=profile.max_model_len))
    gate.set_pool(sizes.kv_tokens or profile.kv_blocks * profile.block_size, profile.block_size)
    gate.max_in_flight = sizes.max_in_flight or profile.max_num_seqs
    return gate
