"""What a body shows of the answer to come, for predictors that look: its shape, and cheap cues in the last user message."""

from __future__ import annotations

from typing import Any

from equipoise_scheduling.features import Features, cues_in
from equipoise_sidecar.body import Body, read_int
from equipoise_sidecar.facts import EndpointKind

_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_STRUCTURED = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
_HOTTEST = 100


def features_of(path: str, kind: EndpointKind, body: Body, conversation: Any) -> Features | None:
    """Look at a body whose `conversation` (messages, input or prompt) is decoded. None where nothing is generated.

    O(messages) plus the bounded cost of the cues. Raises BodyError for a member that cannot be read.
    """
    if not kind.generates:
        return None
    text = _last_text(conversation)
    cues, asked = cues_in(text) if text else (0, 0)
    return Features(
        endpoint=path,
        limit_given=any(read_int(body.value(name)) is not None for name in _LIMITS),
        messages=len(conversation) if isinstance(conversation, list) else int(bool(conversation)),
        last_characters=len(text),
        stops=_count(body.value("stop")) + _count(body.value("stop_sequences")),
        temperature=_temperature(body.value("temperature")),
        tools=_length(body, "tools"),
        structured=any(_is_structured(body.value(name)) for name in _STRUCTURED),
        cues=cues,
        asked_tokens=asked,
    )


def _last_text(conversation: Any) -> str:
    """Return the text of the last user message, or of a plain prompt."""
    if isinstance(conversation, str):
        return conversation
    if not isinstance(conversation, list):
        return ""
    for turn in reversed(conversation):
        if isinstance(turn, str):
            return turn
        if isinstance(turn, dict) and turn.get("role", "user") == "user":
            return _content(turn.get("content"))
    return ""


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _temperature(value: Any) -> float | None:
    """Return what can be one: NaN and 10**400 are numbers too."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= _HOTTEST else None


def _count(stops: Any) -> int:
    return len(stops) if isinstance(stops, list) else int(isinstance(stops, str))


def _length(body: Body, name: str) -> int:
    value = body.value(name) if name in body else None
    return len(value) if isinstance(value, list) else 0


def _is_structured(value: Any) -> bool:
    return bool(value) and not (isinstance(value, dict) and value.get("type") == "text")
