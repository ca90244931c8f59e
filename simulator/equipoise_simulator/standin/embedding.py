"""`/v1/embeddings`: the prompt is prefilled, and the vector follows from it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from equipoise_simulator.standin.shapes import dumps
from equipoise_simulator.standin.text import seed_of

if TYPE_CHECKING:
    from equipoise_simulator.standin.answer import Answer, Choice

SIZE = 8


class EmbeddingShape:
    """A list of vectors; it does not stream."""

    def __init__(self, answer: Answer, model: str) -> None:
        self.answer = answer
        self.model = model

    def opening(self) -> str:
        """Never called."""
        raise NotImplementedError

    def chunk(self, choice: Choice, text: str, pieces: list[str]) -> str:
        """Never called."""
        raise NotImplementedError

    closing = opening

    def whole(self) -> str:
        """Return the body."""
        data = []
        for choice in self.answer.choices:
            digest = hashlib.sha256(seed_of(choice.prompt.text).to_bytes(4, "big")).digest()
            vector = [byte / 255 for byte in digest[:SIZE]]
            data.append({"index": choice.index, "object": "embedding", "embedding": vector})
        tokens = self.answer.prompt_tokens
        usage = {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        }
        head = {
            "id": f"embd-{self.answer.request_id}",
            "object": "list",
            "created": self.answer.created,
            "model": self.model,
        }
        return dumps({**head, "data": data, "usage": usage})
