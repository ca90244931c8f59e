"""What a simulation is fed: calls with all that a scheduler may know of them, and the tenants that send them."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from equipoise_simulator.traces import Trace

MAX_TOKENS = 1024
"""The output limit that clients give where a workload does not say."""
MOST_TICKS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request. Tokens; seconds from the workload's start."""

    id: str
    tenant: str
    arrival: float
    """With `after`: seconds from the end of that call."""
    prompt_tokens: int
    output_tokens: int
    """What the engine will generate: nobody but an oracle knows."""
    max_tokens: int = MAX_TOKENS
    """The client's limit; the engine's context may leave less."""
    leaves_after: int | None = None
    """Output tokens after which the client leaves, so that no usage is ever reported; None: it stays."""
    after: str | None = None
    """Id of the call whose end this one waits for; it is never sent when that one fails."""
    application: str = ""
    user: str = ""
    interaction: str = ""
    call_index: int = 1
    call_count: int | None = None
    system_tokens: int = 0
    ttft_budget: float | None = None
    e2e_budget: float | None = None

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(
                f"call {self.id}: prompt_tokens={self.prompt_tokens} and output_tokens={self.output_tokens}"
                " must be at least 1"
            )
        if self.leaves_after is not None and not 1 <= self.leaves_after <= self.output_tokens:
            raise ValueError(f"call {self.id}: leaves_after={self.leaves_after} must be within its output")
        if not 0 <= self.arrival < math.inf:
            raise ValueError(f"call {self.id}: arrival={self.arrival} must be seconds from the start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Calls over `seconds`, and what the measures need to know of their senders.

    Calls that wait for another come in any order; the others are kept in order of arrival.
    """

    name: str
    calls: tuple[Call, ...]
    seconds: float
    """Length of the arrivals; a run goes on until the last call has ended."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """By tenant; 1 where nothing is said."""
    client_timeout: float | None = None
    """Seconds after its arrival at which a client gives up."""
    profile: str = "fast"
    """The engine that the workload is meant for."""
    adapter_rank: int = 8
    """LoRA rank of each tenant's adapter, which takes room in the "papers" profile's KV pool."""
    warmup: float = 30.0
    """First tick of the service difference, seconds; 0: measured from the start, in ticks of 5 s."""

    def __post_init__(self) -> None:
        if not self.calls:
            raise ValueError(f"workload {self.name}: no calls")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"workload {self.name}: seconds={self.seconds} must be above 0")

    @property
    def tenants(self) -> list[str]:
        """Tenants that send something, by name."""
        return sorted({call.tenant for call in self.calls})

    @property
    def ticks(self) -> list[float]:
        """When the service difference is looked at, as in the VTC paper's artifact; of very long loads a sample."""
        step = thinned(30.0 if self.warmup else 5.0, self.seconds)
        count = math.floor((self.seconds - self.warmup) / step + 1e-9)
        return [self.warmup + step * tick for tick in range(max(1, count + (1 if self.warmup else 0)))]

    def first(self, seconds: float) -> Workload:
        """Return what is sent in the first `seconds`, with the calls that wait for it. ValueError if nothing is."""
        if seconds <= 0:
            raise ValueError(f"seconds={seconds} must be above 0")
        kept: set[str] = set()
        calls = []
        for call in _parents_first(self.calls):
            if call.after in kept if call.after is not None else call.arrival < seconds:
                kept.add(call.id)
                calls.append(call)
        if not calls:
            raise ValueError(f"workload {self.name}: nothing arrives in the first {seconds:g} s")
        return replace(self, calls=tuple(calls), seconds=min(seconds, self.seconds))


def thinned(step: float, seconds: float) -> float:
    """Return the multiple of `step` that goes at most `MOST_TICKS` times into `seconds`."""
    return step * max(1, math.ceil(seconds / step / MOST_TICKS))


def _parents_first(calls: Iterable[Call]) -> list[Call]:
    return sorted(calls, key=lambda call: (call.after is not None, call.call_index))


def from_trace(trace: Trace, *, split: int | None = None, seed: int = 0, profile: str = "fast") -> Workload:
    """Make a workload of a trace: its clients are the tenants.

    With `split` each row goes to one of that many tenants instead, drawn by Zipf's law (the k-th has a share in
    proportion to 1/k), the same for a seed. ValueError if the trace names tenants of its own.
    """
    owners = [row.client for row in trace.rows]
    if split is not None:
        if len(set(owners)) > 1:
            raise ValueError(f"{trace.name} has {len(set(owners))} tenants of its own: leave out --split")
        owners = zipf(len(owners), split, seed)
    limit = max(MAX_TOKENS, *(row.output_tokens for row in trace.rows))
    return Workload(
        name=trace.name,
        calls=tuple(
            Call(
                id=str(number),
                tenant=owner,
                arrival=row.arrival,
                prompt_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                max_tokens=limit,
            )
            for number, (row, owner) in enumerate(zip(trace.rows, owners, strict=True))
        ),
        seconds=trace.seconds,
        profile=profile,
        adapter_rank=16,
    )


def zipf(count: int, tenants: int, seed: int) -> list[str]:
    """Deal `count` requests to `tenants` tenants by Zipf's law with exponent 1."""
    if tenants < 1:
        raise ValueError(f"split={tenants} must be at least 1")
    source = random.Random(seed)  # noqa: S311 - a reproducible load, no secret
    shares = list(accumulate(1 / rank for rank in range(1, tenants + 1)))
    width = len(str(tenants - 1))
    return [
        f"tenant-{min(bisect_left(shares, source.random() * shares[-1]), tenants - 1):0{width}d}"
        for _ in range(count)
    ]
