"""From what is known of a body to what the scheduler and the gate count: a request with its estimates."""

from __future__ import annotations

from typing import Any

from equipoise_api.tenant import SloTarget
from equipoise_scheduling.client_memory import ClientMemory
from equipoise_scheduling.plain import check_numbers
from equipoise_scheduling.prompt_estimate import PromptEstimator
from equipoise_scheduling.request import Request
from equipoise_sidecar.facts import EngineProfile, Facts

IMAGE_TOKENS = 576.0
"""Tokens of an image where nothing is known: LLaVA 1.5's. Sounds and films are learnt with the same figure."""
_IMAGE_LEARNING = 0.1
MOST_IMAGE_MEANS = 1024
"""Of tenants and models, and again of models alone."""
CONTEXT_TOKENS = 8192
"""The model's context where the engine does not say."""


class Sizing:
    """Estimates prompts, and learns from those that turn out."""

    def __init__(self) -> None:
        self._text = PromptEstimator()
        self._images: ClientMemory[float] = ClientMemory(MOST_IMAGE_MEANS)
        """Mean tokens of an image, by tenant and model."""
        self._models: ClientMemory[float] = ClientMemory(MOST_IMAGE_MEANS)
        """The same by model alone."""

    def request(
        self,
        tenant: str,
        facts: Facts,
        *,
        name: str,
        slo: SloTarget | None,
        profile: EngineProfile,
        now: float,
        call: int = 1,
    ) -> Request:
        """Build the request that the scheduler sees. O(1).

        `slo`: what was agreed for it; `call`: its place in its interaction.
        """
        counted = self._counted(tenant, facts)
        prompt = self._text.estimate(facts.model, tenant, facts.application, facts.text_bytes, counted)
        system = (prompt.tokens - counted) * facts.system_bytes // facts.text_bytes if facts.text_bytes else 0
        context = profile.max_model_len or CONTEXT_TOKENS
        room = max(1, context - prompt.tokens // facts.prompts)
        max_tokens = room if facts.max_tokens is None else min(max(1, facts.max_tokens), context)
        return Request(
            id=name,
            tenant=tenant,
            arrival=now,
            prompt_tokens=prompt.tokens,
            prompt_upper=prompt.upper,
            max_tokens=max_tokens if facts.kind.generates else 0,
            sequences=facts.sequences,
            prompts=facts.prompts,
            application=facts.application,
            user=facts.user,
            interaction=facts.interaction,
            call_index=call,
            call_count=facts.call_count,
            system_tokens=system,
            ttft_budget=_seconds(slo.ttft_milliseconds) if slo is not None else None,
            e2e_budget=_seconds(slo.e2e_milliseconds) if slo is not None else None,
            features=facts.features,
        )

    def learn(self, tenant: str, facts: Facts, prompt_tokens: int) -> None:
        """Take in a request's exact prompt tokens. What an image is worth is learnt from requests that have any."""
        ids = facts.prompt_ids or 0
        if not facts.images:
            key = (facts.model, tenant, facts.application)
            self._text.learn(key, facts.text_bytes, ids, prompt_tokens)
            return
        text = self._text.estimate(facts.model, tenant, facts.application, facts.text_bytes, ids).tokens
        each = max(0.0, (prompt_tokens - text) / facts.images)
        for memory, name in ((self._images, (tenant, facts.model)), (self._models, (facts.model,))):
            mean = memory.get(name)
            memory.put(name, each if mean is None else mean + _IMAGE_LEARNING * (each - mean))

    def _counted(self, tenant: str, facts: Facts) -> int:
        ids = facts.prompt_ids or 0
        if not facts.images:
            return ids
        each = self._images.get((tenant, facts.model))
        if each is None:
            each = self._models.get((facts.model,))
        return ids + round(facts.images * (IMAGE_TOKENS if each is None else each))

    def snapshot(self) -> dict[str, Any]:
        """Return what was learnt, as plain data."""
        memories = (self._images, self._models)
        images = [[*name, tokens] for memory in memories for name, tokens in memory.items()]
        return {"text": self._text.snapshot(), "images": images}

    def restore(self, data: dict[str, Any]) -> None:
        """Take over a snapshot. ValueError if it cannot be read."""
        check_numbers(data)
        fresh = Sizing()
        try:
            for *name, tokens in data.get("images", []):
                memory = {2: fresh._images, 1: fresh._models}[len(name)]
                memory.put(tuple(map(str, name)), _not_negative(tokens))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"snapshot: images cannot be read: {error!r}") from error
        self._text.restore(data.get("text", {}))
        self._images, self._models = fresh._images, fresh._models


def _not_negative(tokens: Any) -> float:
    if not float(tokens) >= 0:
        raise ValueError(f"{tokens} must not be negative")
    return float(tokens)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
