"""How far an answer is: from the engine's running usage, else a token an event, else not at all (the clock stands in).

A reader takes an answer's bytes and returns the bytes for the client. What it knows of progress stands in its
attributes, cumulative over all sequences, and changes with each `feed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import msgspec
from typing_extensions import override

from equipoise_scheduling.request import Usage
from equipoise_sidecar.said import Said
from equipoise_sidecar.sse import Splitter, append_fingerprint, cut_usage, read_chunk, read_message
from equipoise_sidecar.usage import ReportedUsage, usage_at_end, usage_of_answer

LONGEST_KEPT = 8 * 1024 * 1024
"""Bytes of a whole answer that are kept to read its usage from; of a longer one, the end."""
_TAIL = 64 * 1024


class Reader(ABC):
    """An answer on its way through."""

    __slots__ = ("exact", "failed", "generated", "hearer", "prompt", "started", "usage")

    def __init__(self) -> None:
        self.started = False
        """Something that the model said has come."""
        self.prompt: int | None = None
        """Prompt tokens, exact; None while unknown."""
        self.generated = 0
        self.exact = False
        """`generated` is the engine's own count."""
        self.usage: Usage | None = None
        """The final count."""
        self.failed = False
        """The engine said that it failed."""
        self.hearer: Callable[[bytes], object] | None = None
        """Told the text of a chat's only answer, piece by piece."""

    @abstractmethod
    def feed(self, data: bytes) -> bytes:
        """Take what came; return what goes on to the client, maybe nothing yet."""

    @abstractmethod
    def end(self) -> bytes:
        """Take the answer's end; return what was still held."""

    def _hear(self, said: Said | None) -> None:
        if self.hearer is None or said is None:
            return
        text = said.text()
        if text is None:
            self.hearer = None
        elif text:
            self.hearer(text)


class WholeReader(Reader):
    """An answer that does not stream: nothing shows before its end, where its usage is read."""

    __slots__ = ("_kept", "_length")

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[bytes] = []
        self._length = 0

    @override
    def feed(self, data: bytes) -> bytes:
        self.started = True
        self._kept.append(data)
        self._length += len(data)
        if self._length > LONGEST_KEPT:
            self._kept = [b"".join(self._kept)[-_TAIL:]]
        return data

    @override
    def end(self) -> bytes:
        body = b"".join(self._kept)
        whole = len(body) == self._length
        self.usage = usage_of_answer(body) if whole else usage_at_end(body)
        if whole and self.hearer is not None:
            self._hear(read_message(body))
        return b""


class ChunkReader(Reader):
    """Chat's and completions' streams: usage in each chunk, cut again where the client did not ask for it."""

    __slots__ = ("_copies", "_cut", "_drop_last", "_fingerprint", "_of_choice", "_of_prompt", "_splitter")

    def __init__(
        self,
        *,
        sequences: int = 1,
        prompts: int = 1,
        cut: bool = False,
        drop_last: bool = False,
        fingerprint: bytes = b"",
    ) -> None:
        """Read a stream of `sequences` answers to `prompts` prompts.

        `cut`: remove the running usage; `drop_last`: and the chunk that holds the final one, whose `fingerprint` (of
        `sse.fingerprint_member`) then goes back to the end of each choice's last chunk.
        """
        super().__init__()
        self._copies = max(1, sequences // prompts)
        self._cut = cut
        self._drop_last = drop_last
        self._fingerprint = fingerprint
        self._splitter = Splitter()
        # one sequence, the usual case, needs no sums
        self._of_choice: dict[int, int] | None = None if sequences == 1 else {}
        self._of_prompt: dict[int, int] = {}

    @override
    def feed(self, data: bytes) -> bytes:
        events = self._splitter.feed(data)
        if len(events) == 1:
            return self._take(events[0])
        return b"".join([self._take(event) for event in events])

    @override
    def end(self) -> bytes:
        return self._splitter.rest()

    def _take(self, event: bytes) -> bytes:
        chunk = read_chunk(event)
        if chunk is None:
            return event
        usage = chunk.usage
        choices = chunk.choices
        if choices:
            self.started = True
            self._hear(choices[0].delta)
            if usage is None:
                self._count(event)
                return event
            self._note(choices[0].index, usage)
            if self._cut:
                event = cut_usage(event)
                if self._fingerprint and choices[0].finish_reason is not None:
                    event = append_fingerprint(event, self._fingerprint)
            return event
        if usage is not None:
            self.usage = usage.counts()
            return b"" if self._drop_last else event
        if bytes(chunk.error):
            self.failed = True
        return event

    def _note(self, choice: int, usage: ReportedUsage) -> None:
        self.exact = True
        generated = usage.completion_tokens or 0
        prompt = usage.prompt_tokens or 0
        if self._of_choice is None:
            self.prompt = prompt
            self.generated = generated
            return
        of_prompt = choice // self._copies
        self.generated += generated - self._of_choice.get(choice, 0)
        self.prompt = (self.prompt or 0) + prompt - self._of_prompt.get(of_prompt, 0)
        self._of_choice[choice] = generated
        self._of_prompt[of_prompt] = prompt

    def _count(self, event: bytes) -> None:
        if not self.exact and b'"role":"assistant"' not in event:
            self.generated += 1


class _Message(msgspec.Struct, gc=False):
    usage: ReportedUsage | None = None


class _Event(msgspec.Struct, gc=False):
    """An event of a messages or responses stream that carries usage, wherever it does."""

    usage: ReportedUsage | None = None
    message: _Message | None = None
    response: _Message | None = None

    def counts(self) -> Usage | None:
        holder = self.message or self.response or self
        return None if holder.usage is None else holder.usage.counts()


_decode_event = msgspec.json.Decoder(_Event).decode
_NAME = b"event:"
_DATA = b"\ndata:"


class EventReader(Reader):
    """Streams of responses and messages: named events, passed unchanged; a delta counts as a token."""

    __slots__ = ("_splitter",)

    def __init__(self) -> None:
        super().__init__()
        self._splitter = Splitter()

    @override
    def feed(self, data: bytes) -> bytes:
        events = self._splitter.feed(data)
        for event in events:
            self._note(event)
        return events[0] if len(events) == 1 else b"".join(events)

    @override
    def end(self) -> bytes:
        return self._splitter.rest()

    def _note(self, event: bytes) -> None:
        if not event.startswith(_NAME):
            return
        name = event[len(_NAME) : event.find(b"\n")].strip()
        if name.endswith((b".delta", b"_block_delta")):
            self.started = True
            self.generated += 1
        elif name == b"message_start":
            self.started = True
            if (counts := _counts(event)) is not None:
                self.prompt = counts.prompt
        elif name in (b"message_delta", b"response.completed", b"response.incomplete", b"response.failed"):
            self.usage = _counts(event)
            self.failed = self.failed or name == b"response.failed"
        elif name == b"error":
            self.failed = True


def _counts(event: bytes) -> Usage | None:
    start = event.find(_DATA)
    if start < 0:
        return None
    try:
        return _decode_event(event[start + len(_DATA) :]).counts()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
