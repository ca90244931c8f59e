"""From what is known of a body to what the scheduler and the gate count: a request with its estimates."""

from __future__ import annotations

from typing import Any

from equipoise_api.tenant import SloTarget
from equipoise_scheduling.plain import check_numbers
from equipoise_scheduling.prompt_estimate import PromptEstimator
from equipoise_scheduling.request import Request
from equipoise_sidecar.facts import EngineProfile, Facts

IMAGE_TOKENS = 576.0
"""Tokens of an image where nothing is known: LLaVA 1.5's. Sounds and films are learnt with the same figure."""
_IMAGE_LEARNING = 0.1
CONTEXT_TOKENS = 8192
"""The model's context where the engine does not say."""


class Sizing:
    """Estimates prompts, and learns from those that turn out."""

    def __init__(self) -> None:
        self._text = PromptEstimator()
        self._image_tokens: dict[str, float] = {}

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
        counted = self._counted(facts)
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
        if facts.images:
            known = facts.prompt_ids or 0
            text = self._text.estimate(facts.model, tenant, facts.application, facts.text_bytes, known).tokens
            each = max(0.0, (prompt_tokens - text) / facts.images)
            mean = self._image_tokens.get(facts.model, each)
            self._image_tokens[facts.model] = mean + _IMAGE_LEARNING * (each - mean)
        else:
            self._text.learn(
                (facts.model, tenant, facts.application),
                facts.text_bytes,
                self._counted(facts),
                prompt_tokens,
            )

    def _counted(self, facts: Facts) -> int:
        images = (
            round(facts.images * self._image_tokens.get(facts.model, IMAGE_TOKENS)) if facts.images else 0
        )
        return (facts.prompt_ids or 0) + images

    def snapshot(self) -> dict[str, Any]:
        """Return what was learnt, as plain data."""
        return {"text": self._text.snapshot(), "images": dict(self._image_tokens)}

    def restore(self, data: dict[str, Any]) -> None:
        """Take over a snapshot. ValueError if it cannot be read."""
        check_numbers(data)
        images = data.get("images", {}) if isinstance(data, dict) else None
        if not isinstance(images, dict) or not all(
            isinstance(tokens, int | float) and tokens >= 0 for tokens in images.values()
        ):
            raise ValueError("snapshot: images must map models to numbers")
        self._text.restore(data.get("text", {}))
        self._image_tokens = {str(model): float(tokens) for model, tokens in images.items()}


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
