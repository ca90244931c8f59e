"""Token counts as the engine reports them, in any of its three spellings."""

from __future__ import annotations

import msgspec

from equipoise_scheduling.request import Usage


class Details(msgspec.Struct, gc=False):
    """`prompt_tokens_details` and `input_tokens_details`."""

    cached_tokens: int | None = None


class ReportedUsage(msgspec.Struct, gc=False):
    """A `usage` object: chat and completions say prompt and completion, responses and messages input and output."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def counts(self) -> Usage | None:
        """Return the counts; None where it says nothing of tokens (transcriptions report seconds)."""
        details = self.prompt_tokens_details or self.input_tokens_details
        cached = (details.cached_tokens if details is not None else None) or 0
        if self.prompt_tokens is not None:
            prompt = self.prompt_tokens
        elif self.input_tokens is not None:
            # Anthropic's input_tokens leaves out what the cache gave and took; OpenAI's does not
            read = self.cache_read_input_tokens or 0
            prompt = self.input_tokens + read + (self.cache_creation_input_tokens or 0)
            cached = cached or read
        elif self.total_tokens is not None:
            prompt = self.total_tokens
        else:
            return None
        generated = self.completion_tokens or self.output_tokens or 0
        prompt = max(0, prompt)
        return Usage(prompt=prompt, generated=max(0, generated), cached=min(max(0, cached), prompt))


class Answer(msgspec.Struct, gc=False):
    """A whole answer, as far as it matters here."""

    usage: ReportedUsage | None = None


_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_usage = msgspec.json.Decoder(ReportedUsage).decode
_KEY = b'"usage":'


def usage_of_answer(body: bytes) -> Usage | None:
    """Read the usage of a whole JSON answer; None where it has none or is no JSON."""
    try:
        usage = _decode_answer(body).usage
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None if usage is None else usage.counts()


def usage_at_end(tail: bytes) -> Usage | None:
    """Read the last usage object in the end of an answer too long to be kept; None where it is not there."""
    start = tail.rfind(_KEY) + len(_KEY)
    if start < len(_KEY):
        return None
    end = start
    while (end := tail.find(b"}", end) + 1) > 0:
        try:
            return _decode_usage(tail[start:end]).counts()
        except (msgspec.MsgspecError, ValueError):
            continue
    return None
