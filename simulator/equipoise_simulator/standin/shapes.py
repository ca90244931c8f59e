"""Chat completions and completions as vLLM writes them, byte for byte: key order, nulls, where the usage stands.

`system_fingerprint` ends each choice's last chunk, or with `include_usage` the stream's last.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise_simulator.standin.answer import Answer, Choice

DONE = "data: [DONE]\n\n"
LOGPROB = -0.6931471805599453


def dumps(value: Any) -> str:
    """Return compact JSON with other scripts' letters as they are, as pydantic writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def usage_of(prompt_tokens: int, generated: int) -> dict[str, int]:
    """Return the usage object that streams carry."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + generated,
        "completion_tokens": generated,
    }


class OpenAIShape:
    """What chat completions and completions share."""

    object_name: str
    id_stem: str

    def __init__(self, answer: Answer, *, model: str, fingerprint: str, cached_details: bool) -> None:
        self.answer = answer
        self.id = f"{self.id_stem}-{answer.request_id}"
        self.model = model
        self.fingerprint = fingerprint
        self.cached_details = cached_details
        self.head = f'data: {{"id":{dumps(self.id)},"object":"{self.object_name}","created":{answer.created},"model":{dumps(model)},"choices":['
        generation = answer.generation
        self.continuous = generation.continuous_usage
        self.include_usage = generation.include_usage

    def tail(self, choice: Choice) -> str:
        """Return what follows a chunk's choices."""
        usage = ""
        if self.continuous:
            prompt, generated = choice.prompt.tokens, choice.tokens
            usage = f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + generated},"completion_tokens":{generated}}}'
        if choice.finish_reason is not None and not self.include_usage:
            return f'{usage},"system_fingerprint":{dumps(self.fingerprint)}}}\n\n'
        return f"{usage}}}\n\n"

    def closing(self) -> str:
        """Return the usage chunk, if asked for, and the end mark."""
        if not self.include_usage:
            return DONE
        usage: dict[str, Any] = usage_of(self.answer.prompt_tokens, self.answer.generated_tokens)
        if self.cached_details:
            usage["prompt_tokens_details"] = {"cached_tokens": 0}
        return (
            f'{self.head}],"usage":{dumps(usage)},"system_fingerprint":{dumps(self.fingerprint)}}}\n\n{DONE}'
        )

    def envelope(self, choices: list[dict[str, Any]], extra: dict[str, Any]) -> str:
        """Return the body of a whole answer."""
        usage: dict[str, Any] = usage_of(self.answer.prompt_tokens, self.answer.generated_tokens)
        usage["prompt_tokens_details"] = {"cached_tokens": 0} if self.cached_details else None
        return dumps(
            {
                "id": self.id,
                "object": self.object_name.removesuffix(".chunk"),
                "created": self.answer.created,
                "model": self.model,
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": self.fingerprint,
                "usage": usage,
                **extra,
                "kv_transfer_params": None,
            }
        )


class ChatShape(OpenAIShape):
    """`/v1/chat/completions`."""

    object_name = "chat.completion.chunk"
    id_stem = "chatcmpl"

    def opening(self) -> str:
        """Return a chunk with the role for each choice."""
        prompt = self.answer.prompt_tokens
        usage = f',"usage":{dumps(usage_of(prompt, 0))}' if self.continuous else ""
        return "".join(
            f'{self.head}{{"index":{choice.index},"delta":{{"role":"assistant","content":""}},"logprobs":null,'
            f'"finish_reason":null}}]{usage},"prompt_token_ids":null}}\n\n'
            for choice in self.answer.choices
        )

    def chunk(self, choice: Choice, text: str, pieces: list[str]) -> str:
        """Return one chunk."""
        logprobs = "null" if self.answer.generation.logprobs is None else dumps(self._logprobs(pieces))
        reason = "null"
        if choice.finish_reason is not None:
            reason = f'"{choice.finish_reason}","stop_reason":{dumps(choice.stop_reason)}'
        return (
            f'{self.head}{{"index":{choice.index},"delta":{{"content":"{text}"}},"logprobs":{logprobs},'
            f'"finish_reason":{reason},"token_ids":null}}]{self.tail(choice)}'
        )

    def whole(self) -> str:
        """Return a `chat.completion`."""
        choices = []
        for choice in self.answer.choices:
            pieces = choice.whole_pieces()
            message = {
                "role": "assistant",
                "content": "".join(pieces),
                "refusal": None,
                "annotations": None,
                "audio": None,
            }
            choices.append(
                {
                    "index": choice.index,
                    "message": {**message, "function_call": None, "reasoning": None},
                    "logprobs": None if self.answer.generation.logprobs is None else self._logprobs(pieces),
                    "finish_reason": choice.finish_reason,
                    "stop_reason": choice.stop_reason,
                    "token_ids": None,
                }
            )
        return self.envelope(choices, {"prompt_logprobs": None, "prompt_token_ids": None})

    def _logprobs(self, pieces: list[str]) -> dict[str, Any]:
        alternatives = self.answer.generation.logprobs or 0
        content = []
        for piece in pieces:
            entry = {"token": piece, "logprob": LOGPROB, "bytes": list(piece.encode())}
            content.append({**entry, "top_logprobs": [entry] * min(alternatives, 1)})
        return {"content": content}


class CompletionShape(OpenAIShape):
    """`/v1/completions`."""

    object_name = "text_completion"
    id_stem = "cmpl"

    def opening(self) -> str:
        """Return nothing: completions begin with their first token."""
        return ""

    def chunk(self, choice: Choice, text: str, pieces: list[str]) -> str:
        """Return one chunk; the first echoes the prompt when that is asked for."""
        escaped = f'"{text}"'
        if self.answer.generation.echo and choice.tokens == len(pieces):
            escaped = dumps(choice.prompt.text + text)
        logprobs = "null"
        if self.answer.generation.logprobs is not None:
            logprobs = dumps(self._logprobs(pieces, choice.text_length))
            choice.text_length += len(text)
        reason = "null" if choice.finish_reason is None else f'"{choice.finish_reason}"'
        return (
            f'{self.head}{{"index":{choice.index},"text":{escaped},"logprobs":{logprobs},"finish_reason":{reason},'
            f'"stop_reason":{dumps(choice.stop_reason)},"prompt_token_ids":null,"token_ids":null}}]{self.tail(choice)}'
        )

    def whole(self) -> str:
        """Return a `text_completion`."""
        choices = []
        for choice in self.answer.choices:
            pieces = choice.whole_pieces()
            echoed = choice.prompt.text if self.answer.generation.echo else ""
            choices.append(
                {
                    "index": choice.index,
                    "text": echoed + "".join(pieces),
                    "logprobs": None
                    if self.answer.generation.logprobs is None
                    else self._logprobs(pieces, 0),
                    "finish_reason": choice.finish_reason,
                    "stop_reason": choice.stop_reason,
                    "token_ids": None,
                    "prompt_logprobs": None,
                    "prompt_token_ids": None,
                }
            )
        return self.envelope(choices, {})

    def _logprobs(self, pieces: list[str], offset: int) -> dict[str, Any]:
        offsets = []
        for piece in pieces:
            offsets.append(offset)
            offset += len(piece)
        top = [{piece: LOGPROB} if self.answer.generation.logprobs else None for piece in pieces]
        return {
            "text_offset": offsets,
            "token_logprobs": [LOGPROB] * len(pieces),
            "tokens": pieces,
            "top_logprobs": top,
        }
