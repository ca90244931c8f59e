"""Which requests cannot wait, and whether one kept its SLO, judged once by its budgets and by when its tokens came."""

from equipoise_scheduling.request import Outcome, Request

URGENT_SECONDS = 10.0
"""An SLO of at most so long cannot wait for its tenant's turn."""
URGENT_MEMORY_SECONDS = 60.0
"""Urgent requests are expected until so long after the last one arrived."""


def urgent(request: Request) -> bool:
    """Say whether a request has a short SLO."""
    budgets = (request.ttft_budget, request.e2e_budget)
    return any(budget is not None and budget <= URGENT_SECONDS for budget in budgets)


class SLOJudge:
    """Judges requests against `ttft_budget` and `e2e_budget`; one without either is never judged to have missed.

    A request that failed or expired has missed. One whose client left or that was refused has missed if a budget had run
    out by then; otherwise nobody can say, and it is not judged. O(1) an event.
    """

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        """When the first token of a living request with a TTFT budget came."""
        self._judged: set[str] = set()
        """Living requests that have been judged already."""

    def generated(self, request: Request, now: float) -> None:
        """Note that tokens of `request` have come."""
        if request.ttft_budget is not None:
            self._first.setdefault(request.id, now)

    def overdue(self, request: Request, now: float) -> bool:
        """Say whether a living request has missed already; True once only."""
        if request.id in self._judged or not self._late(request, now):
            return False
        self._judged.add(request.id)
        return True

    def ended(self, request: Request, outcome: Outcome, now: float) -> bool | None:
        """Say whether a request that ends `now` has missed; None when it was judged before or cannot be judged."""
        late = self._late(request, now)
        self._first.pop(request.id, None)
        if request.id in self._judged:
            self._judged.discard(request.id)
            return None
        if outcome in {Outcome.CANCELLED, Outcome.REFUSED} and not late:
            return None
        broken = outcome in {Outcome.FAILED, Outcome.EXPIRED}
        promised = request.ttft_budget is not None or request.e2e_budget is not None
        return late or (broken and promised)

    def forget(self, request: Request) -> None:
        """Drop what is known of a request that goes back to the queue."""
        self._first.pop(request.id, None)

    def _late(self, request: Request, now: float) -> bool:
        budget = request.ttft_budget
        if budget is not None and self._first.get(request.id, now) - request.arrival > budget:
            return True
        budget = request.e2e_budget
        return budget is not None and now - request.arrival > budget
