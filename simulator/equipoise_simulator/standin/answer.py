"""One HTTP request in the engine: its choices, the tokens they get, and the text that waits to be sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from equipoise_simulator.sequence import Sequence
from equipoise_simulator.standin.text import natural_length, seed_of, token_ids, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from equipoise_simulator.standin.request import Generation, Prompt


class Shape(Protocol):
    """How an endpoint writes a stream and a whole answer."""

    def opening(self) -> str:
        """Return what precedes the first token."""

    def chunk(self, choice: Choice, text: str, pieces: list[str]) -> str:
        """Return one chunk with `text`, made of the tokens `pieces`; `choice.finish_reason` is set in the last."""

    def closing(self) -> str:
        """Return what follows the last token of all choices."""

    def whole(self) -> str:
        """Return the body of an answer that does not stream."""


class Choice:
    """One sequence of an answer."""

    def __init__(self, answer: Answer, index: int, prompt: Prompt, sequence_choice: int) -> None:
        generation = answer.generation
        self.answer = answer
        self.index = index
        self.prompt = prompt
        self.tokens = 0
        self.text_length = 0
        self.cached: int | None = None
        """Prompt tokens from the prefix cache; None until it was asked."""
        self.finish_reason: str | None = None
        self.stop_reason: str | None = None
        self.scheduled_at: float | None = None
        self.first_at: float | None = None
        self._unsent = 0
        self._seed = seed_of(prompt.text, sequence_choice, generation.seed)
        plan = _plan(generation, self._seed)
        self._ends_with = plan.finish_reason
        self._stopped_by = plan.stop_reason
        self.pieces: Iterator[str] = plan.pieces
        self.sequence = Sequence(prompt.tokens, plan.tokens, priority=generation.priority, owner=self)

    def advance(self, *, last: bool) -> None:
        """Take one generated token; a streamed answer gets its chunk."""
        self.tokens += 1
        self._unsent += 1
        if last:
            self.finish_reason = self._ends_with
            self.stop_reason = self._stopped_by
        answer = self.answer
        if answer.generation.stream and (last or self.tokens == 1 or self._unsent >= answer.stream_interval):
            self.flush()
        if last:
            answer.choice_ended()

    def flush(self) -> None:
        """Send the tokens not sent yet as one chunk."""
        pieces = list(islice(self.pieces, self._unsent))
        self._unsent = 0
        self.answer.put(self.answer.shape.chunk(self, "".join(pieces), pieces))

    def text(self) -> str:
        """Return the whole text; for an answer that does not stream, once."""
        return "".join(self.whole_pieces())

    def computed_ids(self) -> list[int]:
        """Return the ids of the generated tokens that were computed in their turn: all but the last, so no end token."""
        return token_ids("".join(islice(words(self._seed), self.tokens - 1)))

    def whole_pieces(self) -> list[str]:
        """Return the tokens' texts; for an answer that does not stream, once."""
        return list(islice(self.pieces, self.tokens))


class Answer:
    """What a request gets. Written by the engine's loop, read by the request's own task."""

    shape: Shape

    def __init__(
        self, generation: Generation, *, request_id: str, created: int, stream_interval: int = 1
    ) -> None:
        self.generation = generation
        self.request_id = request_id
        self.created = created
        self.stream_interval = stream_interval
        self.arrived_at = 0.0
        self.choices = [
            Choice(self, number * generation.n + choice, prompt, choice)
            for number, prompt in enumerate(generation.prompts)
            for choice in range(generation.n)
        ]
        self.cancelled = False
        self._running = len(self.choices)
        self._opened = False
        self._pieces: list[str] = []
        self._waiter: asyncio.Future[None] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all prompts, each once."""
        return sum(prompt.tokens for prompt in self.generation.prompts)

    @property
    def generated_tokens(self) -> int:
        """Tokens generated so far in all choices."""
        return sum(choice.tokens for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens of all prompts, each once, that came from the prefix cache."""
        return sum(choice.cached or 0 for choice in self.choices[:: self.generation.n])

    def put(self, text: str) -> None:
        """Append to what waits to be sent."""
        if not self._opened:
            self._opened = True
            self._pieces.append(self.shape.opening())
        self._pieces.append(text)
        self._wake()

    def choice_ended(self) -> None:
        """Note that one choice is complete; the last one completes the answer."""
        self._running -= 1
        if self._running == 0:
            if self.generation.stream:
                self._pieces.append(self.shape.closing())
            self._wake()

    def cancel(self) -> None:
        """Wake the reader for the last time: the client has left."""
        self.cancelled = True
        self._wake()

    async def read(self) -> bytes:
        """Return all that waits to be sent, at least one byte; b"" when the answer is complete or cancelled."""
        while not self._pieces and self._running and not self.cancelled:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        text = "".join(self._pieces)
        self._pieces.clear()
        return b"" if self.cancelled else text.encode()

    async def completed(self) -> bool:
        """Wait for the end; False when the client left before."""
        await self.read()
        return not self.cancelled

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


@dataclass(slots=True)
class _Plan:
    """How a choice will go: an engine's sampling, decided beforehand."""

    tokens: int
    finish_reason: str
    pieces: Iterator[str]
    stop_reason: str | None = field(default=None)


def _plan(generation: Generation, seed: int) -> _Plan:
    natural = max(natural_length(seed), generation.min_tokens + 1)
    ends_itself = not generation.ignore_eos and natural <= generation.max_tokens
    tokens = natural if ends_itself else generation.max_tokens
    if not generation.stop:
        return _Plan(
            tokens, "stop" if ends_itself else "length", _pieces(seed, tokens, end_token=ends_itself)
        )
    pieces = list(_pieces(seed, tokens, end_token=ends_itself))
    held = max(map(len, generation.stop)) - 1
    text, deltas, sent = "", [], 0
    for number, piece in enumerate(pieces, start=1):
        text += piece
        found = [(text.find(stop), stop) for stop in generation.stop if stop in text]
        if found and number > generation.min_tokens:
            at, stop = min(found)
            deltas.append(text[sent:at])
            return _Plan(number, "stop", iter(deltas), stop)
        safe = (
            len(text) if number == tokens else max(sent, len(text) - held)
        )  # vLLM holds back what may become a stop string
        deltas.append(text[sent:safe])
        sent = safe
    return _Plan(tokens, "stop" if ends_itself else "length", iter(deltas))


def _pieces(seed: int, tokens: int, *, end_token: bool) -> Iterator[str]:
    yield from islice(words(seed), tokens - end_token)
    if end_token:
        yield ""
