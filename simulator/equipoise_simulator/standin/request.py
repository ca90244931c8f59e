"""Reads request bodies as vLLM does: lenient JSON, pydantic's booleans, vLLM's refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from equipoise_simulator.standin.errors import bad_request, invalid, not_found
from equipoise_simulator.standin.text import TOKENS_A_MESSAGE, TOKENS_BEFORE_ANSWER, count_tokens, token_ids

Endpoint = Literal["chat", "completions", "responses", "messages"]
_TRUE = {"true", "1", "on", "t", "y", "yes"}
_FALSE = {"false", "0", "off", "f", "n", "no"}
COMPLETION_DEFAULT_MAX_TOKENS = 16
MOST_CHOICES = 16_384
"""vLLM's VLLM_MAX_N_SEQUENCES."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: its text (what the answer follows from) and its length in tokens."""

    text: str
    tokens: int
    given_ids: tuple[int, ...] | None = None

    def ids(self) -> list[int]:
        """Return the token ids, those given if any were."""
        return token_ids(self.text) if self.given_ids is None else list(self.given_ids)


@dataclass(slots=True)
class Generation:
    """What a request asks to be generated."""

    endpoint: Endpoint
    prompts: list[Prompt]
    max_tokens: int
    n: int = 1
    min_tokens: int = 0
    ignore_eos: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    echo: bool = False
    stop: list[str] = field(default_factory=list)
    seed: int | None = None
    priority: int = 0
    logprobs: int | None = None
    """Alternatives to report for each token; None reports no log-probabilities."""


def parse_body(raw: bytes) -> dict[str, Any]:
    """Decode a body: UTF-8, UTF-16 or UTF-32, a byte order mark, NaN; of duplicate keys the last counts."""
    try:
        body = json.loads(raw)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        at = getattr(error, "pos", 0)
        raise invalid("json_invalid", f"body.{at}", "JSON decode error") from None
    if not isinstance(body, dict):
        raise invalid(
            "model_attributes_type",
            "body",
            "Input should be a valid dictionary or object to extract fields from",
        )
    return body


def read_generation(
    endpoint: Endpoint, body: dict[str, Any], *, model: str, max_model_len: int
) -> Generation:
    """Turn a body into a `Generation`; RequestError says what is wrong."""
    check_model(body, model)
    prompts = _prompts(endpoint, body)
    stream = _boolean(body, "stream")
    options = body.get("stream_options")
    if options and not stream:
        raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")
    if options is not None and not isinstance(options, dict):
        raise invalid("model_attributes_type", "body.stream_options", "Input should be a valid dictionary")
    usage_options = options if options and endpoint in ("chat", "completions") else {}
    longest = max(prompt.tokens for prompt in prompts)
    max_tokens = _max_tokens(endpoint, body, longest, max_model_len)
    include_usage = _boolean(usage_options, "include_usage")
    priority = _integer(body, "priority", 0)
    return Generation(
        endpoint=endpoint,
        prompts=prompts,
        max_tokens=max_tokens,
        n=_integer(body, "n", 1, least=1, most=MOST_CHOICES) if endpoint in ("chat", "completions") else 1,
        min_tokens=min(_integer(body, "min_tokens", 0), max_tokens),
        ignore_eos=_boolean(body, "ignore_eos"),
        stream=stream,
        include_usage=include_usage,
        continuous_usage=include_usage and _boolean(usage_options, "continuous_usage_stats"),
        echo=endpoint == "completions" and _boolean(body, "echo"),
        stop=_stop(body, "stop_sequences" if endpoint == "messages" else "stop"),
        seed=None if body.get("seed") is None else _integer(body, "seed", 0),
        priority=priority,
        logprobs=_logprobs(endpoint, body),
    )


def check_model(body: dict[str, Any], model: str) -> None:
    """Refuse another model than the one served; no model at all is accepted."""
    named = body.get("model")
    if named is not None and named != model:
        raise not_found(f"The model `{named}` does not exist. Valid aliases: {model}.", "model")


def read_prompts(value: Any) -> list[Prompt]:
    """Read a completion's prompt: a text, token ids, or a list of either."""
    if isinstance(value, str):
        return [_text_prompt(value)]
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return [_ids_prompt(value)]
        if all(isinstance(item, str) for item in value):
            return [_text_prompt(item) for item in value]
        if all(
            isinstance(item, list) and item and all(type(token) is int for token in item) for item in value
        ):
            return [_ids_prompt(item) for item in value]
    raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")


def _prompts(endpoint: Endpoint, body: dict[str, Any]) -> list[Prompt]:
    if endpoint == "completions":
        return read_prompts(body.get("prompt"))
    if endpoint == "responses":
        source = body.get("input")
        messages = [{"role": "user", "content": source}] if isinstance(source, str) else source
        system = body.get("instructions")
    else:
        messages = body.get("messages")
        system = body.get("system") if endpoint == "messages" else None
    if not isinstance(messages, list) or not messages:
        raise invalid(
            "missing", f"body.{'input' if endpoint == 'responses' else 'messages'}", "Field required"
        )
    return [chat_prompt([{"role": "system", "content": system}, *messages] if system else messages)]


def chat_prompt(messages: list[Any]) -> Prompt:
    """Return the prompt that a conversation becomes."""
    texts: list[str] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid("missing", "body.messages.role", "Field required")
        texts.append(_content(message.get("content")))
    tokens = sum(map(count_tokens, texts)) + TOKENS_A_MESSAGE * len(texts) + TOKENS_BEFORE_ANSWER
    return Prompt("\n".join(texts), tokens)


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    raise invalid("string_type", "body.messages.content", "Input should be a valid string")


def _text_prompt(text: str) -> Prompt:
    return Prompt(text, max(1, count_tokens(text)))


def _ids_prompt(ids: list[int]) -> Prompt:
    return Prompt(" ".join(map(str, ids)), len(ids), tuple(ids))


def _max_tokens(endpoint: Endpoint, body: dict[str, Any], prompt_tokens: int, max_model_len: int) -> int:
    room = max_model_len - prompt_tokens
    if room < 1:
        raise bad_request(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {prompt_tokens} input "
            "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
            "input_tokens",
            prompt_tokens,
        )
    names = {
        "chat": ("max_completion_tokens", "max_tokens"),
        "completions": ("max_tokens",),
        "responses": ("max_output_tokens",),
        "messages": ("max_tokens",),
    }[endpoint]
    for name in names:
        if body.get(name) is None:
            continue
        wanted = _integer(body, name, 0, least=1)
        if wanted > max_model_len:
            raise bad_request(
                f"{name}={wanted} cannot be greater than max_model_len={max_model_len}. Please request fewer output tokens.",
                name,
                wanted,
            )
        if wanted > room:
            raise bad_request(
                f"This model's maximum context length is {max_model_len} tokens. However, you requested {wanted} output tokens and "
                f"your prompt contains at least {prompt_tokens} input tokens, for a total of at least {wanted + prompt_tokens} "
                "tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
                "input_tokens",
                prompt_tokens,
            )
        return wanted
    if endpoint == "messages":
        raise invalid("missing", "body.max_tokens", "Field required")
    return min(room, COMPLETION_DEFAULT_MAX_TOKENS) if endpoint == "completions" else room


def _boolean(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise invalid(
        "bool_parsing", f"body.{name}", "Input should be a valid boolean, unable to interpret input"
    )


def _integer(
    body: dict[str, Any], name: str, default: int, *, least: int | None = None, most: int | None = None
) -> int:
    value = body.get(name)
    if value is None:
        return default
    try:
        number = int(value)
        exact = float(number) == float(value)
    except (TypeError, ValueError, OverflowError):
        exact, number = False, 0
    if not exact:
        raise invalid("int_parsing", f"body.{name}", "Input should be a valid integer")
    if least is not None and number < least:
        raise bad_request(f"{name} must be at least {least}, got {number}.", name, number)
    if most is not None and number > most:
        raise bad_request(f"{name} must be at most {most}, got {number}.", name, number)
    return number


def _stop(body: dict[str, Any], name: str) -> list[str]:
    value = body.get(name)
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise invalid("string_type", f"body.{name}", "Input should be a valid string")
    if "" in stops:
        raise bad_request(f"{name} cannot contain an empty string.", name)
    return stops


def _logprobs(endpoint: Endpoint, body: dict[str, Any]) -> int | None:
    if endpoint == "chat":
        return _integer(body, "top_logprobs", 0, least=0) if _boolean(body, "logprobs") else None
    if endpoint == "completions" and body.get("logprobs") is not None:
        return _integer(body, "logprobs", 0, least=0)
    return None
