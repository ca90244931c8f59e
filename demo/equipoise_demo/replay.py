"""Replays a trace against OpenAI endpoints at `speed` times its pace, as many tenants, each with its own API key.

Open loop: requests leave when the trace says, whatever became of those before. They are dealt to the endpoints in turn, as a Service
deals connections. Every request asks for exactly the recorded number of tokens (`ignore_eos`).
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING

from equipoise_demo.exchange import Exchange, chat_request
from equipoise_demo.outcome import Outcome
from equipoise_simulator.standin.text import TOKENS_A_MESSAGE, TOKENS_BEFORE_ANSWER, answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from equipoise_simulator.traces import Row, Trace

MAX_CONNECTIONS = 2_000
CPU_LIMIT = 0.8
"""Share of a core above which the replayer's own delays colour its latencies."""
_TEMPLATE_TOKENS = TOKENS_A_MESSAGE + TOKENS_BEFORE_ANSWER


@dataclass(frozen=True, slots=True)
class Target:
    """Where a trace is replayed."""

    endpoints: Sequence[tuple[str, int]]
    """Host and port of each."""
    keys: Mapping[str, str]
    """API key of each of the trace's clients."""
    model: str


@dataclass(slots=True)
class Following:
    """How far a replay is; changed in place, for a progress bar."""

    total: int
    sent: int = 0
    ended: int = 0
    failed: int = 0
    seconds: float = 0.0
    """Time of the trace."""


@dataclass(slots=True)
class Replay:
    """What a replay found, and how well the replayer itself kept up."""

    outcomes: list[Outcome]
    cpu_share: float
    """The replayer's own use of a core, 0 to 1, while it ran."""
    late_seconds: float
    """The longest that a request left after its time, in seconds of the trace."""
    notes: list[str] = field(default_factory=list)
    """Why its figures are not to be trusted; empty when they are."""


def prompt_of(row: Row, index: int) -> str:
    """Return the user's message for a row: as many tokens with the chat template as the trace has, at least 7."""
    return answer(f"{row.client}/{index}", max(1, row.input_tokens - _TEMPLATE_TOKENS))


def body_of(row: Row, index: int, model: str) -> dict[str, object]:
    """Return the request of a row."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt_of(row, index)}],
        "max_tokens": row.output_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def replay(
    trace: Trace,
    target: Target,
    *,
    speed: float,
    timeout: float,
    follow: Callable[[Following], None] = lambda _: None,
    skip: frozenset[int] = frozenset(),
) -> Replay:
    """Replay a trace and wait for its last answer, each at most `timeout` seconds of the trace.

    `skip` holds indices of rows that somebody else sends. `follow` is called ten times a second.
    """
    rows = [(index, row) for index, row in enumerate(trace.rows) if index not in skip]
    endpoints = cycle(target.endpoints)
    # made beforehand: building and encoding them is no part of what is measured
    requests = [_request(index, row, target, next(endpoints)) for index, row in rows]
    replayer = _Replayer(speed, timeout, Following(total=len(rows)), follow)
    cpu, began = time.process_time(), time.perf_counter()
    outcomes = await replayer.run([row for _, row in rows], requests)
    share = (time.process_time() - cpu) / (time.perf_counter() - began)
    result = Replay(outcomes, share, replayer.late * speed)
    if share > CPU_LIMIT:
        result.notes.append(
            f"the replayer used {share:.0%} of a core: its latencies are not to be trusted; replay at a lower speed"
        )
    if replayer.held:
        result.notes.append(
            f"{replayer.held} requests left late because {MAX_CONNECTIONS} connections were open: the load is too high"
        )
    return result


def _request(
    index: int, row: Row, target: Target, endpoint: tuple[str, int]
) -> tuple[tuple[str, int], bytes]:
    body = json.dumps(body_of(row, index, target.model), separators=(",", ":")).encode()
    return endpoint, chat_request(*endpoint, target.keys[row.client], body)


class _Replayer:
    """One run: its clock in trace time, its open connections, its counts."""

    def __init__(
        self, speed: float, timeout: float, following: Following, follow: Callable[[Following], None]
    ) -> None:
        self.speed = speed
        self.timeout = timeout
        self.following = following
        self.follow = follow
        self.late = 0.0
        self.held = 0
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._zero = 0.0

    def now(self) -> float:
        """Time of the trace."""
        return (self._loop.time() - self._zero) * self.speed

    async def run(self, rows: list[Row], requests: list[tuple[tuple[str, int], bytes]]) -> list[Outcome]:
        self._zero = self._loop.time() + 0.1
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            outcomes: list[Outcome] = []
            sends: list[asyncio.Task[None]] = []
            for row, (endpoint, request) in zip(rows, requests, strict=True):
                due = self._zero + row.arrival / self.speed
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                self.late = max(self.late, self._loop.time() - due)
                outcome = Outcome(row.client, row.arrival, row.input_tokens, row.output_tokens)
                outcomes.append(outcome)
                sends.append(group.create_task(self._send(outcome, endpoint, request)))
            await asyncio.gather(*sends)
            watch.cancel()
        self.follow(self.following)
        return outcomes

    async def _watch(self) -> None:
        while True:
            self.following.seconds = max(0.0, self.now())
            self.follow(self.following)
            await asyncio.sleep(0.1)

    async def _send(self, outcome: Outcome, endpoint: tuple[str, int], request: bytes) -> None:
        if self._slots.locked():
            self.held += 1
        async with self._slots:
            self.following.sent += 1
            exchange = Exchange(request, self.now)
            try:
                async with asyncio.timeout(self.timeout / self.speed):
                    await self._loop.create_connection(lambda: exchange, *endpoint)
                    await exchange.ended
            except TimeoutError:
                exchange.abort(f"no complete answer within {self.timeout:g} s")
            except OSError as error:
                exchange.abort(f"no connection: {error}")
            except asyncio.CancelledError:
                exchange.abort("stopped")
                raise
        self._settle(outcome, exchange)
        self.following.ended += 1
        self.following.failed += exchange.error is not None

    def _settle(self, outcome: Outcome, exchange: Exchange) -> None:
        outcome.status, outcome.error = exchange.status, exchange.error
        outcome.end = exchange.ended_at
        if exchange.status != 200:
            return
        outcome.first_token = exchange.first_at
        outcome.tokens = _capped(exchange.tokens, outcome.output_tokens)
        if exchange.usage:
            outcome.input_tokens, generated = exchange.usage
            missing = generated - sum(count for _, count in outcome.tokens)
            if missing > 0:  # several tokens came in one event
                outcome.tokens.append((exchange.ended_at, missing))


def _capped(tokens: list[tuple[float, int]], most: int) -> list[tuple[float, int]]:
    """Leave out the events after the last token: usage and end mark."""
    result, total = [], 0
    for at, count in tokens:
        kept = min(count, most - total)
        if kept > 0:
            result.append((at, kept))
            total += kept
    return result
