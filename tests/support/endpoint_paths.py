"""The path that most requests of a kind take."""

from equipoise_sidecar.facts import EndpointKind

PATHS = {
    EndpointKind.CHAT: "/v1/chat/completions",
    EndpointKind.COMPLETIONS: "/v1/completions",
    EndpointKind.RESPONSES: "/v1/responses",
    EndpointKind.MESSAGES: "/v1/messages",
    EndpointKind.POOLING: "/v1/embeddings",
}
