"""A fake event clock, a simple engine and closed-loop clients to run schedulers in; and a max-min oracle.

The engine has `slots` sequences. A step takes `STEP` seconds: a prompt is prefilled in one, then each sequence gets a
token a step. Nothing is shared with the code under test but the contract.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.contract import TenantSettings
from equipoise_scheduling.measures import ServiceSeries
from equipoise_scheduling.request import Outcome, Request, Usage

STEP = 0.05
PROMPT_COST, OUTPUT_COST = 1, 2


def make_request(
    name: str,
    tenant: str = "blue",
    *,
    arrival: float = 0.0,
    prompt: int = 10,
    max_tokens: int = 100,
    **fields,
) -> Request:
    """Build a request with everything irrelevant filled in."""
    return Request(
        id=name, tenant=tenant, arrival=arrival, prompt_tokens=prompt, max_tokens=max_tokens, **fields
    )


@dataclass
class Client:
    """Sends its next request when one of its `streams` is free; `active` says when it sends at all."""

    name: str
    streams: int
    prompt: int = 16
    output: int = 32
    weight: float = 1.0
    active: Callable[[float], bool] = lambda _: True
    max_tokens: int | None = None
    """What it allows; None: exactly what it gets."""
    cancel_at: float | None = None
    """Leaves each request when this fraction of its output has come."""
    facts: Callable[[int], dict[str, Any]] = lambda _: {}
    """What it says of its n-th request beside its sizes."""

    @property
    def demand(self) -> float:
        """Most service a second that its streams can take."""
        cost = PROMPT_COST * self.prompt + OUTPUT_COST * self.output
        return self.streams * cost / ((self.output + 1) * STEP)


@dataclass
class Running:
    """A request in the engine."""

    request: Request
    output: int
    prefilled: bool = False
    generated: int = 0


@dataclass
class World:
    """Runs clients against a scheduler over an engine of `slots` sequences."""

    scheduler: TenantScheduler
    clients: list[Client]
    slots: int
    now: float = 0.0
    series: dict[str, ServiceSeries] = field(default_factory=dict)
    ended: dict[str, Outcome] = field(default_factory=dict)
    order: list[Request] = field(default_factory=list)
    tokens: int = 0
    running: list[Running] = field(default_factory=list)
    _sent: int = 0
    _busy: dict[str, int] = field(default_factory=dict)

    def fits(self, _: Request) -> bool:
        return len(self.running) < self.slots

    def run(self, seconds: float) -> None:
        """Step the world for `seconds`."""
        end = self.now + seconds
        next_tick = self.now
        while self.now < end:
            self._arrivals()
            if self.now >= next_tick:
                self.scheduler.tick(self.now)
                next_tick = self.now + 1.0
            self._dispatch()
            self.now += STEP
            self._step()

    def _arrivals(self) -> None:
        for client in self.clients:
            self.series.setdefault(client.name, ServiceSeries())
            while client.active(self.now) and self._busy.get(client.name, 0) < client.streams:
                self._sent += 1
                request = make_request(
                    f"r{self._sent}",
                    client.name,
                    arrival=self.now,
                    prompt=client.prompt,
                    max_tokens=client.max_tokens or client.output,
                    **client.facts(self._sent),
                )
                cost = PROMPT_COST * client.prompt + OUTPUT_COST * client.output
                self.series[client.name].demand(self.now, cost)
                self._busy[client.name] = self._busy.get(client.name, 0) + 1
                assert self.scheduler.enqueue(request, self.now) is None

    def _dispatch(self) -> None:
        outputs = {client.name: client.output for client in self.clients}
        while (request := self.scheduler.next(self.now, self.fits)) is not None:
            self.order.append(request)
            self.running.append(Running(request, outputs[request.tenant]))

    def _step(self) -> None:
        leave = {client.name: client.cancel_at for client in self.clients}
        for sequence in list(self.running):
            request = sequence.request
            if not sequence.prefilled:
                sequence.prefilled = True
                self.series[request.tenant].deliver(self.now, PROMPT_COST * request.prompt_tokens)
            else:
                sequence.generated += 1
                self.tokens += 1
                self.series[request.tenant].deliver(self.now, OUTPUT_COST)
            self.scheduler.progress(request, request.prompt_tokens, sequence.generated, self.now)
            fraction = leave[request.tenant]
            left = fraction is not None and sequence.generated >= fraction * sequence.output
            if sequence.generated == sequence.output or left:
                outcome = Outcome.CANCELLED if left else Outcome.FINISHED
                usage = Usage(request.prompt_tokens, sequence.generated, exact=not left)
                self.scheduler.settle(request, usage, outcome, self.now)
                self.running.remove(sequence)
                self.ended[request.id] = outcome
                self._busy[request.tenant] -= 1


@dataclass
class UniformScenario:
    """Constant clients for `duration` seconds; afterwards each one's service is compared with the oracle's."""

    clients: list[Client]
    capacity: int
    duration: float
    expected_fair: bool
    margin: float
    """Allowed relative distance from the oracle."""
    warm_up: float = 20.0

    def run(self, make: Callable[[dict[str, TenantSettings]], TenantScheduler]) -> World:
        """Run it and raise AssertionError when the outcome is not as expected."""
        world = World(
            make({client.name: TenantSettings(weight=client.weight) for client in self.clients}),
            self.clients,
            self.capacity,
        )
        world.run(self.warm_up + self.duration)
        start, end = self.warm_up, self.warm_up + self.duration
        got = [world.series[client.name].received(start, end) / self.duration for client in self.clients]
        fair = oracle([client.demand for client in self.clients], [c.weight for c in self.clients], sum(got))
        worst = max(abs(g - f) / f for g, f in zip(got, fair, strict=True))
        assert (worst <= self.margin) == self.expected_fair, (
            f"off by {worst:.1%}: got {[round(g) for g in got]}, max-min {[round(f) for f in fair]}"
        )
        return world


def oracle(demands: Sequence[float], weights: Sequence[float], capacity: float) -> list[float]:
    """Weighted max-min by raising a water level: O(n) a step, at most n steps.

    Written apart from `measures.max_min` so that the two check each other.
    """
    shares = [0.0] * len(demands)
    thirsty = {place for place, demand in enumerate(demands) if demand > 0}
    while thirsty and capacity > 1e-9:
        weight = sum(weights[place] for place in thirsty)
        full = [(demands[place] - shares[place]) / weights[place] for place in thirsty]
        step = min(capacity / weight, *full)
        for place in thirsty:
            shares[place] += step * weights[place]
        capacity -= step * weight
        thirsty = {place for place in thirsty if demands[place] - shares[place] > 1e-9 * demands[place]}
    return shares


def drain(scheduler: TenantScheduler, now: float = 0.0, most: int = 10_000) -> list[Request]:
    """Dispatch until nobody may go, with room for `most`."""
    order: list[Request] = []
    while len(order) < most and (request := scheduler.next(now, lambda _: True)) is not None:
        order.append(request)
    return order


def finish(scheduler: TenantScheduler, requests: Iterable[Request], generated: int, now: float = 0.0) -> None:
    """Settle requests that generated as much as that."""
    for request in requests:
        usage = Usage(request.prompt_tokens, min(generated, request.max_output))
        scheduler.settle(request, usage, Outcome.FINISHED, now)
