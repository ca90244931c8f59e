"""The engine's endpoints that the sidecar offers, and what each one is.

An allow-list: vLLM's key guards `/v1/*` alone, so `/sleep`, `/invocations`, `/collective_rpc` and their like must not be
reachable from here at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from equipoise_sidecar.facts import EndpointKind


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of the engine."""

    path: str
    kind: EndpointKind | None = None
    """Set: its POST requests are scheduled. None: passed on at once."""
    public: bool = False
    """Answered without asking who wants to know: probes and metrics."""

    @property
    def runs_usage(self) -> bool:
        """Whether its streams carry usage in each chunk when asked to."""
        return self.path in ("/v1/chat/completions", "/v1/completions")

    @property
    def heeds_priority_header(self) -> bool:
        """Whether X-Vllm-Priority beats the body's `priority`; elsewhere that member must not pass."""
        return self.kind is not EndpointKind.POOLING and not self.path.endswith("/batch")

    @property
    def shape(self) -> EndpointKind:
        """The kind whose error bodies it uses."""
        return self.kind or (
            EndpointKind.MESSAGES if self.path.startswith("/v1/messages") else EndpointKind.CHAT
        )


_SCHEDULED = {
    EndpointKind.CHAT: ("/v1/chat/completions", "/v1/chat/completions/batch"),
    EndpointKind.COMPLETIONS: ("/v1/completions",),
    EndpointKind.RESPONSES: ("/v1/responses",),
    EndpointKind.MESSAGES: ("/v1/messages",),
    EndpointKind.AUDIO: ("/v1/audio/transcriptions", "/v1/audio/translations"),
    EndpointKind.POOLING: (
        "/v1/embeddings",
        "/v2/embed",
        "/pooling",
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
    ),
}
_PASSED = ("/v1/models", "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/tokenizer_info")
_PUBLIC = ("/health", "/ping", "/version", "/load", "/metrics")
_STORED_RESPONSE = re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,256}(/cancel)?")

ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        *(Endpoint(path, kind) for kind, paths in _SCHEDULED.items() for path in paths),
        *(Endpoint(path) for path in _PASSED),
        *(Endpoint(path, public=True) for path in _PUBLIC),
    )
}


def find(path: str) -> Endpoint | None:
    """Return what is at `path`; None for what is not offered. No part of a path is interpreted twice."""
    endpoint = ENDPOINTS.get(path)
    if endpoint is None and _STORED_RESPONSE.fullmatch(path):
        return Endpoint(path)
    return endpoint
