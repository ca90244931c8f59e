"""Whether a request may wait: room in the queue by count and bytes, the tenant's hard limits, and when to try again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from enum import StrEnum

from equipoise_scheduling.request import Reason, Refusal, Request
from equipoise_sidecar.facts import Rejection
from equipoise_sidecar.policy import NOBODY, Policy
from equipoise_sidecar.rates import DecayingRate, MinuteLimit

LONGEST_RETRY_SECONDS = 120.0
"""OpenAI's clients give up at once on a longer Retry-After."""
SHORTEST_RETRY_SECONDS = 1.0
PART_OF_THE_REST = 9
"""A tenant may hold at most so many times what is left of the queue, alone nine tenths of it: whoever holds less finds
room, however much others send. Dynamic thresholds of shared buffers (Choudhury and Hahne, IEEE/ACM ToN 6(2), 1998)."""
_DRAIN_WINDOW_SECONDS = 30.0


class Refused(StrEnum):
    """Reasons beside the scheduler's own: machine-readable, in a response header and as the metric's label."""

    UNAUTHENTICATED = "unauthenticated"
    NOT_CONFIGURED = "not-configured"
    DRAINING = "draining"
    BODY_TOO_LARGE = "body-too-large"
    QUEUE_BYTES = "queue-bytes-full"
    REQUEST_TOO_LARGE = "request-too-large"
    WAIT_LIMIT = "wait-limit"
    ENGINE_UNREACHABLE = "engine-unreachable"
    ENGINE_FAILED = "engine-failed"
    UNKNOWN_PATH = "unknown-path"
    BODY_TIMEOUT = "body-timeout"
    BAD_BODY = "bad-body"
    BAD_DECLARATION = "bad-declaration"
    """A header or a key of `metadata` that says what cannot be."""


UNAUTHENTICATED = Rejection(
    401,
    Refused.UNAUTHENTICATED,
    "No API key of a tenant was given, and this service serves nobody else.",
    None,
    False,
)
NOT_CONFIGURED = Rejection(
    503, Refused.NOT_CONFIGURED, "The sidecar has no configuration yet.", SHORTEST_RETRY_SECONDS, True
)
DRAINING = Rejection(503, Refused.DRAINING, "This replica is shutting down.", SHORTEST_RETRY_SECONDS, True)


class Reservation:
    """Room for one body in the queue, taken before it is read. Release it in a `finally`: after `submit` that does nothing."""

    __slots__ = ("_admission", "_refuse", "held_bytes", "open", "tenant")

    def __init__(
        self,
        admission: Admission,
        tenant: str,
        held_bytes: int,
        refuse: Callable[[str, int], Rejection | None],
    ) -> None:
        self._admission = admission
        self._refuse = refuse
        self.tenant = tenant
        self.held_bytes = held_bytes
        self.open = True

    def grow(self, total_bytes: int) -> Rejection | None:
        """Hold `total_bytes`, for a body without Content-Length, as it comes. A Rejection holds what was held before."""
        more = total_bytes - self.held_bytes
        if more <= 0 or not self.open:
            return None
        if (refusal := self._refuse(self.tenant, more)) is not None:
            return refusal
        self.held_bytes = total_bytes
        self._admission.hold(self.tenant, more)
        return None

    def release(self) -> None:
        """Give the room back."""
        if self.open:
            self._admission.let_go(self.tenant, self.held_bytes)
            self.take()

    def take(self) -> None:
        """Close it; the bytes are the caller's to count from here."""
        self.open = False
        self._admission.was_read(self.tenant)


class Admission:
    """Counts what waits and how fast that drains."""

    def __init__(self) -> None:
        self.held_bytes = 0
        """Bodies that are read, wait, or are passed on."""
        self.reading = 0
        """Requests whose body is read or passed on."""
        self.ended: Callable[[], None] = lambda: None
        """Called when a reservation ends."""
        self._held_by: Counter[str] = Counter()
        self._read_by: Counter[str] = Counter()
        self._drained = DecayingRate(_DRAIN_WINDOW_SECONDS)
        self._drained_by_tenant: dict[str, DecayingRate] = {}
        self._minutes: dict[str, MinuteLimit] = {}

    def reserve(self, tenant: str, size: int, refuse: Callable[[str, int], Rejection | None]) -> Reservation:
        """Hold room for `size` bytes, which were let pass; `refuse` is asked before it grows."""
        self.reading += 1
        self._read_by[tenant] += 1
        self.hold(tenant, size)
        return Reservation(self, tenant, size, refuse)

    def was_read(self, tenant: str) -> None:
        """Note that a body is read, or given up."""
        self.reading -= 1
        _subtract(self._read_by, tenant, 1)
        self.ended()

    def hold(self, tenant: str, size: int) -> None:
        """Count the bytes of a body that waits."""
        self.held_bytes += size
        self._held_by[tenant] += size

    def let_go(self, tenant: str, size: int) -> None:
        """Count them no more: it went to the engine, or ended."""
        self.held_bytes -= size
        _subtract(self._held_by, tenant, size)

    def refusal(
        self, tenant: str, policy: Policy, *, size: int, queued: int, tenant_queued: int, now: float
    ) -> Rejection | None:
        """Say why a request of `size` bytes may not wait; None if it may. O(1)."""
        if not policy.enforce:
            return None
        if size > policy.max_body_bytes:
            return too_large(policy.max_body_bytes)
        free = policy.config.queue.max_requests - queued - self.reading
        if free <= 0:
            return Rejection(
                429,
                Reason.QUEUE_FULL,
                f"{queued + self.reading} requests wait already.",
                self.retry_after(queued, now),
            )
        own = tenant_queued + self._read_by[tenant]
        if own >= PART_OF_THE_REST * free:
            return Rejection(
                429,
                Reason.QUEUE_FULL,
                f"{own} requests of {tenant} wait already, and what is left of the queue is for others.",
                self.retry_after(tenant_queued, now, tenant),
            )
        limits = policy.tenants.get(tenant, NOBODY).limits
        if limits.max_queued is not None and tenant_queued >= limits.max_queued:
            return Rejection(
                429,
                Reason.TENANT_QUEUE_FULL,
                f"{limits.max_queued} requests of {tenant} wait already.",
                self.retry_after(tenant_queued, now, tenant),
            )
        if (refusal := self.bytes_refusal(tenant, size, policy, queued, now)) is not None:
            return refusal
        return self.minute_refusal(tenant, policy, now)

    def body_refusal(
        self, tenant: str, size: int, policy: Policy, queued: int, now: float
    ) -> Rejection | None:
        """Say why a body of `size` bytes may not be read."""
        if policy.enforce and size > policy.max_body_bytes:
            return too_large(policy.max_body_bytes)
        return self.bytes_refusal(tenant, size, policy, queued, now)

    def bytes_refusal(
        self, tenant: str, more: int, policy: Policy, queued: int, now: float
    ) -> Rejection | None:
        """Say why `more` bytes do not fit into the queue. An empty queue takes any body that is not too large."""
        if not policy.enforce or self.held_bytes == 0:
            return None
        free = policy.config.queue.max_bytes - self.held_bytes - more
        if free >= 0 and self._held_by[tenant] + more <= PART_OF_THE_REST * free:
            return None
        return Rejection(
            429,
            Refused.QUEUE_BYTES,
            f"The waiting requests' bodies fill the queue's {policy.config.queue.max_bytes} bytes, or what {tenant} may"
            " have of them.",
            self.retry_after(queued, now),
        )

    def minute_refusal(self, tenant: str, policy: Policy, now: float) -> Rejection | None:
        """Say why the tenant's requests per minute are used up."""
        limit = policy.tenants.get(tenant, NOBODY).limits.requests_per_minute
        if not policy.enforce or limit is None or tenant not in self._minutes:
            return None
        wait = self._minutes[tenant].wait(limit, now)
        if wait <= 0:
            return None
        return Rejection(
            429,
            Reason.RATE_LIMITED,
            f"{tenant} may send {limit} requests in 60 seconds.",
            min(max(wait, SHORTEST_RETRY_SECONDS), LONGEST_RETRY_SECONDS),
            False,
        )

    def accepted(self, tenant: str, policy: Policy, now: float) -> None:
        """Count an accepted request against the tenant's requests per minute."""
        limits = policy.tenants.get(tenant, NOBODY).limits
        if policy.enforce and limits.requests_per_minute is not None:
            self._minutes.setdefault(tenant, MinuteLimit()).add(now)

    def left_queue(self, tenant: str, now: float) -> None:
        """Count a request that went from the queue to the engine."""
        self._drained.add(1, now)
        rate = self._drained_by_tenant.get(tenant)
        if rate is None:
            rate = self._drained_by_tenant[tenant] = DecayingRate(_DRAIN_WINDOW_SECONDS)
        rate.add(1, now)

    def retry_after(self, queued: int, now: float, tenant: str | None = None) -> float:
        """Return the seconds in which `queued` requests drain at the measured rate, 1 to 120; 120 if nothing drains."""
        rate = None
        if tenant is not None and tenant in self._drained_by_tenant:
            rate = self._drained_by_tenant[tenant].per_second(now)
        if rate is None:
            rate = self._drained.per_second(now)
        seconds = LONGEST_RETRY_SECONDS if rate is None else queued / rate
        return min(max(seconds, SHORTEST_RETRY_SECONDS), LONGEST_RETRY_SECONDS)

    def waited_too_long(self, policy: Policy, queued: int, now: float) -> Rejection:
        """Answer a request whose turn did not come in time."""
        return Rejection(
            503,
            Refused.WAIT_LIMIT,
            f"The request waited {policy.config.queue.max_wait_seconds} s for its turn, the most that is allowed.",
            self.retry_after(queued, now),
        )

    def unreachable(self, queued: int, now: float) -> Rejection:
        """Answer a request that found no engine."""
        return Rejection(
            503, Refused.ENGINE_UNREACHABLE, "The engine cannot be reached.", self.retry_after(queued, now)
        )

    def keep_only(self, tenants: AbstractSet[str]) -> None:
        """Forget tenants that are gone."""
        for known in (self._drained_by_tenant, self._minutes):
            for tenant in known.keys() - tenants:
                del known[tenant]


def _subtract(counts: Counter[str], tenant: str, amount: int) -> None:
    counts[tenant] -= amount
    if not counts[tenant]:
        del counts[tenant]


def too_large(limit: int) -> Rejection:
    """Refuse a body of more than `limit` bytes."""
    return Rejection(413, Refused.BODY_TOO_LARGE, f"The body is larger than {limit} bytes.", None, False)


def too_many_tokens(request: Request, policy: Policy) -> Rejection | None:
    """Refuse a request of more tokens than its tenant's may have."""
    limit = policy.tenants.get(request.tenant, NOBODY).limits.max_tokens_per_request
    total = request.prompt_tokens + request.max_output
    if not policy.enforce or limit is None or total <= limit:
        return None
    return Rejection(
        400,
        Refused.REQUEST_TOO_LARGE,
        f"The prompt (about {request.prompt_tokens} tokens) and max_tokens ({request.max_output} in all) exceed"
        f" the {limit} tokens that a request of {request.tenant} may have.",
        None,
        False,
    )


def from_refusal(refusal: Refusal) -> Rejection:
    """Turn the scheduler's refusal into an answer."""
    match refusal.reason:
        case Reason.NEVER_FITS:
            return Rejection(400, refusal.reason, refusal.message, None, False)
        case Reason.RATE_LIMITED:
            return Rejection(
                429, refusal.reason, refusal.message, _clamped(refusal.retry_after_seconds), False
            )
        case Reason.QUEUE_FULL | Reason.TENANT_QUEUE_FULL | Reason.OVERLOADED:
            return Rejection(429, refusal.reason, refusal.message, _clamped(refusal.retry_after_seconds))


def _clamped(seconds: float | None) -> float | None:
    return None if seconds is None else min(max(seconds, SHORTEST_RETRY_SECONDS), LONGEST_RETRY_SECONDS)
