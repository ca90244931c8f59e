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
from typing import TYPE_CHECKING, Any

from equipoise_api.names import APPLICATION_HEADER
from equipoise_demo.exchange import Exchange, chat_request
from equipoise_demo.outcome import Outcome
from equipoise_demo.places import INTERACTIVE_APPLICATION
from equipoise_simulator.standin.text import TOKENS_A_MESSAGE, TOKENS_BEFORE_ANSWER, answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from equipoise_simulator.traces import Row, Trace

    Endpoint = tuple[str, int]
    Sender = Callable[[Row, int, Endpoint, Outcome, Callable[[], float]], Awaitable[None]]

MAX_CONNECTIONS = 2_000
CPU_LIMIT = 0.8
"""Share of a core above which the replayer's own delays colour its latencies."""
_TEMPLATE_TOKENS = TOKENS_A_MESSAGE + TOKENS_BEFORE_ANSWER


@dataclass(frozen=True, slots=True)
class Target:
    """Where a trace is replayed."""

    endpoints: Sequence[Endpoint]
    """Host and port of each."""
    keys: Mapping[str, str]
    """API key of each of the trace's clients."""
    model: str
    interactive: Collection[int] = ()
    """Rows of the application that was promised a time to first token, by their places."""
    words_a_token: float = 1.0
    """Prompt words that make a token of the engine's tokenizer; the stand-in's makes one of each."""


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


def headers_of(index: int, target: Target) -> dict[str, str]:
    """Return what a row's request says of itself."""
    return {APPLICATION_HEADER: INTERACTIVE_APPLICATION} if index in target.interactive else {}


def body_of(row: Row, index: int, target: Target) -> dict[str, Any]:
    """Return the request of a row: a prompt with as many tokens, template included, as the trace has, at least 7."""
    words = max(1, round((row.input_tokens - _TEMPLATE_TOKENS) * target.words_a_token))
    return {
        "model": target.model,
        "messages": [{"role": "user", "content": answer(f"{row.client}/{index}", words)}],
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
    others: Mapping[int, Sender] | None = None,
    at_end: Callable[[], None] | None = None,
) -> Replay:
    """Replay a trace and wait for its last answer, each at most `timeout` seconds of the trace.

    `others` send the rows of these indices in the replayer's stead. `follow` is called ten times a second, `at_end`
    once, in a thread, when the trace's time is over and its last answers are still to come; an error there ends the replay.
    """
    endpoints = cycle(target.endpoints)
    # made beforehand: building and encoding them is no part of what is measured
    departures = [_departure(index, row, target, next(endpoints)) for index, row in enumerate(trace.rows)]
    for index, sender in (others or {}).items():
        departures[index].sender = sender
    replayer = _Replayer(speed, timeout, Following(total=len(departures)), follow)
    end = (trace.seconds, at_end) if at_end else None
    cpu, began = time.process_time(), time.perf_counter()
    try:
        outcomes = await replayer.run(departures, end)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
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


@dataclass(slots=True)
class _Departure:
    """One request, ready to leave."""

    index: int
    row: Row
    interactive: bool
    endpoint: Endpoint
    request: bytes
    sender: Sender | None = None


def _departure(index: int, row: Row, target: Target, endpoint: Endpoint) -> _Departure:
    body = json.dumps(body_of(row, index, target), separators=(",", ":")).encode()
    request = chat_request(*endpoint, target.keys[row.client], body, headers_of(index, target))
    return _Departure(index, row, index in target.interactive, endpoint, request)


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

    async def run(
        self, departures: list[_Departure], end: tuple[float, Callable[[], None]] | None
    ) -> list[Outcome]:
        """Send everything; at the trace's time of `end` call what it names."""
        self._zero = self._loop.time() + 0.1
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            outcomes: list[Outcome] = []
            sends: list[asyncio.Task[None]] = []
            for departure in departures:
                row = departure.row
                self.late = max(self.late, await self._until(row.arrival))
                outcome = Outcome(row.client, row.arrival, row.input_tokens, row.output_tokens)
                outcome.interactive = departure.interactive
                outcomes.append(outcome)
                sends.append(group.create_task(self._send(departure, outcome)))
            if end is not None:
                await self._until(end[0])
                await asyncio.to_thread(end[1])
            await asyncio.gather(*sends)
            watch.cancel()
        self.follow(self.following)
        return outcomes

    async def _until(self, seconds: float) -> float:
        """Wait for a time of the trace; return the real seconds by which it is past."""
        due = self._zero + seconds / self.speed
        await asyncio.sleep(max(0.0, due - self._loop.time()))
        return self._loop.time() - due

    async def _watch(self) -> None:
        while True:
            self.following.seconds = max(0.0, self.now())
            self.follow(self.following)
            await asyncio.sleep(0.1)

    async def _send(self, departure: _Departure, outcome: Outcome) -> None:
        if self._slots.locked():
            self.held += 1
        async with self._slots:
            self.following.sent += 1
            if departure.sender is None:
                self._settle(outcome, await self._exchange(departure))
            else:
                await departure.sender(departure.row, departure.index, departure.endpoint, outcome, self.now)
        self.following.ended += 1
        self.following.failed += outcome.error is not None

    async def _exchange(self, departure: _Departure) -> Exchange:
        exchange = Exchange(departure.request, self.now)
        try:
            async with asyncio.timeout(self.timeout / self.speed):
                await self._loop.create_connection(lambda: exchange, *departure.endpoint)
                await asyncio.shield(exchange.ended)  # a timeout must not end what `abort` has to
        except TimeoutError:
            exchange.abort(f"no complete answer within {self.timeout:g} s")
        except OSError as error:
            exchange.abort(f"no connection: {error}")
        except asyncio.CancelledError:
            exchange.abort("stopped")
            raise
        return exchange

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
