"""What the demo claims, checked on what it measured, with a margin that a busy machine leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from equipoise_demo.phase import Phase

JAIN_GAIN = 0.05
"""By which fairness must raise Jain's index on the demo's own traffic; it raises it by 0.15 and more."""
KEPT_GAIN = 0.2
"""Share of the interactive requests that Equipoise must save beyond VTC; it saves half of them."""
EQUAL_SERVICE = 0.1
"""By which throughput may be less and still count as equal."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that should be seen."""

    text: str
    held: bool
    decides: bool = True
    """Whether the demo has failed without it."""


def claims(phases: Sequence[Phase], *, own: bool) -> list[Claim]:
    """Check what three replays show, FCFS, VTC and Equipoise in this order.

    On any traffic fairness must be seen and no request lost. How much more, and what Equipoise adds, is known of the demo's
    `own` traffic; of other traffic it is said, and decides nothing.
    """
    fcfs, vtc, equipoise = phases
    gain = JAIN_GAIN if own else 0.0
    lost = sum(phase.result.failed for phase in phases)
    found = [Claim(f"every request was served, whatever changed meanwhile ({lost} failed)", lost == 0)]
    found += [
        Claim(
            f"{phase.algorithm} is fairer than {fcfs.algorithm}: Jain's index {fcfs.jain:.2f} → {phase.jain:.2f}, "
            f"needed above {fcfs.jain + gain:.2f}",
            phase.jain > fcfs.jain + gain,
        )
        for phase in (vtc, equipoise)
    ]
    if vtc.kept is not None and equipoise.kept is not None:
        saved = equipoise.kept - vtc.kept
        found.append(
            Claim(
                f"{equipoise.algorithm} keeps more promises than {vtc.algorithm}: {100 * vtc.kept:.0f} % → {100 * equipoise.kept:.0f} %, "
                f"needed {100 * KEPT_GAIN:.0f} points more",
                saved >= KEPT_GAIN,
                decides=own,
            )
        )
    change = equipoise.rate / vtc.rate - 1 if vtc.rate else -1.0
    found.append(
        Claim(
            f"at no less service: throughput {round(100 * change):+d} % against {vtc.algorithm}, needed {-100 * EQUAL_SERVICE:+.0f} % or more",
            change >= -EQUAL_SERVICE,
            decides=own,
        )
    )
    return found
