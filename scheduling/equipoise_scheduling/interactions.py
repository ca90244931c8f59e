"""Which calls of an interaction wait, run and ran: an interaction is one end-user action that takes several calls.

Source of the notion: FairServe (arXiv 2411.15997). Two rules rest on it: a call in the middle of an interaction goes
before its tenant's other requests where the scheduler says so, and is never throttled. A request without an interaction
id is none of this module's business. Interaction ids are a client's strings, so they count within one user of one
tenant, and what is over is remembered for a limited time and in a limited number.
"""

from equipoise_scheduling.client_memory import ClientMemory
from equipoise_scheduling.request import Request

Key = tuple[str, str, str]
"""Tenant, user, interaction."""

REMEMBER_SECONDS = 600.0
"""How long after its last call ended an interaction counts as begun: agents think, tools run."""
MOST_REMEMBERED = 16_384
"""Interactions remembered of which no call waits or runs; beyond that the tenant with most of them forgets its oldest."""
MOST_PREFERRED = 64
"""Dispatched calls after which an interaction's calls go first no more, else an endless one starves its tenant's
other users. Published interactions have up to about 10."""


class Interaction:
    """One interaction's calls."""

    __slots__ = ("calls", "ended", "flying", "least", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[int, Request] = {}
        """Queued calls by arrival number."""
        self.flying: dict[int, int] = {}
        """Call indices in flight by arrival number."""
        self.least: int | None = None
        """Least index of the calls that ended after a dispatch."""
        self.calls = 0
        """Calls dispatched."""
        self.ended = 0.0
        """When the last of them ended."""

    @property
    def living(self) -> bool:
        """A call waits or runs."""
        return bool(self.waiting or self.flying)

    def has_dispatched_before(self, index: int) -> bool:
        """Say whether a call with a smaller index was dispatched. Linear in its calls in flight."""
        if self.least is not None and self.least < index:
            return True
        return any(flying < index for flying in self.flying.values())


class Interactions:
    """All interactions of which something waits, runs or ran lately. O(1) an event."""

    __slots__ = ("_living", "_past")

    def __init__(self) -> None:
        self._living: dict[Key, Interaction] = {}
        self._past: ClientMemory[Interaction] = ClientMemory(MOST_REMEMBERED)

    # -- questions

    def begun(self, request: Request) -> bool:
        """Say whether `request` is in the middle of an interaction: an earlier call of it was dispatched."""
        interaction = self._find(request)
        return (
            interaction is not None
            and request.call_index > 1
            and interaction.calls < MOST_PREFERRED
            and interaction.has_dispatched_before(request.call_index)
        )

    def started(self, request: Request) -> bool:
        """Say whether any call of the request's interaction was dispatched."""
        interaction = self._find(request)
        return interaction is not None and interaction.calls > 0

    def waiting(self, request: Request) -> list[Request]:
        """Return the queued calls of the request's interaction, by arrival."""
        interaction = self._find(request)
        if interaction is None:
            return []
        return [call for _, call in sorted(interaction.waiting.items())]

    def affected(self, request: Request) -> list[Request]:
        """Return the queued calls that the dispatch of `request`, or the undoing of it, made begun or not; by arrival.

        At most `MOST_PREFERRED` dispatches of an interaction look at what waits of it, and each call is returned for the first of
        those with a smaller index, and for the last of all.
        """
        interaction = self._find(request)
        if interaction is None or not interaction.waiting or interaction.calls > MOST_PREFERRED:
            return []
        waiting = self.waiting(request)
        if interaction.calls >= MOST_PREFERRED - 1:
            return waiting
        index = request.call_index
        others = [flying for number, flying in interaction.flying.items() if number != request.number]
        known = min((*others, *(() if interaction.least is None else (interaction.least,))), default=None)
        return [
            call
            for call in waiting
            if call.call_index > index and (known is None or call.call_index <= known)
        ]

    def _find(self, request: Request) -> Interaction | None:
        if not request.interaction:
            return None
        key = key_of(request)
        return self._living.get(key) or self._past.get(key)

    # -- events

    def joined(self, request: Request) -> None:
        """Note a call that is queued."""
        if request.interaction:
            self._revive(request).waiting[request.number] = request

    def left(self, request: Request) -> None:
        """Note a queued call that ended there."""
        if request.interaction:
            interaction = self._living[key_of(request)]
            del interaction.waiting[request.number]
            self._rest(request, interaction)

    def dispatched(self, request: Request) -> None:
        """Note a queued call that goes into flight."""
        if request.interaction:
            interaction = self._living[key_of(request)]
            del interaction.waiting[request.number]
            interaction.flying[request.number] = request.call_index
            interaction.calls += 1

    def undone(self, request: Request) -> None:
        """Note a dispatch that was undone; the call is queued again next."""
        if request.interaction:
            interaction = self._living[key_of(request)]
            del interaction.flying[request.number]
            interaction.calls -= 1

    def ended(self, request: Request, now: float) -> None:
        """Note a call in flight that ended, however."""
        if not request.interaction:
            return
        interaction = self._living[key_of(request)]
        index = request.call_index
        del interaction.flying[request.number]
        interaction.least = index if interaction.least is None else min(index, interaction.least)
        interaction.ended = now
        self._rest(request, interaction)

    def _revive(self, request: Request) -> Interaction:
        key = key_of(request)
        interaction = self._living.get(key)
        if interaction is None:
            interaction = self._past.pop(key) or Interaction()
            self._living[key] = interaction
        return interaction

    def _rest(self, request: Request, interaction: Interaction) -> None:
        """Remember an interaction that may go on; drop one that never began or is over."""
        if interaction.living:
            return
        key = key_of(request)
        del self._living[key]
        if not interaction.calls or (request.call_count or request.call_index + 1) <= request.call_index:
            return
        past = self._past
        past.put(key, interaction)
        while (oldest := past.oldest()) and oldest[1].ended < interaction.ended - REMEMBER_SECONDS:
            past.pop(oldest[0])


def key_of(request: Request) -> Key:
    """Return what identifies the request's interaction."""
    return (request.tenant, request.user, request.interaction)
