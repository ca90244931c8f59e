"""A change of algorithm while requests wait: the queue and the service history go over to the new one."""

from equipoise_scheduling.base import TenantScheduler


def carry_over(old: TenantScheduler, new: TenantScheduler, now: float) -> TenantScheduler:
    """Hand everything from `old` to `new` and return `new`; `old` must not be used afterwards.

    Queued requests keep their arrival number and deadline, requests in flight are charged as `new` would have charged
    them, and each tenant starts from the service over weight that `old` remembers: its counters where it keeps any,
    else what was delivered in the sliding window. ValueError if `new` has had requests.
    """
    new.adopt(old, now)
    return new
