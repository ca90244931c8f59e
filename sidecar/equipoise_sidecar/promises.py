"""How fast one request has to be: what its tenant was promised, and what the request says of itself.

A request may ask for less than was promised, never for more: whoever claims to be in a hurry gains nothing. Where nothing
was promised only a peer that the policy trusts may say how fast it has to be.
"""

from __future__ import annotations

from equipoise_api.tenant import SloTarget
from equipoise_sidecar.facts import Facts


def agreed(promise: SloTarget | None, facts: Facts) -> SloTarget | None:
    """Return the targets that a request is ordered and judged by: of each, the looser of promised and declared."""
    if facts.ttft_milliseconds is None and facts.tpot_milliseconds is None and facts.e2e_milliseconds is None:
        return promise
    promised = promise or SloTarget()
    targets = {
        name: _looser(getattr(promised, name), getattr(facts, name), vouched=facts.slo_vouched)
        for name in ("ttft_milliseconds", "tpot_milliseconds", "e2e_milliseconds")
    }
    if all(target is None for target in targets.values()):
        return None
    return promised.model_copy(update=targets)


def _looser(promised: int | None, declared: int | None, *, vouched: bool) -> int | None:
    if promised is None:
        return declared if vouched else None
    return promised if declared is None else max(promised, declared)
