"""An enforced scheduler over an engine of so many slots, and shadows beside it that hear of everything."""

from equipoise_scheduling.contract import SchedulerSettings, TenantSettings
from equipoise_scheduling.registry import SCHEDULERS, create
from equipoise_scheduling.request import Outcome, Request, Usage
from equipoise_scheduling.shadows import Shadows


class Rig:
    """Requests go in by `send`; `finish` and the others make room, and everything that fits is started at once."""

    def __init__(
        self, enforced: str, *shadows: str, slots: int = 1, tenants=None, sync_seconds: float = 0.0, **options
    ) -> None:
        tenants = tenants or {}
        self.now = 0.0
        self.slots = slots
        self.scheduler = create(enforced, settings(enforced, **options), tenants)
        self.shadows = Shadows(sync_seconds=sync_seconds)
        self.shadows.configure(
            {name: settings(name, **options) for name in shadows}, tenants, self.scheduler, self.now
        )
        self.requests: list[Request] = []
        self.running: list[Request] = []
        self.generated: dict[str, int] = {}
        self.started: list[str] = []

    @property
    def waiting(self) -> list[Request]:
        return [r for r in self.requests if r.outcome is None and r not in self.running]

    def send(self, tenant: str = "blue", prompt: int = 10, max_tokens: int = 20, **facts) -> Request:
        request = Request(
            id=f"r{len(self.requests)}",
            tenant=tenant,
            arrival=self.now,
            prompt_tokens=prompt,
            max_tokens=max_tokens,
            **facts,
        )
        if self.scheduler.enqueue(request, self.now) is None:
            self.requests.append(request)
            self.shadows.arrived(request, self.scheduler, self.now)
        self.pump()
        return request

    def pump(self) -> None:
        started = []
        while (
            request := self.scheduler.next(self.now, lambda _: len(self.running) < self.slots)
        ) is not None:
            started.append(request)
            self.running.append(request)
            self.started.append(request.id)
        for request, _ in self.scheduler.refused():
            self.shadows.ended(request, None, Outcome.REFUSED, self.scheduler, self.now)
        self.shadows.decided(started, self.scheduler, self.now)

    def generate(self, request: Request, tokens: int) -> None:
        made = min(request.max_output, self.generated.get(request.id, 0) + tokens)
        self.generated[request.id] = made
        self.scheduler.progress(request, request.prompt_tokens, made, self.now)

    def finish(
        self, request: Request, tokens: int | None = None, outcome: Outcome = Outcome.FINISHED
    ) -> None:
        self.running.remove(request)
        usage = Usage(
            request.prompt_tokens,
            max(self.generated.get(request.id, 0), min(request.max_output, tokens or request.max_output)),
        )
        self.scheduler.settle(request, usage, outcome, self.now)
        self.shadows.ended(request, usage, outcome, self.scheduler, self.now)
        self.pump()

    def leave(self, request: Request) -> None:
        self.scheduler.cancel(request, self.now)
        self.shadows.ended(request, None, Outcome.CANCELLED, self.scheduler, self.now)
        self.pump()

    def give_back(self, request: Request) -> None:
        """The engine would not have it; nothing else is tried before the next event."""
        self.running.remove(request)
        self.scheduler.requeue(request, self.now)
        self.shadows.returned(request, self.scheduler, self.now)

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        self.scheduler.tick(self.now)
        self.shadows.tick(self.scheduler, self.now)
        self.pump()

    def report(self, algorithm: str):
        return next(r for r in self.shadows.reports(self.now) if r.algorithm == algorithm)


def settings(algorithm: str, **options) -> SchedulerSettings:
    return SCHEDULERS[algorithm].settings_type(**options)


WEIGHTED = {name: TenantSettings(weight=weight) for name, weight in (("blue", 1), ("red", 2), ("green", 1))}
