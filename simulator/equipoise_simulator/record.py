"""One call's way through a simulation: when it came, went, began and ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from equipoise_scheduling.request import Outcome

if TYPE_CHECKING:
    from equipoise_scheduling.request import Request
    from equipoise_simulator.sequence import Sequence
    from equipoise_simulator.workload import Call


@dataclass(slots=True, eq=False)
class Record:
    """What happened to one call. Seconds from the start; None: it never came to that."""

    call: Call
    request: Request
    sequence: Sequence | None = None
    dispatched: float | None = None
    first_token: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    """Why it was refused."""
    generated: int = 0
    """Output tokens delivered."""
    predicted: int | None = None
    """Expected output when it was dispatched."""
    tpot_budget: float | None = None
    """Seconds a token that its tenant was promised."""
    work: float = 0.0
    """Seconds of the engine's work when it was dispatched."""

    @property
    def finished(self) -> bool:
        """Whether it was answered to the end."""
        return self.outcome is Outcome.FINISHED

    @property
    def tenant(self) -> str:
        """Whose it is: as the workload says, or as a policy knows it."""
        return self.request.tenant

    @property
    def arrival(self) -> float:
        """When it was sent."""
        return self.request.arrival

    @property
    def prompt(self) -> int:
        """Prompt tokens delivered."""
        return self.call.prompt_tokens if self.first_token is not None else 0

    @property
    def queue_delay(self) -> float | None:
        """Wait in the queue, until it was dispatched or left; None for a call that was refused on arrival."""
        if self.dispatched is not None:
            return self.dispatched - self.arrival
        if self.outcome in {Outcome.CANCELLED, Outcome.EXPIRED} and self.ended is not None:
            return self.ended - self.arrival
        return None

    @property
    def ttft(self) -> float | None:
        """Time to the first token."""
        return None if self.first_token is None else self.first_token - self.arrival

    @property
    def tpot(self) -> float | None:
        """Mean time between tokens after the first."""
        if not self.finished or self.generated < 2 or self.ended is None or self.first_token is None:
            return None
        return (self.ended - self.first_token) / (self.generated - 1)

    @property
    def slo_kept(self) -> bool | None:
        """Whether every budget was kept; None where there is none. What did not finish kept nothing."""
        request = self.request
        if request.ttft_budget is None and request.e2e_budget is None and self.tpot_budget is None:
            return None
        if not self.finished or self.ended is None or self.first_token is None:
            return False
        if request.ttft_budget is not None and self.first_token - self.arrival > request.ttft_budget:
            return False
        if request.e2e_budget is not None and self.ended - self.arrival > request.e2e_budget:
            return False
        return self.tpot_budget is None or (self.tpot or 0.0) <= self.tpot_budget
