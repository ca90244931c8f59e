"""Counts the calls of interactions whose clients name the interaction and not the call.

So a client library that sets one header for a whole agent run has said enough.
"""

from __future__ import annotations

from equipoise_scheduling.client_memory import ClientMemory
from equipoise_sidecar.facts import Facts

MOST_REMEMBERED = 16_384
"""Beyond that the tenant with most of them forgets its longest unused: their next call counts as the first of a new one."""


class Interactions:
    """Calls accepted of each interaction. O(log tenants) an event."""

    def __init__(self) -> None:
        self._calls: ClientMemory[int] = ClientMemory(MOST_REMEMBERED)

    def call(self, tenant: str, facts: Facts) -> int:
        """Return the request's place in its interaction: as declared, else one more than were accepted; 1 outside of any."""
        if facts.call_index is not None:
            return facts.call_index
        if not facts.interaction:
            return 1
        return (self._calls.get((tenant, facts.user, facts.interaction)) or 0) + 1

    def accepted(self, tenant: str, facts: Facts, call: int) -> None:
        """Note that the request was accepted as this call."""
        if not facts.interaction:
            return
        key = (tenant, facts.user, facts.interaction)
        self._calls.put(key, max(call, self._calls.get(key) or 0))

    def throttled(self, tenant: str, facts: Facts) -> None:
        """Note that the interaction was refused before it began: its next call is the first again."""
        self._calls.pop((tenant, facts.user, facts.interaction))
