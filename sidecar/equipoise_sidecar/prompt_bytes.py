"""The prompt as bytes in the order in which the engine computes it: what two prompts share from their beginning.

No template is run. The turns stand one after the other with their roles, tools behind the leading system turns, where most
templates have them. Where that is not so, less is found than the engine shares, not more. A picture, sound or film is
a digest, repeated to about as many bytes as its tokens would have as text.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import Any

import msgspec

from equipoise_sidecar.body import Body, read_bool
from equipoise_sidecar.facts import EndpointKind, Facts, PromptBytes

MOST_BYTES = 256 * 1024
"""Of a conversation, or of a turn of it: what comes after counts as never seen."""
MEDIA_BYTES = 1728
"""What stands for a picture: 576 tokens of three bytes, as it is counted where nothing is known of it."""
_MEDIA_ENDS = 8192
"""Bytes looked at, at either end of what a picture is given as: a body may hold megabytes of it."""
_ROOT = (
    "model",
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
    "documents",
    "add_special_tokens",
    "previous_response_id",
)
"""What changes a prompt from its first token, or keeps it apart in the engine's cache. `model` names the adapter too."""
_TOOLS = ("tools", "functions")
_FIRST_ROLES = ("system", "developer")
_MEDIA = frozenset(("image_url", "image_embeds", "image_pil", "input_audio", "audio_url", "video_url"))
_MEDIA_TYPES = ("image", "audio", "video")
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
_encode = msgspec.json.Encoder(order="sorted").encode
ANSWER_BEGINS, ANSWER_ENDS = _encode({"role": "assistant", "content": "|"}).split(b"|")
"""What stands around an answer in the prompt of its conversation's next turn."""


def prompt_bytes(facts: Facts, body: Body, conversation: Any) -> PromptBytes | None:
    """Lay a body's prompts out; None where there is none that can be, which then shares nothing.

    `conversation`: its decoded messages, input or prompt. Of a long one only the first `MOST_BYTES` and a little more.
    """
    path, kind = facts.path, facts.kind
    try:
        if _reads_no_cache(kind, body):
            return None
        match kind:
            case EndpointKind.COMPLETIONS:
                prompts = tuple(map(_item, _items(conversation)))
            case EndpointKind.CHAT if path.endswith("/batch"):
                return None
            case EndpointKind.CHAT | EndpointKind.RESPONSES | EndpointKind.MESSAGES:
                prompts = (_conversation(kind, body, conversation, media=facts.images > 0),)
            case _:
                return None
    except _UNREADABLE:
        return None  # the engine will refuse it, or it is text that is not Unicode
    parts = [path.encode(), *map(body.source, _ROOT)]
    sizes = [len(prompt) for prompt in prompts]
    if sizes and sizes[0] > MOST_BYTES and kind is not EndpointKind.COMPLETIONS:
        sizes[0] = max(sizes[0], facts.text_bytes)
    root = b"".join([b"%d:%b" % (len(part), part) for part in parts])
    goes_on = kind is EndpointKind.CHAT and facts.sequences == 1 and not _is_answer(conversation)
    return PromptBytes(root, prompts, tuple(sizes), goes_on)


def _reads_no_cache(kind: EndpointKind, body: Body) -> bool:
    """Say whether the engine computes all of a prompt because it is to tell the probabilities of its tokens."""
    if body.value("prompt_logprobs") is not None:
        return True
    echoes = kind is EndpointKind.COMPLETIONS and read_bool(body.value("echo"))
    return bool(echoes) and body.value("logprobs") is not None


def _is_answer(conversation: Any) -> bool:
    """Say whether the last turn is the model's own, which it goes on with."""
    last = conversation[-1] if isinstance(conversation, list) and conversation else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def _conversation(kind: EndpointKind, body: Body, turns: Any, *, media: bool) -> bytes:
    if media:
        turns = _with_stand_ins(turns)
    if not isinstance(turns, list):
        turns = [turns]
    first = 0
    while first < len(turns) and isinstance(turns[first], dict) and turns[first].get("role") in _FIRST_ROLES:
        first += 1
    # of chat there is neither
    parts = [body.source("system" if kind is EndpointKind.MESSAGES else "instructions")]
    tools = b"".join(map(body.source, _TOOLS))
    length = 0
    for place, turn in enumerate(turns):
        if place == first:
            parts.append(tools)
        parts.append(_encode(_plain(turn)))
        length += len(parts[-1])
        if length > MOST_BYTES:
            break
    return b"".join(parts)


def _plain(turn: Any) -> Any:
    """Return a turn without members that say nothing, which clients send or leave out, and no more text than is looked at."""
    if isinstance(turn, str):
        return turn[:MOST_BYTES]
    if not isinstance(turn, dict):
        return turn
    turn = {name: value for name, value in turn.items() if value is not None and value != []}
    if isinstance(text := turn.get("content"), str) and len(text) > MOST_BYTES:
        turn["content"] = text[:MOST_BYTES]
    return turn


def _items(prompt: Any) -> list[Any]:
    """Return the prompts of a completion: one text, one list of ids, or a list of either."""
    if not isinstance(prompt, list) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return prompt


def _item(prompt: Any) -> bytes:
    if isinstance(prompt, str):
        return prompt.encode(errors="surrogatepass")
    return array("Q", prompt).tobytes()


def _with_stand_ins(value: Any) -> Any:
    """Return a copy in which a digest stands for each long string in a part that is no text."""
    if isinstance(value, list):
        return [_with_stand_ins(part) for part in value]
    if not isinstance(value, dict):
        return value
    if is_media(value):
        source = _encode(value)
        digest = blake2b(source[:_MEDIA_ENDS], digest_size=32)
        digest.update(b"%d" % len(source) + source[-_MEDIA_ENDS:])
        return (digest.hexdigest() * (MEDIA_BYTES // 64 + 1))[:MEDIA_BYTES]
    return {name: _with_stand_ins(part) for name, part in value.items()}


def is_media(part: dict[str, Any]) -> bool:
    """Say whether a part of a message is a picture, a sound or a film."""
    kind = part.get("type")
    return (isinstance(kind, str) and any(word in kind for word in _MEDIA_TYPES)) or not _MEDIA.isdisjoint(
        part
    )
