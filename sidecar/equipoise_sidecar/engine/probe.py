"""What only asking can tell of an engine: its models, its fingerprint, and which of our means it understands.

Run on connecting and after a restart of the engine. Two generations of one token: a stream that asks for no usage (whether
it comes all the same, and the fingerprint on the last chunk) and the same prompt again as a whole answer (whether usage
says what came from the prefix cache).
"""

from __future__ import annotations

import asyncio

import msgspec

from equipoise_sidecar.engine.errors import EngineError
from equipoise_sidecar.engine.fetch import Fetched, fetch
from equipoise_sidecar.engine.pool import EnginePool
from equipoise_sidecar.facts import EngineProfile
from equipoise_sidecar.usage import ReportedUsage

PROBE_SECONDS = 60.0
"""The probe waits in the engine's queue like any request."""
BUSY_SECONDS = 0.25
"""Between tries while the engine answers 503."""
PROMPT_TOKENS = 300
"""More than two blocks of any usual size, so that the second time some of it is cached."""


_PATH = "/v1/completions"


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Card] = []


class _Answer(msgspec.Struct):
    """A chunk or a whole answer."""

    system_fingerprint: str | None = None
    usage: ReportedUsage | None = None


async def probe(
    pool: EnginePool, *, api_key: str | None = None, timeout: float = PROBE_SECONDS
) -> EngineProfile:
    """Ask the engine what it is. Raises EngineError where it does not say what it serves.

    An engine that generates nothing (embeddings) leaves the rest at what asks least of it.
    """
    cards = _read_models(await fetch(pool, "/v1/models", api_key=api_key, timeout=timeout))
    # adapters have a parent's length or none; the first card is the base model
    longest = cards[0].max_model_len
    ids = [1] * (PROMPT_TOKENS if longest is None else max(1, min(PROMPT_TOKENS, longest - 1)))
    request = {"model": cards[0].id, "prompt": ids, "max_tokens": 1, "temperature": 0}
    streaming = msgspec.json.encode({**request, "stream": True})
    deadline = asyncio.get_running_loop().time() + timeout

    async def generate(body: bytes, priority: int | None = None) -> Fetched:
        while True:
            answer = await fetch(pool, _PATH, body=body, api_key=api_key, priority=priority, timeout=timeout)
            if answer.status != 503:
                return answer
            if asyncio.get_running_loop().time() > deadline:
                raise EngineError("the engine is too busy for the probe")
            await asyncio.sleep(BUSY_SECONDS)

    # vLLM used to refuse a priority where it is not in priority mode; later versions ignore it
    streamed = await generate(streaming, priority=1)
    priorities = streamed.status == 200
    if not priorities:
        streamed = await generate(streaming)
    whole = await generate(msgspec.json.encode(request))
    chunks = _chunks(streamed)
    answers = [*chunks, *([_read(whole.body)] if whole.status == 200 else [])]
    usages = [answer.usage for answer in answers if answer.usage is not None]
    fingerprints = [a.system_fingerprint for a in answers if a.system_fingerprint is not None]
    return EngineProfile(
        system_fingerprint=fingerprints[0] if fingerprints else None,
        forces_usage=any(chunk.usage is not None for chunk in chunks),
        reports_cached_tokens=any(u.prompt_tokens_details is not None for u in usages) if usages else None,
        max_model_len=longest,
        models=tuple(card.id for card in cards),
        priorities=priorities,
    )


def _read_models(answer: Fetched) -> list[_Card]:
    if answer.status != 200:
        raise EngineError(f"/v1/models answered {answer.status}")
    try:
        cards = msgspec.json.decode(answer.body, type=_Models).data
    except (msgspec.MsgspecError, ValueError) as error:
        raise EngineError(f"/v1/models: {error}") from None
    if not cards:
        raise EngineError("/v1/models names no model")
    return cards


def _chunks(answer: Fetched) -> list[_Answer]:
    if answer.status != 200:
        return []
    events = answer.body.split(b"\n\n")
    return [_read(event[6:]) for event in events if event.startswith(b"data: {")]


def _read(body: bytes) -> _Answer:
    try:
        return msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, ValueError) as error:
        raise EngineError(f"{_PATH}: {error}") from None
