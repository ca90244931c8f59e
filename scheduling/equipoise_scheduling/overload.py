"""Overload interaction throttling (OIT): while the engine is full, who sends too much starts no new interaction.

Source: FairServe (arXiv 2411.15997). Every arrival counts, refused ones too. When the head of the queue does not fit and is
call 1 of its interaction, it is refused, and every later call of that interaction with it, if in the 60 seconds before
its user's newest arrival the user sent as many requests as its limit or more, or else the same of its application. A call in
the middle of an interaction is never refused, so no token spent on the earlier ones is wasted, and with room in the
engine nobody is.

A request without an interaction is an interaction of one call. Users and applications are strings that a client sends:
both count within their tenant, and requests that name none are one nameless user, one nameless application.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass

from equipoise_scheduling.client_memory import ClientMemory
from equipoise_scheduling.interactions import Key, key_of
from equipoise_scheduling.request import Reason, Refusal, Request

MINUTE = 60.0
REMEMBER_SECONDS = 600.0
"""Arrivals of a sender and refused interactions are forgotten so long after the last one."""
MOST_ARRIVALS = 262_144
"""Arrivals remembered, of all senders; beyond that those who were quiet longest are forgotten."""
MOST_SENDERS = 16_384
"""Senders remembered: names are a client's, and one costs about a kilobyte."""
MOST_REFUSED = 16_384
"""Refused interactions remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadSettings:
    """Arrivals in 60 seconds from which on no new interaction starts in overload. None: no limit."""

    user_per_minute: int | None = None
    """Of one end user of one tenant."""
    application_per_minute: int | None = None
    """Of one application of one tenant."""

    def __post_init__(self) -> None:
        for name in ("user_per_minute", "application_per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"overload.{name}={value} must be at least 1, or None for no limit")


class Arrivals:
    """When each sender's requests came. O(1) amortised an arrival; memory O(limit) a sender, MOST_ARRIVALS of MOST_SENDERS in all."""

    __slots__ = ("_count", "_senders", "limit")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._senders: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()
        self._count = 0

    def add(self, tenant: str, name: str, now: float) -> None:
        """Note an arrival."""
        if self.limit is None:
            return
        senders = self._senders
        sender = (tenant, name)
        times = senders.setdefault(sender, deque())
        senders.move_to_end(sender)
        times.append(now)
        self._count += 1
        while times[0] <= now - MINUTE or len(times) > self.limit + 1:
            times.popleft()
            self._count -= 1
        while senders and (
            self._count > MOST_ARRIVALS
            or len(senders) > MOST_SENDERS
            or next(iter(senders.values()))[-1] < now - REMEMBER_SECONDS
        ):
            self._count -= len(senders.popitem(last=False)[1])

    def retry_after(self, tenant: str, name: str, now: float) -> float | None:
        """Seconds until the sender is within its limit; None while it is.

        It is above when as many requests as the limit came in the minute before its newest one.
        """
        times = self._senders.get((tenant, name))
        if self.limit is None or times is None or len(times) <= self.limit:
            return None
        return max(1.0, times[-self.limit] + MINUTE - now)

    def set_limit(self, limit: int | None) -> None:
        """Change the limit; one that rises sees what the lower one remembered."""
        self.limit = limit
        if limit is None:
            self._senders.clear()
            self._count = 0
            return
        for times in self._senders.values():
            while len(times) > limit + 1:
                times.popleft()
                self._count -= 1


class OverloadThrottle:
    """Arrivals by user and by application, and the interactions that were refused."""

    __slots__ = ("_applications", "_refused", "_users")

    def __init__(self, settings: OverloadSettings) -> None:
        self._users = Arrivals(settings.user_per_minute)
        self._applications = Arrivals(settings.application_per_minute)
        self._refused: ClientMemory[tuple[float, Refusal]] = ClientMemory(MOST_REFUSED)

    @property
    def active(self) -> bool:
        """There is a limit."""
        return self._users.limit is not None or self._applications.limit is not None

    def reconfigure(self, settings: OverloadSettings) -> None:
        """Replace the limits; what arrived counts on."""
        self._users.set_limit(settings.user_per_minute)
        self._applications.set_limit(settings.application_per_minute)
        if not self.active:
            self._refused.clear()

    def arrived(self, request: Request, now: float) -> Refusal | None:
        """Count an arrival; refuse it if it is a later call of a refused interaction. O(1) amortised.

        Call 1 is another try: it stands for itself again.
        """
        if not self.active:
            return None
        self._users.add(request.tenant, request.user, now)
        self._applications.add(request.tenant, request.application, now)
        if not request.interaction:
            return None
        if request.call_index == 1:
            self._refused.pop(key_of(request))
            return None
        refused = self._refused.get(key_of(request))
        if refused is None:
            return None
        at, refusal = refused
        wait = max(1.0, (refusal.retry_after_seconds or 0.0) - (now - at))
        return Refusal(refusal.reason, f"call 1 of its interaction was refused: {refusal.message}", wait)

    def refusal(self, request: Request, now: float) -> Refusal | None:
        """Refuse the start of an interaction whose user or application is above its limit. O(1).

        The caller has seen that the engine is full, and that nothing of the interaction has begun.
        """
        if request.call_index != 1:
            return None
        wait = self._users.retry_after(request.tenant, request.user, now)
        sender, limit = f"user {request.user or '(none)'}", self._users.limit
        if wait is None:
            wait = self._applications.retry_after(request.tenant, request.application, now)
            sender, limit = f"application {request.application or '(none)'}", self._applications.limit
        if wait is None:
            return None
        refusal = Refusal(
            Reason.OVERLOADED,
            f"the engine is full and {sender} of tenant {request.tenant} sent {limit} requests or more "
            "within a minute: it starts no new interaction until that is over",
            wait,
        )
        if request.interaction:
            self._remember(key_of(request), refusal, now)
        return refusal

    def _remember(self, key: Key, refusal: Refusal, now: float) -> None:
        refused = self._refused
        refused.put(key, (now, refusal))
        while (oldest := refused.oldest()) and oldest[1][0] < now - REMEMBER_SECONDS:
            refused.pop(oldest[0])
