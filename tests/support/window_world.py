"""A window beside a model of vLLM: steady overload, a scrape a second, no network. Pure and seeded."""

import random
from dataclasses import dataclass, field

from equipoise_scheduling.window import InFlightWindow, Observation
from equipoise_simulator.engine_model import EngineModel
from equipoise_simulator.profiles import Profile
from equipoise_simulator.sequence import Sequence

SCRAPE_SECONDS = 1.0


def profile(slots: int, **changes) -> Profile:
    """An engine with that many slots and KV to spare."""
    fields = {
        "name": "test",
        "a0": 0.0225,
        "a1": 0.00021,
        "a2": 0.0001,
        "a3": 0.0000009,
        "kv_tokens": 400_000,
        "max_num_seqs": slots,
    }
    return Profile(**(fields | changes))


@dataclass
class WindowWorld:
    """Requests wait without end; each goes to the engine as soon as the window has room."""

    engine: EngineModel
    window: InFlightWindow | None
    """None: as many as the engine runs, and two more."""
    seed: int = 0
    prompts: tuple[int, int] = (20, 600)
    outputs: tuple[int, int] = (20, 400)
    metrics: bool = True
    bursts: bool = False
    """The figures count what was sent a moment ago."""
    now: float = 0.0
    generated: int = 0
    in_flight: int = 0
    sizes: list[int] = field(default_factory=list)
    """At each scrape."""
    made: list[int] = field(default_factory=list)
    """Output tokens since the start, at each scrape."""
    backlog: int = 1000
    demand: int | None = None
    """Requests that clients keep open; None: without end."""
    _scrape: float = 0.0
    _preemptions: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    @property
    def size(self) -> int:
        size = self.engine.profile.max_num_seqs + 2 if self.window is None else self.window.size
        return size if self.demand is None else min(size, self.demand)

    def run(self, seconds: float) -> "WindowWorld":
        until = self.now + seconds
        while self.now < until:
            # vLLM's figures are those of the last step's end; ours are of now
            running, waiting = self.engine.running, self.engine.waiting
            before = self.in_flight
            self._refill()
            if self.bursts:
                waiting += self.in_flight - before
            if self.now >= self._scrape:
                self._look(running, waiting, fresh=self.in_flight - before)
                self._refill()
            step = self.engine.begin(self.now, until=self._scrape)
            if step is None:
                self.now = self._scrape
                continue
            self.engine.finish()
            self.now = step.ends
            self.generated += step.count * len(step.advanced) + len(step.first)
            self.in_flight -= len(step.finished)
        return self

    def _refill(self) -> None:
        while self.in_flight < self.size:
            prompt, output = self._rng.randint(*self.prompts), self._rng.randint(*self.outputs)
            self.engine.add(Sequence(prompt, output, arrival=self.now))
            self.in_flight += 1

    def _look(self, running: int, waiting: int, fresh: int) -> None:
        self._scrape = float(int(self.now)) + SCRAPE_SECONDS
        window = self.window
        if window is not None:
            if self.engine.preemptions > self._preemptions:
                self._preemptions = self.engine.preemptions
                window.preempted(self.now)
            window.observe(
                self.now,
                Observation(
                    in_flight=self.in_flight,
                    queued=self.backlog if self.demand is None else 0,
                    running=running if self.metrics else None,
                    waiting=max(0, waiting - fresh) if self.metrics else None,
                    generated=self.generated,
                ),
            )
        self.sizes.append(self.size)
        self.made.append(self.generated)
