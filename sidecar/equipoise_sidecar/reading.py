"""What a request's body says of its size and its sender, without tokenising anything.

Text is measured in UTF-8 bytes of the strings that the prompt is made of (the dispatcher learns tokens per byte), token
ids are counted, images, sounds and films are counted and not measured. Numbers are read as the engine reads them; what
it would refuse is left out, since it answers such a request with 400 at no cost.
"""

from __future__ import annotations

from typing import Any

from equipoise_sidecar.body import Body, BodyError, read_bool, read_int
from equipoise_sidecar.declared import Declared, declare
from equipoise_sidecar.facts import EndpointKind, Facts
from equipoise_sidecar.prompt_bytes import is_media, prompt_bytes
from equipoise_sidecar.shape import features_of

COMPLETIONS_MAX_TOKENS = 16
"""vLLM's default of `/v1/completions`; the others generate up to the context's end."""
MOST_COPIES = 16_384
"""vLLM's own limit of `n` (VLLM_MAX_N_SEQUENCES)."""

_PROMPT_MEMBERS = {
    EndpointKind.CHAT: ("messages", "tools", "functions", "documents"),
    EndpointKind.COMPLETIONS: ("suffix",),
    EndpointKind.RESPONSES: ("input", "instructions", "tools"),
    EndpointKind.MESSAGES: ("system", "messages", "tools"),
    EndpointKind.AUDIO: (),
    EndpointKind.POOLING: (
        "messages",
        "query",
        "queries",
        "documents",
        "text_1",
        "text_2",
        "data_1",
        "data_2",
        "texts",
        "inputs",
    ),
}
_LISTED = ("documents", "text_2", "data_2", "texts", "inputs", "queries")
_WHOLE = frozenset(("tools", "functions"))
"""Go into the prompt as JSON: keys count too."""
_CONVERSATIONS = frozenset(("messages", "input"))
_SYSTEM = frozenset(("system", "instructions"))


def read_facts(
    path: str,
    kind: EndpointKind,
    body: Body,
    headers: Declared | None = None,
    *,
    features: bool = False,
    prefixes: bool = False,
) -> Facts:
    """Read a JSON body, and what `headers` or its metadata declare. `features`, `prefixes`: those too.

    Raises BodyError for a member that cannot be read, DeclarationError for one that declares what cannot be.
    """
    facts = Facts(path=path, kind=kind, body_bytes=len(body.raw))
    model = body.value("model")
    facts.model = model if isinstance(model, str) else ""
    facts.stream = bool(read_bool(body.value("stream")))
    declare(
        facts, headers or {}, body.value("metadata"), (body.value("user"), body.value("safety_identifier"))
    )
    conversation = _read_prompt(facts, body)
    _read_limits(facts, body)
    if features:
        facts.features = features_of(path, kind, body, conversation)
    if prefixes:
        facts.prompt_bytes = prompt_bytes(facts, body, conversation)
    return facts


def _read_limits(facts: Facts, body: Body) -> None:
    match facts.kind:
        case EndpointKind.CHAT:
            facts.max_tokens = read_int(body.value("max_completion_tokens"))
            if facts.max_tokens is None:
                facts.max_tokens = read_int(body.value("max_tokens"))
        case EndpointKind.COMPLETIONS:
            facts.max_tokens = read_int(body.value("max_tokens"))
            if "max_tokens" not in body:
                facts.max_tokens = COMPLETIONS_MAX_TOKENS
        case EndpointKind.RESPONSES:
            facts.max_tokens = read_int(body.value("max_output_tokens"))
        case EndpointKind.MESSAGES | EndpointKind.AUDIO:
            facts.max_tokens = read_int(body.value("max_tokens"))
        case EndpointKind.POOLING:
            facts.max_tokens = 0
    if facts.max_tokens is not None:
        facts.max_tokens = max(0, facts.max_tokens)
    copies = 1
    if facts.kind in (EndpointKind.CHAT, EndpointKind.COMPLETIONS):
        # n is also the width of a beam search
        copies = max(1, _copies(body, "n"), _copies(body, "best_of"))
    facts.sequences = facts.prompts * copies


def _copies(body: Body, name: str) -> int:
    copies = read_int(body.value(name)) or 1
    if copies > MOST_COPIES:
        raise BodyError(f"{name}: at most {MOST_COPIES} answers to a request: lower {name}")
    return copies


def _read_prompt(facts: Facts, body: Body) -> Any:
    """Measure the prompt; return the conversation or the text that it consists of."""
    conversation = None
    for name in _PROMPT_MEMBERS[facts.kind]:
        if name in _WHOLE:
            facts.text_bytes += body.size(name)
        elif name in body:
            value = body.value(name)
            before = facts.text_bytes
            if name in _CONVERSATIONS:
                conversation = value
                _measure_turns(facts, value)
            else:
                _measure(facts, value)
            if name in _SYSTEM:
                facts.system_bytes += facts.text_bytes - before
    match facts.kind:
        case EndpointKind.COMPLETIONS:
            conversation = body.value("prompt")
            _read_items(facts, conversation)
            facts.images += max(_length(body, "prompt_embeds"), int(body.value("prompt_embeds") is not None))
        case EndpointKind.POOLING:
            _read_items(facts, body.value("input"))
            facts.prompts = max(facts.prompts, *(_length(body, name) for name in _LISTED))
        case EndpointKind.CHAT if facts.path.endswith("/batch"):
            facts.prompts = max(1, _length(body, "messages"))
    return conversation


def _measure_turns(facts: Facts, turns: Any) -> None:
    """Measure a conversation, and how much of it system and developer messages are."""
    if not isinstance(turns, list):
        _measure(facts, turns)
        return
    for turn in turns:
        before = facts.text_bytes
        _measure(facts, turn)
        if isinstance(turn, dict) and turn.get("role") in ("system", "developer"):
            facts.system_bytes += facts.text_bytes - before


def _length(body: Body, name: str) -> int:
    value = body.value(name) if name in body else None
    return len(value) if isinstance(value, list) else 0


def _read_items(facts: Facts, prompt: Any) -> None:
    """Read what may be one text, one list of ids, or a list of either."""
    items = prompt if isinstance(prompt, list) and not _is_ids(prompt) else [prompt]
    facts.prompts = max(1, len(items))
    for item in items:
        if isinstance(item, list) and _is_ids(item):
            facts.prompt_ids = (facts.prompt_ids or 0) + len(item)
        else:
            _measure(facts, item)


def _is_ids(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], int)


def _measure(facts: Facts, value: Any) -> None:
    """Add the strings and the media in `value`, however deep: the decoder bounds the depth."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            facts.text_bytes += len(part) if part.isascii() else len(part.encode(errors="surrogatepass"))
        elif isinstance(part, list):
            pending.extend(part)
        elif isinstance(part, dict):
            if is_media(part):
                facts.images += 1
            else:
                pending.extend(part.values())
