"""Since when each tenant's head has been its head: the wait that queueing behind oneself cannot lengthen."""

from equipoise_scheduling.request import Request


class HeadWait:
    """When each tenant's present head became it. O(1) each."""

    __slots__ = ("_put_back", "_since")

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._put_back: dict[str, float] = {}
        """Of requests that are being put back: when they became heads before."""

    def joined(self, request: Request, now: float, *, is_head: bool) -> None:
        """Note a request that joins its tenant's queue, or is back in it as if it had never left."""
        since = self._put_back.pop(request.id, now)
        if is_head:
            self._since[request.tenant] = since

    def took(self, tenant: str, now: float) -> float:
        """Note that the head leaves, and that the next one is head from `now` on; return since when it was."""
        since = self._since.get(tenant, now)
        self._since[tenant] = now
        return since

    def puts_back(self, request: Request, since: float) -> None:
        """Note that a request is about to join again, which had been head since then."""
        self._put_back[request.id] = since

    def forget(self, tenant: str) -> None:
        """Drop a tenant that has nothing queued."""
        self._since.pop(tenant, None)
