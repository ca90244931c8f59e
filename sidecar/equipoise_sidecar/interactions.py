"""Counts the calls of interactions whose clients name the interaction and not the call.

So a client library that sets one header for a whole agent run has said enough.
"""

from __future__ import annotations

from collections import OrderedDict

from equipoise_sidecar.facts import Facts

MOST_REMEMBERED = 16_384
"""The longest unused are forgotten first: their next call counts as the first of a new interaction."""


class Interactions:
    """Calls accepted of each interaction. O(1) an event."""

    def __init__(self) -> None:
        self._calls: OrderedDict[tuple[str, str, str], int] = OrderedDict()

    def call(self, tenant: str, facts: Facts) -> int:
        """Return the request's place in its interaction: as declared, else one more than were accepted; 1 outside of any."""
        if facts.call_index is not None:
            return facts.call_index
        return self._calls.get((tenant, facts.user, facts.interaction), 0) + 1 if facts.interaction else 1

    def accepted(self, tenant: str, facts: Facts, call: int) -> None:
        """Note that the request was accepted as this call."""
        if not facts.interaction:
            return
        key = (tenant, facts.user, facts.interaction)
        self._calls[key] = max(call, self._calls.get(key, 0))
        self._calls.move_to_end(key)
        if len(self._calls) > MOST_REMEMBERED:
            self._calls.popitem(last=False)

    def throttled(self, tenant: str, facts: Facts) -> None:
        """Note that the interaction was refused before it began: its next call is the first again."""
        self._calls.pop((tenant, facts.user, facts.interaction), None)
