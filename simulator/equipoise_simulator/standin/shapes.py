"""Chat completions and completions as vLLM 0.32 writes them, byte for byte: key order, nulls, where the usage stands.

`system_fingerprint` ends each choice's last chunk, or with `include_usage` the stream's last.
Not offered: tools, reasoning, token ids (but with `echo`), log-probabilities of an echoed prompt.
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


class OpenAIShape:
    """What chat completions and completions share."""

    object_name: str
    stream_object_name: str
    id_stem: str
    running_usage_end: str
    """What follows `completion_tokens` in the usage of a chunk."""

    def __init__(self, answer: Answer, *, model: str, fingerprint: str, cached_details: bool) -> None:
        self.answer = answer
        self.id = f"{self.id_stem}-{answer.request_id}"
        self.model = model
        self.fingerprint = dumps(fingerprint)
        self.cached_details = cached_details
        self.head = (
            f'data: {{"id":{dumps(self.id)},"object":"{self.stream_object_name}","created":{answer.created},'
            f'"model":{dumps(model)},"choices":['
        )
        self.continuous = answer.generation.continuous_usage
        self.include_usage = answer.generation.include_usage
        self.logprobs = answer.generation.logprobs

    @property
    def cached(self) -> dict[str, int] | None:
        """What usage says of the prefix cache."""
        return {"cached_tokens": self.answer.cached_tokens} if self.cached_details else None

    def running_usage(self, prompt: int, generated: int) -> str:
        """Return the usage of a chunk, with the comma before it; nothing unless continuous usage is wanted."""
        if not self.continuous:
            return ""
        return (
            f',"usage":{{"prompt_tokens":{prompt},"total_tokens":{prompt + generated},"completion_tokens":{generated}'
            f"{self.running_usage_end}}}"
        )

    def tail(self, choice: Choice) -> str:
        """Return what follows a chunk's choices."""
        usage = self.running_usage(choice.prompt.tokens, choice.tokens)
        if choice.finish_reason is not None and not self.include_usage:
            return f'{usage},"system_fingerprint":{self.fingerprint}}}\n\n'
        return f"{usage}}}\n\n"

    def closing(self) -> str:
        """Return the usage chunk, if asked for, and the end mark."""
        if not self.include_usage:
            return DONE
        usage = self._final_usage()
        if self.cached is not None:
            usage["prompt_tokens_details"] = self.cached
        return f'{self.head}],"usage":{dumps(usage)},"system_fingerprint":{self.fingerprint}}}\n\n{DONE}'

    def envelope(self, choices: list[dict[str, Any]], extra: dict[str, Any]) -> str:
        """Return the body of a whole answer."""
        head = {
            "id": self.id,
            "object": self.object_name,
            "created": self.answer.created,
            "model": self.model,
        }
        usage = {
            **self._final_usage(),
            "prompt_tokens_details": self.cached,
            "completion_tokens_details": None,
        }
        transfers = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
        fingerprint = json.loads(self.fingerprint)
        return dumps(
            {
                **head,
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": fingerprint,
                "usage": usage,
                **extra,
                **transfers,
            }
        )

    def _final_usage(self) -> dict[str, Any]:
        prompt, generated = self.answer.prompt_tokens, self.answer.generated_tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + generated, "completion_tokens": generated}


class ChatShape(OpenAIShape):
    """`/v1/chat/completions`."""

    object_name = "chat.completion"
    stream_object_name = "chat.completion.chunk"
    id_stem = "chatcmpl"
    running_usage_end = ',"completion_tokens_details":null'

    def opening(self) -> str:
        """Return a chunk with the role for each choice."""
        return "".join(
            f'{self.head}{{"index":{choice.index},"delta":{{"role":"assistant","content":""}},"logprobs":null,'
            f'"finish_reason":null}}]{self.running_usage(choice.prompt.tokens, 0)},"prompt_token_ids":null,"prompt_text":null}}\n\n'
            for choice in self.answer.choices
        )

    def chunk(self, choice: Choice, text: str, pieces: list[str]) -> str:
        """Return one chunk."""
        logprobs = "null" if self.logprobs is None else dumps(self._logprobs(pieces))
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
                    "logprobs": None if self.logprobs is None else self._logprobs(pieces),
                    "finish_reason": choice.finish_reason,
                    "stop_reason": choice.stop_reason,
                    "token_ids": None,
                    "routed_experts": None,
                }
            )
        return self.envelope(
            choices, {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        )

    def _logprobs(self, pieces: list[str]) -> dict[str, Any]:
        content = []
        for piece in pieces:
            entry = {"token": piece, "logprob": LOGPROB, "bytes": list(piece.encode())}
            content.append({**entry, "top_logprobs": [entry] * (self.logprobs or 0)})
        return {"content": content}


class CompletionShape(OpenAIShape):
    """`/v1/completions`."""

    object_name = stream_object_name = "text_completion"
    id_stem = "cmpl"
    running_usage_end = ""

    def opening(self) -> str:
        """Return nothing: completions begin with their first token."""
        return ""

    def chunk(self, choice: Choice, text: str, pieces: list[str]) -> str:
        """Return one chunk; the first echoes the prompt when that is asked for."""
        escaped, prompt_ids = f'"{text}"', "null"
        if self.answer.generation.echo and choice.tokens == len(pieces):
            escaped, prompt_ids = dumps(choice.prompt.text + text), dumps(choice.prompt.ids())
        logprobs = "null"
        if self.logprobs is not None:
            logprobs = dumps(self._logprobs(pieces, choice.text_length))
            choice.text_length += len(text)
        reason = "null" if choice.finish_reason is None else f'"{choice.finish_reason}"'
        return (
            f'{self.head}{{"index":{choice.index},"text":{escaped},"logprobs":{logprobs},"finish_reason":{reason},'
            f'"stop_reason":{dumps(choice.stop_reason)},"prompt_token_ids":{prompt_ids},"token_ids":null}}]{self.tail(choice)}'
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
                    "logprobs": None if self.logprobs is None else self._logprobs(pieces, 0),
                    "finish_reason": choice.finish_reason,
                    "stop_reason": choice.stop_reason,
                    "token_ids": None,
                    "prompt_logprobs": None,
                    "prompt_token_ids": None,
                    "routed_experts": None,
                }
            )
        return self.envelope(choices, {})

    def _logprobs(self, pieces: list[str], offset: int) -> dict[str, Any]:
        offsets = []
        for piece in pieces:
            offsets.append(offset)
            offset += len(piece)
        top = [{piece: LOGPROB} for piece in pieces]
        return {
            "text_offset": offsets,
            "token_logprobs": [LOGPROB] * len(pieces),
            "tokens": pieces,
            "top_logprobs": top,
        }
