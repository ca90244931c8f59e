"""What the demo replays, and which of its requests are interactive: traffic of its own, or a trace from a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from equipoise_demo.places import tenant_of
from equipoise_simulator.suites import mixed_slo
from equipoise_simulator.traces import Row, Trace, TraceError, read_trace

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 20.0
SLICE_SECONDS = 150.0
"""Of a file's trace, unless something else is asked for."""
TENANTS = ("analytics", "assistant", "legal", "sales", "search", "support")
"""The first sends three times as much as each of the others."""
SEED = 0
LOAD = 3.2
"""`mixed_slo`'s: 23 requests a second. The engines' speed follows from what they are to serve of it."""
URGENT_SECONDS = 10.0
"""Of the suite's two budgets to the first token, one is below and one above."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests, some of them interactive: these name the application that was promised a time to first token."""

    trace: Trace
    """Its clients are Tenants' names."""
    interactive: frozenset[int]
    """Places of the interactive rows."""
    own: bool = False
    """The demo's own traffic, of which it is known what each algorithm makes."""

    @property
    def words(self) -> str:
        """What it is, in a line."""
        trace = self.trace
        return (
            f"{trace.name}: {len(trace.rows)} requests of {len(trace.clients)} tenants in {trace.seconds:g} s, "
            f"{len(self.interactive)} of them interactive, the others batch"
        )


def own_traffic(seconds: float = SECONDS) -> Traffic:
    """Make the simulator's suite `mixed_slo` at the demo's rate: half of everybody's requests are interactive.

    TraceError when nothing arrives in that time.
    """
    workload = mixed_slo(SEED, LOAD)
    calls = [call for call in workload.calls if call.arrival < seconds]
    if not calls:
        raise TraceError(f"nothing arrives in the first {seconds:g} s")
    rows = tuple(
        Row(
            call.arrival,
            TENANTS[int(call.tenant.removeprefix("client-"))],
            call.prompt_tokens,
            call.output_tokens,
        )
        for call in calls
    )
    urgent = frozenset(
        place
        for place, call in enumerate(calls)
        if call.ttft_budget is not None and call.ttft_budget < URGENT_SECONDS
    )
    return Traffic(
        Trace(f'"{TENANTS[0]}" asks for three times as much as others', rows, min(seconds, workload.seconds)),
        urgent,
        own=True,
    )


def traffic_of(path: Path, seconds: float | None) -> Traffic:
    """Read a trace, all of it or its first `seconds`; every other request of a client is interactive.

    TraceError or OSError when it cannot be read.
    """
    trace = read_trace(path)
    if seconds is not None:
        trace = trace.first(seconds)
    rows = tuple(replace(row, client=tenant_of(row.client)) for row in trace.rows)
    seen: dict[str, int] = {}
    interactive = set()
    for place, row in enumerate(rows):
        count = seen[row.client] = seen.get(row.client, 0) + 1
        if count % 2:
            interactive.add(place)
    return Traffic(Trace(trace.name, rows, trace.seconds), frozenset(interactive))
