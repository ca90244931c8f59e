"""First come, first served: the baseline without fairness."""

from typing_extensions import override

from equipoise_scheduling.base import TenantScheduler


class FCFS(TenantScheduler):
    """Arrival order over all tenants; a pass stops at the first request that does not fit.

    A tenant at its own in-flight limit is passed over, the only departure from arrival order. No counter, no bound: who
    sends more gets more.
    """

    algorithm = "FCFS"

    @override
    def _key(self, name: str) -> tuple[int, ...]:
        return (self.books.tenants[name].queue.head().number,)
